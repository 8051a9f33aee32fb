"""Specifications of cells: what is stored of them, and how two of them differ."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from overnight.durable import canonical

IMPORTED = "imported"
"""The kind of a cell that another harness ran: a record of what its files say. Nothing runs it."""

_SHOWN = 60
"""Longest value, in characters, that a message quotes whole."""


class Planned(Protocol):
    """One cell as a grid plans it. Cells that share a template should share the very dict object."""

    @property
    def key(self) -> str: ...
    @property
    def coords(self) -> Mapping[str, Any]: ...
    @property
    def template(self) -> dict[str, Any]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A template in the form in which the database holds it."""

    hash: str
    json: str
    warm_key: str
    warm_json: str
    threads: int


def stored(template: Mapping[str, Any]) -> Stored:
    text = canonical(template)
    warm = warm_specification(template)
    return Stored(
        hash=hashlib.sha256(text.encode()).hexdigest(),
        json=text,
        warm_key=warm_key(warm),
        warm_json=canonical(warm),
        threads=int(template.get("threads", 1)),
    )


def put(db: sqlite3.Connection, template: Mapping[str, Any]) -> tuple[int, int]:
    """Have a template in the database, inside a transaction of the caller; its id, and that of its warm server."""
    new = stored(template)
    db.execute(
        "INSERT INTO warms (key, json) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
        (new.warm_key, new.warm_json),
    )
    (warm_id,) = db.execute("SELECT id FROM warms WHERE key = ?", (new.warm_key,)).fetchone()
    db.execute(
        "INSERT INTO specs (hash, json, warm_id, threads) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
        (new.hash, new.json, warm_id, new.threads),
    )
    (spec_id,) = db.execute("SELECT id FROM specs WHERE hash = ?", (new.hash,)).fetchone()
    return spec_id, warm_id


def warm_specification(template: Mapping[str, Any]) -> dict[str, Any]:
    """What a warm server loads for a cell; empty for a cell that needs none; of an imported one, whose files do not
    say how it was run, what no warm server is ever started for (`head`)."""
    if template.get("kind") == IMPORTED:
        return {"kind": IMPORTED}
    model = template.get("model")
    if model is None:
        return {}
    return {
        "engine": template.get("engine"),
        "source": model.get("source"),
        "dtype": model.get("dtype"),
        "device": model.get("device"),
        "options": model.get("options", {}),
    }


def warm_key(warm: Mapping[str, Any]) -> str:
    """A short name for a warm specification: 16 hex digits of its hash, or nothing for the empty one."""
    return hashlib.sha256(canonical(warm).encode()).hexdigest()[:16] if warm else ""


IMPORTED_WARM_KEY = warm_key({"kind": IMPORTED})
"""Marks imported cells in the index of pending ones, passed over in one step, however many."""


def full(template: dict[str, Any], key: str, coords: dict[str, Any], seed: int) -> dict[str, Any]:
    """A cell's whole specification."""
    return {**template, "key": key, "coords": coords, "seed": seed}


def first_difference(old: Any, new: Any) -> str:
    """`PATH OLD -> NEW` of the first place where two JSON values differ, in the order of their keys; '' for
    none.

    True and 1, or 1 and 1.0, are different: they are different bytes in a canonical specification.
    """
    return next(_differences(old, new, ""), "")


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{path}.{name}" if path else str(name)
            if name not in old:
                yield f"{inner} (absent) -> {_shown(canonical(new[name]))}"
            elif name not in new:
                yield f"{inner} {_shown(canonical(old[name]))} -> (absent)"
            else:
                yield from _differences(old[name], new[name], inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{path}[{index}]")
    elif (before := canonical(old)) != (now := canonical(new)):
        start = _first_unlike(before, now)
        yield f"{path} {_shown(before, start)} -> {_shown(now, start)}"


def _first_unlike(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shown(text: str, start: int = 0) -> str:
    """`text`, or of a long one the part around `start`."""
    if len(text) <= _SHOWN:
        return text
    begin = min(max(0, start - _SHOWN // 3), len(text) - _SHOWN)
    end = begin + _SHOWN
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")

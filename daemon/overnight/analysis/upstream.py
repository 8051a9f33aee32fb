"""The older harness's files, read and checked before anything is done with them: a folder, or one file.

    NAME_run1.json     {"metadata": {...}, "conversation": [messages]}, `content` as a string or as fragments
    grid_state.json    {"cells": {KEY: what metadata holds, too}, "started_at": ..., "last_updated": ...}

Both may tell of one cell: then the conversation's own metadata counts, and what the other says is kept beside it.
Everything raises UserError with one line. Nothing is filled in that no file says.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overnight import checked
from overnight.analysis.conversation import Conversation, read_upstream
from overnight.errors import UserError
from overnight.grid import keys
from overnight.queue.importing import ImportedCell
from overnight.queue.specs import IMPORTED
from overnight.queue.states import Status

STATE = "grid_state.json"
PATTERN = "*_run*.json"
STATUSES = {
    "completed": Status.DONE,
    "failed": Status.FAILED,
    "cancelled": Status.CANCELLED,
    "running": Status.PENDING,
    "pending": Status.PENDING,
}
"""Nobody runs any more what was left running."""

LARGEST_BYTES = 256 * 2**20
_LARGEST_ENTRY = 64 * 2**10
_DEEPEST = 50
_LONGEST_REASON = 2000
_MOST = 2**53
"""Of a count: what any program that reads JSON can hold."""
_NAME = re.compile(keys.NAME)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_END_REASON = re.compile(r"[a-z][a-z_]{0,47}")


@dataclass(frozen=True)
class Facts:
    """What one place says of a cell. None = not said. said: its status in the older harness's words; raw: all of it."""

    key: str
    coords: Mapping[str, Any]
    scaffold_id: int | None
    said: str
    iterations: int | None
    tokens: int | None
    error: str
    end_reason: str | None
    started_at: float | None
    finished_at: float | None
    raw: Mapping[str, Any]

    @property
    def status(self) -> Status:
        return STATUSES[self.said]


@dataclass(frozen=True)
class Found:
    """One cell. file: its conversation, None = there is none among these files; turns: how many replies that holds.
    state: what grid_state.json says of it, metadata: what its conversation does."""

    key: str
    file: Path | None = None
    sha256: str | None = None
    turns: int = 0
    state: Facts | None = None
    metadata: Facts | None = None

    @property
    def facts(self) -> Facts:
        """What counts: the conversation's own word, unless only the other knows how the cell ended."""
        known = [each for each in (self.metadata, self.state) if each is not None]
        return next((each for each in known if each.status is not Status.PENDING), known[0])


@dataclass(frozen=True)
class Night:
    """All that was found. name: of the folder; ignored: names of other files in it; has_state: there is a
    grid_state.json, that says when it was begun and last written."""

    name: str
    source: Path
    cells: tuple[Found, ...]
    ignored: tuple[str, ...] = ()
    has_state: bool = False
    times: Mapping[str, str] = field(default_factory=dict)


def read(path: Path, *, broken: dict[str, str] | None = None) -> Night:
    """Read a folder, a conversation or a grid_state.json whole. Raises UserError.

    broken: takes file (or the key that its name is) -> what is wrong with it; without it one broken file is an error.
    """
    try:
        if path.is_dir():
            return _read_folder(path, broken)
        data = _bytes(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; expected a file or folder of the older harness") from None
    name = path.absolute().parent.name
    document = _json(path, data)
    if isinstance(document, dict) and isinstance(document.get("cells"), dict):
        found, times = _state(path, document)
        return Night(name, path, tuple(found.values()), (), True, times)
    return Night(name, path, (_conversation(path, data, document),))


def conversation(found: Found) -> Conversation | None:
    """A cell's conversation in the common form. Raises UserError."""
    return None if found.file is None else read_upstream(found.file, key=found.key, status=str(found.facts.status))


def imported(found: Found, *, has_state: bool = False) -> ImportedCell:
    """What the queue is told of a cell. has_state: a grid_state.json was read, too."""
    facts = found.facts
    says = (found.file, facts.iterations or None, facts.started_at)
    began = facts.said not in ("pending", "cancelled") or any(each is not None for each in says)
    reason = facts.error
    if facts.said == "running" and not reason:
        reason = "left running by the older harness" + ("" if found.file else ", which kept nothing of it")
    in_state = found.state is not None if has_state else None
    template = {
        "v": 1,
        "kind": IMPORTED,
        "model": {"name": facts.coords["model"]},
        "scaffold": {"id": facts.scaffold_id, "name": facts.coords["scaffold"]},
    }
    return ImportedCell(
        key=found.key,
        coords=facts.coords,
        template=template,
        status=facts.status,
        began=began,
        turns=found.turns if facts.iterations is None else facts.iterations,
        tokens=facts.tokens or 0,
        reason=reason,
        end_reason=facts.end_reason,
        started_at=facts.started_at,
        finished_at=facts.finished_at,
        sha256=found.sha256,
        evidence=_evidence(found, in_state),
    )


def _evidence(found: Found, in_state: bool | None) -> dict[str, Any]:
    """What each place says, whole."""
    said: dict[str, Any] = {"said": found.facts.said}
    for name, facts in (("state", found.state), ("metadata", found.metadata)):
        if facts is not None:
            said[name] = dict(facts.raw)
    if in_state is not None:
        said["in_state"] = in_state
    if unlike := list(differences(found)):
        said["differences"] = unlike
    return said


# -- files ------------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, broken: dict[str, str] | None) -> Night:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    cells: dict[str, Found] = {}
    times: dict[str, str] = {}
    state = next((path for path in files if path.name == STATE), None)
    if state is not None:
        cells, times = _state(state, _json(state, _bytes(state)))
    ignored: list[str] = []
    for path in files:
        if path == state:
            continue
        if not path.match(PATTERN):
            ignored.append(path.name)
            continue
        try:
            data = _bytes(path)
            found = _conversation(path, data, _json(path, data))
            before = cells.get(found.key, Found(found.key))
            if before.file is not None:
                raise UserError(f"{path}: tells of {found.key}, as {before.file.name} does; expected one file a cell")
        except UserError as error:
            if broken is None:
                raise
            broken[path.stem if path.stem in cells else path.name] = str(error)
            continue
        cells[found.key] = replace(found, state=before.state)
    if not (cells or broken):
        raise UserError(f"{folder}: holds neither a {STATE} with cells nor conversations ({PATTERN}); nothing to read")
    return Night(folder.absolute().name, folder, tuple(cells.values()), tuple(ignored), state is not None, times)


def _bytes(path: Path) -> bytes:
    try:
        return checked.read_small(path, LARGEST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON as the older harness writes it ({error})") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"found {name}, expected a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"found {text[:20]}, expected a number that can be held")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} stands there twice")
    return found


def _state(path: Path, document: Any) -> tuple[dict[str, Found], dict[str, str]]:
    if not isinstance(document, dict) or not isinstance(document.get("cells"), dict):
        raise UserError(f"{path}: not a grid_state.json: expected an object with `cells`")
    cells: dict[str, Found] = {}
    for name, entry in document["cells"].items():
        facts = _facts(entry, f"{path}: cells.{name[:80]}")
        if facts.key in cells:
            raise UserError(f"{path}: cells.{name[:80]}: tells of {facts.key} a second time")
        cells[facts.key] = Found(facts.key, state=facts)
    times = {name: document[name] for name in ("started_at", "last_updated") if isinstance(document.get(name), str)}
    for name, text in times.items():
        _time(text, f"{path}: {name}")
    return cells, times


def _conversation(path: Path, data: bytes, document: Any) -> Found:
    if not isinstance(document, dict) or not isinstance(document.get("conversation"), list):
        raise UserError(f"{path}: not a conversation: expected an object with `metadata` and `conversation`")
    facts = _facts(document.get("metadata"), f"{path}: metadata")
    for index, message in enumerate(document["conversation"]):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"{path}: message {index}: expected an object with a role")
        if message.get("content") is not None and not isinstance(message["content"], str | list | dict):
            raise UserError(f"{path}: message {index}: content: expected a text or a list of fragments")
    told = read_upstream(path, key=facts.key)
    sha256 = hashlib.sha256(data).hexdigest()
    if told.sha256 != sha256:
        raise UserError(f"{path}: it is being written just now; try again when that is over")
    return Found(facts.key, path, sha256, len(told.turns), metadata=facts)


# -- fields -----------------------------------------------------------------------------------------------------------


def _facts(entry: Any, where: str) -> Facts:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object with scaffold_name, model_id, run_num and status")
    raw = _clean(entry, where)  # first: nothing below is nested too deep to be shown
    scaffold, model = _name(entry, "scaffold_name", where), _name(entry, "model_id", where)
    run = _whole(entry, "run_num", where)
    if run is None:
        raise UserError(f"{where}: run_num: missing; expected a whole number")
    said = entry.get("status")
    if not isinstance(said, str) or said not in STATUSES:
        raise UserError(f"{where}: status: found {_shown(said)}, expected one of {', '.join(STATUSES)}")
    coords, axes = _coords(entry, {"scaffold": scaffold, "model": model, "run": run}, where)
    key = entry["key"] if axes and isinstance(entry.get("key"), str) else keys.key(scaffold, model, axes, run)
    if len(key) > keys.LONGEST_KEY or not _KEY.fullmatch(key):
        raise UserError(f"{where}: {_shown(key)} cannot name a folder; expected at most {keys.LONGEST_KEY} characters")
    if axes and not key.endswith(f"_run{run}"):
        raise UserError(f"{where}: key: found {_shown(key)}, expected one that ends with _run{run}")
    if len(json.dumps(raw)) > _LARGEST_ENTRY:
        raise UserError(f"{where}: larger than {_LARGEST_ENTRY // 1024} KiB; expected figures of a cell")
    error = raw.get("error")
    end_reason = entry.get("end_reason")
    return Facts(
        key=key,
        coords=coords,
        scaffold_id=_whole(entry, "scaffold_id", where),
        said=said,
        iterations=_whole(entry, "iterations", where),
        tokens=_whole(entry, "total_tokens", where),
        error="" if error is None else (error if isinstance(error, str) else json.dumps(error))[:_LONGEST_REASON],
        end_reason=end_reason if isinstance(end_reason, str) and _END_REASON.fullmatch(end_reason) else None,
        started_at=_time(entry.get("started_at"), f"{where}: started_at"),
        finished_at=_time(entry.get("completed_at"), f"{where}: completed_at"),
        raw=raw,
    )


def _coords(entry: Mapping[str, Any], own: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(all coordinates, the further axes), which an export of ours names."""
    given = entry.get("coords")
    if given is None:
        return own, {}
    # The kind, too: true and 1.0 are equal to run 1, and would be stored as they are.
    if not isinstance(given, dict) or any(
        type(given.get(name)) is not type(value) or given[name] != value for name, value in own.items()
    ):
        raise UserError(f"{where}: coords: expected an object with the same scaffold, model and run")
    axes = {name: value for name, value in given.items() if name not in own}
    for name, value in axes.items():
        if not _NAME.fullmatch(name) or not (value is None or type(value) in (int, float)):
            raise UserError(f"{where}: coords.{name[:48]}: found {_shown(value)}, expected a number or null")
    return dict(given), axes


def _name(entry: Mapping[str, Any], field_name: str, where: str) -> str:
    value = entry.get(field_name)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        said = "missing" if field_name not in entry else f"found {_shown(value)}"
        raise UserError(f"{where}: {field_name}: {said}; expected a name of letters, digits and . _ -")
    return value


def _whole(entry: Mapping[str, Any], field_name: str, where: str) -> int | None:
    value = entry.get(field_name)
    if value is None:
        return None
    try:
        return checked.whole(value, 0, _MOST)
    except ValueError:
        raise UserError(f"{where}: {field_name}: found {_shown(value)}, expected a whole number") from None


def _time(value: Any, where: str) -> float | None:
    """Unix seconds; a time without its zone is taken for UTC, which the older harness writes."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if 0 <= seconds < 1e11:
            return seconds
    except (ValueError, TypeError, OverflowError):
        pass
    raise UserError(f"{where}: found {_shown(value)}, expected a time such as 2026-01-12T15:03:44+00:00")


def _clean(value: Any, where: str, depth: int = 0) -> Any:
    """Text that a database takes: halves of characters and NULs are shown as escapes. Raises UserError for what is
    nested deeper than programs that go through it can follow."""
    if depth > _DEEPEST:
        raise UserError(f"{where}: nested deeper than {_DEEPEST} levels; expected figures of a cell")
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if isinstance(value, dict):
        return {_clean(name, where): _clean(each, where, depth + 1) for name, each in value.items()}
    return [_clean(each, where, depth + 1) for each in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def differences(found: Found) -> Iterator[str]:
    """Where grid_state.json and the conversation's metadata tell of one cell differently."""
    if found.state is None or found.metadata is None:
        return
    for name in ("said", "iterations", "tokens", "error", "started_at", "finished_at"):
        told, other = getattr(found.state, name), getattr(found.metadata, name)
        if told is not None and other is not None and told != other:
            yield f"{'status' if name == 'said' else name}: {told} and {other}"

"""Analysis records, gathered: the figures of each scaffold x model x further axes, one column a run."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from overnight.durable import canonical
from overnight.errors import UserError

Record = Mapping[str, Any]
"""As `overnight.analysis.analyze` writes it."""

OF_COLLAPSE = ("collapsed", "collapsed_fraction", "collapse_rate", "onset_turn")
"""`collapsed`: 1 for a conversation with an onset (a span that lasts), else 0: its mean is the share that collapse."""

OWN_AXES = ("scaffold", "model", "run")

_ANALYSIS = ("backend", "embedding_model", "method", "parameters", "version")

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Name:
    """What a group is: `axes` are the further ones, (name, value) each, sorted by name."""

    grid: str
    scaffold: str
    model: str
    axes: tuple[tuple[str, Any], ...] = ()

    def beside(self, scaffold: str) -> Name:
        """The group that differs in the scaffold alone."""
        return Name(self.grid, scaffold, self.model, self.axes)

    def __str__(self) -> str:
        return " ".join([self.grid, self.scaffold, self.model, *(f"{name}={value}" for name, value in self.axes)])


@dataclass(slots=True)
class Runs:
    """The figures of a group's conversations. Each column has one entry a conversation, NaN where it has none."""

    count: int = 0
    columns: dict[str, array[float]] = field(default_factory=dict)
    seen: Counter[bytes] = field(default_factory=Counter)

    def add(self, figures: Mapping[str, float | None], fingerprint: bytes | None) -> None:
        for metric in figures:
            if metric not in self.columns:
                self.columns[metric] = array("d", [_NAN]) * self.count
        for metric, column in self.columns.items():
            value = figures.get(metric)
            column.append(_NAN if value is None else value)
        self.count += 1
        if fingerprint is not None:
            self.seen[fingerprint] += 1

    @property
    def repeated(self) -> int:
        """Conversations that say the very same as an earlier one of this group."""
        return sum(count - 1 for count in self.seen.values())


@dataclass(slots=True)
class Gathered:
    """groups: by name, in the order of their first record; left_out: status -> conversations; wordless: backend
    -> turns without words that it counts; unmeasured: backend -> conversations that have too many of those for any
    metric; analyses: grid -> what all its records were analysed with."""

    groups: dict[Name, Runs] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    wordless: Counter[str] = field(default_factory=Counter)
    unmeasured: Counter[str] = field(default_factory=Counter)
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Those of collapse first, then the others in the order in which they were met."""
        met = dict.fromkeys(metric for runs in self.groups.values() for metric in runs.columns)
        return [metric for metric in OF_COLLAPSE if metric in met] + [m for m in met if m not in OF_COLLAPSE]


def gather(records: Iterable[Record], statuses: Collection[str] = ("done",)) -> Gathered:
    """One record in memory at a time. Conversations with another status are counted, not taken in: what a cell said
    before it failed is no full conversation. Raises UserError for a grid with records of several analyses."""
    gathered = Gathered()
    for record in records:
        analysis = {name: record.get(name) for name in _ANALYSIS}
        if analysis != (known := gathered.analyses.setdefault(str(record["grid"]), analysis)):
            _refuse(record, known, analysis)
        if record["status"] not in statuses:
            gathered.left_out[str(record["status"])] += 1
            continue
        if wordless := record.get("wordless_turns"):
            gathered.wordless[str(record["backend"])] += wordless
            gathered.unmeasured[str(record["backend"])] += "vendi_score" not in record["metrics"]
        name = name_of(record)
        gathered.groups.setdefault(name, Runs()).add(figures_of(record), _fingerprint(record))
    return gathered


def name_of(record: Record) -> Name:
    return Name(str(record["grid"]), str(record["scaffold"]), str(record["model"]), tuple(axes_of(record)))


def axes_of(record: Record) -> Iterator[tuple[str, Any]]:
    """The further axes, by name. What is no single value stands as its JSON."""
    for name, value in sorted((record.get("coords") or {}).items()):
        if name not in OWN_AXES:
            single = value is None or isinstance(value, str | int | float | bool)
            yield str(name), value if single else canonical(value)


def figures_of(record: Record) -> dict[str, float | None]:
    """Every figure of a conversation; None where it has none (no onset without a collapse, no collapse where nothing
    was said, tokens not known)."""
    collapse = record["collapse"]
    said = bool(record["turns"])
    found = {
        "collapsed": (0.0 if collapse["onset_turn"] is None else 1.0) if said else None,
        "collapsed_fraction": _number(collapse["collapsed_fraction"]) if said else None,
        "collapse_rate": _number(collapse["collapse_rate"]) if said else None,
        "onset_turn": _number(collapse["onset_turn"]),
        "turns": _number(record["turns"]),
        "tokens": _number(record["tokens"]) if record["tokens_known"] else None,
    }
    return found | {str(name): _number(value) for name, value in record["metrics"].items()}


def _number(value: Any) -> float | None:
    """None for what is no finite number, too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _fingerprint(record: Record) -> bytes | None:
    """Of what was said: equal figures are no equal words. None for an empty conversation, and where the record does
    not say."""
    said = record.get("texts_sha256")
    return said[:32].encode() if record["turns"] and isinstance(said, str) else None


def _refuse(record: Record, known: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    name = next(name for name in known if known[name] != found[name])
    raise UserError(
        f"{record['grid']}/{record['key']}: analysed with {name} {_shown(found[name])}, others with "
        f"{_shown(known[name])}: such figures cannot be compared; `overnight analyze` all of them with one"
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)[:200]

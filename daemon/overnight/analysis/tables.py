"""Analysis records and statistics as tables: cells (a row each), series (a row a turn), spans, groups, comparisons.

A table's rows are made while they are read, so that a million turns are never in memory at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from overnight.analysis.groups import Record, axes_of
from overnight.analysis.statistics import Statistics

Kind = Literal["text", "integer", "number", "flag"]
Value = str | int | float | bool | None
"""None: there is none."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Table:
    """rows: gives them afresh at every call, a tuple of as many values as there are columns."""

    name: str
    columns: tuple[Column, ...]
    rows: Callable[[], Iterator[tuple[Value, ...]]]


@dataclass(frozen=True, slots=True)
class _Getter:
    """A column, and where its value is taken from."""

    name: str
    kind: Kind
    get: Callable[[Any], Any]


def _table(name: str, getters: Sequence[_Getter], items: Callable[[], Iterable[Any]]) -> Table:
    def rows() -> Iterator[tuple[Value, ...]]:
        for item in items():
            yield tuple(_fit(getter.get(item), getter.kind) for getter in getters)

    return Table(name, tuple(Column(getter.name, getter.kind) for getter in getters), rows)


def _fit(value: Any, kind: Kind) -> Value:
    """A value of its column's kind, or none."""
    match kind:
        case "text":
            return value if value is None or isinstance(value, str) else _said(value)
        case "flag":
            return value if isinstance(value, bool) else None
        case "integer":
            return value if isinstance(value, int) and not isinstance(value, bool) else None
        case "number":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if number and abs(value) < float("inf") else None  # NaN is not smaller either


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def of_records(records: Iterable[Record]) -> tuple[Table, Table, Table]:
    """cells, series and spans. Records are gone through several times: once here, for their metrics and axes, and once
    for each table; an iterator, which can be read only once, is read into memory."""
    source = list(records) if isinstance(records, Iterator) else records
    axes: dict[str, Kind] = {}
    metrics: dict[str, None] = {}
    of_turns: dict[str, None] = {}
    for record in source:
        _learn(axes, axes_of(record))
        metrics.update(dict.fromkeys(map(str, record["metrics"])))
        for turn in record["series"][:1]:
            of_turns.update(dict.fromkeys(map(str, turn)))
    counted = ("turn", "words", "unique_words")
    turns = [_field(name, "integer" if name in counted else "number") for name in of_turns]
    figures = [_field(name, "number", "metrics", column=f"metric.{name}") for name in metrics]
    names = _names(axes)
    key = _under("record", names)
    cells = _table("cells", [*names, *_CELL, *figures], lambda: source)
    series = _table("series", [*key, *_under("item", turns)], lambda: _parts(source, "series"))
    spans = _table("spans", [*key, *_under("item", _SPAN)], lambda: _parts(source, "collapse", "spans"))
    return cells, series, spans


def of_statistics(statistics: Statistics) -> tuple[Table, Table]:
    """groups and comparisons: one row a metric each."""
    axes: dict[str, Kind] = {}
    for group in statistics.groups:
        _learn(axes, group.name.axes)
    chosen = statistics.settings
    how = [
        _Getter("level", "number", lambda _: chosen.level),
        _Getter("resamples", "integer", lambda _: chosen.resamples),
        _Getter("seed", "integer", lambda _: chosen.seed),
    ]

    def analysed(grid: str) -> dict[str, Any]:
        return statistics.analyses[grid]

    named = [
        *_group_name(axes),
        *(_Getter(each.name, each.kind, _then(operator.attrgetter("grid"), analysed, each.get)) for each in _ANALYSIS),
    ]
    summaries = [(group, summary) for group in statistics.groups for summary in group.summaries]
    groups = [*_under(0, _under("name", named, getattr)), *_GROUP, *_under(1, _SUMMARY), *how]
    comparisons = [*_under("name", named, getattr), *_COMPARISON, *how]
    return (
        _table("groups", groups, lambda: summaries),
        _table("comparisons", comparisons, lambda: statistics.comparisons),
    )


def _learn(axes: dict[str, Kind], values: Iterable[tuple[str, Any]]) -> None:
    """An axis whose values are all numbers is a column of numbers."""
    for name, value in values:
        kind: Kind = "text"
        if isinstance(value, bool):
            kind = "flag"
        elif isinstance(value, int | float):
            kind = "integer" if isinstance(value, int) and abs(value) < 2**63 else "number"
        known = axes.setdefault(name, kind)
        if known != kind:
            axes[name] = "number" if {known, kind} == {"integer", "number"} else "text"


def _parts(records: Iterable[Record], *path: str) -> Iterator[dict[str, Any]]:
    for record in records:
        items: Any = record
        for name in path:
            items = items[name]
        for item in items:
            yield {"record": record, "item": item}


def _under(part: Any, getters: Iterable[_Getter], step: Callable[[Any, Any], Any] = operator.getitem) -> list[_Getter]:
    """The same columns, of what is at `part` of an item."""
    return [_Getter(each.name, each.kind, _then(lambda item: step(item, part), each.get)) for each in getters]


def _then(*steps: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def get(item: Any) -> Any:
        for step in steps:
            item = step(item)
        return item

    return get


def _field(name: str, kind: Kind, *path: str, column: str = "") -> _Getter:
    """A field, in the objects that `path` leads through."""

    def get(record: Mapping[str, Any]) -> Any:
        found: Any = record
        for step in path:
            found = found[step]
        return found.get(name)

    return _Getter(column or name, kind, get)


def _attribute(name: str, kind: Kind, *path: str, column: str = "") -> _Getter:
    """The same of objects with attributes. None where one on the way is none."""

    def get(item: Any) -> Any:
        for step in (*path, name):
            item = None if item is None else getattr(item, step)
        return item

    return _Getter(column or name, kind, get)


_ANALYSIS = [_field(name, "text") for name in ("backend", "embedding_model", "method")]


def _names(axes: Mapping[str, Kind]) -> list[_Getter]:
    """What names a conversation and its analysis. Further axes are `axis.NAME`, so that none has another's name."""
    return [
        *(_field(name, "text") for name in ("grid", "key", "scaffold", "model")),
        _field("run", "integer"),
        *(_axis(name, kind, axes_of) for name, kind in axes.items()),
        *_ANALYSIS,
    ]


def _group_name(axes: Mapping[str, Kind]) -> list[_Getter]:
    return [
        *(_attribute(name, "text") for name in ("grid", "scaffold", "model")),
        *(_axis(name, kind, operator.attrgetter("axes")) for name, kind in axes.items()),
    ]


def _axis(name: str, kind: Kind, get: Callable[[Any], Iterable[tuple[str, Any]]]) -> _Getter:
    return _Getter(f"axis.{name}", kind, lambda item: dict(get(item)).get(name))


def _of_collapse(record: Record, value: Any) -> Any:
    """None where nothing was said: no conversation, so none that did not collapse."""
    return value if record["turns"] else None


_CELL = [
    _field("status", "text"),
    _field("end_reason", "text"),
    _field("turns", "integer"),
    _Getter("tokens", "integer", lambda record: record["tokens"] if record["tokens_known"] else None),
    _Getter("collapsed", "flag", lambda record: _of_collapse(record, record["collapse"]["onset_turn"] is not None)),
    _Getter("spans", "integer", lambda record: len(record["collapse"]["spans"])),
    _field("onset_turn", "integer", "collapse"),
    _Getter(
        "collapsed_fraction", "number", lambda record: _of_collapse(record, record["collapse"]["collapsed_fraction"])
    ),
    _Getter("collapse_rate", "number", lambda record: _of_collapse(record, record["collapse"]["collapse_rate"])),
    _field("transcript_sha256", "text"),
    _field("overnight", "text"),
]

_SPAN = [
    *(_field(name, "integer") for name in ("first_turn", "last_turn", "start_message", "end_message")),
    _field("similarity", "number"),
    _field("kind", "text"),
    _field("label", "text"),
]

_INTERVAL = [
    _attribute("low", "number", "interval"),
    _attribute("high", "number", "interval"),
    _attribute("method", "text", "interval", column="interval"),
]

_GROUP = [
    _Getter("conversations", "integer", lambda pair: pair[0].n),
    _Getter("repeated", "integer", lambda pair: pair[0].repeated),
]

_SUMMARY = [
    _attribute("metric", "text"),
    _attribute("n", "integer"),
    _attribute("missing", "integer"),
    _attribute("mean", "number"),
    _attribute("sd", "number"),
    _attribute("median", "number"),
    *_INTERVAL,
]

_COMPARISON = [
    _attribute("baseline", "text"),
    _attribute("metric", "text"),
    _attribute("n", "integer"),
    _attribute("n_baseline", "integer"),
    _attribute("difference", "number"),
    *_INTERVAL,
    _attribute("cliffs_delta", "number"),
    _attribute("hedges_g", "number"),
    _attribute("p", "number", "test"),
    _attribute("permutations", "integer", "test"),
    _attribute("exact", "flag", "test"),
    _attribute("smallest_p", "number"),
    _attribute("family", "integer", column="comparisons"),
    _attribute("p_holm", "number"),
    _attribute("best_holm", "number", column="best_p_holm"),
    _attribute("significant", "flag"),
    _attribute("sentence", "text"),
]

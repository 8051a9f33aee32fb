"""Scaffold by scaffold: tables with intervals, every run as a dot, and similarity over turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from overnight.analysis.groups import Name, figures_of, name_of
from overnight.queue.states import Status
from overnight.report import plots
from overnight.report.gather import Cell, Night
from overnight.report.overview import pairs, place_of
from overnight.report.words import NONE, count, interval, number, percent, plural, probability

FIRST = ("collapsed_fraction", "vendi_score")
"""Tables that are open; the others are folded."""

TITLES = {
    "collapsed": "Share of conversations that collapse",
    "collapsed_fraction": "Collapsed turns, as a share of all",
    "collapse_rate": "Collapses per turn that could still collapse",
    "onset_turn": "Turn at which it begins to collapse (those that do)",
    "vendi_score": "Vendi score: how many different turns, in effect",
    "vendi_score_normalized": "Vendi score by number of turns",
    "turns": "Turns",
    "tokens": "Tokens",
}
_AS_PERCENT = ("collapsed", "collapsed_fraction")


@dataclass(frozen=True)
class Row:
    """said: what the comparison shows, in two words; sentence: all of it."""

    label: str
    n: str
    mean: str
    interval: str
    strip: Markup
    difference: str
    p: str
    said: str
    sentence: str
    is_baseline: bool


@dataclass(frozen=True)
class Table:
    """parts: model -> rows."""

    metric: str
    title: str
    axis: Markup
    parts: list[tuple[str, list[Row]]]
    compares: bool
    open: bool


@dataclass(frozen=True)
class Panel:
    """Similarity over turns of one group."""

    row: str
    column: str
    note: str
    svg: Markup


def tables(night: Night) -> list[Table]:
    """One a metric, those of FIRST in front."""
    done = [cell.analysed.record for cell in night.cells if cell.analysed and cell.row.status is Status.DONE]
    groups: dict[Name, list[dict[str, float | None]]] = {}
    for record in done:
        groups.setdefault(name_of(record), []).append(figures_of(record))
    metrics = dict.fromkeys(metric for runs in groups.values() for figures in runs for metric in figures)
    ordered = [m for m in FIRST if m in metrics] + [m for m in metrics if m not in FIRST]
    return [table for metric in ordered if (table := _table(metric, groups, night.statistics)) is not None]


def _table(metric: str, groups: dict[Name, list[dict[str, float | None]]], statistics: Any) -> Table | None:
    values = {name: [v for figures in runs if (v := figures.get(metric)) is not None] for name, runs in groups.items()}
    every = [v for several in values.values() for v in several]
    if not every:
        return None
    bounds = _bounds(metric, every)
    summaries = {g.name: s for g in _of(statistics, "groups") for s in g.summaries if s.metric == metric}
    compared = {c.name: c for c in _of(statistics, "comparisons") if c.metric == metric}
    baselines = statistics.baselines if statistics is not None else {}
    parts: dict[str, list[Row]] = {}
    for name, several in values.items():
        base = name.beside(baselines.get(name.grid, ""))
        reference = _mean(values.get(base, []))
        row = _row(metric, name, several, bounds, summaries.get(name), compared.get(name), reference, base == name)
        parts.setdefault(name.model, []).append(row)
    for rows in parts.values():
        rows.sort(key=lambda row: not row.is_baseline)
    title = TITLES.get(metric, metric.replace("_", " "))
    only = every[0] if min(every) == max(every) and metric not in _AS_PERCENT else None
    axis = plots.axis(bounds, as_percent=metric in _AS_PERCENT, only=only)
    return Table(metric, title, axis, list(parts.items()), bool(compared), metric in FIRST)


def _of(statistics: Any, what: str) -> Sequence[Any]:
    found: Sequence[Any] = () if statistics is None else getattr(statistics, what)
    return found


def _row(
    metric: str,
    name: Name,
    values: list[float],
    bounds: tuple[float, float],
    summary: Any,
    comparison: Any,
    reference: float | None,
    is_baseline: bool,
) -> Row:
    shown = _shown(metric)
    between = None if summary is None else summary.interval
    low, high = (None, None) if between is None else (between.low, between.high)
    mean = _mean(values)
    label = " · ".join([name.scaffold, *(f"{axis} {value}" for axis, value in name.axes)])
    band = interval(low, high)
    if metric in _AS_PERCENT and low is not None and high is not None:
        band = f"[{percent(low)}, {percent(high)}]"
    strip = plots.strip(
        values, bounds, mean=mean if len(values) > 1 else None, low=low, high=high,
        reference=None if is_baseline else reference,
        label=f"{label}: {', '.join(shown(v) for v in values[:20])}",
    )  # fmt: skip
    difference = p = said = sentence = ""
    if comparison is not None:
        sentence = comparison.sentence
        p = NONE if comparison.p_holm is None else probability(comparison.p_holm)
        said = _said(comparison)
        if comparison.difference is not None:
            sign = "+" if comparison.difference > 0 else ""
            points = 100 * comparison.difference if metric in _AS_PERCENT else comparison.difference
            difference = sign + (f"{number(points, 0)} pp" if metric in _AS_PERCENT else number(points))
    return Row(
        label, count(len(values)), shown(mean) if mean is not None else NONE, band, strip, difference, p, said,
        sentence, is_baseline,
    )  # fmt: skip


def _said(comparison: Any) -> str:
    if comparison.test is None:
        return "no test"
    if comparison.significant:
        return "more" if (comparison.difference or 0) > 0 else "less"
    return "too few runs" if (comparison.best_holm or 0) > 0.05 else "no difference shown"


def _shown(metric: str) -> Callable[[float], str]:
    if metric in _AS_PERCENT:
        return percent
    return (lambda value: number(value, 1)) if metric in ("turns", "tokens", "onset_turn") else number


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _bounds(metric: str, values: Sequence[float]) -> tuple[float, float]:
    if metric in _AS_PERCENT:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    if high <= low:
        return low - 0.5, high + 0.5
    return low, high + 0.02 * (high - low)


# -- similarity over turns --------------------------------------------------------------------------------------


def panels(night: Night, href: Callable[[str], str]) -> list[Panel]:
    """One a group, on one scale of turns."""
    place = place_of(night)
    groups: dict[tuple[str, str], list[tuple[Cell, str]]] = {}
    for cell in night.cells:
        if cell.analysed is not None and cell.analysed.line:
            at = place(cell)
            groups.setdefault((at.row, at.column), []).append((cell, at.within))
    turns = [cell.analysed.line[-1][0] for several in groups.values() for cell, _ in several if cell.analysed]
    return [_panel(row, column, several, max(turns), href) for (row, column), several in groups.items()]


def _panel(row: str, column: str, cells: list[tuple[Cell, str]], most: int, href: Callable[[str], str]) -> Panel:
    lines = list(_lines(cells, href))
    fallen = sum(1 for cell, _ in cells if cell.analysed and cell.analysed.collapse.get("onset_turn") is not None)
    note = plural(len(lines), "run") + (f", {count(fallen)} collapsed" if fallen else "")
    label = f"{row}, {column}: similarity over turns 1 to {most}, {note}"
    return Panel(row, column, note, plots.similarity(lines, most, label))


def _lines(cells: list[tuple[Cell, str]], href: Callable[[str], str]) -> Iterator[plots.Line]:
    for cell, within in cells:
        if cell.analysed is not None:
            yield plots.Line(within or cell.key, href(cell.key), cell.analysed.line, list(pairs(cell.analysed.spans)))

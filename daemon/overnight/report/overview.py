"""The grid at a glance: the map of cells that can be clicked, the figures above it, the sentences that sum it up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from overnight.queue.states import Outcome, Status
from overnight.report import palette, plots
from overnight.report.gather import Cell, Night
from overnight.report.words import NONE, count, duration, number, percent, plural, shortened, times, when

GLYPHS = {
    Status.DONE: "✓", Status.PENDING: "…", Status.RUNNING: "▸", Status.FAILED: "✕",
    Status.QUARANTINED: "!", Status.CANCELLED: NONE,
}  # fmt: skip
"""Beside the colour: nobody has to tell red from green."""

_MOST_COLUMNS = 12
_PANEL_POINTS = 60
_OWN = ("scaffold", "model", "run")


@dataclass(frozen=True)
class Place:
    """Where a cell stands in the map: its row, its column, and which of the cells there it is."""

    row: str
    column: str
    within: str


@dataclass(frozen=True)
class Square:
    """One cell of the map. number: its place in the data of the page."""

    number: int
    href: str
    kinds: str
    told: str
    shown: dict[str, str]


@dataclass(frozen=True)
class Map:
    """rows: label, and for each column its squares. scales: name, title, lowest and highest label."""

    columns: list[str]
    rows: list[tuple[str, list[list[Square]]]]
    size: str
    scales: list[tuple[str, str, str, str]]


def place_of(night: Night) -> Callable[[Cell], Place]:
    """Scaffolds (and further axes) down, models across, runs within; the axes of a command in their order."""
    cells = night.cells
    names = list(cells[0].row.coords) if cells else []
    if "scaffold" in names and "model" in names:
        further = [name for name in names if name not in _OWN]

        def place(cell: Cell) -> Place:
            coords = cell.row.coords
            extra = [f"{name} {coords.get(name)}" for name in further]
            row = " · ".join([str(coords.get("scaffold", "")), *extra])
            return Place(row, str(coords.get("model", "")), f"run {coords.get('run', '')}")

        return place
    within = ["run"] if "run" in names else []
    rest = [name for name in names if name not in within]
    if rest and len({str(cell.row.coords.get(rest[-1])) for cell in cells}) > _MOST_COLUMNS:
        within.insert(0, rest.pop())
    column = rest.pop() if len(rest) > 1 else ""

    def place_by_axes(cell: Cell) -> Place:
        def told(axes: Sequence[str]) -> str:
            return " · ".join(f"{name} {shortened(str(cell.row.coords.get(name)), 60)}" for name in axes)

        return Place(told(rest), told([column] if column else []), told(within) if names else cell.key)

    return place_by_axes


def heat_map(night: Night, href: Callable[[str], str]) -> Map:
    place = place_of(night)
    most_turns = max((cell.row.turns for cell in night.cells), default=0)
    most_vendi = max((_vendi(cell) or 0 for cell in night.cells), default=0)
    rows: dict[str, dict[str, list[Square]]] = {}
    columns: dict[str, None] = {}
    for index, cell in enumerate(night.cells):
        at = place(cell)
        columns[at.column] = None
        rows.setdefault(at.row, {}).setdefault(at.column, []).append(
            _square(index, cell, at, href, most_turns, most_vendi)
        )
    across = sum(max((len(row.get(column, ())) for row in rows.values()), default=0) for column in columns)
    scales = []
    if any(cell.analysed for cell in night.cells):
        scales = [
            ("collapsed", "collapsed turns", "0 %", "100 %"),
            ("vendi", "Vendi score", "1", number(most_vendi, 1)),
        ]
    if not night.is_command:
        scales.append(("turns", "turns", "0", count(most_turns)))
    return Map(
        list(columns),
        [(label, [row.get(column, []) for column in columns]) for label, row in rows.items()],
        "huge"
        if across <= 6
        else "large"
        if across <= 9
        else "middle"
        if across <= 14
        else "little"
        if across <= 18
        else "small",
        scales,
    )


def _square(
    index: int, cell: Cell, at: Place, href: Callable[[str], str], most_turns: int, most_vendi: float
) -> Square:
    row, analysed = cell.row, cell.analysed
    kinds, shown = [f"s-{row.status}"], {"status": GLYPHS[row.status], "turns": count(row.turns)}
    told = [" · ".join(part for part in (at.row, at.column, at.within) if part) + f": {row.status}"]
    kinds.append(f"turns-{palette.step_of(row.turns, 0, most_turns)}")
    if row.turns:
        told.append(plural(row.turns, "turn"))
    if analysed is not None:
        fraction, vendi = analysed.collapse.get("collapsed_fraction"), _vendi(cell)
        if isinstance(fraction, int | float):
            kinds.append(f"collapsed-{palette.step_of(fraction, 0, 1)}")
            shown["collapsed"] = percent(fraction)
            told.append(f"{percent(fraction)} collapsed")
        if vendi is not None:
            kinds.append(f"vendi-{palette.step_of(vendi, 1, most_vendi)}")
            shown["vendi"] = number(vendi, 1)
            told.append(f"Vendi score {number(vendi, 1)}")
    return Square(index, href(cell.key), " ".join(kinds), ", ".join(told), shown)


def _vendi(cell: Cell) -> float | None:
    return None if cell.analysed is None else cell.analysed.metric("vendi_score")


def panel(night: Night, href: Callable[[str], str]) -> list[dict[str, Any]]:
    """What the page shows of a cell that is chosen: words made here, so that the script only sets them."""
    place = place_of(night)
    return [_facts(cell, place(cell), href(cell.key) if cell.source else "") for cell in night.cells]


def _facts(cell: Cell, at: Place, href: str) -> dict[str, Any]:
    row = cell.row
    facts = [("turns", count(row.turns)), ("tokens", count(row.output_tokens))] if row.turns else []
    line: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    if (analysed := cell.analysed) is not None:
        collapse = analysed.collapse
        onset = collapse.get("onset_turn")
        facts += [
            ("collapsed", percent(collapse.get("collapsed_fraction"))),
            ("onset", f"turn {onset}" if onset else "none"),
            ("Vendi score", number(analysed.metric("vendi_score"), 1)),
        ]
        line = [(turn, round(100 * value)) for turn, value in plots.thinned(analysed.line, _PANEL_POINTS)]
        spans = list(pairs(analysed.spans))
    facts += [("ended by", row.end_reason.replace("_", " "))] if row.end_reason else []
    facts += [("attempts", count(row.attempts))] if row.attempts > 1 else []
    facts += [("took", duration(row.run_s))] if row.run_s else []
    return {
        "key": cell.key,
        "name": [part for part in (at.row, at.column, at.within) if part],
        "status": str(row.status),
        "facts": facts,
        "why": shortened(row.reason, 300) if row.reason and row.status is not Status.DONE else "",
        "labels": [label for span in analysed.spans if (label := shortened(str(span.get("label") or ""), 60))][:3]
        if analysed
        else [],
        "line": line,
        "spans": spans,
        "turns": max([row.turns, *(turn for turn, _ in line)], default=0),
        "href": href,
    }


def pairs(spans: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """First and last turn of each span that says them."""
    for span in spans:
        first, last = span.get("first_turn"), span.get("last_turn")
        if type(first) is int and type(last) is int and 1 <= first <= last:
            yield first, last


# -- in words ---------------------------------------------------------------------------------------------------


def lede(night: Night, others: int = 0) -> list[str]:
    """What somebody wants to know first. others: who had to leave and is no cell of this grid."""
    told = (_work(night), _collapse(night), _memory(night, others), _audit(night))
    return [sentence for sentence in told if sentence]


def _work(night: Night) -> str:
    by = {status: sum(1 for cell in night.cells if cell.row.status is status) for status in Status}
    total, done = len(night.cells), by[Status.DONE]
    if not total:
        return "This grid has no cells."
    if done == total:
        return f"All {plural(total, 'cell')} are done." if total > 1 else "The one cell is done."
    if total == 1:
        return f"The one cell is {night.cells[0].row.status}."
    others = [f"{count(n)} {status}" for status, n in by.items() if n and status is not Status.DONE]
    return f"{count(done)} of {plural(total, 'cell')} are done; {', '.join(others)}."


def _collapse(night: Night) -> str:
    analysed = [cell for cell in night.cells if cell.analysed is not None and cell.analysed.record.get("turns")]
    if not analysed:
        return ""
    dated = [(cell.analysed.collapse.get("onset_turn"), cell) for cell in analysed]  # type: ignore[union-attr]
    fallen = [(onset, cell) for onset, cell in dated if type(onset) is int]
    if not fallen:
        return f"None of {plural(len(analysed), 'conversation')} collapsed."
    told = f"{count(len(fallen))} of {plural(len(analysed), 'conversation')} collapsed"
    onset, first = min(fallen, key=lambda pair: pair[0])
    at = place_of(night)(first)
    where = ", ".join(part for part in (at.row, at.column, at.within) if part)
    return f"{told}, the earliest at turn {onset} ({where})."


def _memory(night: Night, others: int) -> str:
    if night.is_imported:
        return ""
    ended = [a for cell in night.cells for a in cell.attempts if a.outcome]
    out = sum(1 for a in ended if a.outcome is Outcome.EVICTED)
    killed = sum(1 for a in ended if a.outcome is Outcome.OOM_KILLED)
    lost = sum(1 for a in ended if a.outcome is Outcome.LOST)
    told = []
    if out:
        told.append(f"the watchdog took a cell out {times(out)} before memory ran out")
    if killed:
        told.append(f"the kernel's OOM killer struck {times(killed)}")
    if lost:
        told.append(f"{plural(lost, 'attempt')} died with {'its' if lost == 1 else 'their'} process")
    if not told:
        if others:
            return f"None of these cells had to leave for want of memory; {count(others)} beside them had to."
        return "Nobody had to leave for want of memory." if ended else ""
    sentence = ", ".join(told)
    # A program of one's own keeps what it keeps itself.
    kept = "" if night.is_command else "; every finished turn was kept"
    return f"{sentence[0].upper()}{sentence[1:]}{kept}."


def _audit(night: Night) -> str:
    if night.findings is None:
        return ""
    n = len(night.findings)
    return f"The audit found {plural(n, 'thing')} to look at." if n else "The audit found nothing amiss."


def tiles(night: Night) -> list[tuple[str, str, str]]:
    """Value, what it is, a note."""
    cells = night.cells
    done = sum(1 for cell in cells if cell.row.status is Status.DONE)
    found = [(count(done), f"of {plural(len(cells), 'cell')} done", "")]
    if not night.is_command:
        found.append((count(sum(cell.row.turns for cell in cells)), "turns", ""))
        tokens = sum(cell.row.output_tokens for cell in cells)
        if tokens:
            found.append((count(tokens), "tokens", ""))
    analysed = [cell.analysed for cell in cells if cell.analysed is not None and cell.analysed.record.get("turns")]
    if analysed:
        share = sum(1 for each in analysed if type(each.collapse.get("onset_turn")) is int) / len(analysed)
        found.append((percent(share), f"of {plural(len(analysed), 'conversation')} collapsed", ""))
        scores = [score for each in analysed if (score := each.metric("vendi_score")) is not None]
        if scores:
            found.append((number(statistics.median(scores), 1), "median Vendi score", "different turns, in effect"))
    attempts = sum(len(cell.attempts) for cell in cells)
    if attempts:
        more = sum(1 for cell in cells if len(cell.attempts) > 1)
        found.append((count(attempts), "attempts", f"{plural(more, 'cell')} needed more than one" if more else ""))
    if night.start is not None and night.end is not None:
        found.append((duration(night.end - night.start), "from first to last" if night.now is None else "so far", ""))
    return found


def period(night: Night) -> str:
    if night.start is None or night.end is None:
        return "at a time that its files do not say" if night.is_imported else "not begun"
    return f"{when(night.start)} {NONE} {when(night.end)} UTC"


__all__ = ["GLYPHS", "NONE", "heat_map", "lede", "panel", "period", "place_of", "tiles"]

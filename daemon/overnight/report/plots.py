"""Plots as inline SVG: pure functions from figures to markup, no library.

Each is as wide as its place and as high as it says. Whatever is read (labels, dots) is placed in percent and keeps its
size at any width; what may be stretched (lines, areas) lies in an inner picture of WIDTH units without a fixed aspect.
Colours are classes of the style sheet, so that one picture serves paper and the dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from markupsafe import Markup

from overnight.report import palette
from overnight.report.words import fixed, number, percent, visible

WIDTH = 1000
MOST_POINTS = 160
"""Of one line: more cannot be told apart at the width of a panel."""


def text(value: object) -> str:
    """Anything as the text of an element or attribute."""
    return escape(visible(str(value)), quote=True)


def figure(height: int, body: Iterable[str], label: str, kind: str = "") -> Markup:
    """The outer picture. label: what it shows, for whoever does not see it."""
    name = f"plot {kind}".strip()
    head = f'<svg class="{name}" width="100%" height="{height}" role="img" aria-label="{text(label)}">'
    return Markup(head + "".join(body) + "</svg>")  # noqa: S704 - built from figures and escaped text


def stretched(body: Iterable[str], height: float, y: float = 0) -> str:
    """An inner picture of WIDTH x height units, drawn as wide as the outer one."""
    return (
        f'<svg class="in" y="{y:g}" width="100%" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}"'
        f' preserveAspectRatio="none">{"".join(body)}</svg>'
    )


def path(points: Sequence[tuple[float, float]], kind: str, *, close_at: float | None = None) -> str:
    """A line through points; with close_at an area down to that height."""
    if not points:
        return ""
    way = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    if close_at is not None:
        way += f"L{points[-1][0]:.1f} {close_at:.1f}L{points[0][0]:.1f} {close_at:.1f}Z"
    return f'<path class="{kind}" vector-effect="non-scaling-stroke" d="{way}"/>'


def ticks(lowest: float, highest: float, most: int = 5) -> list[float]:
    """Round values from `lowest` to `highest`, at most `most` and at least two where they fit."""
    if not highest > lowest:
        return [lowest]
    raw = (highest - lowest) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw), 10 * power)
    first = math.ceil(lowest / step - 1e-9)
    return [i * step for i in range(first, math.floor(highest / step + 1e-9) + 1)]


# -- similarity over turns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One conversation in a panel. points: turn and value, in order; spans: collapsed turns, 1-based, inclusive."""

    name: str
    href: str
    points: Sequence[tuple[int, float]]
    spans: Sequence[tuple[int, int]] = ()


def similarity(lines: Sequence[Line], most_turns: int, label: str, height: int = 92) -> Markup:
    """How alike each turn is to those before it: 0 at the bottom, 1 at the top; what is collapsed is hot."""
    top, inner = 4.0, height - 8.0
    back = stretched(
        (f'<path class="grid" vector-effect="non-scaling-stroke" d="M0 {y:g}H{WIDTH}"/>' for y in _halves(inner)),
        inner, top,
    )  # fmt: skip
    drawn = []
    faint = " many" if len(lines) > 6 else ""
    for line in lines:
        placed = [(n, (_x(n, most_turns), inner * (1 - min(1.0, max(0.0, v))))) for n, v in thinned(line.points)]
        parts = [path([at for _, at in placed], "calm" + faint)]
        for first, last in line.spans:
            inside = [at for n, at in placed if first <= n <= last]
            if len(inside) == 1:
                inside = [inside[0], (inside[0][0] + WIDTH / max(most_turns, 2), inside[0][1])]
            parts.append(path(inside, "hot" + faint))
        title = f"<title>{text(line.name)}</title>"
        whole = title + "".join(parts)
        drawn.append(f'<a href="{text(line.href)}" tabindex="-1">{whole}</a>' if line.href else f"<g>{whole}</g>")
    scale = [f'<text class="tick halo" x="1" y="{y:g}">{n}</text>' for n, y in ((1, 14), (0, height - 7))]
    return figure(height, [back, stretched(drawn, inner, top), *scale], label, "similarity")


def _halves(height: float) -> tuple[float, ...]:
    return (0.5, height / 2, height - 0.5)


def _x(turn: float, most: int) -> float:
    return WIDTH * (turn - 1) / max(1, most - 1)


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most `most` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    found: list[tuple[int, float]] = []
    stretches = most // 2
    for i in range(stretches):
        part = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        pair = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        found += sorted(pair)
    return found


# -- a distribution in a row of a table -------------------------------------------------------------------------


def strip(
    values: Sequence[float],
    bounds: tuple[float, float],
    *,
    mean: float | None,
    low: float | None = None,
    high: float | None = None,
    reference: float | None = None,
    label: str = "",
) -> Markup:
    """Every run a dot, their mean a bar, its interval a band; the baseline's mean as a dashed line."""
    height = 30
    middle = height / 2
    body = [f'<line class="rule" x1="0" x2="100%" y1="{height - 0.5}" y2="{height - 0.5}"/>']
    if reference is not None:
        at = _share(reference, bounds)
        body.append(f'<line class="reference" x1="{at}%" x2="{at}%" y1="0" y2="{height}"/>')
    if low is not None and high is not None:
        left, right = _share(low, bounds), _share(high, bounds)
        width = max(0.4, right - left)
        body.append(f'<rect class="band" x="{left}%" width="{width:.2f}%" y="{middle - 5}" height="10" rx="2"/>')
    for at, row in _swarm([_share(value, bounds) for value in values]):
        body.append(f'<circle class="dot" cx="{at}%" cy="{middle + row:g}" r="3.2"/>')
    if mean is not None:
        at = _share(mean, bounds)
        body.append(f'<line class="mean" x1="{at}%" x2="{at}%" y1="{middle - 9}" y2="{middle + 9}"/>')
    return figure(height, body, label, "strip")


def axis(bounds: tuple[float, float], *, as_percent: bool = False, only: float | None = None) -> Markup:
    """The values above a column of strips. only: the one value of all of them, where there is no other."""
    body = []
    values = ticks(*bounds, most=4) if only is None else [only]
    digits = _digits(values)
    for value in values:
        at = _share(value, bounds)
        anchor = "start" if at < 5 else "end" if at > 95 else "middle"
        shown = percent(value) if as_percent else number(value) if only is not None else fixed(value, digits)
        body.append(f'<text class="tick" x="{at}%" y="11" text-anchor="{anchor}">{text(shown)}</text>')
    return figure(14, body, "scale", "axis")


def _digits(values: Sequence[float]) -> int:
    """As many as the step between them needs: 0.25 two, 50 none."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    return next((n for n in range(12) if abs(round(step, n) - step) < 1e-6 * step), 12)


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return round(2 + 96 * min(1.0, max(0.0, (value - low) / (high - low) if high > low else 0.5)), 2)


def _swarm(shares: Sequence[float]) -> list[tuple[float, float]]:
    """Dots that would lie upon each other side by side, up and down in turn."""
    found: list[tuple[float, float]] = []
    for at in sorted(shares):
        near = sum(1 for other, _ in found if abs(other - at) < 1.4)
        found.append((at, 0 if near == 0 else min(10, (near + 1) // 2 * 3.5) * (1 if near % 2 else -1)))
    return found


# -- the timeline of one conversation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One turn, or a few neighbouring ones of a long conversation. size: words; similarity: to the turns before."""

    first: int
    last: int
    size: float
    similarity: float | None = None


@dataclass(frozen=True)
class Timeline:
    bars: Sequence[Bar]
    turns: int
    spans: Sequence[tuple[int, int, str]] = ()
    """First turn, last turn, label."""
    marks: Sequence[tuple[int, str]] = field(default_factory=tuple)
    """Turn, what happened before it."""


def timeline(line: Timeline, height: int = 64) -> Markup:
    """Each turn a bar: the higher the longer, the warmer the more it is like those before it. Bars are links."""
    floor, largest = height - 14.0, max((bar.size for bar in line.bars), default=0) or 1
    body = []
    for first, last, label in line.spans:
        left, width = _percents(first, last, line.turns)
        title = f"<title>turns {first} to {last}: {text(label)}</title>"
        body.append(f'<rect class="span" x="{left}%" width="{width}%" y="0" height="{height - 11}">{title}</rect>')
    for bar in line.bars:
        left, width = _percents(bar.first, bar.last, line.turns)
        tall = max(2.0, (floor - 6) * math.sqrt(bar.size / largest))  # one long reply must not flatten the others
        step = None if bar.similarity is None else palette.step_of(bar.similarity, 0, 1)
        kind = "unknown" if step is None else f"fill-collapsed-{step}"
        which = f"turn {bar.first}" if bar.first == bar.last else f"turns {bar.first} to {bar.last}"
        told = f"{which}: {bar.size:g} words" + ("" if step is None else f", similarity {bar.similarity:.2f}")
        body.append(
            f'<a href="#t{bar.first}" tabindex="-1"><title>{text(told)}</title>'
            f'<rect class="hit" x="{left}%" width="{width}%" y="0" height="{floor:g}"/>'
            f'<rect class="bar {kind}" x="{left + width * 0.1:.3f}%" width="{width * 0.8:.3f}%"'
            f' y="{floor - tall:.1f}" height="{tall:.1f}"/></a>'
        )
    for turn, what in line.marks:
        left, _ = _percents(turn, turn, line.turns)
        body.append(
            f'<a href="#t{turn}" tabindex="-1"><title>{text(what)}</title>'
            f'<line class="happened" x1="{left}%" x2="{left}%" y1="0" y2="{floor:g}"/></a>'
        )
    for turn in _labelled(line.turns):
        left, width = _percents(turn, turn, line.turns)
        anchor = "start" if turn == 1 else "end" if turn == line.turns else "middle"
        at = left if turn == 1 else left + width if turn == line.turns else left + width / 2
        body.append(f'<text class="tick" x="{at:.2f}%" y="{height - 2}" text-anchor="{anchor}">{turn}</text>')
    return figure(height, body, f"timeline of {line.turns} turns", "timeline")


def _percents(first: int, last: int, turns: int) -> tuple[float, float]:
    return round(100 * (first - 1) / turns, 3), round(100 * (last - first + 1) / turns, 3)


def _labelled(turns: int) -> list[int]:
    inner = [round(t) for t in ticks(1, turns, 6) if t == int(t) and turns * 0.06 < t < turns * 0.94]
    return sorted({1, *inner, turns}) if turns else []

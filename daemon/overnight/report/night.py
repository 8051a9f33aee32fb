"""The night as a picture: memory against its limit, and below it, on the same time, who worked and who had to leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from overnight.report.plots import WIDTH, figure, path, stretched, text
from overnight.report.words import clock, count, size, when

MOST_SAMPLES = 700
MOST_LANES = 24
_GAP_S = 200.0
"""Samples come once a minute: after a longer silence nothing is known."""

_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000),
)


@dataclass(frozen=True)
class Sample:
    """What the watchdog saw. used: limit less headroom; peak: the most since the sample before."""

    at: float
    used: int
    peak: int
    limit: int


@dataclass(frozen=True)
class Happening:
    """Something that was done to somebody, or went wrong. number: of its row in the table, 0 = in none."""

    at: float
    kind: str
    number: int
    title: str


@dataclass(frozen=True)
class Work:
    """One attempt, from when to when. outcome '' = under way."""

    start: float
    end: float
    outcome: str
    title: str


@dataclass(frozen=True)
class Lane:
    """One cell that needed more than one attempt."""

    name: str
    href: str
    work: Sequence[Work]


@dataclass(frozen=True)
class Time:
    start: float
    end: float

    def share(self, at: float) -> float:
        """0 to 1."""
        return min(1.0, max(0.0, (at - self.start) / max(1e-3, self.end - self.start)))

    def percent(self, at: float) -> str:
        return f"{100 * self.share(at):.3f}%"

    def ticks(self, most: int = 7) -> list[float]:
        step = next((s for s in _STEPS_S if (self.end - self.start) / s <= most), 2592000)
        first = -(-self.start // step)
        return [i * step for i in range(int(first), int(self.end // step) + 1)]


def memory(
    samples: Sequence[Sample], happened: Sequence[Happening], time: Time, holds: float | None, height: int = 260
) -> Markup:
    """Used memory as an area, its peaks behind it, the limit above. holds: the share of the limit at which nothing new
    is admitted, None when unknown."""
    top, floor = 26.0, height - 20.0
    ceiling = max((s.limit for s in samples), default=0) or 1

    def y(value: float) -> float:
        return top + (floor - top) * (1 - min(1.0, max(0.0, value / ceiling)))

    body = [f'<rect class="ground" x="0" width="100%" y="{top}" height="{floor - top:g}"/>']
    if holds is not None:
        body.append(
            f'<rect class="holds" x="0" width="100%" y="{top}" height="{(floor - top) * (1 - holds):.1f}">'
            f"<title>above {holds:.0%} of the limit nothing new is admitted</title></rect>"
        )
    areas = []
    gap_s = max(_GAP_S, 3 * (time.end - time.start) / MOST_SAMPLES)
    for part in _unbroken(_thinned(samples, time), gap_s):
        xs = [WIDTH * time.share(s.at) for s in part]
        areas.append(path(list(zip(xs, [y(s.peak) for s in part], strict=True)), "peak", close_at=floor))
        areas.append(path(list(zip(xs, [y(s.used) for s in part], strict=True)), "used", close_at=floor))
        areas.append(path(list(zip(xs, [y(s.limit) for s in part], strict=True)), "limit"))
    body.append(stretched(areas, height))
    for value in _byte_ticks(ceiling):
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(f'<text class="tick halo" x="4" y="{y(value) - 4:.1f}">{text(size(value))}</text>')
    body.append(f'<text class="tick limit-name" x="100%" y="{top - 8}" text-anchor="end">limit {size(ceiling)}</text>')
    body += _time_axis(time, height, top, floor)
    body += [_mark(each, time, top, floor) for each in happened]
    return figure(height, body, f"memory from {when(time.start)} to {when(time.end)} UTC", "memory")


def _mark(each: Happening, time: Time, top: float, floor: float) -> str:
    at = time.percent(each.at)
    title = f"<title>{text(each.title)}</title>"
    if not each.number:
        return f'<g class="{each.kind}">{title}<line x1="{at}" x2="{at}" y1="{floor - 10}" y2="{floor}"/></g>'
    wide = 9 + 3.2 * (len(str(each.number)) - 1)
    return (
        f'<a class="{each.kind}" href="#e{each.number}">{title}<line x1="{at}" x2="{at}" y1="{top}" y2="{floor}"/>'
        f'<ellipse cx="{at}" cy="{top - 13}" rx="{wide:g}" ry="9"/>'
        f'<text x="{at}" y="{top - 9.2}" text-anchor="middle">{each.number}</text></a>'
    )


def lanes(work: Sequence[Work], troubled: Sequence[Lane], time: Time) -> Markup:
    """How many cells worked at once; then, a lane each, those that did not get through in one go."""
    height, row, shown = 48.0, 26, troubled[:MOST_LANES]
    total = int(height + row * len(shown) + 18)
    steps = _concurrency(work, time)
    most = max((n for _, n in steps), default=0) or 1
    points = []
    for (at, n), (until, _) in zip(steps, [*steps[1:], (time.end, 0)], strict=True):
        level = height - 6 - (height - 20) * n / most
        points += [(WIDTH * time.share(at), level), (WIDTH * time.share(until), level)]
    body = [stretched([path(points, "at-work", close_at=height - 6)], height)]
    body.append(f'<text class="tick" x="0" y="11">cells at work, at most {count(most)}</text>')
    body += _time_axis(time, total, height - 6, total - 18)
    for number, lane in enumerate(shown):
        y = height + row * number
        parts = [
            f'<rect class="o-{each.outcome or "running"}" x="{time.percent(each.start)}" y="{y + 14}" height="6"'
            f' width="{max(0.25, 100 * (time.share(each.end) - time.share(each.start))):.3f}%">'
            f"<title>{text(each.title)}</title></rect>"
            for each in lane.work
        ]
        name = f'<text class="tick halo" x="2" y="{y + 10}">{text(lane.name)}</text>'
        inside = "".join(parts) + name
        body.append(f'<a href="{text(lane.href)}">{inside}</a>' if lane.href else f"<g>{inside}</g>")
    return figure(total, body, f"attempts of {len(shown)} cells that needed several", "lanes")


def _concurrency(work: Sequence[Work], time: Time) -> list[tuple[float, int]]:
    changes: dict[float, int] = {time.start: 0}
    for each in work:
        changes[each.start] = changes.get(each.start, 0) + 1
        changes[each.end] = changes.get(each.end, 0) - 1
    found, now = [], 0
    for at in sorted(changes):
        now += changes[at]
        found.append((at, now))
    if len(found) <= 2 * MOST_SAMPLES:
        return found
    most = [0] * MOST_SAMPLES  # of each stretch the most, so that a thousand short cells stay a picture
    for (at, n), (until, _) in zip(found, [*found[1:], (time.end, 0)], strict=True):
        first, last = (min(MOST_SAMPLES - 1, int(time.share(t) * MOST_SAMPLES)) for t in (at, until))
        for i in range(first, last + 1):
            most[i] = max(most[i], n)
    return [(time.start + (time.end - time.start) * i / MOST_SAMPLES, n) for i, n in enumerate(most)]


def _time_axis(time: Time, height: float, top: float, floor: float) -> Iterator[str]:
    found = time.ticks()
    daily = time.end - time.start > 2 * 86400
    fine = len(found) > 1 and found[1] - found[0] < 60
    for at in found:
        x, share = time.percent(at), time.share(at)
        anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"
        shown = when(at).rsplit(" ", 2)[0] if daily else clock(at, seconds_too=fine)
        yield f'<line class="hour" x1="{x}" x2="{x}" y1="{top:g}" y2="{floor:g}"/>'
        yield f'<text class="tick" x="{x}" y="{height - 5:g}" text-anchor="{anchor}">{text(shown)}</text>'


def _byte_ticks(limit: int) -> list[float]:
    """Powers of two times one to five: 512 MiB, 1 GiB, 1.5 GiB, ..."""
    step = 2.0**10
    while limit / step > 5:
        step *= 2
    return [i * step for i in range(1, int(limit / step) + 1) if i * step < 0.97 * limit]


def _unbroken(samples: Sequence[Sample], gap_s: float) -> Iterator[list[Sample]]:
    part: list[Sample] = []
    for each in samples:
        if part and each.at - part[-1].at > gap_s:
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def _thinned(samples: Sequence[Sample], time: Time) -> list[Sample]:
    """At most MOST_SAMPLES: of each stretch the largest values."""
    if len(samples) <= MOST_SAMPLES:
        return list(samples)
    stretches: dict[int, list[Sample]] = {}
    for each in samples:
        stretches.setdefault(int(time.share(each.at) * MOST_SAMPLES), []).append(each)
    found = []
    for part in stretches.values():
        used, peak = max(s.used for s in part), max(s.peak for s in part)
        found.append(Sample(part[0].at, used, peak, min(s.limit for s in part)))
    return found

"""Where is it going: a robust slope, and the seconds until nothing is left. Pure.

The slope is a Theil-Sen estimate (the median of the slopes of all pairs of points: Theil 1950, Sen 1968), but of the
lower third instead of the middle: whoever forecasts in order to stop somebody should be hard to convince. One step up
(a buffer that is allocated once, and a plateau behind it) lies between at most four sevenths of the pairs of eight
points, two thirds of those of four, so the lower third is flat; on a steady ramp all pairs agree.

Two windows. The short one, of the last eight looks, sees a burst within tens of milliseconds. The long one, of one
point a second over half a minute, sees a leak that is too slow for the short one, and finds no slope in a sawtooth.
The steeper of the two counts, but the long one by no more than the short one can have missed: memory is counted in
batches and huge pages, so GRANULE_BYTES may hide in the short window; and by no more than the growth since a second or
two ago: whoever has been stopped no longer grows, although half a minute remembers him. What rises by less than
NOISE_BYTES within the short window does not rise: *measured*, a flat usage that jitters by half a MiB up and down would
"fall" by more than 1 MiB/s at every tenth look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

SHORT_POINTS = 8
SHORT_S = 0.25
"""Points of the short window may be this old, if enough are younger: a slow past must not dilute a burst."""
ENOUGH = 4
GRANULE_BYTES = 4 * 2**20
NOISE_BYTES = 3 * 2**19
LONG_POINTS = 30
LONG_SPACING_S = 1.0
QUANTILE = 1 / 3
LONGEST_S = 24 * 3600.0
"""A day and more until exhaustion is no forecast."""

Point = tuple[float, int]
"""(monotonic seconds, bytes)"""


def slope_bytes_per_s(points: Sequence[Point]) -> float | None:
    """The lower third of all pairwise slopes, or None with fewer than ENOUGH points. Points in order of time."""
    if len(points) < ENOUGH:
        return None
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :] if b[0] > a[0])
    return slopes[int((len(slopes) - 1) * QUANTILE)] if slopes else None


def exhaustion_s(headroom_bytes: int, slope: float | None, *, floor_bytes_per_s: float) -> float | None:
    """Seconds until the headroom is gone at this slope; None when it does not shrink by `floor_bytes_per_s`."""
    if slope is None or slope < floor_bytes_per_s:
        return None
    seconds = headroom_bytes / slope
    return seconds if seconds <= LONGEST_S else None


class Track:
    """The recent past of one figure, such as the usage under the limit or what one cell holds."""

    __slots__ = ("_known", "_long", "_long_slope", "_short", "_slope", "peak")

    def __init__(self) -> None:
        self._short: deque[Point] = deque(maxlen=SHORT_POINTS)
        self._long: deque[Point] = deque(maxlen=LONG_POINTS)
        self.peak = 0
        self._slope: float | None = None
        self._long_slope: float | None = None
        self._known = False

    def add(self, now_s: float, size: int) -> None:
        if self._short and now_s <= self._short[-1][0]:
            return
        self._short.append((now_s, size))
        self._known = False
        self.peak = max(self.peak, size)
        if not self._long or now_s - self._long[-1][0] >= LONG_SPACING_S:
            self._long.append((now_s, size))
            self._long_slope = None

    def forget(self) -> None:
        """What came before means nothing any more: another limit, a gap, a victim's death."""
        self._short.clear()
        self._long.clear()
        self._long_slope, self._known = None, False

    def slope(self) -> float | None:
        """Bytes a second, None while there are too few points. Worked out once a point, however often it is asked."""
        if not self._known:
            self._slope, self._known = self._estimate() if self._short else None, True
        return self._slope

    def _estimate(self) -> float | None:
        points = list(self._short)
        fresh = [point for point in points if points[-1][0] - point[0] <= SHORT_S]
        window = fresh if len(fresh) >= ENOUGH else points
        short, span_s = slope_bytes_per_s(window), window[-1][0] - window[0][0]
        if short is not None and 0 < short * span_s < NOISE_BYTES:
            short = 0.0
        if self._long_slope is None:
            self._long_slope = slope_bytes_per_s(list(self._long))
        long = self._long_slope
        if short is None or long is None:
            return short
        return max(short, min(long, short + GRANULE_BYTES / span_s, self._of_late()))

    def _of_late(self) -> float:
        """The growth since the newest point of the long window that is a second old, in bytes a second."""
        now_s, size = self._short[-1]
        for then_s, before in reversed(self._long):
            if now_s - then_s >= LONG_SPACING_S:
                return (size - before) / (now_s - then_s)
        return 0.0

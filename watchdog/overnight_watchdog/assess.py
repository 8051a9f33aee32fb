"""How bad is it: headroom -> pressure level. Pure, so that a table of numbers tests it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """The pressure ladder, from harmless to last resort. `label` is the word that files and logs hold."""

    OK = 0
    HOLD = 1
    SHRINK = 2
    FREEZE = 3
    EVICT = 4
    KILL = 5

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Headroom in percent of the limit at which a level is entered; all of them inclusive.

    evict_falling_percent: where evict begins while headroom falls by `falling_bytes_per_s` or more. A flat 88
        % is no reason to evict anyone; without the floor on the rate, an idle machine's noise would count as
        falling.
    hysteresis_percent: percentage points that headroom must rise above a level's threshold before it is left.
    scale_cap_bytes: percentages are taken of at most this much: on a machine of 512 GiB, 20 % is 102 GiB,
        which is no shortage.
    """

    hold_percent: float = 20
    shrink_percent: float = 15
    freeze_percent: float = 12
    evict_falling_percent: float = 10
    evict_percent: float = 7
    kill_percent: float = 5
    hysteresis_percent: float = 2
    falling_bytes_per_s: int = 2**20
    scale_cap_bytes: int = 64 * 2**30

    def entry_percent(self, level: Level, *, falling: bool) -> float:
        """The threshold of every level but OK, which has none."""
        return {
            Level.HOLD: self.hold_percent,
            Level.SHRINK: self.shrink_percent,
            Level.FREEZE: self.freeze_percent,
            Level.EVICT: self.evict_falling_percent if falling else self.evict_percent,
            Level.KILL: self.kill_percent,
        }[level]


_LADDER = tuple(level for level in Level if level is not Level.OK)


def assess(
    headroom_bytes: int,
    limit_bytes: int,
    slope_bytes_per_s: int | None,
    previous: Level,
    thresholds: Thresholds,
) -> Level:
    """The highest level whose threshold the headroom does not exceed.

    slope_bytes_per_s: how fast headroom goes away, None = unknown, which counts as not falling.
    A level that was reached before (and those below it) is left only at its threshold plus the hysteresis.
    """
    falling = slope_bytes_per_s is not None and slope_bytes_per_s >= thresholds.falling_bytes_per_s
    scale_bytes = min(limit_bytes, thresholds.scale_cap_bytes)
    level = Level.OK
    for candidate in _LADDER:
        percent = thresholds.entry_percent(candidate, falling=falling)
        if candidate <= previous:
            percent += thresholds.hysteresis_percent
        if headroom_bytes * 100 <= percent * scale_bytes:
            level = candidate
    return level

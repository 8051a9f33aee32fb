"""How bad is it: headroom, forecast and thrashing -> pressure level. Pure, so that a table of numbers tests it."""

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
    """When a level is entered; all bounds inclusive.

    *_percent: headroom in percent of the limit. hold looks at the whole headroom, the others, which do something to
        somebody, at the firm part (see `sample.py`).
    *_s: the same by forecast: seconds until nothing is left. kill's and evict's are added to `reaction_s`, the time
        that a kill was measured to take from the look to the death: what cannot wait is done while it still can be.
    evict_falling_percent: where evict begins while headroom falls by `falling_bytes_per_s` or more. A flat 88 % is no
        reason to evict anyone; without the floor on the rate, an idle machine's noise would count as falling.
    hysteresis_percent: percentage points that headroom must rise above a level's threshold before it is left.
    scale_cap_bytes: percentages are taken of at most this much: on a machine of 512 GiB, 20 % is 102 GiB, which is
        no shortage.
    """

    hold_percent: float = 20
    shrink_percent: float = 15
    freeze_percent: float = 12
    evict_falling_percent: float = 10
    evict_percent: float = 7
    kill_percent: float = 5
    hysteresis_percent: float = 2
    hold_s: float = 10.0
    shrink_s: float = 2.0
    freeze_s: float = 0.10
    evict_s: float = 0.03
    kill_s: float = 0.0
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

    def entry_s(self, level: Level, reaction_s: float) -> float:
        """Seconds to exhaustion at which the forecast alone enters a level."""
        return {
            Level.HOLD: self.hold_s,
            Level.SHRINK: self.shrink_s,
            Level.FREEZE: self.freeze_s + reaction_s,
            Level.EVICT: self.evict_s + reaction_s,
            Level.KILL: self.kill_s + reaction_s,
        }[level]


@dataclass(frozen=True, slots=True)
class View:
    """All that the level depends on.

    slope_bytes_per_s: how fast headroom goes away; None = unknown, which counts as not falling.
    exhaustion_s: until the firm headroom is gone, at that slope; None = not foreseeable.
    reaction_s: from a look to a victim's death, as measured so far.
    thrash: the level that thrashing asks for (OK: none).
    step_bytes: the largest rise of a running cell within one turn: what is admitted must leave room for it.
    """

    headroom_bytes: int
    firm_headroom_bytes: int
    limit_bytes: int
    slope_bytes_per_s: float | None = None
    exhaustion_s: float | None = None
    reaction_s: float = 0.0
    thrash: Level = Level.OK
    step_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Assessment:
    """trigger: what the level is due to: `headroom`, `forecast` or `thrash`; "" for OK."""

    level: Level
    trigger: str = ""


LADDER = tuple(level for level in Level if level is not Level.OK)


def assess(view: View, previous: Level, thresholds: Thresholds) -> Assessment:
    """The highest level that headroom, forecast or thrashing asks for.

    Less headroom never gives a lower level. A level that was reached before by headroom (and those below it) is left
    only at its threshold plus the hysteresis; what a forecast or thrashing asked for ends with them."""
    found = Assessment(Level.OK)
    for level in LADDER:
        if _short_of(view, level, previous, thresholds):
            found = Assessment(level, "headroom")
        elif view.exhaustion_s is not None and view.exhaustion_s <= thresholds.entry_s(level, view.reaction_s):
            found = Assessment(level, "forecast")
    if view.thrash > found.level:
        return Assessment(view.thrash, "thrash")
    return found


def entry_bytes(level: Level, limit_bytes: int, thresholds: Thresholds, *, falling: bool = False) -> int:
    """The headroom at which a level is entered, in bytes."""
    return int(thresholds.entry_percent(level, falling=falling) * _scale(limit_bytes, thresholds) / 100)


def _short_of(view: View, level: Level, previous: Level, thresholds: Thresholds) -> bool:
    falling = view.slope_bytes_per_s is not None and view.slope_bytes_per_s >= thresholds.falling_bytes_per_s
    scale = _scale(view.limit_bytes, thresholds)
    needed = thresholds.entry_percent(level, falling=falling) * scale
    if level is Level.HOLD:
        needed = max(needed, view.step_bytes * 100)
    if level <= previous:
        needed += thresholds.hysteresis_percent * scale
    left = view.headroom_bytes if level is Level.HOLD else view.firm_headroom_bytes
    return left * 100 <= needed


def _scale(limit_bytes: int, thresholds: Thresholds) -> int:
    return min(limit_bytes, thresholds.scale_cap_bytes)

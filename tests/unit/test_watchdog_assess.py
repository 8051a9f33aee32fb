"""Headroom -> level, as a table and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.assess import Level, Thresholds, assess

LIMIT = 100_000
FAST = Thresholds().falling_bytes_per_s
DEFAULTS = Thresholds()

levels = st.sampled_from(list(Level))
slopes = st.none() | st.integers(-(2**40), 2**40)
limits = st.integers(1, 2**45)


def at(percent: float, *, slope: int | None = 0, before: Level = Level.OK) -> Level:
    return assess(round(percent * LIMIT / 100), LIMIT, slope, before, DEFAULTS)


@pytest.mark.parametrize(
    ("percent", "flat", "falling"),
    [
        (100, Level.OK, Level.OK),
        (20.001, Level.OK, Level.OK),
        (20, Level.HOLD, Level.HOLD),
        (15.001, Level.HOLD, Level.HOLD),
        (15, Level.SHRINK, Level.SHRINK),
        (12.001, Level.SHRINK, Level.SHRINK),
        (12, Level.FREEZE, Level.FREEZE),
        (10.001, Level.FREEZE, Level.FREEZE),
        (10, Level.FREEZE, Level.EVICT),
        (7.001, Level.FREEZE, Level.EVICT),
        (7, Level.EVICT, Level.EVICT),
        (5.001, Level.EVICT, Level.EVICT),
        (5, Level.KILL, Level.KILL),
        (0, Level.KILL, Level.KILL),
    ],
)
def test_entering(percent: float, flat: Level, falling: Level) -> None:
    assert at(percent, slope=0) is flat
    assert at(percent, slope=None) is flat
    assert at(percent, slope=FAST - 1) is flat
    assert at(percent, slope=-FAST) is flat
    assert at(percent, slope=FAST) is falling


@pytest.mark.parametrize(
    ("before", "stays_at", "leaves_at", "to"),
    [
        (Level.HOLD, 22, 22.001, Level.OK),
        (Level.SHRINK, 17, 17.001, Level.HOLD),
        (Level.FREEZE, 14, 14.001, Level.SHRINK),
        (Level.EVICT, 9, 9.001, Level.FREEZE),
        (Level.KILL, 7, 7.001, Level.EVICT),
    ],
)
def test_leaving_needs_two_points_more(before: Level, stays_at: float, leaves_at: float, to: Level) -> None:
    assert at(stays_at, before=before) is before
    assert at(leaves_at, before=before) is to


def test_a_level_that_was_entered_because_it_fell_ends_when_it_is_flat() -> None:
    assert at(9.5, slope=FAST) is Level.EVICT
    assert at(9.5, slope=0, before=Level.EVICT) is Level.FREEZE
    assert at(11.9, slope=FAST, before=Level.EVICT) is Level.EVICT


def test_a_flat_88_percent_evicts_nobody() -> None:
    level = Level.OK
    for _ in range(600):
        level = at(12, before=level)
    assert level is Level.FREEZE


def test_large_machines_are_judged_by_bytes() -> None:
    limit = 512 * 2**30
    assert assess(13 * 2**30, limit, None, Level.OK, DEFAULTS) is Level.OK  # 2.5 %, yet more than 20 % of 64 GiB
    assert assess(12 * 2**30, limit, None, Level.OK, DEFAULTS) is Level.HOLD
    assert assess(3 * 2**30, limit, None, Level.OK, DEFAULTS) is Level.KILL


def test_labels_are_the_words_of_the_contract() -> None:
    assert [level.label for level in Level] == ["ok", "hold", "shrink", "freeze", "evict", "kill"]


@given(limits, st.data(), slopes, levels)
def test_less_headroom_is_never_a_lower_level(
    limit: int, data: st.DataObject, slope: int | None, before: Level
) -> None:
    more = data.draw(st.integers(0, limit))
    less = data.draw(st.integers(0, more))
    assert assess(less, limit, slope, before, DEFAULTS) >= assess(more, limit, slope, before, DEFAULTS)


@given(limits, st.data(), st.integers(-(2**40), 2**40), levels)
def test_falling_faster_is_never_a_lower_level(limit: int, data: st.DataObject, slope: int, before: Level) -> None:
    headroom = data.draw(st.integers(0, limit))
    faster = data.draw(st.integers(slope, 2**41))
    assert assess(headroom, limit, faster, before, DEFAULTS) >= assess(headroom, limit, slope, before, DEFAULTS)


@given(limits, st.data(), slopes, levels, levels)
def test_a_worse_past_is_never_a_lower_level(
    limit: int, data: st.DataObject, slope: int | None, one: Level, other: Level
) -> None:
    headroom = data.draw(st.integers(0, limit))
    mild, bad = sorted((one, other))
    assert assess(headroom, limit, slope, bad, DEFAULTS) >= assess(headroom, limit, slope, mild, DEFAULTS)


@given(limits, slopes, levels)
def test_every_level_has_an_exit(limit: int, slope: int | None, before: Level) -> None:
    assert assess(limit, limit, slope, before, DEFAULTS) is Level.OK


@given(limits, st.data(), slopes, levels)
def test_a_constant_reading_settles_at_once(limit: int, data: st.DataObject, slope: int | None, before: Level) -> None:
    """The same figures twice give the same level twice: nothing flaps by itself."""
    headroom = data.draw(st.integers(0, limit))
    first = assess(headroom, limit, slope, before, DEFAULTS)
    assert assess(headroom, limit, slope, first, DEFAULTS) is first

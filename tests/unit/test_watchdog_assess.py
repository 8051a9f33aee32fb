"""Headroom, forecast and thrashing -> level, as tables and as properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.assess import LADDER, Assessment, Level, Thresholds, View, assess, entry_bytes

LIMIT = 100_000
DEFAULTS = Thresholds()
FAST = DEFAULTS.falling_bytes_per_s
REACTION_S = 0.03


def view(percent: float, *, firm: float | None = None, slope: float | None = 0, left_s: float | None = None) -> View:
    """percent: the whole headroom. firm: the firm one, the same unless told."""
    return View(
        headroom_bytes=round(percent * LIMIT / 100),
        firm_headroom_bytes=round((percent if firm is None else firm) * LIMIT / 100),
        limit_bytes=LIMIT,
        slope_bytes_per_s=slope,
        exhaustion_s=left_s,
        reaction_s=REACTION_S,
    )


def at(percent: float, *, slope: float | None = 0, before: Level = Level.OK) -> Level:
    return assess(view(percent, slope=slope), before, DEFAULTS).level


# -- headroom -------------------------------------------------------------------------------------------------


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
    def large(headroom: int) -> Level:
        return assess(View(headroom, headroom, 512 * 2**30), Level.OK, DEFAULTS).level

    assert large(13 * 2**30) is Level.OK  # 2.5 %, yet more than 20 % of 64 GiB
    assert large(12 * 2**30) is Level.HOLD
    assert large(3 * 2**30) is Level.KILL


def test_the_bytes_of_an_entry() -> None:
    assert entry_bytes(Level.KILL, LIMIT, DEFAULTS) == 5_000
    assert entry_bytes(Level.EVICT, LIMIT, DEFAULTS) == 7_000
    assert entry_bytes(Level.EVICT, LIMIT, DEFAULTS, falling=True) == 10_000
    assert entry_bytes(Level.HOLD, 2**40, DEFAULTS) == 64 * 2**30 // 5
    for level in LADDER:
        assert at(entry_bytes(level, LIMIT, DEFAULTS) * 100 / LIMIT) is level


def test_labels_are_the_words_of_the_contract() -> None:
    assert [level.label for level in Level] == ["ok", "hold", "shrink", "freeze", "evict", "kill"]


# -- firm and slow --------------------------------------------------------------------------------------------


@given(st.floats(0, 100), st.floats(22.01, 100), st.sampled_from(list(Level)))
def test_dirty_and_mapped_pages_alone_hold_and_no_more(percent: float, firm: float, before: Level) -> None:
    """A limit that is full of page cache with plenty of firm headroom: nothing new begins, and nobody is touched."""
    level = assess(view(min(percent, firm), firm=firm), before, DEFAULTS).level
    assert level <= Level.HOLD
    assert (level is Level.HOLD) or percent > 20


def test_firm_memory_counts_whatever_the_page_cache_does() -> None:
    assert assess(view(0, firm=14), Level.OK, DEFAULTS).level is Level.SHRINK
    assert assess(view(0, firm=4), Level.OK, DEFAULTS).level is Level.KILL


# -- forecast -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_s", "level"),
    [
        (None, Level.OK),
        (10.01, Level.OK),
        (10.0, Level.HOLD),
        (2.01, Level.HOLD),
        (2.0, Level.SHRINK),
        (REACTION_S + 0.101, Level.SHRINK),
        (REACTION_S + 0.1, Level.FREEZE),
        (REACTION_S + 0.031, Level.FREEZE),
        (REACTION_S + 0.03, Level.EVICT),
        (REACTION_S + 0.001, Level.EVICT),
        (REACTION_S, Level.KILL),  # a grace would be longer than there is time
        (0.0, Level.KILL),
    ],
)
def test_the_forecast_alone(left_s: float | None, level: Level) -> None:
    found = assess(view(50, slope=FAST, left_s=left_s), Level.OK, DEFAULTS)
    assert found == Assessment(level, "forecast" if level else "")
    for before in Level:  # it holds nobody back once it is over
        assert assess(view(50), before, DEFAULTS).level is Level.OK


def test_a_slower_reaction_kills_earlier() -> None:
    slow = replace(view(50, left_s=0.3), reaction_s=0.3)
    assert assess(slow, Level.OK, DEFAULTS).level is Level.KILL
    assert assess(replace(slow, reaction_s=0.1), Level.OK, DEFAULTS).level is Level.SHRINK


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (view(6, left_s=5.0), Assessment(Level.EVICT, "headroom")),
        (view(18, left_s=0.05), Assessment(Level.EVICT, "forecast")),
        (view(6, left_s=0.06), Assessment(Level.EVICT, "headroom")),
        (view(6, left_s=0.03), Assessment(Level.KILL, "forecast")),
    ],
)
def test_the_trigger_is_what_the_level_is_due_to(seen: View, found: Assessment) -> None:
    assert assess(seen, Level.OK, DEFAULTS) == found


# -- thrashing and steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "thrash", "found"),
    [
        (50, Level.OK, Assessment(Level.OK)),
        (50, Level.SHRINK, Assessment(Level.SHRINK, "thrash")),
        (50, Level.EVICT, Assessment(Level.EVICT, "thrash")),
        (18, Level.SHRINK, Assessment(Level.SHRINK, "thrash")),
        (14, Level.SHRINK, Assessment(Level.SHRINK, "headroom")),
        (4, Level.EVICT, Assessment(Level.KILL, "headroom")),
    ],
)
def test_thrashing_asks_for_a_level_itself(percent: float, thrash: Level, found: Assessment) -> None:
    assert assess(replace(view(percent), thrash=thrash), Level.OK, DEFAULTS) == found


def test_the_largest_step_of_a_turn_is_left_free() -> None:
    def stepping(percent: float, before: Level = Level.OK) -> Level:
        return assess(replace(view(percent), step_bytes=30_000), before, DEFAULTS).level

    assert stepping(30) is Level.HOLD
    assert stepping(30.001) is Level.OK
    assert stepping(32, Level.HOLD) is Level.HOLD
    assert stepping(32.001, Level.HOLD) is Level.OK
    assert stepping(16) is Level.HOLD  # it admits nobody; it is no reason to touch anybody


# -- properties -----------------------------------------------------------------------------------------------

levels = st.sampled_from(list(Level))
slopes = st.none() | st.integers(-(2**40), 2**40)
times = st.none() | st.floats(0, 100)


@st.composite
def views(draw: st.DrawFn) -> View:
    """What can be seen: firm headroom is at least the whole one, and neither is more than the limit."""
    limit = draw(st.integers(1, 2**45))
    firm = draw(st.integers(0, limit))
    return View(
        headroom_bytes=draw(st.integers(0, firm)),
        firm_headroom_bytes=firm,
        limit_bytes=limit,
        slope_bytes_per_s=draw(slopes),
        exhaustion_s=draw(times),
        reaction_s=draw(st.floats(0, 0.1)),
        thrash=draw(levels),
        step_bytes=draw(st.integers(0, limit)),
    )


def level_of(seen: View, before: Level) -> Level:
    return assess(seen, before, DEFAULTS).level


@given(views(), st.data(), levels)
def test_less_headroom_is_never_a_lower_level(seen: View, data: st.DataObject, before: Level) -> None:
    whole = data.draw(st.integers(0, seen.headroom_bytes))
    firm = data.draw(st.integers(whole, seen.firm_headroom_bytes))
    assert level_of(replace(seen, headroom_bytes=whole), before) >= level_of(seen, before)
    assert level_of(replace(seen, headroom_bytes=whole, firm_headroom_bytes=firm), before) >= level_of(seen, before)


@given(views(), st.floats(0, 100), levels)
def test_less_time_is_never_a_lower_level(seen: View, sooner_s: float, before: Level) -> None:
    if seen.exhaustion_s is not None:
        sooner_s = min(sooner_s, seen.exhaustion_s)
    assert level_of(replace(seen, exhaustion_s=sooner_s), before) >= level_of(seen, before)


@given(views(), st.integers(-(2**40), 2**41), levels)
def test_falling_faster_is_never_a_lower_level(seen: View, faster: int, before: Level) -> None:
    if seen.slope_bytes_per_s is not None:
        faster = max(faster, int(seen.slope_bytes_per_s))
    assert level_of(replace(seen, slope_bytes_per_s=faster), before) >= level_of(seen, before)


@given(views(), levels, st.floats(0, 0.1), st.integers(0, 2**45), levels)
def test_worse_thrashing_a_slower_reaction_or_a_larger_step_is_never_a_lower_level(
    seen: View, thrash: Level, slower_s: float, step: int, before: Level
) -> None:
    for worse in (
        replace(seen, thrash=max(thrash, seen.thrash)),
        replace(seen, reaction_s=max(slower_s, seen.reaction_s)),
        replace(seen, step_bytes=max(step, seen.step_bytes)),
    ):
        assert level_of(worse, before) >= level_of(seen, before)


@given(views(), levels, levels)
def test_a_worse_past_is_never_a_lower_level(seen: View, one: Level, other: Level) -> None:
    assert level_of(seen, max(one, other)) >= level_of(seen, min(one, other))


@given(views(), levels)
def test_every_level_has_an_exit(seen: View, before: Level) -> None:
    """With more than 22 % of headroom, no foreseeable end, no thrashing and no huge step it is over at once."""
    enough = seen.limit_bytes * 23 // 100 + 1
    generous = replace(
        seen,
        headroom_bytes=max(enough, seen.headroom_bytes),
        firm_headroom_bytes=max(enough, seen.firm_headroom_bytes),
        exhaustion_s=None,
        thrash=Level.OK,
        step_bytes=min(seen.step_bytes, seen.limit_bytes // 5),
    )
    assert assess(generous, before, DEFAULTS) == Assessment(Level.OK)


@given(views(), levels)
def test_a_constant_reading_settles_at_once(seen: View, before: Level) -> None:
    """The same figures twice give the same level twice: nothing flaps by itself."""
    first = level_of(seen, before)
    assert level_of(seen, first) is first


@given(st.integers(10**6, 2**45), st.floats(0, 100), st.lists(st.floats(0, 1.99), min_size=2, max_size=30), st.data())
def test_nothing_flaps_within_the_band(limit: int, percent: float, noise: list[float], data: st.DataObject) -> None:
    """Headroom that moves up and down by less than two points changes each level once at most, upwards."""
    scale = min(limit, DEFAULTS.scale_cap_bytes)
    step = data.draw(st.integers(0, limit))
    level, changes = Level.OK, []
    for points in noise:
        headroom = min(limit, int((percent * limit + points * scale) / 100))
        seen = View(headroom, headroom, limit, slope_bytes_per_s=0, step_bytes=step)
        if (found := level_of(seen, level)) is not level:
            changes.append((level, found))
        level = found
    assert all(after > before for before, after in changes)


@given(views(), levels)
def test_a_trigger_for_every_level_but_ok(seen: View, before: Level) -> None:
    found = assess(seen, before, DEFAULTS)
    assert (found.trigger == "") is (found.level is Level.OK)
    assert found.trigger in ("", "headroom", "forecast", "thrash")


@given(views(), levels)
def test_a_flat_reading_above_seven_percent_is_no_reason_to_end_anybody(seen: View, before: Level) -> None:
    """Unless it was taken out of evict's own band: there it has to rise by two points first."""
    scale = min(seen.limit_bytes, DEFAULTS.scale_cap_bytes)
    calm = replace(seen, slope_bytes_per_s=0, exhaustion_s=None, thrash=Level.OK)
    points = 9 if before >= Level.EVICT else 7
    if calm.firm_headroom_bytes * 100 > points * scale:
        assert level_of(calm, before) < Level.EVICT

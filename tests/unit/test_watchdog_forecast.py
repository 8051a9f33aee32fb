"""The slope: found on a ramp, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight_watchdog.assess import Level, Thresholds
from overnight_watchdog.forecast import (
    ENOUGH,
    LONG_SPACING_S,
    LONGEST_S,
    NOISE_BYTES,
    SHORT_POINTS,
    Track,
    exhaustion_s,
    slope_bytes_per_s,
)
from overnight_watchdog.loop import REACTION_S

MIB = 2**20
GIB = 2**30
LIMIT = 2 * GIB
FLOOR = Thresholds().falling_bytes_per_s
EVICT_NEEDS_S = Thresholds().entry_s(Level.EVICT, REACTION_S[1])

intervals = st.sampled_from([0.01, 0.02, 0.05, 0.06, 0.1, 0.25, 1.0]) | st.floats(0.01, 1.0)
patiently = settings(deadline=None, max_examples=60)  # some examples are thousands of looks
chances = st.integers(0, 2**32).map(random.Random)


def looks(interval_s: float, seconds: float, jitter: random.Random | None = None) -> Iterator[float]:
    """Moments of looking, from 100 s on; a loaded machine is late now and then."""
    now_s = 100.0
    while now_s < 100.0 + seconds:
        yield now_s
        now_s += interval_s * (jitter.uniform(1.0, 1.5) if jitter else 1.0)


def followed(usage: Callable[[float], float], moments: Iterator[float]) -> Iterator[tuple[float, float, float | None]]:
    """(seconds since the beginning, slope, seconds to exhaustion) at each look; usage: seconds -> bytes."""
    track = Track()
    for now_s in moments:
        size = int(usage(now_s - 100.0))
        track.add(now_s, size)
        slope = track.slope()
        yield now_s - 100.0, slope or 0.0, exhaustion_s(LIMIT - size, slope, floor_bytes_per_s=FLOOR)


# -- the estimate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "slope"),
    [
        ([], None),
        ([1, 2, 3], None),  # too few to be sure of anything
        ([5, 5, 5, 5], 0),
        ([0, 10, 20, 30], 10),
        ([30, 20, 10, 0], -10),
        # one step up, wherever it lies among however many points
        ([0, 9, 9, 9], 0),
        ([0, 0, 9, 9], 0),
        ([0, 0, 0, 9], 0),
        ([0, 0, 0, 9, 9, 9], 0),
        ([0, 0, 0, 0, 9, 9, 9, 9], 0),
        # a spike
        ([0, 0, 99, 0, 0], 0),
        ([0, 10, 20, 999, 40, 50, 60], 10),
        # one that gives back as much as it takes falls, if anything
        ([0, 9, 0, 9, 0, 9, 0, 9], 0),
    ],
)
def test_the_lower_third_of_all_slopes(sizes: list[int], slope: float | None) -> None:
    assert slope_bytes_per_s([(float(second), size) for second, size in enumerate(sizes)]) == slope


def test_moments_that_coincide_have_no_slope() -> None:
    assert slope_bytes_per_s([(1.0, size) for size in range(9)]) is None
    assert slope_bytes_per_s([(1.0, 0), (1.0, 50), (2.0, 10), (3.0, 20)]) is not None


@pytest.mark.parametrize(
    ("headroom", "slope", "seconds"),
    [
        (100 * MIB, None, None),
        (100 * MIB, 0.0, None),
        (100 * MIB, -5.0 * MIB, None),
        (100 * MIB, MIB - 1.0, None),  # below the floor
        (100 * MIB, 1.0 * MIB, 100.0),
        (100 * MIB, 1000.0 * MIB, 0.1),
        (0, 1.0 * MIB, 0.0),
        (2**50, 1.0 * MIB, None),  # a day and more is no forecast
        (int(LONGEST_S) * MIB, 1.0 * MIB, LONGEST_S),
    ],
)
def test_seconds_to_exhaustion(headroom: int, slope: float | None, seconds: float | None) -> None:
    assert exhaustion_s(headroom, slope, floor_bytes_per_s=FLOOR) == seconds


@given(st.integers(0, 2**45), st.integers(0, 2**45), st.floats(0, 2**41), st.floats(0, 2**41))
def test_less_room_or_a_steeper_slope_is_never_more_time(a: int, b: int, slow: float, fast: float) -> None:
    less, more = sorted((a, b))
    slow, fast = sorted((slow, fast))
    never = float("inf")
    calm, tight = (exhaustion_s(*figures, floor_bytes_per_s=FLOOR) for figures in ((more, slow), (less, fast)))
    assert (never if tight is None else tight) <= (never if calm is None else calm)


# -- a track: what is a slope ---------------------------------------------------------------------------------


@patiently
@given(st.floats(MIB, 4 * GIB), intervals, st.integers(0, GIB))
def test_a_steady_ramp_of_any_rate_is_recovered(rate: float, interval_s: float, start: int) -> None:
    """Within a percent: at once when it moves enough to be told from noise, after some seconds in any case."""
    for after_s, slope, _ in followed(lambda s: start + rate * s, looks(interval_s, 6.0)):
        shortest = ENOUGH * interval_s
        if after_s >= (ENOUGH + 1) * (LONG_SPACING_S + interval_s) or (
            after_s >= SHORT_POINTS * interval_s and rate * shortest > 2 * NOISE_BYTES
        ):
            assert slope == pytest.approx(rate, rel=0.01)


@patiently
@given(st.floats(MIB, 4 * GIB), intervals, chances)
def test_a_ramp_that_is_looked_at_irregularly(rate: float, interval_s: float, chance: random.Random) -> None:
    *_, (_, slope, _) = followed(lambda s: rate * s, looks(interval_s, 8.0, chance))
    assert slope == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("rate", [200 * MIB, 500 * MIB, GIB])
def test_a_burst_out_of_a_long_calm_is_seen_within_tens_of_milliseconds(rate: int) -> None:
    def usage(second: float) -> float:
        return 300 * MIB + max(0.0, second - 5.0) * rate

    seen = next(s for s, slope, _ in followed(usage, looks(0.01, 6.0)) if slope > 0.5 * rate)
    assert seen - 5.0 <= 0.08


def test_a_slow_past_does_not_dilute_a_burst() -> None:
    """Four looks a second apart, then one every 10 ms: only the young ones count."""
    track = Track()
    for second in range(4):
        track.add(float(second), 100 * MIB)
    for number in range(1, 5):
        track.add(3.0 + number / 100, (100 + 5 * number) * MIB)
    assert track.slope() == pytest.approx(500 * MIB, rel=0.01)


@pytest.mark.parametrize("interval_s", [0.01, 0.05, 0.25, 1.0])
@pytest.mark.parametrize("step_bytes", [4096, 256 * 1024, 2 * MIB])
def test_a_slow_leak_that_is_counted_in_lumps_is_seen_and_stays_seen(interval_s: float, step_bytes: int) -> None:
    """3 MiB a second, in pages, in a kernel's batches, in huge pages."""
    for after_s, slope, _ in followed(lambda s: int(3 * MIB * s / step_bytes) * step_bytes, looks(interval_s, 40.0)):
        if after_s >= 10.0:
            assert FLOOR <= slope <= 4 * MIB


# -- and what is none -----------------------------------------------------------------------------------------


@patiently
@given(intervals, st.floats(0.0, 5.0), st.integers(MIB, LIMIT), chances)
def test_one_step_up_and_a_plateau_forecasts_nothing(
    interval_s: float, step_at_s: float, height: int, chance: random.Random
) -> None:
    """A buffer that is allocated at once. Not during the plateau, and not after it."""
    for _, _, seconds in followed(lambda s: height if s > step_at_s else 0, looks(interval_s, 12.0, chance)):
        assert seconds is None


@patiently
@given(intervals, st.floats(1.0, 20.0), st.floats(10 * MIB, GIB))
def test_a_ramp_that_ends_on_a_plateau_is_soon_forgotten(interval_s: float, ramp_s: float, rate: float) -> None:
    """Who has been stopped no longer grows: the slope is gone as soon as the short window and two seconds are over."""
    over_s = ramp_s + max(2 * LONG_SPACING_S + interval_s, SHORT_POINTS * interval_s) + interval_s
    for after_s, slope, seconds in followed(lambda s: rate * min(s, ramp_s), looks(interval_s, over_s + 30)):
        if after_s > over_s:
            assert slope < FLOOR
            assert seconds is None


def test_who_is_frozen_while_looked_at_closely_has_no_slope_after_two_seconds() -> None:
    """Half a minute of 50 MiB/s, then a lease of 3 s under looks of 10 ms: the memory of it must not outlast that."""
    slopes = dict.fromkeys((0.5, 1.0, 2.1), 0.0)
    for after_s, slope, _ in followed(lambda s: 50 * MIB * min(s, 20.0), looks(0.01, 24.0)):
        for mark_s in slopes:
            if after_s <= 20.0 + mark_s:
                slopes[mark_s] = slope
    assert slopes[0.5] < 35 * MIB
    assert slopes[1.0] < 30 * MIB
    assert slopes[2.1] == 0


@patiently
@given(intervals, st.floats(0, 5), st.floats(0.05, 0.25), st.booleans(), chances)
def test_a_sawtooth_never_asks_for_an_eviction(
    interval_s: float, phase_s: float, floor: float, falls: bool, chance: random.Random
) -> None:
    """60 % of the limit every 5 s, up to 85 % of it; as a ramp that drops, or as a jump that is given back slowly."""

    def usage(second: float) -> float:
        share = ((second + phase_s) % 5.0) / 5.0
        return (floor + 0.6 * (1 - share if falls else share)) * LIMIT

    for _, _, seconds in followed(usage, looks(interval_s, 20.0, chance)):
        assert seconds is None or seconds > EVICT_NEEDS_S


@patiently
@given(intervals, chances)
def test_noise_is_no_slope(interval_s: float, chance: random.Random) -> None:
    """Half a MiB up and down, as counters in batches and a working set make it."""
    for _, slope, seconds in followed(lambda _: GIB + chance.uniform(-0.5, 0.5) * MIB, looks(interval_s, 15.0)):
        assert slope < FLOOR
        assert seconds is None


@patiently
@given(intervals, st.lists(st.floats(-0.49, 0.49), min_size=2, max_size=40))
def test_no_noise_of_that_size_however_unlucky_is_a_slope(interval_s: float, pattern: list[float]) -> None:
    moments = list(looks(interval_s, 6.0))
    place = {now_s - 100.0: number for number, now_s in enumerate(moments)}
    for _, slope, _ in followed(lambda s: GIB + pattern[place[s] % len(pattern)] * MIB, iter(moments)):
        assert slope < FLOOR


# -- a track: bookkeeping -------------------------------------------------------------------------------------


def test_moments_that_do_not_advance_are_passed_over() -> None:
    track = Track()
    for now_s, size in [
        (1.0, 0),
        (2.0, 10 * MIB),
        (2.0, 999 * MIB),
        (1.5, 999 * MIB),
        (3.0, 20 * MIB),
        (4.0, 30 * MIB),
    ]:
        track.add(now_s, size)
    assert track.slope() == 10 * MIB


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 2**50)), max_size=60))
def test_any_order_of_moments_gives_a_slope_or_none(points: list[tuple[float, int]]) -> None:
    track = Track()
    for now_s, size in points:
        track.add(now_s, size)
        slope = track.slope()
        assert slope is None or abs(slope) < float("inf")


def test_too_few_looks_and_what_is_forgotten() -> None:
    track = Track()
    assert track.slope() is None
    for second in range(ENOUGH):
        assert track.slope() is None
        track.add(float(second), second * 100 * MIB)
    assert track.slope() == 100 * MIB
    assert track.peak == (ENOUGH - 1) * 100 * MIB
    track.forget()
    assert track.slope() is None
    track.add(50.0, MIB)
    assert track.slope() is None
    assert track.peak == (ENOUGH - 1) * 100 * MIB  # the most that was ever held is what it was

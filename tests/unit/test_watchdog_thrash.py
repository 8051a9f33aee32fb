"""Thrashing: named after seconds, acted on after more, under a clock that is stepped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.assess import Level
from overnight_watchdog.thrash import SAMPLE_S, Thrashing, ThrashLimits, ThrashWatch
from overnight_watchdog.tree import PAGE_BYTES

LIMIT = 256 * 2**20
LIMITS = ThrashLimits()


class World:
    """A clock and the two counters of a machine that has been up for a while. psi: it measures stalls."""

    def __init__(self, *, psi: bool = True) -> None:
        self.now_s, self.refaulted, self.stalled_us, self.psi = 1000.0, 5_000_000, 90_000_000, psi
        self.watch = ThrashWatch()
        self.look()

    def look(self, limit_bytes: int = LIMIT) -> None:
        self.watch.add(self.now_s, self.refaulted, self.stalled_us if self.psi else None, limit_bytes)

    def live(self, seconds: float, *, refault: float, stall: float = 0.0, every_s: float = 1.0) -> None:
        """refault: times the limit that is read again in a second. stall: share of the time lost."""
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            self.now_s += every_s
            self.refaulted += round(refault * LIMIT / PAGE_BYTES * every_s)
            self.stalled_us += round(stall * 1e6 * every_s)
            self.look()

    def level(self, candidates: int = 3) -> Level:
        return self.watch.level(self.now_s, candidates)


@pytest.mark.parametrize(
    ("seconds", "several", "alone", "nobody"),
    [
        (1, Level.OK, Level.OK, Level.OK),
        (2, Level.OK, Level.OK, Level.OK),
        (3, Level.SHRINK, Level.SHRINK, Level.SHRINK),
        (9, Level.SHRINK, Level.SHRINK, Level.SHRINK),
        (10, Level.EVICT, Level.SHRINK, Level.SHRINK),
        (600, Level.EVICT, Level.SHRINK, Level.SHRINK),
    ],
)
def test_named_after_three_seconds_and_the_cheapest_of_several_goes_after_ten(
    seconds: int, several: Level, alone: Level, nobody: Level
) -> None:
    world = World()
    world.live(60, refault=0.0)
    world.live(seconds, refault=0.5, stall=0.2)
    assert (world.level(2), world.level(1), world.level(0)) == (several, alone, nobody)


@pytest.mark.parametrize(
    ("refault", "stall", "alone"),
    [
        (0.5, 0.2, Level.SHRINK),
        (1.9, 0.39, Level.SHRINK),
        (0.5, 0.4, Level.EVICT),  # it gets nothing done any more
        (2.0, 0.2, Level.EVICT),  # it reads all its memory again, twice a second
        (6.0, 0.18, Level.EVICT),  # as measured for weights that do not fit
    ],
)
def test_one_that_is_alone_goes_only_when_it_is_unbearable(refault: float, stall: float, alone: Level) -> None:
    world = World()
    world.live(12, refault=refault, stall=stall)
    assert world.level(1) is alone
    assert world.level(2) is Level.EVICT
    assert world.level(0) is Level.SHRINK


@pytest.mark.parametrize(
    ("refault", "stall"),
    [
        (0.4, 0.01),  # a program that reads a file larger than its memory, as measured
        (0.4, 0.09),
        (8.0, 0.0),
        (0.09, 0.9),  # it waits, but not for pages that were thrown out
        (0.0, 1.0),
    ],
)
def test_what_is_no_thrashing_never_is_however_long(refault: float, stall: float) -> None:
    world = World()
    for _ in range(60):
        world.live(1, refault=refault, stall=stall)
        assert world.level() is Level.OK
        assert world.watch.found.since_s is None


@pytest.mark.parametrize(
    ("refault", "level"), [(0.1, Level.OK), (0.19, Level.OK), (0.21, Level.EVICT), (5, Level.EVICT)]
)
def test_without_psi_refaults_alone_have_to_be_twice_as_many(refault: float, level: Level) -> None:
    world = World(psi=False)
    world.live(12, refault=refault)
    assert world.level() is level
    assert world.watch.found.stall is None


def test_without_any_counter_of_refaults_nothing_is_found() -> None:
    watch = ThrashWatch()
    for second in range(30):
        watch.add(float(second), None, second * 900_000, LIMIT)
        assert watch.level(float(second), 3) is Level.OK


def test_it_ends_with_the_first_calm_second_and_begins_anew() -> None:
    world = World()
    world.live(30, refault=1.0, stall=0.5)
    assert world.level() is Level.EVICT
    world.live(1, refault=0.0)
    assert world.level() is Level.OK
    world.live(9, refault=1.0, stall=0.5)
    assert world.level() is Level.SHRINK
    world.live(1, refault=1.0, stall=0.5)
    assert world.level() is Level.EVICT


def test_what_was_found() -> None:
    world = World()
    world.live(2, refault=0.5, stall=0.25)
    found = world.watch.found
    assert found.refault_per_s == pytest.approx(0.5)
    assert found.stall == pytest.approx(0.25)
    assert found.since_s == 1000.0


@pytest.mark.parametrize("back", ["refaulted", "stalled_us"])
def test_a_counter_that_goes_backwards_is_another_counter(back: str) -> None:
    """As after the cgroup was made anew, or the limit became another bound's."""
    world = World()
    world.live(5, refault=1.0, stall=0.5)
    setattr(world, back, 7)
    world.live(1, refault=1.0, stall=0.5)
    assert world.level() is Level.OK
    world.live(3, refault=1.0, stall=0.5)
    assert world.level() is Level.SHRINK


def test_a_counter_that_is_missing_once_is_not_zero() -> None:
    """Else all refaults since the boot would have happened in one second."""
    world = World()
    world.live(5, refault=0.0)
    world.now_s += 20
    world.watch.add(world.now_s, None, world.stalled_us, LIMIT)
    world.now_s += 20
    world.stalled_us += 10_000_000
    world.look()
    assert world.level() is Level.OK
    assert world.watch.found == Thrashing()


def test_another_limits_counters_are_not_compared() -> None:
    """A machine has refaulted more in its life than a cgroup in it, and stood still for longer."""
    world = World()
    world.live(5, refault=0.0)
    world.now_s, world.refaulted, world.stalled_us = world.now_s + 20, 10**9, 10**9
    world.look(limit_bytes=2 * LIMIT)
    assert world.watch.found == Thrashing()
    assert world.level() is Level.OK


def test_the_first_look_and_one_at_the_same_moment_say_nothing() -> None:
    world = World()
    assert world.watch.found == Thrashing()
    world.refaulted += 10**6
    world.look()
    assert world.watch.found == Thrashing()


def test_it_is_due_once_a_second() -> None:
    watch = ThrashWatch()
    assert watch.due(0.0)
    watch.add(5.0, 0, 0, LIMIT)
    assert not watch.due(5.0 + SAMPLE_S - 0.01)
    assert watch.due(5.0 + SAMPLE_S)


rates, shares = st.floats(0, 20), st.floats(0, 1)


@given(st.integers(1, 30), rates, rates, shares, shares, st.integers(0, 4))
def test_more_refaults_and_more_stalls_are_never_a_lower_level(
    seconds: int, few: float, many: float, short: float, long: float, candidates: int
) -> None:
    mild, bad = World(), World()
    mild.live(seconds, refault=min(few, many), stall=min(short, long))
    bad.live(seconds, refault=max(few, many), stall=max(short, long))
    assert bad.level(candidates) >= mild.level(candidates)
    assert bad.level(candidates + 1) >= bad.level(candidates)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.none() | st.integers(0, 2**64), st.none() | st.integers(0, 2**64))))
def test_any_counters_give_a_level(looks: list[tuple[float, int | None, int | None]]) -> None:
    watch = ThrashWatch()
    for now_s, refaulted, stalled in looks:
        watch.add(now_s, refaulted, stalled, LIMIT)
        assert watch.level(now_s, 2) in (Level.OK, Level.SHRINK, Level.EVICT)

"""What is said: the heartbeat and its rhythm, changes of level, a summary a minute. Under a clock that is stepped."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.assess import Level
from overnight_watchdog.journal import PRESSURE_BYTES, EventLog, PressureFile, pressure_block, read_pressure
from overnight_watchdog.report import CALM_S, PUBLISH_S, SUMMARY_S, Reporter, Seen, names
from overnight_watchdog.roster import Guarded
from overnight_watchdog.sample import Sample
from overnight_watchdog.thrash import Thrashing
from overnight_watchdog.tree import Tree

LIMIT = 1000 * 2**20
IDENTITY = {"boot_id": "0f8fad5b-d9cb-469f-a165-70867728950e", "pid": 7, "start_ticks": 9}


class Ear:
    """A heartbeat and a log that are remembered. deaf: the disk takes nothing."""

    def __init__(self) -> None:
        self.beats: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.deaf = False
        self.log = self.Log(self)

    def write(self, record: dict[str, Any]) -> bool:
        if not self.deaf:
            self.beats.append(record)
        return not self.deaf

    class Log:
        def __init__(self, ear: Ear) -> None:
            self._ear = ear

        def write(self, level: str, event: str, **fields: Any) -> bool:
            self._ear.lines.append({"level": level, "event": event, **fields})
            return True


class World:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.ear = Ear()
        self.reporter = Reporter(self.ear, self.ear.log, IDENTITY)

    def seen(self, level: Level, percent: float = 50.0) -> Seen:
        headroom = round(LIMIT * percent / 100)
        sample = Sample(self.now_s, LIMIT, "machine", LIMIT - headroom, headroom, "cgroup:/p", headroom + 5)
        return Seen(sample, level, 1234.56, 7.65432, LIMIT // 5)

    def say(self, level: Level = Level.OK, after_s: float = 0.0, *, frozen: int = 0) -> None:
        self.now_s += after_s
        self.reporter.publish(self.seen(level), frozen=frozen)

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        return [
            (line["level"], line["from"], line["to"]) for line in self.ear.lines if line["event"] == "pressure_changed"
        ]


@pytest.fixture
def world() -> World:
    return World()


def guarded(pid: int = 77, **entry: Any) -> Guarded:
    known = {"pid": pid, "start_ticks": 5, "role": "cell", "cell": "alpha_m_run1", "attempt": 3, **entry}
    return Guarded(known, -1, Tree(pid, alone=True))


# -- the heartbeat --------------------------------------------------------------------------------------------


def test_a_heartbeat_holds_the_contracts_fields(world: World) -> None:
    world.say(Level.SHRINK, frozen=2)
    assert world.ear.beats == [
        {
            "v": 1,
            **IDENTITY,
            "level": "shrink",
            "limit_bytes": LIMIT,
            "limit_source": "machine",
            "headroom_bytes": LIMIT // 2,
            "usage_bytes": LIMIT // 2,
            "slope_bytes_per_s": 1235,
            "exhaustion_s": 7.654,
            "hold_bytes": LIMIT // 5,
            "foreseen": False,
            "frozen": 2,
            "sequence": 1,
            "monotonic_s": 1000.0,
        }
    ]


def test_what_is_not_known_is_null(world: World) -> None:
    world.reporter.publish(Seen(world.seen(Level.OK).sample, Level.OK, None, None), frozen=0)
    assert (world.ear.beats[0]["slope_bytes_per_s"], world.ear.beats[0]["exhaustion_s"]) == (None, None)


def test_four_times_a_second_at_most(world: World) -> None:
    for _ in range(100):
        world.say(after_s=0.01)
    times = [beat["monotonic_s"] for beat in world.ear.beats]
    assert len(times) == 4
    assert min(b - a for a, b in pairwise(times)) >= PUBLISH_S - 1e-6
    assert [beat["sequence"] for beat in world.ear.beats] == [1, 2, 3, 4]


def test_whoever_looks_seldom_publishes_each_look(world: World) -> None:
    for _ in range(5):
        world.say(after_s=1.0)
    assert len(world.ear.beats) == 5


def test_a_change_of_level_is_published_at_once(world: World) -> None:
    world.say(Level.OK)
    world.say(Level.HOLD, 0.01)
    world.say(Level.KILL, 0.01)
    assert [beat["level"] for beat in world.ear.beats] == ["ok", "hold", "kill"]


def test_after_an_action_the_next_look_is_published(world: World) -> None:
    world.say()
    world.reporter.action("warning", "evicted", guarded(), took_ms=1.5)
    world.say(after_s=0.01, frozen=1)
    assert [beat["frozen"] for beat in world.ear.beats] == [0, 1]
    assert world.ear.lines == [
        {
            "level": "warning",
            "event": "evicted",
            **{"pid": 77, "role": "cell", "cell": "alpha_m_run1", "attempt": 3, "took_ms": 1.5},
        }
    ]


def test_names_of_a_registration_that_tells_little() -> None:
    entry = {"pid": 77, "start_ticks": 5, "role": "command"}
    assert names(Guarded(entry, -1, Tree(77))) == {"pid": 77, "role": "command", "cell": "", "attempt": 0}


# -- changes of level -----------------------------------------------------------------------------------------


def test_a_level_rises_at_once_and_falls_after_a_calm(world: World) -> None:
    world.say(Level.OK)
    world.say(Level.SHRINK, 0.01)
    world.say(Level.OK, CALM_S - 0.01)
    assert world.ear.beats[-1]["level"] == "shrink"
    world.say(Level.OK, 0.02)
    assert world.ear.beats[-1]["level"] == "ok"
    assert world.changes == [("warning", "ok", "shrink"), ("info", "shrink", "ok")]


def test_a_level_that_is_asked_for_again_and_again_is_one_line(world: World) -> None:
    """A forecast comes and goes with a breath."""
    for _ in range(200):
        world.say(Level.EVICT, 0.2)
        world.say(Level.OK, 0.2)
    assert world.changes == [("warning", "ok", "evict")]


def test_it_falls_no_further_than_what_was_asked_for_a_moment_ago(world: World) -> None:
    world.say(Level.KILL)
    world.say(Level.EVICT, 0.49)
    world.say(Level.HOLD, 0.02)  # the kill is 0.51 s ago, the eviction 0.02 s
    assert world.ear.beats[-1]["level"] == "evict"
    world.say(Level.OK, 0.49)
    assert world.ear.beats[-1]["level"] == "hold"
    world.say(Level.OK, 0.02)
    assert world.changes == [
        ("warning", "ok", "kill"),
        ("info", "kill", "evict"),
        ("info", "evict", "hold"),
        ("info", "hold", "ok"),
    ]


def test_slow_looks_fall_as_far_as_they_do(world: World) -> None:
    for level in (Level.OK, Level.OK, Level.HOLD, Level.OK, Level.SHRINK, Level.KILL):
        world.say(level, 1.0)
    assert world.changes == [
        ("warning", "ok", "hold"),
        ("info", "hold", "ok"),
        ("warning", "ok", "shrink"),
        ("warning", "shrink", "kill"),
    ]


def test_a_change_is_told_with_its_figures(world: World) -> None:
    world.say(Level.HOLD)
    assert world.ear.lines == [
        {
            "level": "warning",
            "event": "pressure_changed",
            "from": "ok",
            "to": "hold",
            "headroom_bytes": LIMIT // 2,
            "firm_headroom_bytes": LIMIT // 2 + 5,
            "headroom_source": "cgroup:/p",
            "limit_bytes": LIMIT,
            "limit_source": "machine",
            "usage_bytes": LIMIT // 2,
            "slope_bytes_per_s": 1235,
            "exhaustion_s": 7.654,
        }
    ]


@given(st.lists(st.tuples(st.sampled_from(list(Level)), st.floats(0.01, 1.0)), min_size=1))
def test_what_is_said_is_never_below_what_is_seen_nor_above_what_was_seen_lately(
    steps: list[tuple[Level, float]],
) -> None:
    world = World()
    seen: list[tuple[float, Level]] = []
    for level, after_s in steps:
        world.say(level, after_s)
        seen.append((world.now_s, level))
        said = Level[world.ear.beats[-1]["level"].upper()]
        lately = max(level for then_s, level in seen if world.now_s - then_s <= CALM_S)
        assert level <= said <= lately


# -- summaries, and what is told seldom -----------------------------------------------------------------------


def test_a_summary_a_minute(world: World) -> None:
    for second in range(int(3 * SUMMARY_S) + 1):
        world.say(after_s=1.0)
        world.reporter.summarise(world.seen(Level.OK, 30 if second == 70 else 50), looks=second)
    summaries = world.ear.lines
    assert [line["event"] for line in summaries] == ["pressure_sampled"] * 3
    assert [line["looks"] for line in summaries] == [60, 120, 180]
    assert [line["sequence"] for line in summaries] == [61, 121, 181]
    lowest = [line["lowest_headroom_bytes"] for line in summaries]
    assert lowest == [LIMIT // 2, LIMIT * 3 // 10, LIMIT // 2]
    assert all(line["own_rss_bytes"] > 2**20 and line["heartbeats_lost"] == 0 for line in summaries)
    assert all(line["pressure"] == "ok" and line["level"] == "info" for line in summaries)


def test_heartbeats_that_were_lost_are_counted_and_their_numbers_are_not_used_again(world: World) -> None:
    world.say()
    world.ear.deaf = True
    for _ in range(3):
        world.say(after_s=1.0)
    world.ear.deaf = False
    world.say(after_s=1.0)
    assert [beat["sequence"] for beat in world.ear.beats] == [1, 5]
    for _ in range(2):
        world.now_s += SUMMARY_S
        world.reporter.summarise(world.seen(Level.OK))
    assert world.ear.lines[-1]["heartbeats_lost"] == 3


def test_seldom_is_once_a_minute_of_a_kind(world: World) -> None:
    for second in range(int(2 * SUMMARY_S)):
        for event, step in (("sampling_failed", {}), ("action_skipped", {"step": "evict"})):
            world.reporter.seldom(float(second), "error", event, second=second, **step)
        world.reporter.seldom(float(second), "info", "action_skipped", step="kill", second=second)
    told = [(line["event"], line.get("step"), line["second"]) for line in world.ear.lines]
    kinds = [("sampling_failed", None), ("action_skipped", "evict"), ("action_skipped", "kill")]
    assert told == [(*kind, second) for second in (0, 60) for kind in kinds]


def test_thrashing_is_named_once_a_minute_with_the_worst_of_them(world: World) -> None:
    found = Thrashing(0.51234, 0.25678, 990.0)
    for _ in range(30):
        world.reporter.thrashing(world.seen(Level.SHRINK), found, guarded())
        world.now_s += 1.0
    (line,) = world.ear.lines
    assert (line["level"], line["event"], line["worst"]) == ("warning", "thrashing", "alpha_m_run1")
    assert (line["refault_per_s"], line["stall"], line["lasted_s"]) == (0.512, 0.257, 10.0)
    assert line["headroom_bytes"] == LIMIT // 2


@pytest.mark.parametrize(("worst", "name"), [(None, None), (guarded(cell=""), 77)])
def test_thrashing_of_nobody_we_know_by_name(world: World, worst: Guarded | None, name: int | None) -> None:
    world.reporter.thrashing(world.seen(Level.SHRINK), Thrashing(0.5, None, None), worst)
    (line,) = world.ear.lines
    assert (line["worst"], line["stall"], line["lasted_s"]) == (name, None, None)


def test_the_end(world: World) -> None:
    world.say()
    world.reporter.stopped("SIGTERM", Level.HOLD)
    assert world.ear.lines == [
        {"level": "info", "event": "watchdog_stopped", "reason": "SIGTERM", "pressure": "hold", "sequence": 1}
    ]


def test_a_disk_that_refuses_everything_stops_nothing(tmp_path: Path) -> None:
    world = World()
    (tmp_path / "var").write_text("a file where the folder should be")
    heartbeat = PressureFile(tmp_path / "var" / "run" / "pressure.json")
    log = EventLog(tmp_path / "var" / "log" / "watchdog.jsonl")
    reporter = Reporter(heartbeat, log, IDENTITY)
    for second in range(int(SUMMARY_S) + 2):
        world.now_s = 1000.0 + second
        reporter.publish(world.seen(Level.SHRINK), frozen=0)
        reporter.summarise(world.seen(Level.SHRINK))
    (tmp_path / "var").unlink()
    world.now_s += 1.0
    reporter.publish(world.seen(Level.SHRINK), frozen=0)
    assert read_pressure(tmp_path / "var" / "run" / "pressure.json")["sequence"] == SUMMARY_S + 3
    world.now_s += SUMMARY_S
    reporter.summarise(world.seen(Level.SHRINK))
    (line,) = (json.loads(text) for text in (tmp_path / "var" / "log" / "watchdog.jsonl").read_text().splitlines())
    assert (line["heartbeats_lost"], line["lines_lost"]) == (SUMMARY_S + 2, 2)
    heartbeat.close()
    log.close()


# -- it always fits -------------------------------------------------------------------------------------------

anything = st.integers(0, 10**21)
sources = st.text(st.characters(codec=None), max_size=300) | st.sampled_from(
    ["cgroup:/" + each * 300 for each in ("\\", '"', "\x01", "\x7f", "é", "\udc80", "/x", "\U0001f600")]
)


@given(
    *(anything, anything, anything, sources),
    st.none() | st.floats(-1e30, 1e30),
    st.none() | st.floats(0, 86400),
    st.integers(0, 2**22),
    st.floats(0, 1e12),
    st.sampled_from(list(Level)),
)
def test_a_heartbeat_always_fits_and_can_be_read(
    limit: int,
    usage: int,
    headroom: int,
    source: str,
    slope: float | None,
    left_s: float | None,
    frozen: int,
    now_s: float,
    level: Level,
) -> None:
    """The largest pid and start time, a counter that has run for years, and any cgroup's name."""
    ear = Ear()
    identity = IDENTITY | {"pid": 2**22, "start_ticks": 2**64}
    reporter = Reporter(ear, ear.log, identity)
    reporter._sequence = 10**12
    sample = Sample(now_s, limit, source, usage, headroom, source, headroom)
    reporter.publish(Seen(sample, level, slope, left_s, limit), frozen=frozen)
    (record,) = ear.beats
    block = pressure_block(record)
    assert len(block) == PRESSURE_BYTES
    found = json.loads(block)
    assert {name: value for name, value in found.items() if name != "checksum"} == record

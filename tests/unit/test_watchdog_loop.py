"""The loop, a look at a time: the whole ladder on simulated leaks, and what it says of it."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import overnight_watchdog
from helpers.fake_kernel import MIB
from helpers.watchdog_world import LIMIT, SOURCE, World
from overnight_watchdog.assess import Level, Thresholds
from overnight_watchdog.decide import Step
from overnight_watchdog.pace import BUSY_S, FILL_BYTES_PER_S, PATIENCE, SHORTEST_S

PACKAGE = Path(overnight_watchdog.__path__[0])
USR1, TERM, KILL, STOP, CONT = signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
ACTS = ("shrink_asked", "frozen", "thawed", "evicted", "killed", "victim_gone")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- the ladder -------------------------------------------------------------------------------------------------


def test_a_leak_climbs_the_whole_ladder_and_everybody_else_is_left_alone(world: World) -> None:
    bystander = world.start(10, 500, catches=[USR1], shrinks=True, last_turn_s=900.0)
    leak = world.start(20, 50, ramp_mib=60)
    world.until(lambda: not leak.alive, 60)
    world.lasts(3)
    assert world.story == [
        "hold",
        "shrink_asked",
        "shrink",
        "frozen",
        "freeze",
        "thawed",
        "evicted",
        "victim_gone",
        "evict",
        "ok",
    ]
    assert bystander.received == [USR1] and leak.received == [STOP, CONT, TERM]
    assert world.heartbeat["level"] == "ok" and world.heartbeat["frozen"] == 0
    assert world.heartbeat["hold_bytes"] == LIMIT // 5


def test_every_line_about_an_action_says_what_whom_why_and_the_figures(world: World) -> None:
    world.start(20, 500, ramp_mib=60)
    world.until(lambda: bool(world.named("victim_gone")), 60)
    evicted, gone = world.named("evicted", "victim_gone")
    expected = {
        "level": "warning",
        "pid": 20,
        "role": "cell",
        "cell": "night/cell_20",
        "attempt": 2,
        "step": "evict",
        "trigger": "headroom",
        "pressure": "evict",
        "limit_bytes": LIMIT,
        "limit_source": SOURCE,
    }
    assert expected.items() <= evicted.items()
    assert evicted["headroom_bytes"] <= LIMIT // 10
    assert evicted["own_bytes"] == evicted["peak_bytes"]
    assert evicted["own_bytes"] == pytest.approx(LIMIT - evicted["headroom_bytes"], abs=4096)
    assert evicted["slope_bytes_per_s"] == pytest.approx(60 * MIB, rel=0.01)
    assert evicted["exhaustion_s"] == pytest.approx(evicted["headroom_bytes"] / (60 * MIB), rel=0.01)
    assert evicted["loss_s"] == pytest.approx(world.verdicts()[0]["monotonic_s"] - 1000, abs=0.002)
    assert (gone["after_s"], gone["freed_bytes"]) == (0.0, evicted["own_bytes"])
    for event in world.named(*ACTS):
        assert {"pid", "role", "cell", "attempt"} <= event.keys()


def test_the_verdict_is_what_the_contract_says(world: World) -> None:
    process = world.start(20, 500, ramp_mib=60)
    world.until(lambda: not process.alive, 60)
    (verdict,) = world.verdicts()
    fields = (
        *("v", "boot_id", "sequence", "monotonic_s", "wall_s", "pid", "start_ticks", "role", "cell", "attempt", "step"),
        *("trigger", "level", "limit_bytes", "limit_source", "headroom_bytes", "slope_bytes_per_s", "exhaustion_s"),
        *("own_bytes", "peak_bytes", "loss_s", "checksum"),
    )
    assert set(verdict) == set(fields)
    assert (verdict["pid"], verdict["start_ticks"], verdict["attempt"]) == (20, process.ticks, 2)
    assert verdict["wall_s"] == pytest.approx(1_700_000_000 + verdict["monotonic_s"], abs=0.002)


def test_a_burst_is_killed_at_once(world: World) -> None:
    """From 30 % to nothing between two looks: no time to ask."""
    burst = world.start(20, 700)
    world.step()
    world.kernel.holds(20, 970 * MIB)
    world.step()
    assert burst.received == [KILL]
    assert [verdict["step"] for verdict in world.verdicts()] == ["kill"]


def test_one_that_does_not_leave_is_killed_after_its_grace(world: World) -> None:
    stubborn = world.start(20, 940, stubborn=[TERM], freezes=False)
    world.until(lambda: not stubborn.alive, 5)
    evicted, killed = world.named("evicted", "killed")
    assert evicted["trigger"] == "headroom" and killed["trigger"] == "grace_over"
    assert [each["step"] for each in world.verdicts()] == ["evict", "kill"]
    assert world.verdicts()[1]["monotonic_s"] - world.verdicts()[0]["monotonic_s"] == pytest.approx(2.0, abs=0.02)


def test_one_victim_at_a_time_until_there_is_room(world: World) -> None:
    cells = [world.start(pid, 94, freezes=False, last_turn_s=990.0, started_s=900.0 + pid) for pid in range(10, 20)]
    world.until(lambda: bool(world.named("evicted")), 5)
    world.lasts(5)
    assert [each.alive for each in cells] == [True] * 9 + [False], "the newest, and it is enough"


def test_a_victim_that_cannot_die_is_told_and_another_one_goes(world: World) -> None:
    stuck = world.start(30, 500, stubborn=[TERM, KILL])
    other = world.start(20, 430, loss_s=1)
    world.until(lambda: not other.alive, 10)
    assert stuck.alive
    world.until(lambda: bool(world.named("victim_stays")), 20)
    (stays,) = world.named("victim_stays")
    assert (stays["pid"], stays["level"]) == (30, "error")
    world.lasts(20)
    assert len(world.named("victim_stays")) == 1
    assert stuck.received.count(KILL) == 1
    assert ("release", 30, 0) in world.kernel.calls


def test_nobody_to_take_is_told_once_a_minute(world: World) -> None:
    world.eye.other_bytes = 990 * MIB
    world.start(20, 1, catches=[USR1])
    for _ in range(100):
        world.step(after_s=1.0)
    assert [event["level"] for event in world.named("no_victim")] == ["error"] * 2
    assert world.kernel.signals() == []


def test_freezing_counts_in_the_heartbeat_while_it_lasts(world: World) -> None:
    world.start(20, 800, ramp_mib=30)
    world.until(lambda: bool(world.named("frozen")), 10)
    world.step()
    assert world.heartbeat["frozen"] == 1
    seconds = world.until(lambda: bool(world.named("thawed")), 10)
    assert seconds == pytest.approx(3.0, abs=0.15)
    world.step()
    assert world.heartbeat["frozen"] == 0


def test_an_evicted_one_that_was_frozen_counts_as_frozen_no_more(world: World) -> None:
    world.start(20, 870, ramp_mib=30, role="command", stubborn=[TERM])
    world.until(lambda: bool(world.named("frozen")), 10)
    world.eye.other_bytes = 60 * MIB
    world.until(lambda: bool(world.named("evicted")), 10)
    world.step()
    assert world.kernel.signals()[-2:] == [(20, TERM), (20, CONT)]
    assert world.heartbeat["frozen"] == 0


def test_never_frozen_longer_than_the_lease_while_others_die(world: World) -> None:
    """Somebody is ended at every single look, and none of it holds up the thaw."""
    frozen = world.start(20, 50, ramp_mib=2, last_turn_s=1.0)
    world.eye.other_bytes = 830 * MIB
    world.until(lambda: bool(world.named("frozen")), 10)
    since_s = world.guarded(20).frozen_s
    assert since_s is not None
    for number in range(70):
        world.start(100 + number, 17, last_turn_s=world.now_s)
    world.eye.other_bytes = 2 * LIMIT
    while frozen.state == "T":
        world.step(after_s=0.05)
        assert world.now_s - since_s < 3.2
    assert frozen.alive and len(world.named("killed")) >= 55
    (thawed,) = world.named("thawed")
    assert thawed["trigger"] == "lease_over"


def test_who_ends_while_frozen_leaves_nobody_frozen_behind(world: World) -> None:
    root = world.start(20, 800, ramp_mib=30, role="command")
    child = world.kernel.start(21, parent=20)
    world.until(lambda: bool(world.named("frozen")), 10)
    assert (root.state, child.state) == ("T", "T")
    world.kernel.end(20)  # somebody else has killed it
    world.step()
    assert child.state == "S" and 20 not in [each.pid for each in world.roster]


# -- look again before the signal -------------------------------------------------------------------------------


def test_what_has_passed_by_the_second_look_costs_nobody_his_life(world: World) -> None:
    cell = world.start(20, 940, freezes=False)

    def relief(number: int) -> None:
        world.kernel.holds(20, (940 if number % 2 else 100) * MIB)

    world.eye.at_look = relief
    world.step()
    assert cell.alive and cell.received == []
    (skipped,) = world.named("action_skipped")
    assert skipped["step"] == "evict" and "meanwhile" in skipped["why"]
    assert world.verdicts() == []


def test_blind_at_the_second_look_it_goes_by_the_first(world: World) -> None:
    cell = world.start(20, 940, freezes=False)

    def blinded(number: int) -> None:
        world.eye.blind = number % 2 == 0

    world.eye.at_look = blinded
    world.step()
    assert cell.received == [TERM]


def test_a_skipped_end_still_ends_the_lease(world: World) -> None:
    """Each first look says evict, each second one that it is over: nobody is frozen for ever by that."""
    frozen = world.start(20, 800, ramp_mib=30)
    world.until(lambda: bool(world.named("frozen")), 10)
    world.ramps.clear()
    world.eye.at_look = lambda number: setattr(world.eye, "other_bytes", (120 if number % 2 else 0) * MIB)
    world.eye.looks = 0
    world.until(lambda: frozen.state != "T", 4)
    assert frozen.alive


# -- the pause --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit_mib", "headroom_mib", "least_s", "most_s"),
    [
        (20_000, 10_000, BUSY_S, BUSY_S),
        (20_000, 2000, 0.1, 0.5),
        (1000, 1000, 0.1, 0.5),
        (1000, 300, 0.02, 0.1),
        (1000, 60, SHORTEST_S, SHORTEST_S),
    ],
)
def test_the_pause_is_as_long_as_nothing_can_happen(
    world: World, limit_mib: int, headroom_mib: int, least_s: float, most_s: float
) -> None:
    """A part of the time in which the headroom above `kill` could be gone, were it filled as fast as memory can be."""
    world.eye.limit_bytes = limit_mib * MIB
    world.start(20, 0, freezes=False)
    world.eye.other_bytes = (limit_mib - headroom_mib) * MIB
    world.watchdog.step()
    pause_s = world.watchdog.pause_s()
    room = (headroom_mib - limit_mib * Thresholds().kill_percent / 100) * MIB
    assert pause_s == pytest.approx(min(BUSY_S, max(SHORTEST_S, PATIENCE * room / FILL_BYTES_PER_S)), rel=1e-3)
    assert least_s <= pause_s <= most_s and PATIENCE <= 0.5


def test_with_nobody_to_stop_it_sleeps_its_full_length(tmp_path: Path) -> None:
    """And with somebody at most a second, since the dispatcher admits by what is seen."""
    world = World(tmp_path, longest_s=2.5)
    world.eye.other_bytes = LIMIT
    world.watchdog.step()
    assert world.watchdog.pause_s() == 2.5
    world.start(5, 10, role="daemon")
    world.watchdog.step()
    assert world.watchdog.pause_s() == 2.5
    world.eye.other_bytes, world.eye.limit_bytes = 0, 20_000 * MIB
    world.start(20, 10)
    world.watchdog.step()
    assert world.watchdog.pause_s() == BUSY_S


def test_while_somebody_leaves_it_looks_a_hundred_times_a_second(world: World) -> None:
    world.start(20, 940, role="command", stubborn=[TERM], freezes=False)
    world.watchdog.step()
    assert world.actor.dying and world.watchdog.pause_s() == 0.01


def test_while_somebody_is_frozen_it_looks_ten_times_a_second(world: World) -> None:
    world.eye.limit_bytes = 64_000 * MIB
    world.eye.other_bytes = 56_300 * MIB
    world.start(20, 100, ramp_mib=100)
    world.until(lambda: bool(world.named("frozen")), 10)
    assert world.watchdog.pause_s() <= 0.1


@pytest.mark.parametrize("ramp_mib", [20, 200, 2000, 6000])
def test_no_level_is_slept_through(world: World, ramp_mib: int) -> None:
    """However steady the leak, the look after a pause finds it near the next threshold, not far behind it."""
    world.eye.limit_bytes = 8000 * MIB
    world.start(20, 5000, ramp_mib=ramp_mib, freezes=False)
    for _ in range(8):
        world.step(after_s=0.01)
    thresholds = [8000 * MIB * percent / 100 for percent in (20, 15, 12, 10)]
    while (left := world.eye.limit_bytes - sum(each.own_bytes for each in world.kernel.processes())) > thresholds[-1]:
        pause_s = world.step()
        passed = [entry for entry in thresholds if left > entry >= left - pause_s * ramp_mib * MIB]
        assert len(passed) <= 1, "two levels at once"
        beyond = [entry - (left - pause_s * ramp_mib * MIB) for entry in passed]
        assert max(beyond, default=0.0) <= SHORTEST_S * ramp_mib * MIB * 1.05


# -- its life ---------------------------------------------------------------------------------------------------


def test_it_tells_of_its_start_and_its_end_and_leaves_nobody_frozen(world: World) -> None:
    world.watchdog.started(limit_bytes=LIMIT)
    process = world.start(20, 800, ramp_mib=30)
    world.until(lambda: process.state == "T", 10)
    world.watchdog.stopped("SIGTERM")
    first, *_, thawed, last = world.events
    assert (first["event"], first["acts"], first["limit_bytes"]) == ("watchdog_started", True, LIMIT)
    assert first["thresholds"]["hold_percent"] == Thresholds().hold_percent
    assert (thawed["event"], thawed["trigger"]) == ("thawed", "stopping")
    assert (last["event"], last["reason"]) == ("watchdog_stopped", "SIGTERM")
    assert process.state == "S" and process.received == [STOP, CONT]


def test_the_order_of_victims_can_be_asked_for_without_any_pressure(world: World) -> None:
    world.start(20, 100, last_turn_s=1.0)
    world.start(21, 100)
    world.start(22, 50, role="warm")
    world.start(5, 100, role="daemon")
    world.step()
    assert [each.pid for each, _ in world.watchdog.victims()] == [22, 21, 20]
    assert world.watchdog.level is Level.OK


def test_the_reaction_is_the_slowest_of_the_last_deaths_within_reason(world: World) -> None:
    assert world.watchdog.reaction_s == 0.02
    for number, delay_s in enumerate((0.0, 0.03, 0.5)):
        victim = world.start(20 + number, 990, stubborn=[KILL])
        world.step(after_s=0.001)
        assert victim.alive
        world.now_s += delay_s
        world.kernel.end(victim.pid)
        world.step(after_s=0.001)
    assert world.watchdog.reaction_s == 0.05
    assert [round(event["after_s"], 2) for event in world.named("victim_gone")] == [0.0, 0.03, 0.5]


def test_a_victims_death_is_no_slope(world: World) -> None:
    """What it gave back must not look like memory that comes free by itself."""
    world.start(20, 990)
    world.start(21, 5)
    world.until(lambda: bool(world.named("victim_gone")), 5)
    world.step()
    assert world.heartbeat["slope_bytes_per_s"] is None


def test_no_descriptor_is_left_open(world: World) -> None:
    for number in range(30):
        world.start(20 + number, 990, role="command" if number % 2 else "cell")
        world.until(lambda: not world.actor.dying and len(world.named("victim_gone")) > number, 5)  # noqa: B023
        world.drop(20 + number)
    world.lasts(2)
    assert world.kernel.open_count() == len(world.roster) == 0


def test_every_step_has_an_event(world: World) -> None:
    from overnight_watchdog import loop

    assert set(loop._EVENTS) == set(Step)


# -- what it is made of -----------------------------------------------------------------------------------------


def test_it_imports_nothing_heavy_and_nothing_of_the_daemon() -> None:
    """A subprocess of its own, since this one has imported everything."""
    modules = ", ".join(f"overnight_watchdog.{file.stem}" for file in PACKAGE.glob("[a-z_]*.py"))
    code = f"import sys, {modules}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    loaded = {name.split(".")[0] for name in shown.stdout.split()}
    assert "overnight_watchdog" in loaded
    foreign = {
        "overnight",
        "torch",
        "structlog",
        "logging",
        "pydantic",
        "yaml",
        "supervisor",
        "numpy",
        "xmlrpc",
        "http",
    }
    assert loaded & foreign == set()


def test_only_the_standard_library_and_psutil_are_imported() -> None:
    allowed = set(sys.stdlib_module_names) | {"psutil", "overnight_watchdog"}
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file

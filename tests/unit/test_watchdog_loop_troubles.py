"""The loop among leaking daemons, vanishing registrations, full disks and nonsense; and a dry run of it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import overnight_watchdog
from helpers.watchdog_world import World
from overnight_watchdog.daemon_watch import DaemonWatch
from overnight_watchdog.journal import EventLog, PressureFile
from overnight_watchdog.report import SUMMARY_S

PACKAGE = Path(overnight_watchdog.__path__[0])
USR1, TERM, KILL, STOP, CONT = signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
ACTS = ("shrink_asked", "frozen", "thawed", "evicted", "killed", "victim_gone")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- the daemon -------------------------------------------------------------------------------------------------


class NoSupervisor:
    """Takes the request and never answers; `asked` counts."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, now_s: float) -> bool:
        self.asked += 1
        return True

    def answered(self, now_s: float) -> bool | None:
        return True


def supervised(tmp_path: Path, **options: Any) -> tuple[World, NoSupervisor]:
    supervisor: Any = NoSupervisor()

    def watch(world: World) -> DaemonWatch:
        def tell(event: str, **fields: Any) -> None:
            world.log.write("error", event, **fields)

        return DaemonWatch(world.home / "daemon.beat", supervisor, world.kernel, world.boot_id, tell)

    return World(tmp_path, daemon=watch, **options), supervisor


def test_a_leaking_daemon_is_restarted_through_its_supervisor(tmp_path: Path) -> None:
    world, supervisor = supervised(tmp_path)
    daemon = world.start(5, 930, role="daemon", cell="")
    cell = world.start(20, 7, last_turn_s=1.0)
    world.until(lambda: bool(world.named("daemon_restarted")), 5)
    world.step()
    assert supervisor.asked == 1 and daemon.received == [], "supervisord sends the signal"
    (told,) = world.named("daemon_restarted")
    assert (told["pid"], told["trigger"], told["level"], told["pressure"]) == (5, "leak", "error", "evict")
    (verdict,) = world.verdicts()
    assert (verdict["step"], verdict["trigger"], verdict["pid"]) == ("restart", "leak", 5)
    world.lasts(3)
    assert supervisor.asked == 1, "once is enough"
    world.kernel.end(5)
    world.drop(5)
    world.lasts(15)
    assert cell.alive and world.kernel.signals() == []
    assert world.named("killed", "evicted", "victim_gone") == []


def test_a_leaking_daemon_that_does_not_leave_is_killed(tmp_path: Path) -> None:
    world, _ = supervised(tmp_path)
    daemon = world.start(5, 940, role="daemon")
    world.until(lambda: not daemon.alive, 12)
    assert daemon.received == [KILL]
    assert world.verdicts()[0]["step"] == "restart"


def test_where_nobody_would_start_another_one_the_daemon_is_left_alone(world: World) -> None:
    """And cells are evicted as if it were not there: a restart that cannot be had must not block them."""
    daemon = world.start(5, 930, role="daemon")
    cell = world.start(20, 7, freezes=False)
    world.until(lambda: not cell.alive, 5)
    world.lasts(20)
    assert daemon.alive and daemon.received == []


# -- registrations ----------------------------------------------------------------------------------------------


def test_a_registration_that_is_taken_back_is_nobodys_business(world: World) -> None:
    process = world.start(20, 940)
    world.drop(20)
    world.lasts(3)
    assert process.received == [] and len(world.roster) == 0


def test_a_registration_that_is_taken_back_too_early_changes_nothing(world: World) -> None:
    """Its process was told to go: it is followed to its end, by the pidfd that was opened for it."""
    process = world.start(20, 990, stubborn=[TERM, KILL])
    world.step()
    assert world.guarded(20).killed_s is not None
    world.drop(20)
    world.lasts(2)
    assert [each.guarded.pid for each in world.actor.dying] == [20]
    stranger = world.start(20, 10, role="command")  # the pid, and the file's name, are used again
    assert not process.alive
    world.lasts(2)
    assert [event["pid"] for event in world.named("victim_gone")] == [20]
    assert world.guarded(20).start_ticks == stranger.ticks and stranger.received == []


def test_whoever_is_found_stopped_at_the_start_is_let_go(world: World) -> None:
    process = world.start(20, 100)
    process.state = "T"
    world.kernel.show(process)
    world.step()
    assert process.received == [CONT]
    assert [(event["pid"], event["trigger"]) for event in world.named("thawed")] == [(20, "found_stopped")]
    process.state = "T"  # later on a user may stop what he likes
    world.lasts(10)
    assert process.received == [CONT]


def test_the_daemons_registration_names_the_budgets_cgroup(world: World) -> None:
    daemon = world.start(5, 50, role="daemon", cgroup="/sys/fs/cgroup/memory/budget")
    world.step()
    assert world.eye.budget_folder == "/sys/fs/cgroup/memory/budget"
    world.register(daemon, "daemon", cgroup=None)
    world.step()
    assert world.eye.budget_folder == ""


# -- reporting never stops acting -------------------------------------------------------------------------------


def test_it_acts_before_it_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the signal nothing has been published or logged of it."""
    process = world.start(20, 990)
    order: list[str] = []
    send, write, publish = world.kernel.send, world.log.write, world.heartbeat_file.write

    def sent(pidfd: int, number: int) -> bool:
        order.append(f"signal {number}")
        return send(pidfd, number)

    def logged(level: str, event: str, **fields: Any) -> bool:
        order.append(event)
        return write(level, event, **fields)

    def published(record: dict[str, Any]) -> bool:
        order.append("heartbeat")
        return publish(record)

    monkeypatch.setattr(world.kernel, "send", sent)
    monkeypatch.setattr(world.log, "write", logged)
    monkeypatch.setattr(world.heartbeat_file, "write", published)
    world.step()
    assert order == ["signal 9", "killed", "victim_gone", "pressure_changed", "heartbeat"]
    assert not process.alive


def test_a_log_and_a_heartbeat_that_fail_stop_no_signal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventLog, "write", lambda *_, **__: False)
    monkeypatch.setattr(PressureFile, "write", lambda *_: False)
    leak = world.start(20, 500, ramp_mib=60)
    world.until(lambda: not leak.alive, 60)
    assert leak.received == [STOP, CONT, TERM]


def test_a_disk_that_refuses_everything_stops_no_signal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    leak = world.start(20, 500, ramp_mib=60)
    world.step()
    for name in ("write", "pwrite", "posix_fallocate", "ftruncate", "mkdir"):
        monkeypatch.setattr(os, name, refused)
    world.until(lambda: not leak.alive, 60)
    monkeypatch.undo()
    world.step()
    assert leak.received == [STOP, CONT, TERM]
    assert world.verdicts() == []


def test_a_var_that_was_replaced_by_a_file_stops_no_signal(world: World) -> None:
    leak = world.start(20, 500, ramp_mib=60)
    world.step()
    (world.home / "var").rename(world.home / "away")
    (world.home / "var").write_text("a file where the folder should be")
    world.until(lambda: not leak.alive, 60)
    assert leak.received == [STOP, CONT, TERM]


def test_a_registration_full_of_nonsense_stops_nothing(world: World) -> None:
    """Its pid and start time are true, so it is guarded; nothing else of it makes sense."""
    absurd: list[Any] = ["x", [], {}, None, True, -1, 10**400, float("nan"), float("inf"), "\ud800", "x" * 9000]
    names = ("cell", "attempt", "started_s", "last_turn_s", "replay_s", "turn", "cells", "shrinks", "freezes", "cgroup")
    for number, value in enumerate(absurd):
        for other, name in enumerate(names):
            victim = world.start(100 + number * 20 + other, 990, **{name: value})
            world.until(lambda victim=victim: not victim.alive, 10)  # type: ignore[misc]
            world.drop(victim.pid)
    assert len(world.verdicts()) == 64


def test_blindness_publishes_nothing_and_is_told_once_a_minute(world: World) -> None:
    process = world.start(20, 990)
    world.eye.blind = True
    for _ in range(int(SUMMARY_S) + 1):
        world.step(after_s=1.0)
    assert [(event["event"], event["level"]) for event in world.events] == [("sampling_failed", "error")] * 2
    assert not (world.home / "var" / "run" / "pressure.json").exists()
    assert process.received == []
    world.eye.blind = False
    world.step()
    assert world.heartbeat["sequence"] == 1 and world.heartbeat["slope_bytes_per_s"] is None
    assert process.received == [KILL]


# -- a dry run --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_do_and_touches_nobody(tmp_path: Path) -> None:
    world, supervisor = supervised(tmp_path, dry_run=True)
    leak = world.start(20, 500, ramp_mib=60, catches=[USR1], shrinks=True)
    daemon = world.start(5, 300, role="daemon")
    world.lasts(30)
    world.watchdog.stopped("SIGTERM")
    assert world.kernel.signals() == [] and leak.alive and daemon.alive
    assert world.verdicts() == [] and supervisor.asked == 0
    steps = [event["step"] for event in world.named("action_planned")]
    assert steps[:4] == ["shrink", "freeze", "evict", "kill"]
    assert world.named(*ACTS) == []


def test_a_dry_run_restarts_no_silent_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, supervisor = supervised(tmp_path, dry_run=True)
    monkeypatch.setattr(DaemonWatch, "look", lambda *_: pytest.fail("it was looked after"))
    world.start(5, 940, role="daemon")
    world.lasts(30)
    assert supervisor.asked == 0
    assert world.named("action_planned")[0]["step"] == "restart"

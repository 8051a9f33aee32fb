"""What is done to whom, in which order, on simulated processes."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_kernel import MIB, FakeKernel, FakeProcess
from overnight_watchdog.act import Actor
from overnight_watchdog.decide import Action, Step
from overnight_watchdog.roster import Guarded, Roster
from overnight_watchdog.verdicts import VerdictRing, read_ring

TERM, KILL, STOP, CONT, USR1 = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGUSR1
NOW = 500.0


class TellingRing(VerdictRing):
    """Notes each record among the machine's calls: what comes first is what is asked here."""

    def __init__(self, path: Path, calls: list[tuple[str, int, int]]) -> None:
        super().__init__(path, "b")
        self._calls = calls

    def write(self, record: dict[str, Any]) -> bool:
        self._calls.append(("verdict", record["pid"], 0))
        return super().write(record)


class Stage:
    """A machine, a roster that guards some of its processes, and the actor."""

    def __init__(self, folder: Path, *, dry_run: bool = False) -> None:
        self.folder = folder
        self.machine = FakeKernel(folder / "proc")
        self.ring = TellingRing(folder / "verdicts.ring", self.machine.calls)
        assert self.ring.open()
        self.actor = Actor(self.machine, self.ring, dry_run=dry_run)
        self.roster = Roster(folder / "cells", self.machine, "b", proc_root=self.machine.proc)

    def guard(self, process: FakeProcess, role: str = "cell", **entry: Any) -> Guarded:
        guarded = self.roster.add({"pid": process.pid, "start_ticks": process.ticks, "role": role, **entry})
        assert guarded is not None
        guarded.measure(NOW)
        return guarded

    def do(self, step: Step, guarded: Guarded, now_s: float = NOW) -> str:
        """Carry it out, and forget the calls that came before."""
        self.machine.calls.clear()
        record = {"pid": guarded.pid, "start_ticks": guarded.start_ticks, "step": step.value, "cell": guarded.cell}
        return self.actor.carry_out(Action(step, guarded.pid, "headroom"), guarded, now_s, record)

    @property
    def said(self) -> list[str]:
        """`verdict 7`, `SIGTERM 7`, `release 7`, in order."""
        names = {"send": lambda number: signal.Signals(number).name}
        return [f"{names[kind](number) if kind == 'send' else kind} {pid}" for kind, pid, number in self.machine.calls]

    def verdicts(self) -> list[str]:
        found = sorted(read_ring((self.folder / "verdicts.ring").read_bytes()), key=lambda one: one["sequence"])
        return [record["step"] for record in found]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def tree(stage: Stage, **root: Any) -> Guarded:
    """A command (10) with a child (11), a grandchild (12) and another child (13); 20 is a stranger."""
    machine = stage.machine
    guarded_root = machine.start(10, **root)
    machine.start(11, parent=10)
    machine.start(12, parent=11)
    machine.start(13, parent=10)
    machine.start(20)
    return stage.guard(guarded_root, "command")


# -- evict ------------------------------------------------------------------------------------------------------


def test_evicting_writes_the_verdict_and_then_asks(stage: Stage) -> None:
    guarded = stage.guard(stage.machine.start(7))
    assert stage.do(Step.EVICT, guarded) == ""
    assert stage.said == ["verdict 7", "SIGTERM 7"]
    assert stage.verdicts() == ["evict"]
    assert guarded.leaving_s == NOW and guarded.killed_s is None
    assert stage.actor.follows(guarded)


def test_a_frozen_one_gets_sigterm_before_sigcont(stage: Stage) -> None:
    """The other way round it could allocate before it learns that it has to go."""
    guarded = stage.guard(stage.machine.start(7))
    stage.do(Step.FREEZE, guarded)
    stage.do(Step.EVICT, guarded, NOW + 1)
    assert stage.said == ["verdict 7", "SIGTERM 7", "SIGCONT 7"]
    assert guarded.frozen_s is None, "it is frozen no more, and counts no more as such"


def test_in_a_frozen_tree_all_get_sigterm_before_anybody_is_continued(stage: Stage) -> None:
    guarded = tree(stage)
    stage.do(Step.FREEZE, guarded)
    stage.do(Step.EVICT, guarded, NOW + 1)
    sent = [word.split()[0] for word in stage.said]
    assert sent == ["verdict", *["SIGTERM"] * 4, *["SIGCONT"] * 4]
    assert {pid for pid, _ in stage.machine.signals()} == {10, 11, 12, 13}
    assert [each.pid for each in stage.machine.processes()] == [20]


def test_a_runner_outside_of_its_slot_is_told_first_and_the_slot_with_it(stage: Stage) -> None:
    """The runner leaves the cell's cgroup, its command may leave the runner: each is found by one of the two alone."""
    machine = stage.machine
    runner = machine.start(10)
    machine.start(11)
    machine.start(12)
    procs = stage.folder / "cell-1" / "cgroup.procs"
    procs.parent.mkdir()
    procs.write_text("11\n12\n")
    guarded = stage.guard(runner, "command", by="overnight", cgroup=str(procs.parent))
    for step, sent in (
        (Step.FREEZE, ["SIGSTOP"]),
        (Step.THAW, ["SIGCONT"]),
        (Step.FREEZE, ["SIGSTOP"]),
        (Step.EVICT, ["SIGTERM", "SIGCONT"]),
    ):
        stage.do(step, guarded)
        told = [word for word in stage.said if not word.startswith("verdict")]
        assert told == [f"{name} {pid}" for name in sent for pid in (10, 11, 12)]
    assert machine.processes() == []


# -- kill -------------------------------------------------------------------------------------------------------


def test_killing_writes_the_verdict_first(stage: Stage) -> None:
    guarded = stage.guard(stage.machine.start(7))
    assert stage.do(Step.KILL, guarded) == ""
    assert stage.said == ["verdict 7", "SIGKILL 7"]
    assert stage.verdicts() == ["kill"]
    assert guarded.killed_s == NOW


def test_a_tree_is_stopped_before_any_of_it_is_killed(stage: Stage) -> None:
    """Whoever stands still forks nobody. A child that appears while it is being stopped is found and goes, too."""
    guarded = tree(stage)
    stage.machine.start(14, parent=13)  # since the roster has looked last
    stage.do(Step.KILL, guarded)
    kinds = [word.split()[0] for word in stage.said]
    assert kinds == ["verdict", *["SIGSTOP"] * 5, *["SIGKILL"] * 5]
    assert [each.pid for each in stage.machine.processes()] == [20]


def test_a_warm_server_goes_alone(stage: Stage) -> None:
    """Its children are registered themselves."""
    warm = stage.machine.start(10)
    stage.machine.start(11, parent=10)
    stage.do(Step.KILL, stage.guard(warm, "warm"))
    assert stage.machine.signals() == [(10, KILL)]


def test_who_outlives_the_one_that_was_asked_with_him_is_killed_all_the_same(stage: Stage) -> None:
    """The command leaves, its child does not, and belongs to pid 1 from then on: no tree leads to it any more."""
    machine = stage.machine
    root = machine.start(10)
    child = machine.start(11, parent=10, stubborn=[TERM])
    guarded = stage.guard(root, "command")
    stage.do(Step.EVICT, guarded)
    assert not root.alive and child.alive and child.parent == 1
    guarded.tree.refresh()
    assert stage.actor.watch(NOW + 1) == [], "one of them is still there"
    stage.do(Step.KILL, guarded, NOW + 10)
    assert not child.alive
    assert [gone.guarded for gone in stage.actor.watch(NOW + 10.1)] == [guarded]


def test_a_pid_of_the_tree_that_is_used_again_is_not_hit(stage: Stage) -> None:
    guarded = tree(stage)
    stranger = stage.machine.start(12, parent=1)
    stage.do(Step.EVICT, guarded)
    stage.do(Step.KILL, guarded, NOW + 10)
    assert stranger.alive and stranger.received == []


def test_the_watchdog_itself_is_nobodys_child(stage: Stage) -> None:
    """`overnight-watchdog` may have been started from within a command that it guards."""
    root = stage.machine.start(10)
    stage.machine.start(os.getpid(), parent=10)
    guarded = stage.guard(root, "command")
    for step in (Step.FREEZE, Step.THAW, Step.EVICT, Step.KILL):
        stage.do(step, guarded)
        assert stage.machine.signals(os.getpid()) == []


# -- those who are on their way out -----------------------------------------------------------------------------


def test_mrelease_is_for_the_killed_who_linger(stage: Stage) -> None:
    leaving = stage.guard(stage.machine.start(7, stubborn=[TERM]))
    stage.do(Step.EVICT, leaving)
    assert stage.actor.watch(NOW + 0.4) == []
    assert "release 7" not in stage.said, "a process that may still run keeps its memory"
    stage.machine.processes()[0].stubborn = frozenset([KILL])
    stage.do(Step.KILL, leaving, NOW + 0.5)
    assert stage.actor.watch(NOW + 0.51) == []
    assert "release 7" not in stage.said, "most are gone within milliseconds"
    assert stage.actor.watch(NOW + 0.53) == []
    assert stage.said[-2:] == ["SIGKILL 7", "release 7"]
    assert stage.actor.watch(NOW + 0.6) == []
    assert stage.said.count("release 7") == 1
    stage.machine.end(7)
    assert [gone.guarded for gone in stage.actor.watch(NOW + 0.7)] == [leaving]
    assert stage.actor.dying == []


def test_of_a_tree_all_who_linger_are_helped_along(stage: Stage) -> None:
    machine = stage.machine
    guarded = stage.guard(machine.start(10), "command")
    machine.start(11, parent=10, stubborn=[KILL])
    machine.start(12, parent=11, stubborn=[KILL])
    guarded.tree.refresh()
    stage.do(Step.KILL, guarded)
    stage.actor.watch(NOW + 1)
    assert [word for word in stage.said if word.startswith("release")] == ["release 11", "release 12"]


def test_descriptors_come_and_go(stage: Stage) -> None:
    """No pidfd is closed twice (the machine would say so), and none is left."""
    for _ in range(50):
        guarded = tree(stage)
        for step in (Step.FREEZE, Step.THAW, Step.EVICT, Step.KILL):
            stage.do(step, guarded)
        (gone,) = stage.actor.watch(NOW + 1)
        stage.roster.drop(gone.guarded)
        stage.roster.drop(gone.guarded)
    assert stage.machine.open_count() == 0


# -- shrink, freeze, thaw ---------------------------------------------------------------------------------------


def test_sigusr1_only_to_whom_it_does_not_kill(stage: Stage) -> None:
    able, unable = stage.machine.start(7, catches=[USR1]), stage.machine.start(8)
    assert stage.do(Step.SHRINK, stage.guard(able)) == ""
    assert able.received == [USR1] and able.alive
    guarded = stage.guard(unable)
    assert stage.do(Step.SHRINK, guarded) == "it does not handle SIGUSR1"
    assert unable.received == [] and unable.alive
    assert guarded.shrunk_s == NOW, "and somebody else is asked next"


def test_freezing_stops_the_whole_tree_and_thawing_continues_it(stage: Stage) -> None:
    guarded = tree(stage)
    stage.do(Step.FREEZE, guarded)
    assert {each.pid for each in stage.machine.processes() if each.state == "T"} == {10, 11, 12, 13}
    assert guarded.frozen_s == NOW
    stage.do(Step.THAW, guarded, NOW + 3)
    assert not [each for each in stage.machine.processes() if each.state == "T"]
    assert guarded.frozen_s is None and guarded.thawed_s == NOW + 3


def test_who_cannot_be_stopped_does_not_count_as_frozen(stage: Stage) -> None:
    """And is not tried again at each look, so that it is the others' turn."""
    guarded = stage.guard(stage.machine.start(7, permitted=False))
    assert stage.do(Step.FREEZE, guarded) == "it could not be signalled"
    assert guarded.frozen_s is None and guarded.thawed_s == NOW


def test_what_a_dead_watchdog_has_frozen_is_let_go(stage: Stage) -> None:
    guarded = tree(stage)
    stage.machine.processes()[2].state = "T"
    stage.machine.show(stage.machine.processes()[2])
    stage.machine.calls.clear()
    assert stage.actor.thaw_found(guarded)
    assert set(stage.machine.signals()) == {(pid, CONT) for pid in (10, 11, 12, 13)}
    stage.machine.calls.clear()
    assert not stage.actor.thaw_found(guarded)
    assert stage.machine.signals() == []


# -- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [Step.EVICT, Step.KILL, Step.FREEZE, Step.SHRINK, Step.THAW])
def test_one_that_has_ended_meanwhile_harms_nobody(stage: Stage, step: Step) -> None:
    guarded = stage.guard(stage.machine.start(7, catches=[USR1]))
    stranger = stage.machine.start(7, catches=[USR1])  # the pid is used again at once
    stage.do(step, guarded)
    assert stranger.alive and stranger.received == []
    if step in (Step.EVICT, Step.KILL):
        assert [gone.guarded for gone in stage.actor.watch(NOW)] == [guarded]


def test_one_that_we_may_not_signal_stays_and_is_told(stage: Stage) -> None:
    guarded = stage.guard(stage.machine.start(7, permitted=False))
    assert stage.do(Step.EVICT, guarded) == ""
    assert stage.do(Step.KILL, guarded, NOW + 1) == ""
    assert stage.actor.watch(NOW + 60) == []
    assert stage.actor.dying[0].killed


def test_a_dry_run_sends_nothing_and_writes_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, dry_run=True)
    guarded = tree(stage, catches=[USR1])
    for number, step in enumerate((Step.SHRINK, Step.FREEZE, Step.THAW, Step.EVICT, Step.KILL)):
        assert stage.do(step, guarded, NOW + number) == ""
        assert stage.machine.calls == []
    stage.actor.end(guarded.pidfd, KILL)
    stage.machine.processes()[0].state = "T"
    assert not stage.actor.thaw_found(guarded)
    assert stage.machine.calls == [] and stage.verdicts() == []
    moments = (guarded.shrunk_s, guarded.thawed_s, guarded.leaving_s, guarded.killed_s)
    assert moments == (NOW, NOW + 2, NOW + 3, NOW + 4), "it plans on as if it had been done"
    assert stage.actor.watch(NOW + 60) == [] and not stage.actor.follows(guarded)


def test_the_users_own_signal_is_handed_on_even_in_a_dry_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path, dry_run=True)
    guarded = stage.guard(stage.machine.start(7))
    stage.actor.forward(guarded.pidfd, TERM)
    assert stage.machine.signals() == [(7, TERM)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_ring_that_cannot_be_written_stops_no_signal(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    evicted, killed = stage.guard(stage.machine.start(7)), stage.guard(stage.machine.start(8))
    for name in ("pwrite", "posix_fallocate"):
        monkeypatch.setattr(os, name, refused)
    assert stage.do(Step.EVICT, evicted) == ""
    assert stage.do(Step.KILL, killed) == ""
    monkeypatch.undo()
    assert stage.machine.processes() == [] and stage.verdicts() == []


def test_a_record_that_fits_nowhere_stops_no_signal(stage: Stage) -> None:
    guarded = stage.guard(stage.machine.start(7))
    record = {"pid": 7, "start_ticks": guarded.start_ticks, "step": "kill", "attempt": "x" * 4000}
    assert stage.actor.carry_out(Action(Step.KILL, 7, "headroom"), guarded, NOW, record) == ""
    assert stage.machine.processes() == []


def test_the_rehearsal_touches_nobody(stage: Stage) -> None:
    stage.machine.start(os.getpid())
    stage.actor.rehearse({"pid": 1, "cell": "rehearsal", "limit_source": "machine", "own_bytes": 2**40})
    assert stage.machine.signals() == [] and stage.verdicts() == []
    assert stage.ring.sequence == 0 and stage.machine.open_count() == 0


def test_what_is_held_is_known_before_it_is_taken(stage: Stage) -> None:
    guarded = tree(stage, own_bytes=100 * MIB)
    stage.machine.holds(12, 50 * MIB)
    guarded.measure(NOW + 1)
    stage.do(Step.KILL, guarded, NOW + 1)
    (gone,) = stage.actor.watch(NOW + 2)
    assert gone.own_bytes == 150 * MIB

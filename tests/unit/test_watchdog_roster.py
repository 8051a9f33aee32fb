"""Registrations come, change and go; what is known of each of them."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath
from typing import Any

import pytest

from helpers.fake_kernel import MIB, FakeKernel, FakeProcess
from overnight_watchdog.roster import FAULTS_S, RESCAN_S, STEP_FADES, Guarded, Roster, read_small

BOOT = "b"
NOW = 1000.0
LATER = NOW + RESCAN_S + 0.1


class Folder:
    def __init__(self, folder: Path) -> None:
        self.cells = folder / "cells"
        self.cells.mkdir()
        self.kernel = FakeKernel(folder / "proc")
        self.roster = Roster(self.cells, self.kernel, BOOT, proc_root=self.kernel.proc)
        self.greeted: list[int] = []

    def put(self, process: FakeProcess, role: str = "cell", **given: Any) -> None:
        entry = {"v": 1, "boot_id": BOOT, "pid": process.pid, "start_ticks": process.ticks, "role": role, **given}
        half = self.cells / f".{process.pid}.tmp"
        half.write_text(json.dumps(entry))
        half.replace(self.cells / f"{process.pid}.json")

    def refresh(self, now_s: float) -> list[int]:
        self.roster.refresh(now_s, lambda guarded: self.greeted.append(guarded.pid))
        return sorted(guarded.pid for guarded in self.roster)

    def guarded(self, process: FakeProcess, role: str = "cell", **given: Any) -> Guarded:
        self.put(process, role, **given)
        self.refresh(NOW)
        found = self.roster.get(process.pid)
        assert found is not None
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# -- the folder -------------------------------------------------------------------------------------------------


def test_who_comes_is_greeted_once_and_who_goes_is_let_go(folder: Folder) -> None:
    first, second = folder.kernel.start(7), folder.kernel.start(8)
    folder.put(first)
    assert folder.refresh(NOW) == [7]
    folder.put(second)
    assert folder.refresh(NOW + 0.01) == [7, 8]
    folder.put(second, turn=5)
    assert folder.refresh(NOW + 0.02) == [7, 8]
    assert folder.greeted == [7, 8]
    (folder.cells / "7.json").unlink()
    assert folder.refresh(NOW + 0.03) == [8]
    assert folder.kernel.open_count() == 1


def test_a_new_turn_is_seen_without_losing_what_is_remembered(folder: Folder) -> None:
    process = folder.kernel.start(7)
    guarded = folder.guarded(process, turn=1)
    guarded.thawed_s = 5.0
    folder.put(process, turn=2)
    folder.refresh(LATER)
    assert folder.roster.get(7) is guarded
    assert guarded.entry["turn"] == 2 and guarded.thawed_s == 5.0


def test_a_folder_that_does_not_change_is_read_seldom(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(folder.kernel.start(7))
    scans: list[float] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        scans.append(now_s)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    for number in range(round(300 * RESCAN_S)):
        now_s = NOW + number * 0.01
        folder.refresh(now_s)
    settling = [at_s for at_s in scans if at_s < NOW + 0.06]
    assert 1 < len(settling) <= 6, "a time stamp as coarse as a clock tick is not believed at once"
    assert len(scans) - len(settling) in (2, 3)


def test_a_file_that_is_written_in_place_is_seen_before_long(folder: Folder) -> None:
    """The folder's time stamp does not tell of it."""
    process = folder.kernel.start(7)
    guarded = folder.guarded(process, turn=1)
    for number in range(10):
        folder.refresh(NOW + 0.01 * number)
    path = folder.cells / "7.json"
    path.write_text(json.dumps(guarded.entry | {"turn": 2}))
    os.utime(path, ns=(1, 1))
    folder.refresh(LATER + 0.01)
    assert guarded.entry["turn"] == 2


def test_one_that_could_not_be_opened_is_tried_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors for a moment: whoever is registered must not go unguarded for ever."""
    folder.put(folder.kernel.start(7))
    with monkeypatch.context() as patch:
        patch.setattr(folder.kernel, "open", lambda *_: None)
        assert folder.refresh(NOW) == []
    assert folder.refresh(LATER) == [7]


def test_a_pid_that_is_used_again_is_another_one(folder: Folder) -> None:
    before = folder.guarded(folder.kernel.start(7), cell="first")
    folder.put(folder.kernel.start(7), cell="second")
    assert folder.refresh(NOW + 1) == [7]
    after = folder.roster.get(7)
    assert after is not None and after is not before and after.cell == "second"
    assert folder.kernel.open_count() == 1


def test_a_torn_rewrite_changes_nothing(folder: Folder) -> None:
    guarded = folder.guarded(folder.kernel.start(7), turn=3)
    (folder.cells / "7.json").write_text('{"v": 1, "pid"')
    assert folder.refresh(LATER) == [7]
    assert folder.roster.get(7) is guarded and guarded.entry["turn"] == 3


@pytest.mark.parametrize("begun", ["frozen_s", "leaving_s", "killed_s"])
def test_what_was_begun_is_brought_to_its_end_without_a_registration(folder: Folder, begun: str) -> None:
    guarded = folder.guarded(folder.kernel.start(7))
    setattr(guarded, begun, NOW)
    (folder.cells / "7.json").unlink()
    assert folder.refresh(LATER) == [7]
    setattr(guarded, begun, None)
    assert folder.refresh(LATER + RESCAN_S) == []


def test_a_folder_that_is_cleared_forgets_nobody_and_one_that_is_empty_does(folder: Folder) -> None:
    folder.guarded(folder.kernel.start(7))
    folder.cells.rename(folder.cells.with_name("away"))
    assert folder.refresh(LATER) == [7]
    folder.cells.mkdir()
    assert folder.refresh(LATER + 0.01) == []


def test_closing_lets_go_of_everybody(folder: Folder) -> None:
    for pid in (7, 8, 9):
        folder.guarded(folder.kernel.start(pid))
    folder.roster.close()
    assert folder.kernel.open_count() == len(folder.roster) == 0


# -- what is known of somebody ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "given", "freezes"),
    [
        ("cell", {}, True),
        ("command", {"freezes": True}, True),
        ("cell", {"freezes": False}, False),
        ("command", {"freezes": False}, False),
        ("warm", {"freezes": True}, False),
        ("daemon", {"freezes": True}, False),
    ],
)
def test_who_may_be_frozen(folder: Folder, role: str, given: dict[str, Any], freezes: bool) -> None:
    assert folder.guarded(folder.kernel.start(7), role, **given).candidate(NOW).freezes is freezes


@pytest.mark.parametrize(("given", "shrinks"), [({}, False), ({"shrinks": True}, True), ({"shrinks": 1}, False)])
def test_who_may_be_asked_to_shrink(folder: Folder, given: dict[str, Any], shrinks: bool) -> None:
    assert folder.guarded(folder.kernel.start(7), **given).candidate(NOW).shrinks is shrinks


@pytest.mark.parametrize(
    ("given", "loss_s"),
    [
        ({}, 0.0),
        ({"started_s": NOW - 30}, 30.0),
        ({"started_s": NOW - 30, "last_turn_s": None}, 30.0),
        ({"started_s": NOW - 30, "last_turn_s": NOW - 4}, 4.0),
        ({"started_s": NOW - 30, "last_turn_s": NOW - 4, "replay_s": 2.5}, 6.5),
        ({"last_turn_s": NOW + 100, "replay_s": 2.5}, 2.5),
        ({"last_turn_s": NOW - 4, "replay_s": -10}, 4.0),
        ({"last_turn_s": "yesterday", "replay_s": []}, 0.0),
        ({"last_turn_s": float("nan"), "replay_s": float("inf")}, 0.0),
        ({"last_turn_s": 10**400, "replay_s": True}, 0.0),
    ],
)
def test_the_work_that_would_be_lost(folder: Folder, given: dict[str, Any], loss_s: float) -> None:
    guarded = folder.guarded(folder.kernel.start(7), **given)
    assert guarded.loss_s(NOW) == guarded.candidate(NOW).loss_s == loss_s


@pytest.mark.parametrize(("engine", "commands"), [("command", True), ("scripted", False), (None, False), (7, False)])
def test_which_warm_server_is_that_of_commands(folder: Folder, engine: object, commands: bool) -> None:
    guarded = folder.guarded(folder.kernel.start(7), "warm", cells=1, engine=engine)
    assert guarded.candidate(NOW).commands is commands


def test_what_a_commands_cgroup_is_charged_with_counts(folder: Folder, tmp_path: Path) -> None:
    """Not that of a daemon: it is the budget's, and holds everybody."""
    (tmp_path / "memory.stat").write_text(f"anon {MIB}\nfile {900 * MIB}\nshmem {900 * MIB}\n")
    command = folder.guarded(folder.kernel.start(7, own_bytes=10 * MIB), "command", cgroup=str(tmp_path))
    daemon = folder.guarded(folder.kernel.start(8, own_bytes=10 * MIB), "daemon", cgroup=str(tmp_path))
    for guarded in (command, daemon):
        guarded.measure(NOW)
    assert (command.own_bytes, daemon.own_bytes) == (901 * MIB, 10 * MIB)


def test_a_command_counts_with_its_tree_and_a_warm_server_alone(folder: Folder) -> None:
    for root, role in ((10, "command"), (20, "warm")):
        folder.guarded(folder.kernel.start(root, own_bytes=100 * MIB), role)
        folder.kernel.start(root + 1, parent=root, own_bytes=40 * MIB)
        folder.kernel.start(root + 2, parent=root + 1, own_bytes=2 * MIB)
    held = []
    for guarded in folder.roster:
        guarded.measure(NOW)
        held.append(guarded.candidate(NOW).own_bytes // MIB)
    assert held == [142, 100]


def test_a_forked_cell_does_not_hold_what_it_shares_with_its_server(folder: Folder) -> None:
    folder.kernel.start(10, own_bytes=500 * MIB)
    guarded = folder.guarded(folder.kernel.start(11, parent=10, forked=True, own_bytes=500 * MIB))
    guarded.measure(NOW)
    assert guarded.own_bytes == 0
    folder.kernel.holds(11, 560 * MIB)
    guarded.measure(NOW + 0.1)
    assert guarded.own_bytes == 60 * MIB


@pytest.mark.parametrize(("given", "mib"), [({"by": "overnight"}, 3), ({}, 33)])
def test_a_commands_runner_shares_pages_with_its_server_when_the_daemon_started_it(
    folder: Folder, given: dict[str, Any], mib: int
) -> None:
    """One that people registered by hand was forked by nobody who is registered: all that it shows is its own."""
    folder.kernel.start(10, own_bytes=30 * MIB)
    runner = folder.kernel.start(11, parent=10, forked=True, own_bytes=30 * MIB)
    guarded = folder.guarded(runner, "command", **given)
    guarded.measure(NOW)
    folder.kernel.start(12, parent=11, own_bytes=2 * MIB)  # the command itself
    folder.kernel.holds(11, 31 * MIB)
    guarded.measure(NOW + 1.0)
    assert guarded.own_bytes == mib * MIB


def test_whoever_is_in_a_commands_cgroup_belongs_to_it(folder: Folder, tmp_path: Path) -> None:
    """Also a daemon that it left behind, whose parent is somebody else."""
    folder.kernel.start(12, own_bytes=2 * MIB)
    (tmp_path / "cgroup.procs").write_text("11\n12\n")
    runner = folder.kernel.start(11, own_bytes=1 * MIB)
    guarded = folder.guarded(runner, "command", by="overnight", cgroup=str(tmp_path))
    guarded.measure(NOW)
    assert guarded.own_bytes == 3 * MIB
    assert [pid for pid, _ in guarded.tree.members()] == [11, 12]


def test_growth_and_peak_are_remembered(folder: Folder) -> None:
    guarded = folder.guarded(folder.kernel.start(7))
    for number in range(8):
        folder.kernel.holds(7, (100 + number) * MIB)
        guarded.measure(NOW + number * 0.01)
    folder.kernel.holds(7, 50 * MIB)
    assert guarded.candidate(NOW).slope_bytes_per_s == pytest.approx(100 * MIB, rel=0.01)
    guarded.measure(NOW + 0.08)
    assert (guarded.own_bytes, guarded.track.peak) == (50 * MIB, 107 * MIB)


def test_the_largest_step_within_a_turn(folder: Folder) -> None:
    """Loading and the first turn's caches are no step of a turn; each further turn has its own floor, and a large step
    counts less with every turn."""
    process = folder.kernel.start(7)
    guarded = folder.guarded(process, turn=0)
    looks = [(0, 10), (0, 400), (1, 400), (1, 450), (1, 420), (2, 430), (2, 500), (2, 430), (3, 430), (4, 430)]
    steps = []
    for number, (turn, mib) in enumerate(looks):
        folder.kernel.holds(7, mib * MIB)
        guarded.entry |= {"turn": turn, "last_turn_s": NOW - 100 + turn}
        guarded.measure(NOW + number)
        steps.append(guarded.step_bytes / MIB)
    faded = [50 * STEP_FADES, 70, 70, 70 * STEP_FADES, 70 * STEP_FADES**2]
    assert steps == pytest.approx([0, 0, 0, 50, 50, *faded], rel=1e-6)


def test_a_replay_is_no_step(folder: Folder) -> None:
    """It has a turn to begin at from its registration on, but none of its own is finished."""
    process = folder.kernel.start(7)
    guarded = folder.guarded(process, turn=9, last_turn_s=None)
    for number, mib in enumerate((10, 150, 300)):
        folder.kernel.holds(7, mib * MIB)
        guarded.measure(NOW + number)
        assert guarded.step_bytes == 0
    guarded.entry["last_turn_s"] = NOW + 3
    for number, (mib, step) in enumerate(((300, 0), (330, 30))):
        folder.kernel.holds(7, mib * MIB)
        guarded.measure(NOW + 4 + number)
        assert guarded.step_bytes == step * MIB


def test_somebody_elses_registration_is_not_believed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder.cells / "7.json"
    path.write_bytes(b"{}")
    assert read_small(path, 100) == b"{}"
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert read_small(path, 100) == b""


def test_major_faults_are_counted_seldom(folder: Folder) -> None:
    process = folder.kernel.start(7)
    guarded = folder.guarded(process)
    rates = []
    for number, faults in enumerate([100, 150, 300, 300]):
        process.major_faults = faults
        folder.kernel.show(process)
        guarded.count_faults(NOW + number * FAULTS_S / 2, folder.kernel.proc)
        rates.append(guarded.major_faults_per_s)
    assert rates == [0.0, 0.0, 200.0 / FAULTS_S, 200.0 / FAULTS_S]
    folder.kernel.end(7)
    guarded.count_faults(NOW + 10, folder.kernel.proc)
    assert guarded.major_faults_per_s == 200.0 / FAULTS_S


@pytest.mark.parametrize(
    ("given", "grace_s"),
    [
        ({}, None),
        ({"grace_s": None}, None),
        ({"grace_s": 2.5}, 2.5),
        ({"grace_s": 30}, 30.0),
        ({"grace_s": "30s"}, None),
        ({"grace_s": True}, None),
        ({"grace_s": float("nan")}, None),
        ({"grace_s": float("inf")}, None),
    ],
)
def test_the_grace_that_a_registration_asks_for(folder: Folder, given: dict[str, Any], grace_s: float | None) -> None:
    assert folder.guarded(folder.kernel.start(7), "command", **given).candidate(NOW).grace_s == grace_s


def test_cells_that_come_and_go_leave_no_interned_names(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """pathlib interns each part of a path, and the interpreter's table of them grows with those that are gone, too."""
    folder.put(folder.kernel.start(7), role="command", cgroup=str(folder.cells))
    made: list[object] = []
    join = PurePath.__truediv__
    monkeypatch.setattr(PurePath, "__truediv__", lambda path, part: (made.append(part), join(path, part))[1])
    folder.refresh(NOW)
    for guarded in folder.roster:
        guarded.measure(NOW)
        guarded.count_faults(NOW, folder.kernel.proc)
    assert [guarded.pid for guarded in folder.roster] == [7]
    assert made == []

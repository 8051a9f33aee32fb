"""The right victim, with real processes: whoever is not registered by pid and start time lives on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.arena import boot_id, start_ticks
from helpers.waiting import until
from overnight_watchdog.act import Actor, LinuxKernel
from overnight_watchdog.decide import Action, Step
from overnight_watchdog.roster import Roster
from overnight_watchdog.verdicts import VerdictRing

DEADLINE_S = 20.0


class Yard:
    def __init__(self, folder: Path) -> None:
        self.cells = folder / "cells"
        self.cells.mkdir()
        self.started: list[subprocess.Popen[bytes]] = []
        kernel, ring = LinuxKernel(), VerdictRing(folder / "verdicts.ring", boot_id())
        ring.open()
        self.actor = Actor(kernel, ring)
        self.roster = Roster(self.cells, kernel, boot_id())

    def start(self, *command: str) -> int:
        process = subprocess.Popen(command or ("sleep", "600"), start_new_session=True)
        self.started.append(process)
        return process.pid

    def register(self, whom: int, *, name: str = "", text: str | None = None, **changes: Any) -> None:
        entry = {"v": 1, "boot_id": boot_id(), "pid": whom, "start_ticks": start_ticks(whom), "role": "cell"} | changes
        (self.cells / (name or f"{whom}.json")).write_text(json.dumps(entry) if text is None else text)

    def all_to_all(self) -> None:
        """Every step to everybody whom the roster believes in."""
        now_s = time.monotonic()
        self.roster.refresh(now_s)
        for guarded in self.roster:
            guarded.measure(now_s)
            for step in (Step.SHRINK, Step.FREEZE, Step.THAW, Step.KILL):
                self.actor.carry_out(Action(step, guarded.pid, "headroom"), guarded, now_s, {"pid": guarded.pid})
        until(lambda: self.actor.watch(time.monotonic()) is not None and not self.actor.dying, DEADLINE_S)

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.end()
    made.roster.close()


def test_of_many_registrations_only_the_true_ones_are_acted_upon(yard: Yard) -> None:
    true = [yard.start() for _ in range(8)]
    for pid in true:
        yard.register(pid)
    lies: list[dict[str, Any]] = [
        {"start_ticks": 1},
        {"start_ticks": 10**9},
        {"boot_id": "another"},
        {"v": 2},
        {"role": "neighbour"},
        {"name": "1234567.json"},
        {"text": "{"},
        {"text": ""},
        {"pid": 1},
        {"pid": os.getpid()},
        {"pid": os.getppid(), "start_ticks": start_ticks(os.getppid())},
        {"name": "unregistered.txt"},
    ]
    innocent = []
    for lie in lies:
        pid = yard.start()
        innocent.append(pid)
        yard.register(pid, **lie)
    yard.all_to_all()
    for process in yard.started:
        if process.pid in true:
            assert process.wait(DEADLINE_S) == -9
        else:
            assert process.poll() is None
            assert Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"


def test_a_commands_tree_goes_with_it_and_nobody_else_of_its_session(yard: Yard) -> None:
    command = yard.start("sh", "-c", "sleep 600 & sh -c 'sleep 600 & sleep 600' & wait")
    neighbour = yard.start("sh", "-c", "sleep 600 & wait")
    trees = {pid: psutil.Process(pid) for pid in (command, neighbour)}
    family = until(lambda: len(found := trees[command].children(recursive=True)) == 4 and found, DEADLINE_S)
    others = until(lambda: trees[neighbour].children(), DEADLINE_S)
    assert isinstance(family, list)
    yard.register(command, role="command")
    yard.all_to_all()
    assert yard.started[0].wait(DEADLINE_S) == -9
    until(lambda: not any(each.is_running() and each.status() != "zombie" for each in family), DEADLINE_S)
    assert all(each.is_running() for each in others) and yard.started[1].poll() is None


def test_a_warm_servers_children_are_not_its_own(yard: Yard) -> None:
    warm = yard.start("sh", "-c", "sleep 600 & wait")
    (child,) = until(lambda: psutil.Process(warm).children(), DEADLINE_S)
    yard.register(warm, role="warm")
    yard.all_to_all()
    assert yard.started[0].wait(DEADLINE_S) == -9
    assert child.is_running()
    child.kill()


def test_one_that_ended_between_its_registration_and_the_signal(yard: Yard) -> None:
    pid = yard.start()
    yard.register(pid)
    yard.roster.refresh(time.monotonic())
    guarded = yard.roster.get(pid)
    assert guarded is not None
    yard.started[0].kill()
    yard.started[0].wait()
    yard.all_to_all()
    assert not yard.actor.dying

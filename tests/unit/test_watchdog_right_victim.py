"""10,000 registrations, most of them stale, reused, damaged or foreign: nobody is signalled who is not registered."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_kernel import FakeKernel, FakeProcess
from overnight_watchdog.act import Actor
from overnight_watchdog.decide import Action, Step
from overnight_watchdog.roster import ROLES, Roster, parse
from overnight_watchdog.verdicts import VerdictRing

BOOT = "this-boot"
ROUNDS, FILES = 20, 500
PIDS = [pid for pid in range(10, 4000, 4) if not pid <= os.getpid() < pid + 4]  # ours is in the town as well
"""Every fourth: the three behind a root are its children's."""
STEPS = (Step.SHRINK, Step.FREEZE, Step.THAW, Step.EVICT, Step.KILL)


def entry(process: FakeProcess, role: str, **changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "boot_id": BOOT,
        "pid": process.pid,
        "start_ticks": process.ticks,
        "role": role,
        "shrinks": True,
        "started_s": 1.0,
    } | changes


class Town:
    """Processes, some of whom are registered, and a folder full of registrations, few of which are true."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.folder = folder / "cells"
        self.folder.mkdir()
        self.kernel = FakeKernel(folder / "proc")
        self.ring = VerdictRing(folder / "verdicts.ring", BOOT)
        self.ring.open()
        self.actor = Actor(self.kernel, self.ring)
        self.roster = Roster(self.folder, self.kernel, BOOT, proc_root=self.kernel.proc)
        self.entitled: set[int] = set()
        """Who may be signalled: registered by pid and start time, or a descendant of such a one. By id()."""
        self.kinds: Counter[str] = Counter()
        for pid in (1, os.getpid()):
            self.kernel.start(pid, parent=0, shown=False)

    def stranger(self, pid: int) -> FakeProcess:
        """Somebody who lives there now: whoever had the pid before is gone."""
        return self.kernel.start(pid, shown=self.draw.random() < 0.05)

    def true(self, pid: int) -> None:
        role = self.draw.choice(ROLES)
        catches = [10] if self.draw.random() < 0.5 else []
        stubborn = [15] if self.draw.random() < 0.3 else []
        process = self.kernel.start(pid, catches=catches, stubborn=stubborn)
        family = [process]
        if self.draw.random() < 0.5:
            child = self.kernel.start(pid + 1, parent=pid)
            family += [child, self.kernel.start(pid + 2, parent=pid + 1, stubborn=stubborn)]
        else:
            self.stranger(pid + 1)
        self.stranger(pid + 3)
        self.put(f"{pid}.json", json.dumps(entry(process, role)))
        self.entitled |= {id(each) for each in (family if role in ("cell", "command") else family[:1])}

    def put(self, name: str, text: str | bytes) -> None:
        self.clear(name)
        (self.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    def clear(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)

    # -- the many ways in which a registration is none --------------------------------------------------------

    def changed(self, **changes: Any) -> Callable[[int], None]:
        def write(pid: int) -> None:
            self.put(f"{pid}.json", json.dumps(entry(self.stranger(pid), "cell") | changes))

        return write

    def reused(self, pid: int) -> None:
        """It was true when it was written."""
        before = self.kernel.start(pid, shown=False)
        self.put(f"{pid}.json", json.dumps(entry(before, self.draw.choice(ROLES))))
        self.stranger(pid)

    def ended(self, pid: int) -> None:
        process = self.kernel.start(pid, shown=False)
        self.put(f"{pid}.json", json.dumps(entry(process, "cell")))
        self.kernel.end(pid)

    def ticks_off(self, pid: int) -> None:
        process = self.stranger(pid)
        ticks = process.ticks + self.draw.choice([-7, -1, 1, 7])
        self.put(f"{pid}.json", json.dumps(entry(process, "cell", start_ticks=ticks)))

    def torn(self, pid: int) -> None:
        text = json.dumps(entry(self.stranger(pid), "cell"))
        self.put(f"{pid}.json", text[: self.draw.randrange(len(text))])

    def junk(self, pid: int) -> None:
        self.stranger(pid)
        texts = [b"", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b"[" * 5000, self.draw.randbytes(200), b"9" * 5000]
        self.put(f"{pid}.json", self.draw.choice(texts))

    def misnamed(self, pid: int) -> None:
        process = self.stranger(pid)
        name = self.draw.choice(["{}0.json", "0{}.json", ".{}.json", "{}.json.tmp", "{}", "x{}.json", "-{}.json"])
        self.clear(f"{pid}.json")
        self.put(name.format(pid), json.dumps(entry(process, "cell")))

    def huge(self, pid: int) -> None:
        text = json.dumps(entry(self.stranger(pid), "cell", cell="x" * 20_000))
        self.put(f"{pid}.json", text)
        if self.draw.random() < 0.1:
            os.truncate(self.folder / f"{pid}.json", 2**40)  # sparse: reading all of it would take the machine down

    def no_file(self, pid: int) -> None:
        self.stranger(pid)
        path = self.folder / f"{pid}.json"
        self.clear(path.name)
        make: Callable[[], None] = self.draw.choice(
            [lambda: path.mkdir(), lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path)]
        )
        make()

    def of_another(self, pid: int) -> None:
        """Process 1 and the watchdog itself, under their own names and under others."""
        whom = self.draw.choice([1, os.getpid()])
        process = self.kernel.get(whom)
        assert process is not None
        name = self.draw.choice([pid, whom])
        self.put(f"{name}.json", json.dumps(entry(process, "command")))

    def write_one(self, pid: int) -> None:
        ways: list[tuple[str, Callable[[int], None]]] = [
            ("true", self.true),
            ("true", self.true),
            ("true", self.true),
            ("reused", self.reused),
            ("ended", self.ended),
            ("ticks off", self.ticks_off),
            ("torn", self.torn),
            ("junk", self.junk),
            ("misnamed", self.misnamed),
            ("huge", self.huge),
            ("no file", self.no_file),
            ("of another", self.of_another),
            ("other boot", self.changed(boot_id=self.draw.choice(["", None, "that-boot", 1]))),
            ("other version", self.changed(v=self.draw.choice([0, 2, "1", None]))),
            ("unknown role", self.changed(role=self.draw.choice(["", "Cell", None, [], {}, "watchdog"]))),
            (
                "other types",
                self.changed(pid=self.draw.choice([str(pid), pid + 0.5, [pid], None, True, -pid, 10**300])),
            ),
            (
                "ticks of other types",
                self.changed(start_ticks=self.draw.choice(["7", 7.0, None, True, 0, -7, 10**300])),
            ),
        ]
        kind, write = self.draw.choice(ways)
        self.kinds[kind] += 1
        write(pid)

    def pids_move_on(self) -> None:
        """Between any two looks and signals processes end, and their pids go to others."""
        for process in self.draw.sample(self.kernel.processes(), 10):
            if process.pid not in (1, os.getpid()):
                self.stranger(process.pid)

    def act(self, now_s: float) -> None:
        """Everything to everybody whom the roster believes to be registered."""
        for guarded in self.roster:
            guarded.measure(now_s)
            for number, step in enumerate(STEPS):
                if self.draw.random() < 0.02:
                    self.pids_move_on()
                record = {"pid": guarded.pid, "step": step.value}
                self.actor.carry_out(Action(step, guarded.pid, "headroom"), guarded, now_s + number, record)
        for gone in self.actor.watch(now_s + 10):
            self.roster.drop(gone.guarded)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: a hundred thousand little files are written."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_ten_thousand_registrations_and_no_signal_to_a_stranger(folder: Path) -> None:
    town = Town(folder, seed=3)
    registered = 0
    for round_number in range(ROUNDS):
        now_s = 100.0 * (round_number + 1)
        for name in [path.name for path in town.folder.iterdir()]:
            if town.draw.random() < 0.7:  # the others are left behind by somebody who was killed
                town.clear(name)
        pids = town.draw.sample(PIDS, FILES)
        for pid in pids:
            town.write_one(pid)
        town.roster.refresh(now_s)
        registered += len(town.roster)
        for guarded in town.roster:
            process = town.kernel.get(guarded.pid)
            assert process is None or process.ticks != guarded.start_ticks or id(process) in town.entitled
        town.act(now_s)
    hit = [process for process in town.kernel.ever if process.received]
    assert [(each.pid, each.ticks) for each in hit if id(each) not in town.entitled] == []
    assert sum(town.kinds.values()) == ROUNDS * FILES == 10_000
    assert min(town.kinds.values()) > 300, town.kinds
    # It is no proof of anything when nobody is signalled at all.
    assert registered > 1000 and len(hit) > registered
    assert sum(9 in each.received for each in hit) > 400


def test_who_is_registered_is_found_among_all_the_others(folder: Path) -> None:
    """What is unreadable hides nobody: neither a pipe, nor a folder, nor a link to nowhere, nor a file of 1 TiB."""
    town = Town(folder, seed=5)
    for pid in PIDS[:400]:
        town.write_one(pid)
    town.roster.refresh(1.0)
    expected = set()
    for process in town.kernel.processes():
        path = town.folder / f"{process.pid}.json"
        if path.is_file() and path.stat().st_size < 10_000:
            found = parse(path.read_bytes(), BOOT)
            if found is not None and (found["pid"], found["start_ticks"]) == (process.pid, process.ticks):
                expected.add(process.pid)
    assert {guarded.pid for guarded in town.roster} == expected
    assert len(expected) > 40


@pytest.mark.parametrize(
    "pid",
    [
        1,
        0,
        -1,
        pytest.param(os.getpid(), id="ourselves"),
        2**22 + 1,
        pytest.param(10**300, id="huge"),
        True,
        "7",
        7.0,
        None,
    ],
)
def test_some_pids_are_never_believed(pid: Any) -> None:
    good = {"v": 1, "boot_id": BOOT, "pid": 7, "start_ticks": 5, "role": "cell"}
    assert parse(json.dumps(good).encode(), BOOT) == good
    assert parse(json.dumps(good | {"pid": pid}).encode(), BOOT) is None

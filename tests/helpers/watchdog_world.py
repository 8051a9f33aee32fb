"""A watchdog whose memory, clock, processes and disk are ours: it is stepped by hand and never sleeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from helpers.fake_kernel import MIB, FakeKernel, FakeProcess
from overnight_watchdog.act import Actor
from overnight_watchdog.daemon_watch import DaemonWatch
from overnight_watchdog.gauges import Eye
from overnight_watchdog.journal import EventLog, PressureFile, read_pressure
from overnight_watchdog.loop import Watchdog
from overnight_watchdog.report import Reporter
from overnight_watchdog.roster import Guarded, Roster
from overnight_watchdog.sample import Sample, SampleError
from overnight_watchdog.verdicts import VerdictRing, read_ring

BOOT = "b"
LIMIT = 1000 * MIB
SOURCE = "cgroup:/sys/fs/cgroup/memory/box"


class FakeEye:
    """Sees the firm memory of all processes, and `other_bytes` that nobody registered holds."""

    def __init__(self, kernel: FakeKernel, clock: Callable[[], float]) -> None:
        self.budget_folder, self.limit_source = "", SOURCE
        self.limit_bytes, self.other_bytes = LIMIT, 0
        self.blind = False
        self.looks = 0
        self.at_look: Callable[[int], None] = lambda number: None
        self._kernel, self._clock = kernel, clock

    def limit_cgroup(self) -> None:
        """None of its own."""

    def look(self) -> Sample:
        self.looks += 1
        self.at_look(self.looks)
        if self.blind:
            raise SampleError("nothing to be seen")
        used = self.other_bytes + sum(process.own_bytes for process in self._kernel.processes())
        left = max(0, self.limit_bytes - used)
        return Sample(self._clock(), self.limit_bytes, self.limit_source, used, left, self.limit_source, left)


class World:
    """`ramps`: bytes a second by which processes grow while they may run."""

    def __init__(
        self,
        home: Path,
        *,
        dry_run: bool = False,
        boot_id: str = BOOT,
        daemon: Callable[[World], DaemonWatch] | None = None,
        **options: Any,
    ) -> None:
        self.home, self.boot_id = home, boot_id
        self.cells = home / "var" / "run" / "cells"
        self.cells.mkdir(parents=True)
        self.now_s = 1000.0
        self.kernel = FakeKernel(home / "proc")
        self.ramps: dict[int, float] = {}
        self.eye = FakeEye(self.kernel, lambda: self.now_s)
        self.ring = VerdictRing(home / "var" / "run" / "verdicts.ring", boot_id)
        self.ring.open()
        self.log = EventLog(home / "var" / "log" / "watchdog.jsonl", clock=lambda: self.now_s)
        self.actor = Actor(self.kernel, self.ring, dry_run=dry_run)
        self.roster = Roster(self.cells, self.kernel, boot_id, proc_root=self.kernel.proc)
        self.heartbeat_file = PressureFile(home / "var" / "run" / "pressure.json")
        identity = {"boot_id": boot_id, "pid": 7, "start_ticks": 9}
        self.watchdog = Watchdog(
            eye=cast(Eye, self.eye),
            roster=self.roster,
            actor=self.actor,
            reporter=Reporter(self.heartbeat_file, self.log, identity),
            daemon=None if daemon is None else daemon(self),
            clock=lambda: self.now_s,
            wall_clock=lambda: 1_700_000_000.0 + self.now_s,
            **options,
        )

    def __del__(self) -> None:
        for each in (self.ring, self.log, self.heartbeat_file):
            each.close()

    # -- who lives in it --------------------------------------------------------------------------------------

    def start(
        self, pid: int, mib: float = 100, *, role: str = "cell", ramp_mib: float = 0, **given: Any
    ) -> FakeProcess:
        """A registered process that holds and grows by so much. given: of the process, and of its registration."""
        of_process = {name: given.pop(name) for name in ("catches", "stubborn", "parent", "permitted") if name in given}
        process = self.kernel.start(pid, own_bytes=round(mib * MIB), **of_process)
        self.ramps[pid] = ramp_mib * MIB
        self.register(process, role, **given)
        return process

    def register(self, process: FakeProcess, role: str = "cell", **given: Any) -> None:
        entry = {
            "v": 1,
            "boot_id": self.boot_id,
            "pid": process.pid,
            "start_ticks": process.ticks,
            "role": role,
            "cell": f"night/cell_{process.pid}",
            "attempt": 2,
            "started_s": self.now_s,
            **given,
        }
        path = self.cells / f"{process.pid}.json"
        half = path.with_suffix(".tmp")
        half.write_text(json.dumps(entry))
        half.replace(path)

    def drop(self, pid: int) -> None:
        """The daemon takes a registration back."""
        (self.cells / f"{pid}.json").unlink()

    def guarded(self, pid: int) -> Guarded:
        found = self.roster.get(pid)
        assert found is not None
        return found

    # -- time -------------------------------------------------------------------------------------------------

    def step(self, after_s: float | None = None) -> float:
        """One look, and then the time until the next: what the watchdog asks for, unless told. Returns that."""
        self.watchdog.step()
        pause_s = self.watchdog.pause_s() if after_s is None else after_s
        self.passes(pause_s)
        return pause_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        for process in self.kernel.processes():
            if process.state != "T" and self.ramps.get(process.pid):
                self.kernel.holds(process.pid, process.own_bytes + round(self.ramps[process.pid] * seconds))

    def until(self, found: Callable[[], bool], within_s: float) -> float:
        """Step until it is so; returns the seconds. Fails when it does not come."""
        began_s = self.now_s
        while not found():
            assert self.now_s - began_s < within_s, self.events
            self.step()
        return self.now_s - began_s

    def lasts(self, seconds: float) -> None:
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.step()

    # -- what it says -----------------------------------------------------------------------------------------

    @property
    def heartbeat(self) -> dict[str, Any]:
        return read_pressure(self.home / "var" / "run" / "pressure.json")

    @property
    def events(self) -> list[dict[str, Any]]:
        path = self.home / "var" / "log" / "watchdog.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def named(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] in names]

    @property
    def story(self) -> list[str]:
        """The events in order, without their fields; a change of level is the level that it leads to."""
        return [event["to"] if event["event"] == "pressure_changed" else event["event"] for event in self.events]

    def verdicts(self) -> list[dict[str, Any]]:
        records = read_ring((self.home / "var" / "run" / "verdicts.ring").read_bytes())
        return sorted(records, key=lambda record: record["sequence"])

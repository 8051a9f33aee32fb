"""var/run/cells/PID.json: the watchdog's roster, and a starting daemon that clears up after another one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz.target import Case, Target, expect
from helpers.fake_kernel import MIB, FakeKernel
from overnight import procfs
from overnight.dispatch.registry import Registration, Registry
from overnight.dispatch.signals import Handle
from overnight_watchdog import roster
from overnight_watchdog.verdicts import VerdictRing

_PID = 4242
_TOKENS = (
    b'"v":1',
    b'"pid":',
    b'"start_ticks":',
    b'"role":"cell"',
    b'"role":"warm"',
    b'"by":"overnight"',
    b'"cgroup":"/x"',
)


class _Registrations(Target):
    tokens = _TOKENS

    def documents(self) -> Sequence[Any]:
        base = {"pid": _PID, "start_ticks": self._ticks, "pgid": _PID}
        cell = Registration(
            **base, role="cell", engine="scripted", cell="night/baseline_script_run1", attempt=3, shrinks=True, turn=4,
            last_turn_s=12.5, started_s=10.0, cgroup="/sys/fs/cgroup/cell-1", claim_bytes=2**28, cap_bytes=2**29,
        )  # fmt: skip
        command = Registration(**base, role="command", engine="command", cell="g/k", grace_s=10.0)
        warm = Registration(**base, role="warm", engine="transformers", cells=3)
        by_hand = {"v": 1, "boot_id": procfs.boot_id(), "pid": _PID, "start_ticks": self._ticks, "role": "command"}
        boot = {"v": 1, "boot_id": procfs.boot_id()}
        return [*({**boot, **asdict(each)} for each in (cell, command, warm)), by_hand]

    @property
    def _ticks(self) -> int:
        return 107

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each, sort_keys=True).encode() + b"\n" for each in self.documents()]


class Roster(_Registrations):
    """The watchdog's, with simulated processes: one that is named, and one that is not."""

    name = "registration (watchdog)"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cells = folder / "cells"
        self._cells.mkdir()
        self._kernel = FakeKernel(folder / "proc")
        expect(self._kernel.start(_PID, own_bytes=5 * MIB).ticks == self._ticks, "the simulation counts otherwise")
        self._ring = VerdictRing(folder / "verdicts.ring", procfs.boot_id())

    def read(self, case: Case) -> str:
        parsed = roster.parse(case.data, procfs.boot_id())
        if parsed is not None:
            expect(type(parsed["pid"]) is int and 1 < parsed["pid"] != os.getpid(), "a pid that nobody may touch")
        path = self._cells / f"{_PID}.json"
        path.write_bytes(case.data)
        found = roster.Roster(self._cells, self._kernel, procfs.boot_id(), proc_root=self._kernel.proc)
        try:
            found.refresh(50.0)
            for guarded in found:
                expect((guarded.pid, guarded.start_ticks) == (_PID, self._ticks), "somebody else is guarded")
                for now_s in (50.0, 50.5, 51.5):
                    guarded.measure(now_s)
                    guarded.count_faults(now_s, self._kernel.proc)
                candidate = guarded.candidate(51.5)
                for figure in (candidate.loss_s, candidate.started_s, candidate.grace_s, candidate.slope_bytes_per_s):
                    expect(figure is None or math.isfinite(figure), "a figure that cannot be compared")
                expect(0 <= candidate.own_bytes < 2**40, "it holds what nobody can hold")
                self._ring.encode({"pid": guarded.pid, "cell": guarded.cell, "limit_source": "machine"})
            return f"{len(found)} guarded" if parsed is not None else "nothing"
        finally:
            found.close()
            expect(self._kernel.open_count() == 0, "a descriptor is left open")


class Leftovers(_Registrations):
    """The daemon's at its start: whom to end (nobody is ended here), and what to forget."""

    name = "registration (daemon)"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cells = folder / "cells"
        self._cells.mkdir()

    def read(self, case: Case) -> str:
        (self._cells / f"{_PID}.json").write_bytes(case.data)
        registry = Registry(self._cells)
        named = 0
        for entry in registry.ours():
            named += 1
            expect(type(entry["pid"]) is int and type(entry["start_ticks"]) is int, "no number where one belongs")
            expect(entry["pid"] > 1, "it would end whom nobody may end")
            if (handle := Handle.open(entry["pid"], entry["start_ticks"])) is not None:
                handle.close()
        registry.clear()
        return f"{named} named, {len(list(self._cells.iterdir()))} left"

"""daemon.beat, daemon.json, the two locks and supervisord.pid: who says that he is alive, and to whom."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fuzz.sealing import same, sealed
from fuzz.target import Case, Target, check_harmless, check_line, expect, printed
from helpers.fake_kernel import FakeKernel
from overnight import procfs
from overnight.cli import common, doctor, status, supervise
from overnight.dispatch import lock as daemon_lock
from overnight.dispatch import records
from overnight.dispatch.beat import BEAT_BYTES
from overnight.dispatch.guardian import Guardian
from overnight.doctor import home_checks, watchdog_view
from overnight.doctor.facts import Running
from overnight.paths import Paths
from overnight.queue.store import Queue
from overnight_watchdog import __main__ as watchdog
from overnight_watchdog import daemon_watch
from overnight_watchdog import lock as watchdog_lock

_PID = 4242
_IDS = (b'"boot_id":', b'"pid":', b'"start_ticks":', b'"monotonic_s":', b'"v":1')


def _identity() -> dict[str, Any]:
    return {"v": 1, "boot_id": procfs.boot_id(), "pid": os.getpid(), "start_ticks": procfs.start_ticks(os.getpid())}


class Beat(Target):
    """daemon.beat, by which the watchdog judges a daemon silent."""

    name = "daemon.beat"
    tokens = (*_IDS, b'"checksum":"', b'"stopping":true')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "daemon.beat"
        self._kernel = FakeKernel(folder / "proc")
        self._ticks = self._kernel.start(_PID).ticks
        record = {"v": 1, "boot_id": procfs.boot_id(), "pid": _PID, "start_ticks": self._ticks, "sequence": 4}
        self._records = [{**record, "monotonic_s": 3.5, "stopping": stopping} for stopping in (False, True)]

    def seeds(self) -> Sequence[bytes]:
        return [records.block(record, BEAT_BYTES) for record in self._records]

    def documents(self) -> Sequence[Any]:
        return self._records

    def render(self, document: Any) -> bytes:
        return sealed(document, BEAT_BYTES)

    def read(self, case: Case) -> str:
        self._path.write_bytes(case.data)
        beat = daemon_watch.read_beat(self._path, procfs.boot_id())
        if beat is not None:
            expect(case.crafted or same(case.data, *self._records), "a damaged beat was believed")
            expect(math.isfinite(beat.monotonic_s), "a beat at no time")
        told: list[str] = []
        watch = daemon_watch.DaemonWatch(
            self._path,
            daemon_watch.Supervisor(self.folder / "nobody.sock"),
            self._kernel,
            procfs.boot_id(),
            lambda event, **fields: told.append(event),
        )
        watch.look(1000.0, lambda pidfd, number: None, lambda record: json.dumps(record, allow_nan=False))
        if watch._pidfd is not None:
            self._kernel.close(watch._pidfd)
        return f"{beat is not None} {told}"


class State(Target):
    """daemon.json as `status`, `up` and `doctor` read it."""

    name = "daemon.json"
    tokens = (*_IDS, b'"running":', b'"warm":', b'"memory":', b'"holding":', b'"slots":')
    share = 0.25

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._paths = Paths.of(folder / "home").ensure()
        self._queue = Queue.open(self._paths.queue)
        memory = dict.fromkeys(("others_bytes", "limit_bytes", "headroom_bytes", "reserve_bytes", "most_bytes"), 2**30)
        row = {
            **{"grid": "g", "cell": "k", "cell_id": 1, "attempt": 1, "attempt_id": 1, "phase": "running", "pid": None},
            **{"turn": 3, "replayed": 0, "new_turns": 2, "output_tokens": 30, "bytes": 2**20, "peak_bytes": 2**21},
            **{"claim_bytes": 2**22, "cap_bytes": 2**23, "seconds": 3.5},
        }
        warm = {"model": "scripted x float32", "pid": None, "state": "ready", "cells": 1, "load_s": 0.2, "bytes": 2**20}
        self._document = {
            **_identity(),
            "sequence": 9,
            "monotonic_s": time.monotonic(),
            "stopping": False,
            "holding": "low memory",
            "slots": 2,
            "memory": {**memory, "claimed_bytes": 0, "warm_bytes": 0},
            "warm": [warm],
            "running": [row, {**row, "pid": os.getpid()}],
        }

    def seeds(self) -> Sequence[bytes]:
        idle = {**self._document, "holding": "", "warm": [], "running": []}
        return [json.dumps(each, sort_keys=True).encode() for each in (self._document, idle)]

    def documents(self) -> Sequence[Any]:
        return [self._document]

    def read(self, case: Case) -> str:
        self._paths.daemon_state.write_bytes(case.data)
        with printed() as said:
            found = status.collect(self._paths, self._queue)
            json.dumps(found)
            status._show(found)
        check_harmless(said.getvalue())
        state = common.daemon_state(self._paths)
        rows = home_checks.running_checks(Running("running", state, None), watchdog_view.View())
        check_harmless("\n".join(doctor.lines(rows, 80)))
        if state is None:
            return "nobody"
        expect(type(state["pid"]) is int and math.isfinite(state["age_s"]), "nobody can be asked for by that")
        return f"age {state['age_s'] < 60} stopping {state['stopping']}"

    def close(self) -> None:
        self._queue.close()


class Locks(Target):
    """Who holds daemon.lock and watchdog.lock: for the line of whoever comes second, and for the guardian."""

    name = "lock files"
    tokens = (*_IDS, b'"since":"2025-01-01 00:00:00Z"')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._paths = Paths.of(folder / "home").ensure()

    def documents(self) -> Sequence[Any]:
        return [{**_identity(), "since": "2025-01-01 00:00:00Z"}, {"pid": 12, "since": "2025-01-01 00:00:00Z"}]

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each).encode() for each in self.documents()]

    def read(self, case: Case) -> str:
        path = self._paths.watchdog_lock
        path.write_bytes(case.data)
        held = daemon_lock.DaemonLock(path)
        held._fd = os.open(path, os.O_RDONLY)
        try:
            first = check_line(f"another daemon runs: {held._holder()}; stop it")
            check_line(f"held by {watchdog_lock.Lock._holder_pid(held._fd)}; one is enough")
        finally:
            os.close(held._fd)
        holder = Guardian._holder(SimpleNamespace(_paths=self._paths))  # type: ignore[arg-type]
        expect(holder is None or holder == (os.getpid(), procfs.start_ticks(os.getpid())), "somebody else")
        return first if holder is None else "ourselves"


class Pid(Target):
    """supervisord.pid, as `down`, the daemon and the watchdog read it."""

    name = "supervisord.pid"
    tokens = (b"\n", b"-", b"+", b"_", b" ", b"0x", b"\xd9\xa3", b"9" * 5000)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._paths = Paths.of(folder / "home").ensure()

    def seeds(self) -> Sequence[bytes]:
        return [b"4242\n", str(os.getpid()).encode(), b"1"]

    def read(self, case: Case) -> str:
        self._paths.supervisor_pid.write_bytes(case.data)
        pid = supervise.recorded_pid(self._paths)
        expect(pid is None or 0 < pid <= 2**22, f"no pid: {pid}")
        supervise.wait_gone(self._paths, pid, 0.0)
        with mock.patch.object(watchdog.time, "monotonic", lambda: 5.0):
            root = watchdog._tree_root(self._paths.home, supervised=False)()
        expect(root is None or 0 < root <= 2**22, f"no pid: {root}")
        return str(pid is not None)

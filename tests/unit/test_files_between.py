"""What one of daemon and watchdog writes, the other one reads: heartbeats both ways, and the ring of verdicts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from helpers.verdict_ring import verdict
from overnight import procfs
from overnight.dispatch import evictions, pressure
from overnight.dispatch.beat import Beat
from overnight_watchdog.daemon_watch import read_beat
from overnight_watchdog.journal import PressureFile
from overnight_watchdog.verdicts import VerdictRing

PID, TICKS = 4711, 123456


def record(**changes: Any) -> dict[str, Any]:
    """What the watchdog hands to its ring, which adds the rest."""
    given = verdict(PID, TICKS, **changes)
    return {name: value for name, value in given.items() if name not in ("v", "boot_id", "sequence")}


def test_the_daemon_reads_the_watchdogs_verdicts_once_round_and_after_its_restart(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.ring"
    ring = VerdictRing(path, procfs.boot_id())
    assert ring.open()
    assert evictions.read(path, PID, TICKS) is None
    for number in range(70):  # the 64 slots are used again
        assert ring.write(record(headroom_bytes=number))
        found = evictions.read(path, PID, TICKS)
        assert found is not None
        assert found.headroom_bytes == number
    ring.close()
    after = VerdictRing(path, procfs.boot_id())
    assert after.open()
    assert after.write(record(headroom_bytes=99, step="kill", cell="n/" + "ä" * 900))
    found = evictions.read(path, PID, TICKS)
    assert found is not None
    assert (found.headroom_bytes, found.step) == (99, "kill")
    assert evictions.read(path, PID, TICKS + 1) is None


def test_the_watchdog_reads_the_daemons_beat(tmp_path: Path) -> None:
    path = tmp_path / "daemon.beat"
    Beat(path).strike(stopping=True)
    found = read_beat(path, procfs.boot_id())
    assert found is not None
    assert (found.pid, found.start_ticks, found.stopping) == (os.getpid(), procfs.start_ticks(os.getpid()), True)
    assert 0 <= time.monotonic() - found.monotonic_s < 5
    assert read_beat(path, "another boot") is None


def test_the_daemon_reads_the_watchdogs_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "pressure.json"
    written = PressureFile(path).write(
        {
            "v": 1,
            "boot_id": procfs.boot_id(),
            "pid": PID,
            "start_ticks": TICKS,
            "level": "freeze",
            "limit_bytes": 100,
            "limit_source": "cgroup:/nächte",
            "headroom_bytes": 12,
            "usage_bytes": 88,
            "slope_bytes_per_s": 7,
            "exhaustion_s": 1.5,
            "frozen": 2,
            "sequence": 1,
            "monotonic_s": time.monotonic(),
        }
    )
    assert written
    found = pressure.read(path)
    assert found is not None
    assert (found.level, found.frozen, found.pid, found.start_ticks) == ("freeze", 2, PID, TICKS)
    assert (found.slope_bytes_per_s, found.exhaustion_s) == (7, 1.5)

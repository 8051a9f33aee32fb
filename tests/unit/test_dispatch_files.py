"""The small files and handles of the dispatcher: registrations, pressure, the lock, processes by start time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from overnight import durable, procfs
from overnight.dispatch import pressure
from overnight.dispatch.lock import DaemonLock
from overnight.dispatch.registry import Registration, Registry
from overnight.dispatch.signals import Handle
from overnight.errors import UserError


def test_registry_keeps_what_is_whole_and_of_this_boot(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.put(Registration(pid=10, start_ticks=5, pgid=10, role="cell", cell="g/k"))
    (tmp_path / "11.json").write_text("{torn")
    other = json.loads((tmp_path / "10.json").read_text()) | {"boot_id": "another", "pid": 12}
    (tmp_path / "12.json").write_text(json.dumps(other))
    assert [entry["pid"] for entry in registry.entries()] == [10]
    registry.clear()
    assert list(tmp_path.iterdir()) == []


def test_handle_refuses_a_reused_pid() -> None:
    ticks = procfs.start_ticks(os.getpid())
    assert ticks is not None
    same = Handle.open(os.getpid(), ticks)
    assert same is not None
    same.close()
    assert Handle.open(os.getpid(), ticks - 1) is None


def test_handle_of_a_process_that_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    handle = Handle.open(child.pid)
    assert handle is not None
    assert not handle.ended()
    handle.ask_to_leave()
    assert handle.wait(10)
    child.wait()
    handle.kill()  # after the end: no error, and nobody is hit
    assert Handle.open(child.pid, handle.start_ticks) is None
    handle.close()


def pressure_file(path: Path, **changes: Any) -> None:
    record = {
        "v": 1,
        "boot_id": procfs.boot_id(),
        "level": "hold",
        "limit_bytes": 100,
        "headroom_bytes": 15,
        "monotonic_s": time.monotonic(),
    } | changes
    record["checksum"] = f"{zlib.crc32(durable.canonical(record).encode()):08x}"
    path.write_text(json.dumps(record).ljust(512) + "\n")


def test_pressure_of_a_living_watchdog(tmp_path: Path) -> None:
    path = tmp_path / "pressure.json"
    pressure_file(path)
    now = pressure.read(path)
    assert now is not None
    assert (now.level, now.limit_bytes, now.headroom_bytes) == ("hold", 100, 15)


@pytest.mark.parametrize("damage", ["missing", "stale", "boot", "torn", "checksum", "not an object"])
def test_pressure_that_cannot_be_trusted_is_silence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pressure.json"
    if damage != "missing":
        pressure_file(
            path,
            monotonic_s=time.monotonic() - (60 if damage == "stale" else 0),
            boot_id="other" if damage == "boot" else procfs.boot_id(),
        )
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:60])
    if damage == "checksum":
        path.write_bytes(path.read_bytes().replace(b'"hold"', b'"okay"'))
    if damage == "not an object":
        path.write_text("[1]")
    assert pressure.read(path) is None


def test_second_daemon_is_refused_by_name_and_the_lock_outlives_nobody(tmp_path: Path) -> None:
    (tmp_path / "var" / "run").mkdir(parents=True)
    path = tmp_path / "var" / "run" / "daemon.lock"
    with DaemonLock(path), pytest.raises(UserError, match=rf"pid {os.getpid()}, since .*overnight down"):
        DaemonLock(path, wait_s=0.0).__enter__()
    with DaemonLock(path, wait_s=0.0):
        pass


def test_atomic_write_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, b"old")

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        durable.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

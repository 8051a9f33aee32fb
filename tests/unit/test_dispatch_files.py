"""The small files and handles of the dispatcher: registrations, pressure, the lock, processes by start time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overnight import durable, procfs
from overnight.dispatch import pressure, recover
from overnight.dispatch.lock import DaemonLock
from overnight.dispatch.registry import Registration, Registry
from overnight.dispatch.signals import Handle
from overnight.errors import UserError

NOBODY = 2**22 + 1  # above the kernel's PID_MAX_LIMIT


def test_registry_keeps_what_is_whole_and_of_this_boot(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.put(Registration(pid=10, start_ticks=5, pgid=10, role="cell", cell="g/k"))
    (tmp_path / f"{NOBODY}.json").write_text("{torn")
    other = json.loads((tmp_path / "10.json").read_text()) | {"boot_id": "another", "pid": 12}
    (tmp_path / "12.json").write_text(json.dumps(other))
    assert [entry["pid"] for entry in registry.ours()] == [10]
    registry.clear()
    assert list(tmp_path.iterdir()) == []


def by_hand(pid: int, **changes: Any) -> str:
    """A registration as docs/watchdog.md has people write it."""
    entry = {"v": 1, "boot_id": procfs.boot_id(), "pid": pid, "role": "command"}
    entry |= {"start_ticks": procfs.start_ticks(pid) or 1} | changes
    return json.dumps(entry)


TORN = '{"v": 1, "pid"'


@pytest.mark.parametrize(
    ("name", "living", "says", "stays"),
    [
        ("{}.json", True, {}, True),
        ("{}.json", True, {"role": "cell"}, True),
        ("any-name.json", True, {}, True),
        ("{}.json", True, {"by": "overnight"}, False),
        ("{}.json", True, {"start_ticks": 1}, False),
        ("{}.json", True, {"boot_id": "another"}, False),
        ("{}.json", False, {}, False),
        ("{}.json", True, TORN, True),  # somebody is just writing it
        ("{}.json", False, TORN, False),
        ("{}.json", False, "[]", False),
        (".{}.json.77.tmp", True, TORN, False),
        ("{}.json.new", True, TORN, True),  # no name of ours: somebody is about to rename it
    ],
)
def test_clearing_leaves_what_people_registered_by_hand(
    tmp_path: Path, name: str, living: bool, says: dict[str, Any] | str, stays: bool
) -> None:
    pid = os.getpid() if living else NOBODY
    path = tmp_path / name.format(pid)
    path.write_text(says if isinstance(says, str) else by_hand(pid, **says))
    registry = Registry(tmp_path)
    assert len(list(registry.ours())) == ("by" in says)
    registry.clear()
    assert path.exists() is stays


def test_a_registration_that_was_removed_is_missed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.missing(10)
    registry.put(Registration(pid=10, start_ticks=5, pgid=10, role="cell"))
    assert not registry.missing(10)


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


def asleep() -> tuple[subprocess.Popen[bytes], Handle]:
    process = subprocess.Popen(["sleep", "600"])
    handle = Handle.open(process.pid)
    assert handle is not None
    return process, handle


def refuse(monkeypatch: pytest.MonkeyPatch, pidfd: int) -> None:
    """As the kernel does when the process has become another user's."""
    send = signal.pidfd_send_signal

    def refusing(to: int, number: int) -> None:
        if to == pidfd:
            raise PermissionError(1, "Operation not permitted")
        send(to, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", refusing)


def test_one_that_may_not_be_signalled_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    process, handle = asleep()
    with monkeypatch.context() as patch:
        refuse(patch, handle.fileno())
        assert (handle.ask_to_leave(), handle.thaw(), handle.kill()) == (False, False, False)
    assert process.poll() is None
    assert (handle.thaw(), handle.kill()) == (True, True)
    process.wait()
    assert handle.kill(), "nobody is left whom it would not reach"
    handle.close()


@pytest.mark.root
def test_the_kernel_refuses_as_we_think_it_does() -> None:
    """A process of root's, and a child of ours that is nobody."""
    process, handle = asleep()
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setuid(65534)
            code = int(handle.kill() or handle.ask_to_leave())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.poll() is None
    handle.kill()
    process.wait()
    handle.close()


def test_a_leftover_that_may_not_be_signalled_stays_and_does_not_stop_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (theirs, their_handle), (ours, our_handle) = asleep(), asleep()
    opened = {theirs.pid: their_handle, ours.pid: our_handle}
    monkeypatch.setattr(Handle, "open", classmethod(lambda _cls, pid, _ticks: opened[pid]))
    refuse(monkeypatch, their_handle.fileno())
    lines: list[tuple[str, int]] = []

    def line(event: str, pid: int) -> None:
        lines.append((event, pid))

    queue: Any = SimpleNamespace(recover=lambda reason: [])
    log: Any = SimpleNamespace(warning=line, error=line)
    others = [(handle.pid, handle.start_ticks) for handle in opened.values()]
    began = time.monotonic()
    assert recover.recover(queue, Registry(tmp_path), log, others=lambda: others, grace_s=60.0) == 0
    assert time.monotonic() - began < 30.0
    assert sorted(lines) == [("leftover_killed", ours.pid), ("leftover_stays", theirs.pid)]
    theirs.kill()
    assert (ours.wait(), theirs.wait()) == (-signal.SIGKILL, -signal.SIGKILL)


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
    assert (now.level, now.limit_bytes, now.headroom_bytes, now.hold_bytes) == ("hold", 100, 15, None)
    pressure_file(path, hold_bytes=20)
    now = pressure.read(path)
    assert now is not None
    assert now.hold_bytes == 20


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


class Torn:
    """A heartbeat that is being written: so many reads meet the write."""

    def __init__(self, torn_reads: int) -> None:
        self._left = torn_reads

    def read(self, path: Path) -> bytes:
        self._left -= 1
        return path.read_bytes()[:100].ljust(512) if self._left >= 0 else path.read_bytes()


@pytest.mark.parametrize(("torn_reads", "lives"), [(0, True), (1, True), (2, False)])
def test_a_heartbeat_that_is_just_written_is_read_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn_reads: int, lives: bool
) -> None:
    path = tmp_path / "pressure.json"
    pressure_file(path)
    monkeypatch.setattr(pressure, "read_small", Torn(torn_reads).read)
    assert (pressure.last(path) is not None) is lives


def test_the_lock_follows_no_link_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    path = tmp_path / "daemon.lock"
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"daemon.lock .*symbolic link; remove it"):
        DaemonLock(path).__enter__()
    assert (tmp_path / "precious").read_text() == "mine"


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

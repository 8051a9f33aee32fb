"""What our own processes hold: the usage that a configured budget is compared with.

Anonymous + shared memory from /proc/PID/status, for supervisord and all its descendants. A child that was
forked without an exec shows its parent's pages as its own although they exist once, so what its parent holds
is taken off. That misses inherited pages that the child has since written to (the weights of a warm server
never are); the exact figure is PSS, which costs milliseconds a process and has no place in a loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from overnight_watchdog.limits import PROC

_PF_FORKNOEXEC = 0x40
"""Kernel flag (stat, field 9): forked, but has not called exec."""


@dataclass(frozen=True, slots=True)
class Process:
    """The memory of one process in bytes. `forked`: it still runs the program that its parent runs."""

    pid: int
    parent: int
    forked: bool
    anonymous_bytes: int
    shmem_bytes: int


def held_bytes(processes: Iterable[Process]) -> int:
    """Anonymous + shared memory of all of them, inherited pages counted once."""
    by_pid = {process.pid: process for process in processes}
    total = 0
    for process in by_pid.values():
        source = by_pid.get(process.parent) if process.forked else None
        total += max(0, process.anonymous_bytes - (source.anonymous_bytes if source else 0))
        total += max(0, process.shmem_bytes - (source.shmem_bytes if source else 0))
    return total


def read_tree(root_pid: int, proc_root: Path = PROC) -> list[Process]:
    """`root_pid` and all its descendants; a process that ends meanwhile is left out.

    psutil finds the descendants through every process's parent: /proc/PID/task/TID/children would be cheaper,
    but not every kernel is built with it.
    """
    try:
        pids = [root_pid, *(child.pid for child in psutil.Process(root_pid).children(recursive=True))]
    except psutil.Error:
        return []
    found = (_process(pid, proc_root) for pid in pids)
    return [process for process in found if process is not None]


def start_ticks(pid: int, proc_root: Path = PROC) -> int:
    """Start time of a process in clock ticks after boot, or 0 when there is no such process."""
    fields = _stat_fields(pid, proc_root)
    return int(fields[19]) if fields else 0


def _process(pid: int, proc_root: Path) -> Process | None:
    fields = _stat_fields(pid, proc_root)
    try:
        status = (proc_root / str(pid) / "status").read_bytes()
    except OSError:
        return None
    if not fields:
        return None
    sizes = {name: value for name, _, value in (line.partition(b":") for line in status.splitlines())}
    return Process(
        pid=pid,
        parent=int(fields[1]),
        forked=bool(int(fields[6]) & _PF_FORKNOEXEC),
        anonymous_bytes=_kib(sizes.get(b"RssAnon", b"")),
        shmem_bytes=_kib(sizes.get(b"RssShmem", b"")),
    )


def _stat_fields(pid: int, proc_root: Path) -> list[bytes]:
    """The fields of /proc/PID/stat from the third (state) on; empty when there is no such process."""
    try:
        stat = (proc_root / str(pid) / "stat").read_bytes()
    except OSError:
        return []
    # The command name may hold spaces and parentheses: fields are counted from behind the last ')'.
    fields = stat[stat.rfind(b")") + 1 :].split()
    return fields if len(fields) > 19 and all(fields[i].isdigit() for i in (1, 6, 19)) else []


def _kib(text: bytes) -> int:
    """`   123 kB` -> bytes; a kernel thread or a zombie has no such line: 0."""
    fields = text.split()
    return int(fields[0]) * 1024 if fields and fields[0].isdigit() else 0

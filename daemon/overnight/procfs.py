"""Small facts from /proc: a process is named by its pid *and* its start time, since pids are used again."""

from __future__ import annotations

import ctypes
import os
import signal
from functools import lru_cache
from pathlib import Path

from overnight import checked

_PR_SET_PDEATHSIG = 1
PID_MOST = 2**22
"""The kernel's PID_MAX_LIMIT."""


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks after boot, or None when there is no such process (or a zombie)."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in (b"Z", b"X") else int(fields[19])


def stopped(pid: int) -> bool:
    """Was this process stopped by a signal, and not continued yet?"""
    fields = _stat(pid)
    return fields is not None and fields[0] == b"T"


def parent(pid: int) -> int | None:
    """The parent's pid, None when there is no such process."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name may hold spaces and parentheses: fields are counted from behind the last ')'.
    fields = stat[stat.rfind(b")") + 1 :].split()
    numbers = (fields[1], fields[19]) if len(fields) >= 20 else ()
    return fields if numbers and all(len(each) <= 20 and each.isdigit() for each in numbers) else None


def environment(pid: int) -> set[str] | None:
    """The names of the variables that a process was started with, None when that cannot be read. Never the values."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    entries = (entry.partition(b"=") for entry in data.split(b"\0"))
    return {os.fsdecode(name) for name, _, value in entries if value}


def is_supervisord(pid: int) -> bool:
    """Does its command line say so? It may be `python -m supervisor.supervisord` or a script of that name."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(b"supervisord" in word for word in words[:3])


def read_pid(path: Path) -> int | None:
    """The pid that a pid file holds, None when it holds none."""
    try:
        found = checked.read_small(path, 64).strip()
    except OSError:
        return None
    pid = int(found) if found.isdigit() else 0
    return pid if 0 < pid <= PID_MOST else None


def alive(pid: int, ticks: int) -> bool:
    """Is the very process that was registered still there?"""
    return start_ticks(pid) == ticks


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Changes with every boot: pids and monotonic times of another boot mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def die_with_parent(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `how` to this process when the thread that forked it ends; exit at once if it is gone.

    The recheck closes the gap between the fork and the prctl. Raises OSError when prctl refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent:
        os._exit(128 + int(how))

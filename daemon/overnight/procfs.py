"""Small facts from /proc: a process is named by its pid *and* its start time, since pids are used again."""

from __future__ import annotations

import ctypes
import os
import signal
from functools import lru_cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1


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
    return stat[stat.rindex(b")") + 2 :].split()


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

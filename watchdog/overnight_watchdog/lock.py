"""One watchdog a home: flock on var/run/watchdog.lock, which says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any


class Held(Exception):
    """Another watchdog guards this home. `str()` is the line to print."""


class Lock:
    """Held until the process ends, however it ends: the kernel lets go of it, so none is left behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self, holder: dict[str, Any]) -> None:
        """Take the lock and write `holder` into it for whoever comes second.

        Raises Held when somebody has it, OSError when the file can neither be made nor opened.
        """
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = self._holder_pid(fd)
            os.close(fd)
            raise Held(f"{self._path}: held by {pid}; one watchdog a home is enough") from None
        self._fd = fd
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
        except OSError:
            pass  # a full or read-only disk: the lock holds all the same, only nameless

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        try:
            self._path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # read-only, yet flock works on it

    @staticmethod
    def _holder_pid(fd: int) -> str:
        try:
            pid = json.loads(os.pread(fd, 4096, 0))["pid"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pid = None
        known = type(pid) is int and 0 < pid < 2**31
        return f"the watchdog with pid {pid}" if known else "a watchdog that could not write its pid"

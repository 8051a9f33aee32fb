"""var/run/daemon.beat: the daemon's sign of life for the watchdog, overwritten in place.

daemon.json is replaced whole, which a full disk prevents: a working daemon would look silent and be restarted. This
file is allocated once, and each beat is one write into it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from overnight import procfs
from overnight.dispatch import records

BEAT_BYTES = 256
_EVERY_S = 1.0


class Beat:
    """Never a reason to fail: a beat that cannot be written is tried again at the next."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._fd = -1
        self._sequence = 0
        self._last_s: float | None = None
        self._said_stopping = False
        self._ticks = procfs.start_ticks(os.getpid())

    def strike(self, *, stopping: bool = False) -> None:
        """Say that the daemon works, at most once a second; that it is stopping, at once."""
        now_s = self._clock()
        due = self._last_s is None or now_s - self._last_s >= _EVERY_S
        if not due and stopping == self._said_stopping:
            return
        self._last_s, self._said_stopping = now_s, stopping
        self._sequence += 1
        record = {
            "v": 1,
            "boot_id": procfs.boot_id(),
            "pid": os.getpid(),
            "start_ticks": self._ticks,
            "sequence": self._sequence,
            "monotonic_s": now_s,
            "stopping": stopping,
        }
        try:
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
                self.close()  # somebody emptied var/run: nobody would read what we write there
            if self._fd < 0:
                self._fd = self._open()
            os.pwrite(self._fd, records.block(record, BEAT_BYTES), 0)
        except OSError:
            self.close()

    def _open(self) -> int:
        """The file with room for a beat, whatever it held before. Raises OSError."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                os.posix_fallocate(fd, 0, BEAT_BYTES)
            except OSError:
                # A file system that cannot, or a full disk: a beat of before keeps its room.
                if os.fstat(fd).st_size < BEAT_BYTES:
                    os.pwrite(fd, b" " * BEAT_BYTES, 0)
            os.ftruncate(fd, BEAT_BYTES)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

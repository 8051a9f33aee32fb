"""One writer a cell: an exclusive flock, which ends with its holder, whatever ends that."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from overnight import durable
from overnight.errors import Busy

WAIT_S = 3.0
"""For an attempt that was killed and whose exit is not finished yet."""
_PAUSE_S = 0.02


def open_locked(path: Path, flags: int = 0, *, wait_s: float | None = None) -> int:
    """Open or create `path` for reading and writing, with its folder, under an exclusive lock. Returns the descriptor.

    flags: what else to open it with. wait_s: WAIT_S by default. Raises Busy when another process keeps the lock,
    OSError for the disk's faults."""
    durable.make_folders(path.parent)
    fd = durable.calls.open(path, os.O_RDWR | os.O_CREAT | flags)
    deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise Busy(f"another process holds the lock of {path}") from None
            time.sleep(_PAUSE_S)
        except OSError:
            os.close(fd)
            raise
        else:
            return fd

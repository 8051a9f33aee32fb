"""No daemon may run while a home is repaired: its lock is held meanwhile."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from overnight.dispatch.lock import DaemonLock
from overnight.errors import UserError
from overnight.paths import Paths


@contextmanager
def held(paths: Paths, *, dry_run: bool) -> Iterator[None]:
    """The daemon's lock; for a look without leaving a trace in its file. Raises UserError when a daemon holds it."""
    if not dry_run:
        with DaemonLock(paths.lock):
            yield
        return
    try:
        fd = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"a daemon runs on {paths.home}; stop it with `overnight down` first") from None
    else:
        yield
    finally:
        os.close(fd)

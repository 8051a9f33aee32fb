"""One daemon a `var/`: an flock on var/run/daemon.lock, whose content says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from overnight import checked, procfs
from overnight.errors import UserError


class DaemonLock:
    """A context. The kernel releases the lock with the process, however it ends; nobody inherits it."""

    def __init__(self, path: Path, *, wait_s: float = 0.5) -> None:
        self._path = path
        self._wait_s = wait_s
        self._fd = -1

    def __enter__(self) -> DaemonLock:
        """Raises UserError, saying who holds the lock. The short wait is for a predecessor that is just dying."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            why = "it is a symbolic link; remove it" if error.errno == errno.ELOOP else error.strerror
            raise UserError(f"{self._path} cannot be opened: {why}") from None
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = self._holder()
                    os.close(self._fd)
                    raise UserError(
                        f"another daemon runs on {self._path.parents[1]}: {holder}; "
                        "stop it with `overnight down`, or choose another root with --home DIR"
                    ) from None
                time.sleep(0.05)
        try:
            os.ftruncate(self._fd, 0)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            os.pwrite(self._fd, json.dumps({"pid": os.getpid(), "since": since}).encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds all the same, only its holder stays anonymous
        return self

    def lost(self) -> bool:
        """True when the file was removed or replaced: another daemon could take what we believe to hold."""
        try:
            there, ours = self._path.stat(), os.fstat(self._fd)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _holder(self) -> str:
        try:
            found = checked.json_object(os.pread(self._fd, 4096, 0))
            return f"pid {checked.whole(found['pid'], 1, procfs.PID_MOST)}, since {checked.text(found['since'], 40)}"
        except (OSError, ValueError, KeyError):
            return "it did not leave its name"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

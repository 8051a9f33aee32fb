"""SIGTERM and SIGINT as a flag and a wake-up: nothing else happens inside a signal handler."""

from __future__ import annotations

import select
import signal
import socket
from typing import Any


class StopSignal:
    """Installed once a process; outlives whatever loop looks at it, so that no request is ever swallowed."""

    def __init__(self) -> None:
        self.requested = False
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def install(self) -> None:
        def stop(_number: int, _frame: Any) -> None:
            self.requested = True

        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read.fileno()

    def drain(self) -> None:
        try:
            while self._read.recv(4096):
                pass
        except BlockingIOError:
            pass

    def wait(self, timeout_s: float) -> None:
        """Sleep, but not through a signal."""
        select.select([self._read], [], [], timeout_s)
        self.drain()

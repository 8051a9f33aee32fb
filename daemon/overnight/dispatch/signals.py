"""The only place of the daemon that signals: through a pidfd, after the start time was checked.

A pid alone names nobody: it may have been used again since it was read from a file.
"""

from __future__ import annotations

import os
import select
import signal

from overnight import procfs


class Handle:
    """A process that cannot be mistaken for another one.

    What signals returns False when the process may not be signalled: a command of an unprivileged daemon may have
    become somebody else (sudo, a setuid program). One that has ended needs no signal: that is True.
    """

    def __init__(self, pid: int, start_ticks: int, pidfd: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self._pidfd = pidfd

    @classmethod
    def open(cls, pid: int, start_ticks: int | None = None) -> Handle | None:
        """None when the process has ended, or when its pid belongs to another one by now.

        start_ticks: the registered start time; None only for a child of our own that was not waited for yet.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # Checked after the pidfd is open: from here on it means this process, whatever becomes of the pid.
        found = procfs.start_ticks(pid)
        if found is None or (start_ticks is not None and found != start_ticks):
            os.close(pidfd)
            return None
        return cls(pid, found, pidfd)

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._pidfd

    def ended(self) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def wait(self, timeout_s: float) -> bool:
        """True when it ended within the time."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(int(timeout_s * 1000)))

    def ask_to_leave(self) -> bool:
        """SIGTERM, then SIGCONT, so that a stopped process hears it too, and cannot allocate first."""
        told = self._send(signal.SIGTERM)
        return self._send(signal.SIGCONT) and told

    def thaw(self) -> bool:
        """SIGCONT."""
        return self._send(signal.SIGCONT)

    def kill(self) -> bool:
        """SIGKILL."""
        return self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        os.close(self._pidfd)

"""Sleeping, and being woken earlier: by a signal, a new registration, or the kernel's own word that memory is short.

Nothing depends on the early wake-ups. Where PSI, inotify or a cgroup's notification is missing, the sleep that follows
from headroom and the fastest credible fill rate is short enough by itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

_PSI_TRIGGER = b"some 100000 2000000\0"
"""Wake when somebody stood still for 100 ms within 2 s. Unprivileged, the window has to be a multiple of 2 s."""

ALARM_SHARE = 0.8
MUTED_S = 0.25

_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_DELETE = 0x8, 0x80, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_IGNORED = 0x400, 0x800, 0x8000
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC


def open_psi_trigger(path: Path) -> int:
    """A descriptor that polls POLLPRI under pressure. Raises OSError: no PSI, or no right to."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, _PSI_TRIGGER)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_usage_alarm(folder: Path, threshold_bytes: int) -> int:
    """An eventfd that a v1 memory cgroup makes readable whenever its usage crosses the threshold. Raises OSError."""
    alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        usage = os.open(folder / "memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC)
        try:
            control = os.open(folder / "cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(control, f"{alarm} {usage} {threshold_bytes}".encode())
            finally:
                os.close(control)
        finally:
            os.close(usage)
    except OSError:
        os.close(alarm)
        raise
    return alarm


class Waker:
    """One poll over everything that may end a sleep. `stop` is the name of the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.stop: str | None = None
        self._poll = select.poll()
        self._read, self._write = socket.socketpair()
        for end in (self._read, self._write):
            end.setblocking(False)
        self._poll.register(self._read, select.POLLIN)
        self._psi: set[int] = set()
        self._cgroup: tuple[str, int, int] | None = None
        self._alarm, self._alarm_event = -1, select.POLLIN
        self._muted_until_s = 0.0
        self._inotify = -1
        self._watched = False

    def install(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP, except what nohup or a shell's `&` has had ignored."""

        def asked(number: int, _frame: Any) -> None:
            self.stop = signal.Signals(number).name

        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, asked)

    def watch_pressure(self, path: Path) -> bool:
        """Have the kernel's pressure stall information wake us. False where it cannot."""
        try:
            fd = open_psi_trigger(path)
        except OSError:
            return False
        self._psi.add(fd)
        self._poll.register(fd, select.POLLPRI)
        return True

    def watch_cgroup(self, kind: str, folder: Path, limit_bytes: int) -> None:
        """Have the limit's own cgroup wake us: v1 when its charge passes ALARM_SHARE of the limit, v2 when somebody in
        it stands still. Another cgroup than the last time replaces that one."""
        try:
            seen = (os.fspath(folder), limit_bytes, folder.stat().st_ino)  # one that was made anew is another one
        except OSError:
            seen = (os.fspath(folder), limit_bytes, 0)
        if self._cgroup == seen:
            return
        self._cgroup = seen
        if self._alarm >= 0:
            self.remove(self._alarm)
            os.close(self._alarm)
        self._alarm, self._muted_until_s = -1, 0.0
        try:
            if kind == "cgroup2":
                self._alarm, event = open_psi_trigger(folder / "memory.pressure"), select.POLLPRI
            else:
                self._alarm, event = open_usage_alarm(folder, int(ALARM_SHARE * limit_bytes)), select.POLLIN
        except OSError:
            return
        self._alarm_event = event
        self._poll.register(self._alarm, event)

    def watch_folder(self, folder: Path) -> bool:
        """Have a new or changed registration wake us; a folder that came back is watched again."""
        if self._watched:
            return True
        libc = ctypes.CDLL(None, use_errno=True)
        if self._inotify < 0:
            self._inotify = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
            if self._inotify < 0:
                return False
            self._poll.register(self._inotify, select.POLLIN)
        mask = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
        self._watched = libc.inotify_add_watch(self._inotify, os.fsencode(folder), mask) >= 0
        return self._watched

    def add(self, fd: int) -> None:
        """Wake when this descriptor becomes readable: a pidfd does when its process has ended."""
        self._poll.register(fd, select.POLLIN)

    def remove(self, fd: int) -> None:
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass

    def wait(self, seconds: float) -> None:
        """Sleep, but not through a signal, a registration, or a stall."""
        if self.stop is not None:
            return
        if self._muted_until_s:
            muted_s = self._muted_until_s - time.monotonic()
            if muted_s > 0:
                seconds = min(seconds, muted_s)
            else:
                self._muted_until_s = 0.0
                self._poll.register(self._alarm, self._alarm_event)
        for fd, event in self._poll.poll(max(0.0, seconds * 1000)):
            if fd == self._read.fileno():
                self._drain()
            elif fd == self._inotify:
                self._hear()
            elif fd == self._alarm:
                self._hush(event)
            elif fd in self._psi:
                if event & (select.POLLERR | select.POLLNVAL):  # its cgroup is gone
                    self._poll.unregister(fd)
                    self._psi.discard(fd)
                    os.close(fd)
            elif event & select.POLLNVAL:
                self.remove(fd)

    def _drain(self) -> None:
        try:
            while self._read.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _hush(self, event: int) -> None:
        """Page cache that comes and goes around the threshold must not keep us awake; a cgroup that is gone neither."""
        if self._alarm_event == select.POLLIN:
            try:
                os.read(self._alarm, 8)
            except OSError:
                pass
        self._poll.unregister(self._alarm)
        if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) == 0:
            self._muted_until_s = time.monotonic() + MUTED_S

    def _hear(self) -> None:
        try:
            data = os.read(self._inotify, 65536)
        except OSError:
            return
        at = 0
        while at + 16 <= len(data):
            mask = int.from_bytes(data[at + 4 : at + 8], "little")
            if mask & (_IN_IGNORED | _IN_DELETE_SELF | _IN_MOVE_SELF):
                self._watched = False
            at += 16 + int.from_bytes(data[at + 12 : at + 16], "little")

    def close(self) -> None:
        for fd in (*self._psi, self._alarm, self._inotify):
            if fd >= 0:
                os.close(fd)
        self._psi, self._alarm, self._inotify = set(), -1, -1
        signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()

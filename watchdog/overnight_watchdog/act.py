"""Does what was decided. The only file of the watchdog that signals.

A signal goes through a pidfd that was opened while pid and start time were checked, so that a pid that is used again is
never hit. Between the decision and the signal nothing is logged, forked or searched for: one verdict record is written
into an allocated place, and the signal is sent. The log line comes after it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight_watchdog.decide import Action, Step
from overnight_watchdog.kernel import SYS_PROCESS_MRELEASE, Kernel
from overnight_watchdog.limits import PROC
from overnight_watchdog.roster import Guarded
from overnight_watchdog.tree import stat_of
from overnight_watchdog.verdicts import Ring

_NOT_SENT = "it could not be signalled"
_ROUNDS = 5
"""A tree that forks while it is being stopped is stopped again, this often at most."""


class LinuxKernel:
    """The real thing."""

    def __init__(self, proc_root: Path = PROC) -> None:
        self._proc = proc_root
        self._libc = ctypes.CDLL(None, use_errno=True)

    def open(self, pid: int, start_ticks: int) -> int | None:
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            return None
        # Checked after the pidfd is open: from here on it means this process, whatever becomes of the pid.
        found = stat_of(pid, self._proc)
        if found is None or found.start_ticks != start_ticks or found.state in "ZX":
            os.close(pidfd)
            return None
        return pidfd

    def close(self, pidfd: int) -> None:
        try:
            os.close(pidfd)
        except OSError:
            pass

    def send(self, pidfd: int, number: int) -> bool:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except OSError:
            return False
        return True

    def release(self, pidfd: int) -> None:
        self._libc.syscall(ctypes.c_long(SYS_PROCESS_MRELEASE), ctypes.c_int(pidfd), ctypes.c_uint(0))

    def ended(self, pidfd: int) -> bool:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def catches(self, pid: int, number: int) -> bool:
        try:
            data = (self._proc / str(pid) / "status").read_bytes()
        except OSError:
            return False
        at = data.find(b"\nSigCgt:")
        fields = data[at + 8 : at + 40].split(None, 1) if at >= 0 else []
        try:
            return bool(fields and int(fields[0], 16) >> (number - 1) & 1)
        except ValueError:
            return False

    def stopped(self, pid: int) -> bool:
        found = stat_of(pid, self._proc)
        return found is not None and found.state == "T"


@dataclass(slots=True)
class Dying:
    """Who was told to go: pidfds that are not ours to keep, and what the log will say of it."""

    guarded: Guarded
    since_s: float
    own_bytes: int
    pidfds: list[int]
    killed: bool = False
    released: bool = False


class Actor:
    """Signals, and keeps an eye on those who are on their way out."""

    def __init__(self, kernel: Kernel, ring: Ring, *, dry_run: bool = False) -> None:
        self._kernel, self._ring, self.dry_run = kernel, ring, dry_run
        self.dying: list[Dying] = []
        self._own_pid = os.getpid()

    def carry_out(self, action: Action, guarded: Guarded, now_s: float, record: dict[str, Any]) -> str:
        """Do it; "" when it was done, else why not. `record`: the verdict, for evict and kill.

        In a dry run nothing is sent, and what is remembered of the process is the same."""
        why_not = "" if self.dry_run else self._send(action.step, guarded, now_s, record)
        match action.step:
            case Step.SHRINK:
                guarded.shrunk_s = now_s  # also when it could not be done: it is the others' turn
            case Step.FREEZE if why_not:
                guarded.thawed_s = now_s
            case Step.FREEZE:
                guarded.frozen_s = now_s
            case Step.THAW:
                guarded.frozen_s, guarded.thawed_s = None, now_s
            case Step.EVICT:
                guarded.frozen_s, guarded.leaving_s = None, now_s
            case Step.KILL:
                guarded.frozen_s, guarded.killed_s = None, now_s
            case Step.RESTART:
                guarded.leaving_s = now_s
        return why_not

    def _send(self, step: Step, guarded: Guarded, now_s: float, record: dict[str, Any]) -> str:
        match step:
            case Step.SHRINK:
                # Its default action would kill; a registration may be older than an exec.
                if not self._kernel.catches(guarded.pid, signal.SIGUSR1):
                    return "it does not handle SIGUSR1"
                return "" if self._kernel.send(guarded.pidfd, signal.SIGUSR1) else _NOT_SENT
            case Step.FREEZE:
                return "" if self._stop_all(guarded) else _NOT_SENT
            case Step.THAW:
                self._to_all(guarded, signal.SIGCONT)
            case Step.EVICT:
                self._ring.write(record)
                was_frozen = guarded.frozen_s is not None
                # SIGTERM before SIGCONT: a thawed victim must not allocate first.
                pidfds = self._to_all(guarded, signal.SIGTERM, keep=True)
                if was_frozen:
                    for pidfd in pidfds:
                        self._kernel.send(pidfd, signal.SIGCONT)
                self._remember(guarded, now_s, pidfds, killed=False)
            case Step.KILL:
                self._ring.write(record)
                # Who was asked to leave with it may stand below nobody by now: its pidfd still tells who it is.
                orphans = self._orphans(guarded)
                if len(guarded.tree.members()) > 1 or guarded.role == "command":
                    # Whoever stands still forks nobody, and no child is orphaned unseen.
                    for pidfd in orphans:
                        self._kernel.send(pidfd, signal.SIGSTOP)
                    self._stop_all(guarded)
                for pidfd in orphans:
                    self._kernel.send(pidfd, signal.SIGKILL)
                pidfds = self._to_all(guarded, signal.SIGKILL, keep=True)
                self._remember(guarded, now_s, pidfds, killed=True)
        return ""

    def _to_all(self, guarded: Guarded, number: int, *, keep: bool = False) -> list[int]:
        """The registered process first, then the rest of its tree; each through a checked pidfd. Returns those kept."""
        kept = [guarded.pidfd]
        self._kernel.send(guarded.pidfd, number)
        for pid, ticks in guarded.tree.members():
            if pid in (guarded.pid, self._own_pid) or (pidfd := self._kernel.open(pid, ticks)) is None:
                continue
            self._kernel.send(pidfd, number)
            if keep:
                kept.append(pidfd)
            else:
                self._kernel.close(pidfd)
        return kept

    def _stop_all(self, guarded: Guarded) -> bool:
        """SIGSTOP until nobody new is found. False when the registered process itself has ended."""
        there = self._kernel.send(guarded.pidfd, signal.SIGSTOP)
        stopped: set[tuple[int, int]] = {(guarded.pid, guarded.start_ticks)}
        for _ in range(_ROUNDS):
            guarded.tree.refresh()
            new = [each for each in guarded.tree.members() if each not in stopped and each[0] != self._own_pid]
            if not new:
                break
            for pid, ticks in new:
                if (pidfd := self._kernel.open(pid, ticks)) is not None:
                    self._kernel.send(pidfd, signal.SIGSTOP)
                    self._kernel.close(pidfd)
            stopped.update(new)
        return there

    def _orphans(self, guarded: Guarded) -> list[int]:
        """Pidfds of those who were told to go together with it, but for its own."""
        return [pidfd for known in self.dying if known.guarded is guarded for pidfd in known.pidfds]

    def _remember(self, guarded: Guarded, now_s: float, pidfds: list[int], *, killed: bool) -> None:
        others = pidfds[1:]
        for known in self.dying:
            if known.guarded is guarded:
                known.killed = known.killed or killed
                known.since_s = now_s
                known.pidfds += others
                return
        self.dying.append(Dying(guarded, now_s, guarded.own_bytes, others, killed))

    def watch(self, now_s: float, *, patience_s: float = 0.02) -> list[Dying]:
        """Those who have gone since the last look, with their memory. The slow ones are helped along."""
        gone = []
        for each in tuple(self.dying):
            alive = [fd for fd in (each.guarded.pidfd, *each.pidfds) if not self._kernel.ended(fd)]
            if not alive:
                self.dying.remove(each)
                for pidfd in each.pidfds:
                    self._kernel.close(pidfd)
                gone.append(each)
            elif each.killed and not each.released and now_s - each.since_s >= patience_s:
                # It may wait for a disk or for the scheduler: its memory need not wait with it.
                each.released = True
                for pidfd in alive:
                    self._kernel.release(pidfd)
        return gone

    def thaw_found(self, guarded: Guarded) -> bool:
        """Let go of somebody whom another watchdog, now dead, has frozen. True when that was done."""
        guarded.tree.refresh()
        if self.dry_run or not any(self._kernel.stopped(pid) for pid, _ in guarded.tree.members()):
            return False
        self._to_all(guarded, signal.SIGCONT)
        return True

    def end(self, pidfd: int, number: int) -> None:
        """A signal to a process that is no victim but hangs (the daemon)."""
        if not self.dry_run:
            self._kernel.send(pidfd, number)

    def forward(self, pidfd: int, number: int) -> None:
        """A signal that the user sent, to whom it is meant: also in a dry run."""
        self._kernel.send(pidfd, number)

    def follows(self, guarded: Guarded) -> bool:
        """Was it told to go, and not seen to be gone yet?"""
        return any(known.guarded is guarded for known in self.dying)

    def ended(self, guarded: Guarded) -> bool:
        return self._kernel.ended(guarded.pidfd)

    def note(self, record: dict[str, Any]) -> bool:
        """A verdict that no signal of ours follows at once."""
        return self._ring.write(record)

    def rehearse(self, record: dict[str, Any]) -> None:
        """Go the way of a kill once with signal 0 on ourselves, so that the first real one needs no new page."""
        pid = os.getpid()
        found = stat_of(pid)
        pidfd = None if found is None else self._kernel.open(pid, found.start_ticks)
        if pidfd is not None:
            self._kernel.send(pidfd, 0)
            self._kernel.ended(pidfd)
            self._kernel.catches(pid, signal.SIGUSR1)
            self._kernel.close(pidfd)
        self._ring.encode(record)

"""What the watchdog asks of the kernel about processes, as one small Protocol: a test can hand out reused pids, EPERM,
and processes that do not die. The real thing is in `act.py`, the only file that signals."""

from __future__ import annotations

from typing import Protocol

SYS_PROCESS_MRELEASE = 448
PR_SET_PDEATHSIG = 1


class Kernel(Protocol):
    def open(self, pid: int, start_ticks: int) -> int | None:
        """A pidfd of exactly this process, or None when it has ended or its pid belongs to another one by now."""
        ...

    def close(self, pidfd: int) -> None: ...

    def send(self, pidfd: int, number: int) -> bool:
        """False when the signal could not be sent: it has ended, or we may not."""
        ...

    def release(self, pidfd: int) -> None:
        """process_mrelease: free the memory of a process that is dying, without waiting for it to be scheduled."""
        ...

    def ended(self, pidfd: int) -> bool:
        """True once its memory is gone (the kernel lets go of it before it says that a process has ended)."""
        ...

    def catches(self, pid: int, number: int) -> bool:
        """Does the process handle this signal? (SigCgt of /proc/PID/status; SIGUSR1's default action kills.)"""
        ...

    def stopped(self, pid: int) -> bool:
        """Is it in state T?"""
        ...

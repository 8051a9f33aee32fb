"""Simulated processes: the watchdog's `Kernel`, and their /proc in a folder.

It does what Linux does where the watchdog depends on it (tests/contract/test_watchdog_kernel.py holds it against the
real one): a pidfd means one process for ever, a stopped process gets its SIGTERM when it is continued, SIGUSR1 kills
whoever does not handle it, and orphans hang below pid 1.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
_FORKNOEXEC = 0x40


@dataclass(eq=False)
class FakeProcess:
    """stubborn: signals that it outlives, SIGKILL included (it waits for a disk). permitted: may we signal it?"""

    pid: int
    ticks: int
    parent: int = 1
    catches: frozenset[int] = frozenset()
    stubborn: frozenset[int] = frozenset()
    permitted: bool = True
    forked: bool = False
    shown: bool = True
    state: str = "S"
    alive: bool = True
    own_bytes: int = 0
    major_faults: int = 0
    pending: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)


class FakeKernel:
    """`calls` has what was asked of it, in order: (what, pid, signal or 0)."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.calls: list[tuple[str, int, int]] = []
        self.ever: list[FakeProcess] = []
        self._by_pid: dict[int, FakeProcess] = {}
        self._children: defaultdict[int, dict[int, FakeProcess]] = defaultdict(dict)
        self._open: dict[int, FakeProcess] = {}
        self._next_fd = 1000
        self._ticks = 100
        proc.mkdir(parents=True, exist_ok=True)

    # -- the simulation ---------------------------------------------------------------------------------------

    def start(
        self,
        pid: int,
        *,
        parent: int = 1,
        own_bytes: int = 0,
        catches: Iterable[int] = (),
        stubborn: Iterable[int] = (),
        permitted: bool = True,
        forked: bool = False,
        shown: bool = True,
    ) -> FakeProcess:
        """A new process, younger than all others. A pid that is taken ends first: it is used again.

        shown=False: without files in /proc, for crowds that nobody should ever look at."""
        if pid in self._by_pid:
            self.end(pid)
        self._ticks += 7
        made = FakeProcess(
            pid,
            self._ticks,
            parent,
            frozenset(catches),
            frozenset(stubborn),
            permitted,
            forked=forked,
            own_bytes=own_bytes,
            shown=shown,
        )
        self._by_pid[pid] = made
        self._children[parent][pid] = made
        self.ever.append(made)
        if shown:
            (self.proc / str(pid) / "task" / str(pid)).mkdir(parents=True)
            (self.proc / str(pid) / "task" / str(pid) / "children").touch()
            self.show(made)
        self._show_children(parent)
        return made

    def end(self, pid: int) -> None:
        """It is gone, and reaped. Its children are pid 1's."""
        process = self._by_pid.pop(pid)
        process.alive = False
        if process.shown:
            os.truncate(self.proc / str(pid) / "statm", 0)  # who has it open reads nothing any more
            shutil.rmtree(self.proc / str(pid))
        del self._children[process.parent][pid]
        for child in self._children.pop(pid, {}).values():
            child.parent = 1
            self._children[1][child.pid] = child
            self._show_stat(child)
        self._show_children(process.parent)

    def holds(self, pid: int, own_bytes: int) -> None:
        """So much private memory from now on."""
        self._by_pid[pid].own_bytes = own_bytes
        self.show(self._by_pid[pid])

    def get(self, pid: int) -> FakeProcess | None:
        return self._by_pid.get(pid)

    def processes(self) -> list[FakeProcess]:
        return list(self._by_pid.values())

    def open_count(self) -> int:
        return len(self._open)

    def signals(self, pid: int | None = None) -> list[tuple[int, int]]:
        """(pid, signal) of all signals that were sent (signal 0 is none), in order."""
        return [(who, what) for kind, who, what in self.calls if kind == "send" and what and pid in (None, who)]

    def show(self, process: FakeProcess) -> None:
        """Its files in /proc, as it is now."""
        if not process.shown:
            return
        self._show_stat(process)
        folder, pages = self.proc / str(process.pid), process.own_bytes // PAGE_BYTES
        mask = sum(1 << (number - 1) for number in process.catches)
        (folder / "statm").write_text(f"{pages + 10} {pages + 5} 5 0 0 0 0\n")
        (folder / "status").write_text(f"Name:\tx\nRssShmem:\t0 kB\nSigCgt:\t{mask:016x}\n")

    # -- Kernel -----------------------------------------------------------------------------------------------

    def open(self, pid: int, start_ticks: int) -> int | None:
        found = self._by_pid.get(pid)
        if found is None or found.ticks != start_ticks:
            return None
        self._next_fd += 1
        self._open[self._next_fd] = found
        return self._next_fd

    def close(self, pidfd: int) -> None:
        assert self._open.pop(pidfd, None) is not None, f"{pidfd} is closed already: its number may be another's"

    def send(self, pidfd: int, number: int) -> bool:
        process = self._open[pidfd]
        self.calls.append(("send", process.pid, number))
        if not process.alive or not process.permitted:
            return False
        if number:
            process.received.append(number)
            self._deliver(process, number)
        return True

    def release(self, pidfd: int) -> None:
        self.calls.append(("release", self._open[pidfd].pid, 0))

    def ended(self, pidfd: int) -> bool:
        return not self._open[pidfd].alive

    def catches(self, pid: int, number: int) -> bool:
        found = self._by_pid.get(pid)
        return found is not None and number in found.catches

    def stopped(self, pid: int) -> bool:
        found = self._by_pid.get(pid)
        return found is not None and found.state == "T"

    # -- within -----------------------------------------------------------------------------------------------

    def _deliver(self, process: FakeProcess, number: int) -> None:
        match number:
            case signal.SIGSTOP:
                process.state = "T"
            case signal.SIGCONT:
                process.state = "S"
                waiting, process.pending = process.pending, []
                for each in waiting:
                    self._deliver(process, each)
            case _ if process.state == "T" and number != signal.SIGKILL:
                process.pending.append(number)
            case _ if number not in process.catches and number not in process.stubborn:
                self.end(process.pid)
        if process.alive:
            self._show_stat(process)

    def _show_stat(self, process: FakeProcess) -> None:
        if not process.shown:
            return
        flags = _FORKNOEXEC if process.forked else 0
        ids = f"{process.pid} (a (b) c) {process.state} {process.parent} 1 1 0 -1 {flags} 0 0 {process.major_faults}"
        (self.proc / str(process.pid) / "stat").write_text(f"{ids} 0 0 0 0 0 20 0 1 0 {process.ticks} 0 0\n")

    def _show_children(self, pid: int) -> None:
        folder = self.proc / str(pid) / "task" / str(pid)
        if folder.exists():
            (folder / "children").write_text("".join(f"{each} " for each in self._children[pid]))

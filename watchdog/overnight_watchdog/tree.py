"""What a process and all its descendants hold: the memory of one cell, and of a budget without a cgroup of its own.

Anonymous + shared memory: /proc/PID/statm at each look (resident less shared is anonymous), shared memory from
/proc/PID/status when the members are looked up again. A child that was forked without an exec shows its parent's
pages as its own although they exist once, so what it had of them when it was first seen is taken off. That misses
inherited pages that the child has written to since (the weights of a warm server never are); the exact figure is PSS,
which costs milliseconds a process and has no place in a loop.

Where the tree has a cgroup of its own, the kernel may count more there (`own_cgroup.py`): the larger figure holds.
*Measured*: a command with 1.8 GiB in files in /dev/shm, which no process has mapped, showed 10 MiB.

Paths below /proc are put together as text: pathlib would have the interpreter intern each pid, and its table of such
names grows with those that are gone, too. *Measured*: 740 KiB more after some ten thousand short cells.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from overnight_watchdog.kernel_files import KernelFile, named_numbers, whole_number
from overnight_watchdog.limits import PROC
from overnight_watchdog.own_cgroup import OwnCgroup

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PF_FORKNOEXEC = 0x40
"""Kernel flag (stat, field 9): forked, but has not called exec."""

MEMBERS_S = 0.25
"""How old the list of a tree's members may be when it is measured."""


@dataclass(frozen=True, slots=True)
class Stat:
    """Of /proc/PID/stat. state: one letter, such as T for stopped. ticks: clock ticks after boot."""

    state: str
    parent: int
    forked: bool
    major_faults: int
    start_ticks: int


@dataclass(slots=True)
class Member:
    """One process of a tree. inherited_bytes: what it shares with `parent`, the process that forked it."""

    start_ticks: int
    statm: KernelFile
    parent: int
    inherited_bytes: int
    shmem_bytes: int = 0


class Tree:
    """A process and its descendants, as long as they are below it, and whoever else is in its cgroup.

    start_ticks: the root's start time; another process that has its pid by then, and whatever is below that, is not
        looked at. 0: whoever has the pid.
    own_root: the root's inherited pages are taken off too (a cell, or a command's runner, that a warm server forked);
        else they are its own.
    alone: only the root (the daemon, a warm server: what they start is registered itself).
    cgroup: a folder that holds this tree alone; who daemonised himself is still in it.
    """

    def __init__(
        self,
        pid: int,
        *,
        start_ticks: int = 0,
        own_root: bool = False,
        alone: bool = False,
        cgroup: str = "",
        proc_root: Path = PROC,
    ) -> None:
        self.pid, self._start_ticks = pid, start_ticks
        self._meminfo = KernelFile(f"{proc_root}/meminfo")
        self._own_root, self._alone, self._proc = own_root, alone, proc_root
        self._procs = KernelFile(f"{cgroup}/cgroup.procs") if cgroup else None
        self._charged = OwnCgroup(cgroup, proc_root) if cgroup else None
        self._members: dict[int, Member] = {}
        self._due_s = float("-inf")
        self._shmem_bytes = 0

    def measure(self, now_s: float) -> int:
        """Bytes that the tree holds; 0 when nobody is left."""
        if now_s >= self._due_s:
            self.refresh()
            self._due_s = now_s + MEMBERS_S
        total = self._shmem_bytes
        for member in self._members.values():
            total += max(0, anonymous_bytes(member.statm) - member.inherited_bytes)
        if self._charged is not None and self._members:
            total = max(total, self._charged.firm_bytes())
        return total

    def refaulted_at_cap(self) -> int:
        """Pages read again since the last call for want of room under its own cap; see `OwnCgroup`."""
        return 0 if self._charged is None else self._charged.refaulted_at_cap()

    def refresh(self) -> None:
        """Look up who belongs to it, and their shared memory."""
        seen: dict[int, Member] = {}
        for pid in self._pids():
            found = stat_of(pid, self._proc)
            if found is None or found.state in "ZX":
                continue
            member = self._members.get(pid)
            if member is None or member.start_ticks != found.start_ticks:
                member = self._first_seen(pid, found, seen)
            elif not found.forked:
                member.inherited_bytes = 0  # first seen between its fork and its exec
            member.shmem_bytes = shmem_bytes(pid, self._proc)
            seen[pid] = member
        for pid, member in seen.items():
            if pid != self.pid and member.parent not in seen:
                member.inherited_bytes = 0  # whoever forked it is gone: what they shared is its own now
        for pid, member in self._members.items():
            if seen.get(pid) is not member:
                member.statm.close()
        self._members = seen
        self._shmem_bytes = self._shared()

    def _shared(self) -> int:
        """Shared memory of all members. Each counts what it maps, several of them the same: together it is no more than
        the machine has of it (and no less than the largest of them says)."""
        sizes = [member.shmem_bytes for member in self._members.values() if member.shmem_bytes]
        if len(sizes) < 2:
            return sum(sizes)
        most = named_numbers(self._meminfo.read(), (b"Shmem:",), scale=1024).get("Shmem")
        return sum(sizes) if most is None else min(sum(sizes), max(*sizes, most))

    def members(self) -> list[tuple[int, int]]:
        """(pid, start time in clock ticks) of those that were there at the last refresh, the root first."""
        return [(pid, member.start_ticks) for pid, member in self._members.items()]

    def close(self) -> None:
        for member in self._members.values():
            member.statm.close()
        self._members, self._shmem_bytes = {}, 0
        self._meminfo.close()
        if self._procs is not None:
            self._procs.close()
        if self._charged is not None:
            self._charged.close()

    def _pids(self) -> dict[int, None]:
        """In order, each once."""
        pids: dict[int, None] = {}
        if not self._start_ticks or start_ticks(self.pid, self._proc) == self._start_ticks:
            pids = dict.fromkeys((self.pid, *(() if self._alone else descendants(self.pid, self._proc))))
        if self._procs is not None:
            whole, _, _ = self._procs.read().rpartition(b"\n")  # a pid that was cut off would be somebody else's
            pids |= dict.fromkeys(filter(None, map(whole_number, whole.split())))
        return pids

    def _first_seen(self, pid: int, found: Stat, seen: Container[int]) -> Member:
        statm = KernelFile(f"{self._proc}/{pid}/statm")
        inherited = 0
        if found.forked and (self._own_root if pid == self.pid else found.parent in seen):
            parent = KernelFile(f"{self._proc}/{found.parent}/statm")
            inherited = min(anonymous_bytes(parent), anonymous_bytes(statm))
            parent.close()
        return Member(found.start_ticks, statm, found.parent, inherited)


def anonymous_bytes(statm: KernelFile) -> int:
    """Resident less shared pages: private anonymous memory."""
    fields = statm.read().split(None, 3)
    if len(fields) < 4:
        return 0
    resident, shared = whole_number(fields[1]), whole_number(fields[2])
    return 0 if resident is None or shared is None else max(0, resident - shared) * PAGE_BYTES


def shmem_bytes(pid: int, proc_root: Path = PROC) -> int:
    data = _read(f"{proc_root}/{pid}/status")
    at = data.find(b"\nRssShmem:")
    fields = data[at + 10 : at + 40].split(None, 1) if at >= 0 else []
    return (whole_number(fields[0]) or 0) * 1024 if fields else 0


def stat_of(pid: int, proc_root: Path = PROC) -> Stat | None:
    """None when there is no such process."""
    data = _read(f"{proc_root}/{pid}/stat")
    # The command name may hold spaces and parentheses: fields are counted from behind the last ')'.
    fields = data[data.rfind(b")") + 1 :].split()
    if len(fields) < 20:
        return None
    parent, flags, faults, ticks = (whole_number(fields[place]) for place in (1, 6, 9, 19))
    if parent is None or flags is None or faults is None or ticks is None:
        return None
    return Stat(fields[0].decode("ascii", "replace"), parent, bool(flags & _PF_FORKNOEXEC), faults, ticks)


def start_ticks(pid: int, proc_root: Path = PROC) -> int:
    """Start time of a process in clock ticks after boot, or 0 when there is no such process."""
    found = stat_of(pid, proc_root)
    return 0 if found is None else found.start_ticks


def descendants(pid: int, proc_root: Path = PROC) -> Iterator[int]:
    """Everybody below a process, parents before their children.

    /proc/PID/task/TID/children is a few reads a process; on a kernel that is built without it psutil asks every
    process for its parent."""
    if not os.path.exists(f"{proc_root}/{pid}/task/{pid}/children"):  # noqa: PTH110 - see above: no Path of a pid
        if os.path.exists(f"{proc_root}/{pid}"):  # noqa: PTH110
            yield from _by_parent(pid, proc_root)
        return
    waiting, known = [pid], {pid}
    while waiting:
        for thread in _threads(waiting.pop(), proc_root):
            for child in map(whole_number, _read(f"{thread}/children").split()):
                if child is not None and child not in known:  # once each: pids that are used again make circles
                    known.add(child)
                    yield child
                    waiting.append(child)


def _threads(pid: int, proc_root: Path) -> list[str]:
    folder = f"{proc_root}/{pid}/task"
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]  # noqa: PTH208 - names, not objects, in a loop
    except OSError:
        return []


def _by_parent(pid: int, proc_root: Path) -> Iterator[int]:
    if proc_root != PROC:
        return
    try:
        yield from (child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return


def _read(path: str) -> bytes:
    """All of a file, b"" when it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - see above: no Path of a pid
            return file.readall()
    except OSError:
        return b""

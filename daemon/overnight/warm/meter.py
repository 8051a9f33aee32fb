"""What a cell holds, as its warm server samples it: private anonymous and shared memory, never PSS.

In a memory cgroup of its own the kernel counts for us, copied pages, page tables and stacks included. Without one it
is what /proc tells of the cell's processes: anonymous and shared memory and page tables, less what a child that was
forked without an exec had from its parent when it was first seen (copies that it makes of those pages are missed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overnight.cgroup_memory import CgroupMemory

_PF_FORKNOEXEC = 0x40
"""Kernel flag (/proc/PID/stat, field 9): forked, but has not called exec."""
_FIELDS = ("RssAnon:", "RssShmem:", "VmPTE:")
PROC = Path("/proc")


@dataclass
class _Member:
    forked: bool
    inherited_bytes: int


class Meter:
    """One cell: `pid` and, with `tree`, all its descendants. `look` at it often enough to see the spikes."""

    def __init__(self, pid: int, *, cgroup: str | None, tree: bool, proc_root: Path = PROC) -> None:
        self.bytes = self.peak_bytes = self.told_bytes = 0
        self._pid, self._tree, self._proc = pid, tree, proc_root
        self._cgroup = None if cgroup is None else CgroupMemory(cgroup)
        self._members: dict[int, _Member] = {}
        if self._cgroup is None:
            self._join(pid)  # at its birth: all that it has is its parent's

    def look(self) -> int:
        """Bytes that it holds now; the last figure when that cannot be told (any more)."""
        found = self._cgroup.read() if self._cgroup is not None else self._sum()
        if found is not None:
            self.bytes = found
            self.peak_bytes = max(self.peak_bytes, found)
        return self.bytes

    def close(self) -> None:
        if self._cgroup is not None:
            self._cgroup.close()

    def _sum(self) -> int | None:
        total, seen = 0, False
        for pid in (self._pid, *(_descendants(self._pid, self._proc) if self._tree else ())):
            held = held_bytes(pid, self._proc)
            if held is None:
                continue
            member = self._members.get(pid) or self._join(pid)
            if member.forked and not _forked(pid, self._proc):
                member.forked, member.inherited_bytes = False, 0  # first seen between its fork and its exec
            total += max(0, held - member.inherited_bytes)
            seen = True
        return total if seen else None

    def _join(self, pid: int) -> _Member:
        forked = _forked(pid, self._proc)
        member = _Member(forked, (held_bytes(pid, self._proc) or 0) if forked else 0)
        self._members[pid] = member
        return member


def held_bytes(pid: int, proc_root: Path = PROC) -> int | None:
    """Anonymous and shared memory and page tables of a process; None when there is none (any more)."""
    try:
        lines = (proc_root / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith(_FIELDS)]
    return sum(found) * 1024 if found else None  # a zombie holds nothing


def _forked(pid: int, proc_root: Path) -> bool:
    try:
        stat = (proc_root / str(pid) / "stat").read_bytes()
        return bool(int(stat[stat.rindex(b")") + 2 :].split()[6]) & _PF_FORKNOEXEC)
    except (OSError, ValueError, IndexError):
        return False


def _descendants(pid: int, proc_root: Path) -> Iterator[int]:
    waiting, known = [pid], {pid}
    while waiting:
        for thread in (proc_root / str(waiting.pop()) / "task").glob("*"):
            try:
                children = [int(word) for word in (thread / "children").read_text().split()]
            except (OSError, ValueError):
                continue
            for child in children:
                if child not in known:
                    known.add(child)
                    waiting.append(child)
                    yield child

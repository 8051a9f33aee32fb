"""What a cell holds, as its warm server samples it: private anonymous and shared memory, never PSS.

In a memory cgroup of its own the kernel counts for us, copied pages, page tables and stacks included. Without one it
is what /proc tells of the cell's processes: anonymous and shared memory and page tables, less what a child that was
forked without an exec had from its parent when it was first seen (copies that it makes of those pages are missed).

Page cache is none of it, but a cell's cap bounds its page cache too: what is read again and again under a cap that is
too small for it shows in the cgroup's refaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overnight import cgroup_memory
from overnight.cells import command_tree
from overnight.cells.command_tree import Member
from overnight.cgroup_memory import CgroupMemory

_PF_FORKNOEXEC = 0x40
"""Kernel flag (/proc/PID/stat, field 9): forked, but has not called exec."""
_FIELDS = (b"RssAnon:", b"RssShmem:", b"VmPTE:")
PROC = Path("/proc")
REFAULTS_S = 1.0
"""A rate of refaults is taken over so long at least: they come in bursts."""


_Key = tuple[int, int]
"""(pid, start time in ticks): pids are used again."""


@dataclass
class _Weighed:
    """forked: without an exec since, so that it has `inherited_bytes` of its parent's."""

    forked: bool
    inherited_bytes: int


class Meter:
    """One cell: `pid` and, with `tree`, all its descendants. `look` at it often enough to see the spikes; took_s: how
    long the last look took. refault_bytes_per_s: 0 where nobody counts; refaults_told: what the dispatcher was told of
    it is all there is to tell."""

    def __init__(
        self,
        pid: int,
        *,
        cgroup: str | None,
        tree: bool,
        proc_root: Path = PROC,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes = self.peak_bytes = self.told_bytes = 0
        self.refault_bytes_per_s = 0
        self.refaults_told = True
        self._refaulted: tuple[float, int] | None = None
        self.took_s = 0.0
        self._pid, self._tree, self._proc, self._clock = pid, tree, proc_root, clock
        self._cgroup = None if cgroup is None else CgroupMemory(cgroup)
        self._members: dict[_Key, _Weighed] = {}
        if self._cgroup is None and (own := command_tree.member_of(pid, proc_root)) is not None:
            self._join(own)  # at its birth: all that it has is its parent's

    def look(self) -> int:
        """Bytes that it holds now; the last figure when that cannot be told (any more)."""
        began_s = self._clock()
        found = self._cgroup.read() if self._cgroup is not None else self._sum()
        if self._cgroup is not None:
            self._count_refaults(began_s, self._cgroup.refaulted_bytes())
        self.took_s = self._clock() - began_s
        if found is not None:
            self.bytes = found
            self.peak_bytes = max(self.peak_bytes, found)
        return self.bytes

    def close(self) -> None:
        if self._cgroup is not None:
            self._cgroup.close()

    def _count_refaults(self, now_s: float, refaulted_bytes: int | None) -> None:
        """A cgroup is used again, by one cell after the other: what is there at the first look is not its own."""
        if refaulted_bytes is None:
            return
        if self._refaulted is None:
            self._refaulted = (now_s, refaulted_bytes)
        since_s, before = self._refaulted
        if now_s - since_s < REFAULTS_S:
            return
        self._refaulted = (now_s, refaulted_bytes)
        known, rate = self.refault_bytes_per_s, round(max(0, refaulted_bytes - before) / (now_s - since_s))
        self.refault_bytes_per_s = rate
        self.refaults_told = self.refaults_told and known == rate == 0  # as long as it goes on it is news

    def _sum(self) -> int | None:
        total, seen = 0, set()
        for member in self._found():
            held = held_bytes(member.pid, self._proc)
            if held is None:
                continue
            weighed = self._members.get(_key(member)) or self._join(member)
            if weighed.forked and not _forked(member.pid, self._proc):
                weighed.forked, weighed.inherited_bytes = False, 0  # first seen between its fork and its exec
            total += max(0, held - weighed.inherited_bytes)
            seen.add(_key(member))
        for key in self._members.keys() - seen:
            # A look may miss whoever just changes his parent: he is no newcomer the next time.
            still = command_tree.member_of(key[0], self._proc)
            if still is None or _key(still) != key:
                del self._members[key]
        return total if seen else None

    def _found(self) -> list[Member]:
        own = command_tree.member_of(self._pid, self._proc)
        below = command_tree.descendants(self._pid, self._proc) if self._tree else []
        return below if own is None else [own, *below]

    def _join(self, member: Member) -> _Weighed:
        forked = _forked(member.pid, self._proc)
        weighed = _Weighed(forked, (held_bytes(member.pid, self._proc) or 0) if forked else 0)
        self._members[_key(member)] = weighed
        return weighed


def _key(member: Member) -> _Key:
    return member.pid, member.start_ticks


def held_bytes(pid: int, proc_root: Path = PROC) -> int | None:
    """Anonymous and shared memory and page tables of a process; None when there is none (any more)."""
    try:
        status = (proc_root / str(pid) / "status").read_bytes()
    except OSError:
        return None
    found = [kib for name in _FIELDS if (kib := cgroup_memory.field(status, name)) is not None]
    return sum(found) * 1024 if found else None  # a zombie holds nothing


def _forked(pid: int, proc_root: Path) -> bool:
    try:
        stat = (proc_root / str(pid) / "stat").read_bytes()
        return bool(int(stat[stat.rindex(b")") + 2 :].split()[6]) & _PF_FORKNOEXEC)
    except (OSError, ValueError, IndexError):
        return False

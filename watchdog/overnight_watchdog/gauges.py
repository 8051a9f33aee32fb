"""Measures usage under each bound, through files that stay open. The reading half of `sample.py`'s arithmetic."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from overnight_watchdog.kernel_files import KernelFile, named_numbers, whole_number
from overnight_watchdog.limits import PROC, SYS, Bound, CgroupFolder, bounds, cgroup_at, memory_cgroups
from overnight_watchdog.own_cgroup import KERNEL_BYTES
from overnight_watchdog.sample import (
    MEMINFO,
    STAT1,
    STAT2,
    Sample,
    Usage,
    bounded,
    cgroup1_usage,
    cgroup2_usage,
    combine,
    left_bytes,
    machine_usage,
    pinned_kernel_bytes,
)
from overnight_watchdog.tree import PAGE_BYTES, Tree

LIMITS_S = 4.0
"""How old the known limits may be: a container can be resized while it runs."""
FAR_S, FAR_BYTES = 0.25, 2 * 2**30
"""A larger bound with so much more left than the whole limit is looked at so seldom: nobody fills that sooner."""
FOLDERS_S = 60.0
"""How old the known cgroups may be: a process is seldom moved."""


class MachineGauge:
    def __init__(self, proc_root: Path = PROC) -> None:
        self._meminfo = KernelFile(proc_root / "meminfo")

    def meminfo(self) -> dict[str, int]:
        return named_numbers(self._meminfo.read(), MEMINFO, scale=1024)

    def measure(self) -> Usage | None:
        return machine_usage(self.meminfo())

    def close(self) -> None:
        self._meminfo.close()


class CgroupGauge:
    """Counters of one memory cgroup. swap_free: what the machine could still swap out. kernel_most: how much kernel
    memory can be pinned at the most."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        swap_free: Callable[[], int] = lambda: 0,
        kernel_most: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._old = kind == "cgroup1"
        names = (
            ("memory.usage_in_bytes", "memory.kmem.usage_in_bytes", "memory.memsw.limit_in_bytes")
            if self._old
            else ("memory.current", "memory.swap.current", "memory.swap.max")
        )
        self._stat = KernelFile(folder / "memory.stat")
        self._charged, self._second, self._swap_limit = (KernelFile(folder / name) for name in names)
        self._memsw = KernelFile(folder / "memory.memsw.usage_in_bytes")
        self._limit = KernelFile(folder / "memory.limit_in_bytes")
        self._swappiness = KernelFile(folder / "memory.swappiness")
        self._swap_free, self._kernel_most = swap_free, kernel_most

    def measure(self) -> Usage | None:
        """None when the cgroup is gone, or its files say nothing."""
        charged = self._charged.number()
        swap = self._swap_room(charged)
        if self._old:
            stat, kernel = named_numbers(self._stat.read(), STAT1), self._second.number() or 0
            usage = cgroup1_usage(stat, kernel, swap, self._kernel_most() if kernel >= KERNEL_BYTES else None)
        else:
            usage = cgroup2_usage(named_numbers(self._stat.read(), STAT2), swap)
        return bounded(usage, charged)

    def _swap_room(self, charged: int | None) -> int:
        free = self._swap_free()
        if free <= 0:
            return 0
        limit = self._swap_limit.number()
        if not self._old:
            return free if limit is None else max(0, min(free, limit - (self._second.number() or 0)))
        if self._swappiness.number() == 0:
            return 0
        memory, both = self._limit.number(), self._memsw.number()
        if limit is None or charged is None or memory is None or both is None:
            return free
        # v1 limits memory and swap together: what is left of both, less what memory alone could still take.
        return max(0, min(free, (limit - both) - max(0, memory - charged)))

    def close(self) -> None:
        for file in (self._stat, self._charged, self._second, self._swap_limit, self._memsw, self._limit):
            file.close()
        self._swappiness.close()


class TreeGauge:
    """A budget without a cgroup of its own: anonymous + shmem of a process and all its descendants."""

    def __init__(self, root: Callable[[], int | None], proc_root: Path, clock: Callable[[], float]) -> None:
        self._root, self._proc_root, self._clock = root, proc_root, clock
        self._tree: Tree | None = None

    def measure(self) -> Usage | None:
        pid = self._root()
        if self._tree is None or self._tree.pid != pid:
            self.close()
            self._tree = None if pid is None else Tree(pid, proc_root=self._proc_root)
        if self._tree is None:
            return Usage(0, 0)
        return Usage(self._tree.measure(self._clock()), 0)

    def close(self) -> None:
        if self._tree is not None:
            self._tree.close()
            self._tree = None


class StallGauge:
    """Pressure stall information and refaults of the machine, for where a cgroup does not count them itself."""

    def __init__(self, proc_root: Path = PROC) -> None:
        self._psi = KernelFile(proc_root / "pressure" / "memory")
        self._vmstat = KernelFile(proc_root / "vmstat")
        self._own: KernelFile | None = None

    def stalled_us(self, folder: str) -> int | None:
        """Microseconds in which somebody stood still for memory, since the boot: in the cgroup with this folder where
        it counts them (v2), else ("" too) on the machine. None without PSI."""
        path = f"{folder}/memory.pressure" if folder else ""
        if self._own is None or self._own.path != path:
            if self._own is not None:
                self._own.close()
            self._own = KernelFile(path)
        found = total_us(self._own.read()) if path else None
        return total_us(self._psi.read()) if found is None else found

    def refaulted_pages(self) -> int | None:
        names = (b"workingset_refault_file ", b"workingset_refault_anon ")
        found = named_numbers(self._vmstat.read(), names)
        return sum(found.values()) if found else None


def total_us(data: bytes) -> int | None:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=123` -> 123"""
    at = data.find(b"total=")
    fields = data[at + 6 :].split(None, 1) if at >= 0 and data.startswith(b"some ") else []
    return whole_number(fields[0]) if fields else None


class Eye:
    """Looks at memory. Usage is read at each look, limits every LIMITS_S, where the cgroups are once a minute.

    tree_root: the process whose tree a budget without a cgroup counts.
    budget_folder: where a memory cgroup around that tree is, "" for none; whoever made it says so.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None,
        tree_root: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
        proc_root: Path = PROC,
        sys_root: Path = SYS,
    ) -> None:
        self.budget_folder = ""
        self._budget_bytes, self._tree_root, self._clock = budget_bytes, tree_root, clock
        self._proc_root, self._sys_root = proc_root, sys_root
        self._machine = MachineGauge(proc_root)
        self._folders: tuple[CgroupFolder, ...] = ()
        self._folders_due_s = self._limits_due_s = clock()
        self._known_folder = ""
        self._swaps = False
        self._gauges: list[tuple[Bound, MachineGauge | CgroupGauge | TreeGauge]] = []
        self._far: dict[int, tuple[float, Usage]] = {}

    def bounds(self) -> tuple[Bound, ...]:
        """Everything that bounds us now, the smallest first."""
        self._refresh(self._clock())
        return tuple(bound for bound, _ in self._gauges)

    def measured(self) -> list[tuple[str, int, Usage]]:
        """(source, limit, usage) of every bound whose counters can be read, the smallest limit first."""
        now_s = self._clock()
        self._refresh(now_s)
        found = []
        for number, (bound, gauge) in enumerate(self._gauges):
            until_s, usage = self._far.get(number, (now_s, None))
            if now_s >= until_s:
                usage = gauge.measure()
                if number and usage is not None and self._is_far(bound, usage):
                    self._far[number] = (now_s + FAR_S, usage)
            if usage is not None:
                found.append((bound.source, bound.limit_bytes, usage))
        return found

    def _is_far(self, bound: Bound, usage: Usage) -> bool:
        limit = self._gauges[0][0].limit_bytes
        return left_bytes(bound.limit_bytes, usage) >= limit + FAR_BYTES

    def limit_cgroup(self) -> Bound | None:
        """The limit, when a cgroup's own counters measure it: one that could tell us something by itself."""
        bound = self._gauges[0][0] if self._gauges else None
        return bound if bound is not None and bound.folder is not None else None

    def look(self) -> Sample:
        """Raises SampleError when nothing can be seen."""
        return combine(self.measured(), self._clock())

    def _refresh(self, now_s: float) -> None:
        if now_s < self._limits_due_s and self._known_folder == self.budget_folder:
            return
        self._limits_due_s, self._known_folder = now_s + LIMITS_S, self.budget_folder
        if now_s >= self._folders_due_s:
            self._folders = memory_cgroups(self._proc_root, self._sys_root)
            self._folders_due_s = now_s + FOLDERS_S
        own = cgroup_at(Path(self.budget_folder)) if self.budget_folder else None
        meminfo = self._machine.meminfo()
        self._swaps = meminfo.get("SwapTotal", 0) > 0
        found = bounds(meminfo.get("MemTotal") or _installed_bytes(), self._budget_bytes, self._folders, own)
        # The budget's cgroup may be one of those that we live in, with a limit of its own: two bounds, one folder.
        known = {(bound.kind, bound.folder, bound.budget): gauge for bound, gauge in self._gauges}
        self._gauges, self._far = [], {}
        for bound in found:
            key = (bound.kind, bound.folder, bound.budget)
            self._gauges.append((bound, known.pop(key) if key in known else self._gauge(bound)))
        for gauge in known.values():
            if gauge is not self._machine:
                gauge.close()

    def _gauge(self, bound: Bound) -> MachineGauge | CgroupGauge | TreeGauge:
        if bound.kind == "machine":
            return self._machine
        if bound.kind == "budget" or bound.folder is None:
            return TreeGauge(self._tree_root, self._proc_root, self._clock)
        return CgroupGauge(bound.kind, bound.folder, self._swap_free, self._kernel_most)

    def _kernel_most(self) -> int | None:
        return pinned_kernel_bytes(self._machine.meminfo())

    def _swap_free(self) -> int:
        return self._machine.meminfo().get("SwapFree", 0) if self._swaps else 0


def _installed_bytes() -> int:
    """Where /proc/meminfo is hidden a cgroup can still be measured; this tells which of the limits mean something."""
    try:
        return max(1, os.sysconf("SC_PHYS_PAGES")) * PAGE_BYTES
    except (OSError, ValueError):
        return 2**62

"""How much memory is left: one frozen Sample from the counters of everything that bounds us.

Headroom = limit - (anonymous + shmem + mapped file + dirty and writeback + unreclaimable kernel memory) + room in
swap: only clean, unmapped page cache is free memory. It has two parts:

- *firm*: anonymous, shmem, kernel. Only a death gives it back.
- *slow*: mapped, dirty or in writeback. The kernel can take it back, for the price of I/O.

Admission looks at the whole headroom. Whoever freezes or kills looks at what the firm part leaves
(`firm_headroom_bytes`): a program that writes twice the limit into files fills the limit with dirty pages, and one that
maps a data set larger than the limit fills it with mapped ones, and neither comes near the OOM killer. Mapped weights
that really do not fit are found by what they do, not by what they hold (`thrash.py`).

Choices in the counting:
- The kernel counts mapped shared memory as mapped *and* as shmem. What is counted here is shmem, and of the mapped
  pages those beyond it. The error is reclaimable file pages only, never anonymous memory; adding both up would count
  a large shared segment twice and report pressure for ever.
- On the machine, usage is what is left when the free and the reclaimable are taken away from the total, so that
  memory that no counter names (drivers, balloons, network buffers) is used memory too; and no less than what the
  kernel's own MemAvailable leaves, which knows its reserves.
- Swap is room: what is swapped out is in no counter. A machine that lives in it is found thrashing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEMINFO = (
    *(b"MemTotal:", b"MemFree:", b"MemAvailable:", b"Buffers:", b"Cached:", b"Shmem:", b"Mapped:", b"Dirty:"),
    *(b"Writeback:", b"SReclaimable:", b"KReclaimable:", b"SwapTotal:", b"SwapFree:"),
    *(b"SUnreclaim:", b"KernelStack:", b"PageTables:", b"SecPageTables:", b"Percpu:", b"VmallocUsed:"),
)
STAT1 = (
    *(b"total_cache ", b"total_rss ", b"total_shmem ", b"total_mapped_file ", b"total_dirty ", b"total_writeback "),
    *(b"total_workingset_refault_file ", b"total_workingset_refault_anon "),
)
STAT2 = (
    *(b"anon ", b"file ", b"shmem ", b"file_mapped ", b"file_dirty ", b"file_writeback ", b"kernel ", b"sock "),
    *(b"slab_reclaimable ", b"slab_unreclaimable ", b"kernel_stack ", b"pagetables ", b"percpu ", b"vmalloc "),
    *(b"workingset_refault_file ", b"workingset_refault_anon "),
)


class SampleError(Exception):
    """No bound could be measured: the watchdog is blind and must not claim that all is well."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is used under one bound.

    swap_room_bytes: how much of the firm part could still be swapped out.
    refaulted_pages: pages that came back soon after they had been thrown out, since the counter's beginning; None
        where nobody counts.
    """

    firm_bytes: int
    slow_bytes: int
    swap_room_bytes: int = 0
    refaulted_pages: int | None = None

    @property
    def usage_bytes(self) -> int:
        return self.firm_bytes + self.slow_bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at memory.

    limit: the smallest bound, with its source and the usage counted against it.
    headroom_bytes: the least that is left under *any* bound, never below 0; `headroom_source` names that bound. It
        is limit - usage, except when a larger bound (a parent cgroup or the machine, filled by others) is tighter.
    firm_headroom_bytes: the same, if all slow memory were given back.
    refaulted_pages: of the limit's bound.
    """

    monotonic_s: float
    limit_bytes: int
    limit_source: str
    usage_bytes: int
    headroom_bytes: int
    headroom_source: str
    firm_headroom_bytes: int
    slow_bytes: int = 0
    refaulted_pages: int | None = None


def combine(measured: list[tuple[str, int, Usage]], now_s: float) -> Sample:
    """One Sample of several (source, limit, usage), smallest limit first. Raises SampleError when there is none."""
    if not measured:
        raise SampleError("neither /proc/meminfo nor a memory cgroup could be read")
    source, limit, usage = measured[0]
    headroom, tightest = min((left_bytes(limit, usage), source) for source, limit, usage in measured)
    return Sample(
        monotonic_s=now_s,
        limit_bytes=limit,
        limit_source=source,
        usage_bytes=usage.usage_bytes,
        headroom_bytes=headroom,
        headroom_source=tightest,
        firm_headroom_bytes=min(left_bytes(limit, usage, firm=True) for _, limit, usage in measured),
        slow_bytes=usage.slow_bytes,
        refaulted_pages=usage.refaulted_pages,
    )


def left_bytes(limit_bytes: int, usage: Usage, *, firm: bool = False) -> int:
    """Headroom under one bound: 0 <= headroom <= limit."""
    used = usage.firm_bytes if firm else usage.usage_bytes
    return max(0, min(limit_bytes, limit_bytes - used + usage.swap_room_bytes))


def machine_usage(meminfo: Mapping[str, int]) -> Usage | None:
    """Of /proc/meminfo (bytes): what cannot be had for the asking. None when it lacks the basic fields, or they are
    nonsense: more free than there is would look like all is well."""
    if not {"MemTotal", "MemFree", "Cached"} <= meminfo.keys() or meminfo["MemFree"] >= meminfo["MemTotal"]:
        return None
    shmem = meminfo.get("Shmem", 0)
    mapped_file = max(0, meminfo.get("Mapped", 0) - shmem)
    cache = max(0, meminfo["Cached"] + meminfo.get("Buffers", 0) - shmem)
    slow = min(cache, mapped_file + meminfo.get("Dirty", 0) + meminfo.get("Writeback", 0))
    # KReclaimable is SReclaimable and more; kernels before 4.20 have only the latter.
    kernel = meminfo.get("KReclaimable", meminfo.get("SReclaimable", 0))
    firm = max(0, meminfo["MemTotal"] - meminfo["MemFree"] - cache - kernel)
    if (available := meminfo.get("MemAvailable")) is not None:
        firm = max(firm, meminfo["MemTotal"] - available)
    return Usage(firm, slow, meminfo.get("SwapFree", 0))


def pinned_kernel_bytes(meminfo: Mapping[str, int]) -> int | None:
    """Kernel memory of the machine that cannot be reclaimed; None when it does not tell."""
    parts = ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu", "VmallocUsed")
    return sum(meminfo.get(part, 0) for part in parts) if "SUnreclaim" in meminfo else None


def cgroup1_usage(
    stat: Mapping[str, int], kernel_bytes: int, swap_room_bytes: int = 0, kernel_most_bytes: int | None = None
) -> Usage | None:
    """The same for a v1 memory cgroup, children included (`total_`), from memory.stat and memory.kmem usage.

    v1 does not tell which part of the kernel memory could be reclaimed: no more than `kernel_most_bytes`, what the
    whole machine has of it, counts as firm, and the rest (the names of a hundred thousand files) as slow.
    """
    if not {"total_rss", "total_cache"} <= stat.keys():
        return None
    shmem = stat.get("total_shmem", 0)
    slow = _busy_file(
        cache=stat["total_cache"] - shmem,
        mapped_file=stat.get("total_mapped_file", 0) - shmem,
        unwritten=stat.get("total_dirty", 0) + stat.get("total_writeback", 0),
    )
    pinned = kernel_bytes if kernel_most_bytes is None else min(kernel_bytes, kernel_most_bytes)
    return Usage(
        stat["total_rss"] + shmem + pinned,
        slow + kernel_bytes - pinned,
        swap_room_bytes,
        _refaults(stat, "total_workingset_refault_file", "total_workingset_refault_anon"),
    )


def cgroup2_usage(stat: Mapping[str, int], swap_room_bytes: int = 0) -> Usage | None:
    """The same for a v2 cgroup, whose memory.stat always includes the children."""
    if not {"anon", "file"} <= stat.keys():
        return None
    shmem = stat.get("shmem", 0)
    slow = _busy_file(
        cache=stat["file"] - shmem,
        mapped_file=stat.get("file_mapped", 0) - shmem,
        unwritten=stat.get("file_dirty", 0) + stat.get("file_writeback", 0),
    )
    if "kernel" in stat:  # since Linux 5.18: all kernel memory in one figure
        kernel = max(0, stat["kernel"] - stat.get("slab_reclaimable", 0))
    else:
        parts = ("slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "vmalloc")
        kernel = sum(stat.get(part, 0) for part in parts)
    firm = stat["anon"] + shmem + kernel + stat.get("sock", 0)
    return Usage(firm, slow, swap_room_bytes, _refaults(stat, "workingset_refault_file", "workingset_refault_anon"))


def bounded(usage: Usage | None, charged_bytes: int | None) -> Usage | None:
    """What is charged bounds what cannot be reclaimed; with a damaged memory.stat it is the best figure there is."""
    if usage is None:
        return None if charged_bytes is None else Usage(charged_bytes, 0)
    if charged_bytes is None or usage.usage_bytes <= charged_bytes:
        return usage
    firm = min(usage.firm_bytes, charged_bytes)
    return Usage(firm, charged_bytes - firm, usage.swap_room_bytes, usage.refaulted_pages)


def _busy_file(*, cache: int, mapped_file: int, unwritten: int) -> int:
    """Page cache that is not free: mapped, or not yet written back. A dirty mapped page is only one page."""
    return min(max(0, cache), max(0, mapped_file) + unwritten)


def _refaults(stat: Mapping[str, int], *names: str) -> int | None:
    found = [stat[name] for name in names if name in stat]
    return sum(found) if found else None

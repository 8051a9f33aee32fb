"""How much memory is left: one frozen Sample from /proc/meminfo, the cgroups' own counters, our processes.

Headroom = limit - (anonymous + shmem + mapped file + dirty and writeback + unreclaimable kernel memory): only
clean, unmapped page cache is free memory. So a program that writes twice the limit into files moves nothing
here, while weights that are mapped from a file do count: to reclaim those is to thrash.

Two choices in the counting:
- The kernel counts mapped shared memory as mapped *and* as shmem. What is counted here is shmem, and of the
  mapped pages those beyond it. The error is reclaimable file pages only, never anonymous memory; adding both
  up would count a large shared segment twice and report pressure for ever.
- On the machine, usage is what is left when the free and the reclaimable are taken away from the total, so
  that memory that no counter names (drivers, balloons, network buffers) is used memory too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overnight_watchdog.limits import PROC, Bound, whole_number
from overnight_watchdog.tree import held_bytes, read_tree


class SampleError(Exception):
    """No bound could be measured: the watchdog is blind and must not claim that all is well."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at memory.

    limit: the smallest bound, with its source and the usage counted against it.
    headroom_bytes: the least that is left under *any* bound, never below 0; `headroom_source` names that
    bound. It is limit - usage, except when a larger bound (a parent cgroup or the machine, filled by others)
    is tighter.
    """

    monotonic_s: float
    limit_bytes: int
    limit_source: str
    usage_bytes: int
    headroom_bytes: int
    headroom_source: str


def take_sample(found: tuple[Bound, ...], *, root_pid: int | None, now_s: float, proc_root: Path = PROC) -> Sample:
    """Measure usage under every bound, smallest limit first. A bound whose counters cannot be read is left
    out.

    root_pid: the process whose tree the budget counts. Raises SampleError when no bound can be measured.
    """
    measured = [(bound, usage) for bound in found if (usage := _usage(bound, root_pid, proc_root)) is not None]
    if not measured:
        raise SampleError(f"neither {proc_root / 'meminfo'} nor a memory cgroup could be read")
    limit, usage = measured[0]
    tightest, used = min(measured, key=lambda pair: pair[0].limit_bytes - pair[1])
    return Sample(
        monotonic_s=now_s,
        limit_bytes=limit.limit_bytes,
        limit_source=limit.source,
        usage_bytes=usage,
        headroom_bytes=max(0, tightest.limit_bytes - used),
        headroom_source=tightest.source,
    )


def slope_bytes_per_s(before: Sample | None, now: Sample) -> int | None:
    """How fast headroom goes away, in bytes/s; negative when it comes back. A plain difference quotient.

    None without an earlier sample under the same limit and the same tightest bound.
    """
    if before is None or now.monotonic_s <= before.monotonic_s:
        return None
    if (before.limit_source, before.limit_bytes) != (now.limit_source, now.limit_bytes):
        return None
    if before.headroom_source != now.headroom_source:
        return None
    return round((before.headroom_bytes - now.headroom_bytes) / (now.monotonic_s - before.monotonic_s))


def machine_usage(meminfo: Mapping[str, int]) -> int | None:
    """Bytes of the machine that cannot be had for the asking; None when meminfo lacks the basic fields."""
    if not {"MemTotal", "MemFree", "Cached"} <= meminfo.keys():
        return None
    shmem = meminfo.get("Shmem", 0)
    mapped_file = max(0, meminfo.get("Mapped", 0) - shmem)
    cache = meminfo["Cached"] + meminfo.get("Buffers", 0) - shmem
    clean = cache - mapped_file - meminfo.get("Dirty", 0) - meminfo.get("Writeback", 0)
    # KReclaimable is SReclaimable and more; kernels before 4.20 have only the latter.
    kernel = meminfo.get("KReclaimable", meminfo.get("SReclaimable", 0))
    return meminfo["MemTotal"] - meminfo["MemFree"] - max(0, clean) - kernel


def cgroup1_usage(stat: Mapping[str, int], kernel_bytes: int) -> int | None:
    """The same for a v1 memory cgroup, children included (`total_`), from memory.stat and memory.kmem usage.

    v1 does not tell which part of the kernel memory could be reclaimed, so all of it counts.
    """
    if not {"total_rss", "total_cache"} <= stat.keys():
        return None
    shmem = stat.get("total_shmem", 0)
    file = _busy_file(
        cache=stat["total_cache"] - shmem,
        mapped_file=stat.get("total_mapped_file", 0) - shmem,
        unwritten=stat.get("total_dirty", 0) + stat.get("total_writeback", 0),
    )
    return stat["total_rss"] + shmem + file + kernel_bytes


def cgroup2_usage(stat: Mapping[str, int]) -> int | None:
    """The same for a v2 cgroup, whose memory.stat always includes the children."""
    if not {"anon", "file"} <= stat.keys():
        return None
    shmem = stat.get("shmem", 0)
    file = _busy_file(
        cache=stat["file"] - shmem,
        mapped_file=stat.get("file_mapped", 0) - shmem,
        unwritten=stat.get("file_dirty", 0) + stat.get("file_writeback", 0),
    )
    if "kernel" in stat:  # since Linux 5.18: all kernel memory in one figure
        kernel = max(0, stat["kernel"] - stat.get("slab_reclaimable", 0))
    else:
        parts = ("slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "vmalloc")
        kernel = sum(stat.get(part, 0) for part in parts)
    return stat["anon"] + shmem + file + kernel + stat.get("sock", 0)


def parse_stat(text: str) -> dict[str, int]:
    """`name value` lines of a memory.stat; damaged lines are passed over."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if (number := whole_number(value)) is not None:
            found[name] = number
    return found


def parse_meminfo(text: str) -> dict[str, int]:
    """`Name:   value kB` lines, in bytes; damaged lines are passed over."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields = value.split()
        if fields and (number := whole_number(fields[0])) is not None:
            found[name] = number * (1024 if fields[1:] == ["kB"] else 1)
    return found


def _busy_file(*, cache: int, mapped_file: int, unwritten: int) -> int:
    """Page cache that is not free: mapped, or not yet written back. A dirty mapped page is only one page."""
    return min(max(0, cache), max(0, mapped_file) + unwritten)


def _usage(bound: Bound, root_pid: int | None, proc_root: Path) -> int | None:
    if bound.kind == "machine":
        return machine_usage(parse_meminfo(_read(proc_root / "meminfo")))
    if bound.kind == "budget":
        return 0 if root_pid is None else held_bytes(read_tree(root_pid, proc_root))
    assert bound.folder is not None  # noqa: S101 - limits.py makes no cgroup bound without its folder
    if bound.kind == "cgroup1":
        charged = _number(bound.folder / "memory.usage_in_bytes")
        kernel = _number(bound.folder / "memory.kmem.usage_in_bytes") or 0
        usage = cgroup1_usage(parse_stat(_read(bound.folder / "memory.stat")), kernel)
    else:
        charged = _number(bound.folder / "memory.current")
        usage = cgroup2_usage(parse_stat(_read(bound.folder / "memory.stat")))
    # What is charged bounds what cannot be reclaimed; with a damaged memory.stat it is the best figure there
    # is.
    figures = [figure for figure in (charged, usage) if figure is not None]
    return min(figures) if figures else None


def _number(path: Path) -> int | None:
    return whole_number(_read(path).strip())


def _read(path: Path) -> str:
    """The text of a small file, or "" when it cannot be read."""
    try:
        return path.read_bytes().decode("ascii", "replace")
    except OSError:
        return ""

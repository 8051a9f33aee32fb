"""What a memory cgroup holds that cannot be had back: anonymous + shmem + pinned kernel memory, never page cache.

The maximum usage that the kernel keeps counts every file that was written or read, so claims are learned from samples
of this. A child that was moved into its own cgroup after the fork is charged only for what it allocates or copies
itself, so the figure is what the cell costs beyond its warm server.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

PROC = Path("/proc")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MOST_BYTES = 16384
_KERNEL_BYTES = 64 * 2**20
"""v1 does not tell which kernel memory could be reclaimed. Up to this much of it is counted whole; beyond, a walk over
very many files is likelier than page tables, and no more than the whole machine has pinned counts."""

_PINNED = (b"SUnreclaim:", b"KernelStack:", b"PageTables:", b"SecPageTables:", b"Percpu:", b"VmallocUsed:")
_KERNEL_PARTS = (b"slab_unreclaimable", b"kernel_stack", b"pagetables", b"percpu", b"vmalloc")
"""Before Linux 5.18 a v2 cgroup has no figure for all of its kernel memory."""


class CgroupMemory:
    """The counters of one cgroup, of either version. Descriptors are opened once: a read costs some 10 microseconds."""

    def __init__(self, folder: Path | str, *, proc_root: Path = PROC) -> None:
        self.folder = os.fspath(folder)
        self._proc = proc_root
        self._version = version_of(folder)
        self._refaulted_bytes: int | None = None
        self._stat = _File(f"{self.folder}/memory.stat")
        self._kernel = _File(f"{self.folder}/memory.kmem.usage_in_bytes")

    def read(self) -> int | None:
        """Bytes; None when the cgroup is gone, or says nothing."""
        stat = self._stat.read()
        self._refaulted_bytes = refaulted(stat, self._version)
        if self._version == 2:
            return held2(stat)
        kernel = number(self._kernel.read()) or 0
        if kernel > _KERNEL_BYTES:
            pinned = pinned_kernel_bytes(_small(self._proc / "meminfo"))
            kernel = kernel if pinned is None else max(_KERNEL_BYTES, min(kernel, pinned))
        return held1(stat, kernel)

    def refaulted_bytes(self) -> int | None:
        """What had come back soon after it was thrown out, at the last `read`, since the cgroup was made; None where
        the kernel does not count it."""
        return self._refaulted_bytes

    def close(self) -> None:
        self._stat.close()
        self._kernel.close()


def version_of(folder: Path | str) -> Literal[1, 2]:
    """Which version of the interface the folder of a memory cgroup has."""
    return 1 if os.path.exists(f"{os.fspath(folder)}/memory.limit_in_bytes") else 2  # noqa: PTH110 - once a cell


def held1(stat: bytes, kernel_bytes: int) -> int | None:
    """Of a v1 memory.stat, children included."""
    anonymous = field(stat, b"total_rss")
    return None if anonymous is None else anonymous + (field(stat, b"total_shmem") or 0) + kernel_bytes


def held2(stat: bytes) -> int | None:
    """Of a v2 memory.stat, which always includes the children."""
    anonymous = field(stat, b"anon")
    if anonymous is None:
        return None
    if (kernel := field(stat, b"kernel")) is not None:
        kernel = max(0, kernel - (field(stat, b"slab_reclaimable") or 0))
    else:
        kernel = sum(field(stat, part) or 0 for part in _KERNEL_PARTS)
    return anonymous + (field(stat, b"shmem") or 0) + kernel + (field(stat, b"sock") or 0)


def refaulted(stat: bytes, version: Literal[1, 2]) -> int | None:
    """Bytes of memory.stat's refaults, children included; before Linux 5.9 a v1 cgroup has none, v2 one for both."""
    total = b"total_" if version == 1 else b""
    found = [field(stat, total + b"workingset_refault" + kind) for kind in (b"_file", b"_anon", b"")]
    counted = [pages for pages in found if pages is not None]
    return sum(counted) * PAGE_BYTES if counted else None


def pinned_kernel_bytes(meminfo: bytes) -> int | None:
    """Kernel memory of the whole machine that cannot be reclaimed; None when /proc/meminfo does not tell."""
    if field(meminfo, b"SUnreclaim:") is None:
        return None
    return sum(field(meminfo, part) or 0 for part in _PINNED) * 1024


def field(data: bytes, name: bytes) -> int | None:
    """The number behind `name` at the beginning of a line; None when it is missing or damaged."""
    start = name if name.endswith(b":") else name + b" "  # /proc puts blanks or a tab behind a colon
    at = 0 if data.startswith(start) else data.find(b"\n" + start) + 1
    if not at and not data.startswith(start):
        return None
    end = data.find(b"\n", at)
    return number(data[at + len(start) : end if end >= 0 else len(data)].removesuffix(b"kB"))


def number(text: bytes) -> int | None:
    """A kernel counter; None for "max", nothing, or damage."""
    text = text.strip()
    return int(text) if len(text) <= 20 and text.isdigit() else None


class _File:
    """A file of the kernel, read at offset 0 each time. One that is missing is tried again at the next read."""

    def __init__(self, path: str) -> None:
        self._path, self._fd = path, -1

    def read(self) -> bytes:
        """What it says now, b"" when it cannot be read."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, _MOST_BYTES, 0)
        except OSError:
            self.close()
            return b""

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _small(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

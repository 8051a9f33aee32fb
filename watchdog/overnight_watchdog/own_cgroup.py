"""What a cell's own memory cgroup tells that no process shows.

What only its end can give back: files in /dev/shm and other tmpfs that nobody has mapped, memory of the kernel. And
what it has to read again since its cap, which bounds the page cache too, has no room for it.
"""

from __future__ import annotations

from pathlib import Path

from overnight_watchdog.kernel_files import KernelFile, named_numbers
from overnight_watchdog.limits import PROC
from overnight_watchdog.sample import MEMINFO, STAT1, STAT2, Usage, cgroup1_usage, cgroup2_usage, pinned_kernel_bytes

FULL = 0.9
"""With so much of its cap charged a cgroup is at its cap: what it reads again was thrown out for that."""
KERNEL_BYTES = 16 * 2**20
"""Less kernel memory than this is not looked into."""


class OwnCgroup:
    """Of either version; which one its memory.stat tells. A look costs one read, on v1 two."""

    def __init__(self, folder: str, proc_root: Path = PROC) -> None:
        self._stat = KernelFile(f"{folder}/memory.stat")
        self._kernel = KernelFile(f"{folder}/memory.kmem.usage_in_bytes")
        self._caps = [KernelFile(f"{folder}/{name}") for name in ("memory.limit_in_bytes", "memory.max")]
        self._charges = [KernelFile(f"{folder}/{name}") for name in ("memory.usage_in_bytes", "memory.current")]
        self._seen: tuple[int, bool] | None = None
        self._meminfo = KernelFile(f"{proc_root}/meminfo")

    def firm_bytes(self) -> int:
        """Anonymous, shared and pinned kernel memory; 0 when it is gone, or says nothing."""
        usage = self._usage()
        return 0 if usage is None else usage.firm_bytes

    def refaulted_at_cap(self) -> int:
        """Pages that it read again since the last call, 0 unless it was at its cap then or is now (a cap may have been
        raised meanwhile). The cgroup is used again: what was counted before the first call is another cell's."""
        usage = self._usage()
        if usage is None or usage.refaulted_pages is None:
            return 0
        before, full = self._seen, self._full()
        self._seen = (usage.refaulted_pages, full)
        if before is None or not (before[1] or full):
            return 0
        return max(0, usage.refaulted_pages - before[0])

    def close(self) -> None:
        for file in (self._stat, self._kernel, self._meminfo, *self._caps, *self._charges):
            file.close()

    def _usage(self) -> Usage | None:
        data = self._stat.read()
        if data.startswith(b"anon "):
            return cgroup2_usage(named_numbers(data, STAT2))
        kernel = self._kernel.number() or 0
        most = pinned_kernel_bytes(self._machine()) if kernel >= KERNEL_BYTES else None
        return cgroup1_usage(named_numbers(data, STAT1), kernel, kernel_most_bytes=most)

    def _full(self) -> bool:
        cap, charge = (next(filter(None, map(KernelFile.number, files)), None) for files in (self._caps, self._charges))
        return cap is not None and charge is not None and charge >= FULL * cap

    def _machine(self) -> dict[str, int]:
        return named_numbers(self._meminfo.read(), MEMINFO, scale=1024)

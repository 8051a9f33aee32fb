"""What is charged to a cell's own memory cgroup and only its end can give back: files in /dev/shm and other tmpfs that
nobody has mapped, memory of the kernel. No process shows any of that as its own."""

from __future__ import annotations

from pathlib import Path

from overnight_watchdog.kernel_files import KernelFile, named_numbers
from overnight_watchdog.limits import PROC
from overnight_watchdog.sample import MEMINFO, STAT1, STAT2, cgroup1_usage, cgroup2_usage, pinned_kernel_bytes

KERNEL_BYTES = 16 * 2**20
"""Less kernel memory than this is not looked into."""


class OwnCgroup:
    """Of either version; which one its memory.stat tells. A look costs one read, on v1 two."""

    def __init__(self, folder: str, proc_root: Path = PROC) -> None:
        self._stat = KernelFile(f"{folder}/memory.stat")
        self._kernel = KernelFile(f"{folder}/memory.kmem.usage_in_bytes")
        self._meminfo = KernelFile(proc_root / "meminfo")

    def firm_bytes(self) -> int:
        """Anonymous, shared and pinned kernel memory; 0 when it is gone, or says nothing."""
        data = self._stat.read()
        if data.startswith(b"anon "):
            usage = cgroup2_usage(named_numbers(data, STAT2))
        else:
            kernel = self._kernel.number() or 0
            most = pinned_kernel_bytes(self._machine()) if kernel >= KERNEL_BYTES else None
            usage = cgroup1_usage(named_numbers(data, STAT1), kernel, kernel_most_bytes=most)
        return 0 if usage is None else usage.firm_bytes

    def close(self) -> None:
        for file in (self._stat, self._kernel, self._meminfo):
            file.close()

    def _machine(self) -> dict[str, int]:
        return named_numbers(self._meminfo.read(), MEMINFO, scale=1024)

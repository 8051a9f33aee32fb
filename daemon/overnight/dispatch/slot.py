"""One memory cgroup for one cell at a time: its cap, and what the kernel counts in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from overnight import cgroup_memory
from overnight.cgroup_memory import CgroupMemory
from overnight.dispatch import budget_cgroup

NEAR_BYTES = 2**20
"""The kernel charges in batches of 64 pages a processor: usage so close to the cap is at the cap."""
SWAP_BYTES = 2**20
"""Of a capped cell on v1: no room worth the name, but memory's own counter is to meet its limit first. *Measured* on
Linux 6.18: the counter of memory and swap together does not tell how often it met its own."""
LEFT_BYTES = 4 * 2**20
"""Kernel memory that earlier cells may have left in a slot. Some 12 KiB a cell: names of files."""
NO_LIMIT = {1: "-1", 2: "max"}
_RECLAIM_MOST_BYTES, _RECLAIM_DIRTY_BYTES = 2 * 2**30, 32 * 2**20
"""More page cache than this is not thrown out while the daemon's loop waits. *Measured* on Linux 6.18 (v1): 50 ms for a
GiB that was on its disk, 300 ms for one that was dirty, and a slow disk may take any time over dirty pages."""
_RECLAIM_STEP_BYTES, _RECLAIM_S = 64 * 2**20, 0.2
"""v2 is told how much; after this time it is not told again."""
_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}


@dataclass(frozen=True)
class CgroupEvidence:
    """What a slot's counters say of one attempt.

    oom_kills: processes in it that the kernel's OOM killer has ended, whoever called it; None when it does not count.
    limit_hits: how often a charge met the cap; page cache meets it too, and is thrown out.
    high_water_bytes: the most that was charged, page cache included. file_bytes: page cache that is left.
    oom_calls: how often the OOM killer was called by this very cap; None on v1, which does not count it.
    """

    oom_kills: int | None
    limit_hits: int
    usage_bytes: int
    high_water_bytes: int
    cap_bytes: int | None
    oom_calls: int | None = None
    file_bytes: int = 0

    @property
    def at_cap(self) -> bool:
        """Was an OOM kill in it called by its own cap? On v1 that is told by the traces it leaves: the cap was met, and
        what page cache there was had been thrown out before anybody was killed."""
        if self.cap_bytes is None:
            return False
        if self.oom_calls is not None:
            return self.oom_calls > 0
        near = self.high_water_bytes >= self.cap_bytes - NEAR_BYTES
        return near and self.limit_hits > 0 and 2 * self.file_bytes <= self.cap_bytes

    def figures(self) -> dict[str, Any]:
        """For the queue's evidence and the log."""
        return {
            "oom_kills": self.oom_kills,
            "cap_hits": self.limit_hits,
            "cgroup_peak_bytes": self.high_water_bytes,
            "cgroup_cap_bytes": self.cap_bytes,
        }


@dataclass(frozen=True)
class _Counters:
    """Since the cgroup was made."""

    oom_kills: int | None
    limit_hits: int
    oom_calls: int | None


class Slot:
    """One cgroup. Its counters are the kernel's own, read afresh at each call."""

    def __init__(self, folder: Path, version: Literal[1, 2]) -> None:
        self.folder = os.fspath(folder)
        self.cap_bytes: int | None = None
        self._version = version
        self._memory = CgroupMemory(folder)
        self._before = _Counters(0, 0, 0)
        self._peak_before = 0
        self._peak_fd = -1

    def set_cap(self, cap_bytes: int | None) -> None:
        """None = as much as it likes. Raises OSError; a cap below what it holds already cannot be had on v1."""
        text = NO_LIMIT[self._version] if cap_bytes is None else str(cap_bytes)
        if self._version == 2:
            self._write("memory.swap.max", "max" if cap_bytes is None else "0", where_it_exists=True)
            self._write("memory.max", text)
        else:
            # Memory and swap together may never be less than memory alone.
            rises = cap_bytes is None or (self.cap_bytes is not None and cap_bytes > self.cap_bytes)
            both = text if cap_bytes is None else str(cap_bytes + SWAP_BYTES)
            order = (("memory.memsw.limit_in_bytes", both), ("memory.limit_in_bytes", text))
            for name, limit in order if rises else reversed(order):
                self._write(name, limit, where_it_exists="memsw" in name)
        self.cap_bytes = cap_bytes

    def raise_cap(self, cap_bytes: int) -> bool:
        """False when an OOM kill has met the cap already: it stays as it was, to be judged by. Raises OSError."""
        before = self.cap_bytes
        if self.evidence().oom_kills:
            return False
        self.set_cap(cap_bytes)
        if self.evidence().oom_kills:  # meanwhile
            self.set_cap(before)
            return False
        return True

    def begin(self) -> None:
        """A new attempt: what is counted from here on is its own."""
        self._before = self._counters()
        if self._version == 1:
            self._write("memory.max_usage_in_bytes", "0")
        else:
            self._forget_peak()

    def evidence(self) -> CgroupEvidence:
        """Of the attempt since `begin`."""
        now, before = self._counters(), self._before
        usage = self.usage_bytes()
        return CgroupEvidence(
            oom_kills=None if now.oom_kills is None else now.oom_kills - (before.oom_kills or 0),
            limit_hits=now.limit_hits - before.limit_hits,
            usage_bytes=usage,
            high_water_bytes=max(usage, self._high_water()),
            cap_bytes=self.cap_bytes,
            oom_calls=None if now.oom_calls is None else now.oom_calls - (before.oom_calls or 0),
            file_bytes=self._file_bytes(),
        )

    def memory_bytes(self) -> int | None:
        """Anonymous + shmem + pinned kernel memory; None when the cgroup is gone."""
        return self._memory.read()

    def usage_bytes(self) -> int:
        """All that is charged, page cache included."""
        return cgroup_memory.number(self._read(_USAGE[self._version])) or 0

    def processes(self) -> list[int]:
        """Who is in it, and in cgroups that they have made inside. Zombies hold nothing and are not told of."""
        found = self._read("cgroup.procs").split()
        if self._has_children():
            for inner in sorted(Path(self.folder).rglob("*/cgroup.procs")):
                found += _read(inner).split()
        return [int(pid) for pid in found if pid != b"0"]  # 0: it is not in our pid namespace

    def act_as_one(self) -> None:
        """On v2 an OOM kill in it ends everybody in it: half a cell is of no use. Raises OSError."""
        if self._version == 2:
            self._write("memory.oom.group", "1", where_it_exists=True)

    def clean(self, cap_bytes: int | None) -> bool:
        """Does the next cell find it as good as new, with no page cache in it that a smaller cap would push out?"""
        held = self.memory_bytes()
        room = cap_bytes is None or 2 * self.usage_bytes() <= cap_bytes
        return held is not None and held <= LEFT_BYTES and room and not self._has_children()

    def throw_out(self, cap_bytes: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Have the kernel throw out the page cache that a cell left, on v2 as much as the next cap has no room for.
        Bounded in time; does nothing where the kernel offers none of this, or where it would not help."""
        cache = self._stat("cache", "file")
        shmem = self._stat("shmem", "shmem")  # would go to the swap, if anywhere, and still be charged
        dirty = self._stat("dirty", "file_dirty") + self._stat("writeback", "file_writeback")
        if cache > _RECLAIM_MOST_BYTES or dirty > _RECLAIM_DIRTY_BYTES or shmem > LEFT_BYTES:
            return
        try:
            if self._version == 1:
                self._write("memory.force_empty", "0")
                return
            until_s = clock() + _RECLAIM_S
            room = self.usage_bytes() if cap_bytes is None else cap_bytes // 2
            while (over := self.usage_bytes() - room) > 0 and clock() < until_s:
                self._write("memory.reclaim", str(min(over, _RECLAIM_STEP_BYTES)))
        except OSError:
            pass  # not all of it could be had, or there is no such file: memory.reclaim is there since Linux 5.19

    def remove(self) -> bool:
        """False when somebody is in it still."""
        self._close()
        folder = Path(self.folder)
        inner = sorted((each.parent for each in folder.rglob("*/cgroup.procs")), reverse=True)
        return all(budget_cgroup.remove(each) is None for each in [*inner, folder])

    def _counters(self) -> _Counters:
        if self._version == 1:
            hits = [self._read(f"memory.{kind}failcnt") for kind in ("", "memsw.")]
            oom_kills = cgroup_memory.field(self._read("memory.oom_control"), b"oom_kill")
            return _Counters(oom_kills, sum(cgroup_memory.number(each) or 0 for each in hits), None)
        events = self._read("memory.events")
        local = self._read("memory.events.local") or events  # without what cgroups inside it do to themselves
        hits_own, calls = cgroup_memory.field(local, b"max"), cgroup_memory.field(local, b"oom")
        return _Counters(cgroup_memory.field(events, b"oom_kill"), hits_own or 0, calls)

    def _file_bytes(self) -> int:
        return max(0, self._stat("cache", "file") - self._stat("shmem", "shmem"))

    def _stat(self, name_1: str, name_2: str) -> int:
        """A figure of memory.stat, cgroups inside it included; 0 when there is none."""
        name = f"total_{name_1}" if self._version == 1 else name_2
        return cgroup_memory.field(self._read("memory.stat"), name.encode()) or 0

    def _high_water(self) -> int:
        if self._version == 1:
            return cgroup_memory.number(self._read("memory.max_usage_in_bytes")) or 0
        peak = self._peak()
        return 0 if peak <= self._peak_before else peak

    def _forget_peak(self) -> None:
        """Since Linux 6.12 a descriptor of memory.peak has a mark of its own; before, a slot's peak only ever rises."""
        self._close_peak()
        self._peak_before = 0
        for flags in (os.O_RDWR, os.O_RDONLY):
            try:
                self._peak_fd = os.open(f"{self.folder}/memory.peak", flags | os.O_CLOEXEC)
                if flags == os.O_RDWR:
                    os.pwrite(self._peak_fd, b"reset\n", 0)
            except OSError:
                self._close_peak()
            else:
                self._peak_before = 0 if flags == os.O_RDWR else self._peak()
                return

    def _peak(self) -> int:
        if self._peak_fd < 0:
            return 0
        try:
            return cgroup_memory.number(os.pread(self._peak_fd, 64, 0)) or 0
        except OSError:
            return 0

    def _close_peak(self) -> None:
        fd, self._peak_fd = self._peak_fd, -1
        if fd >= 0:
            os.close(fd)

    def _close(self) -> None:
        self._memory.close()
        self._close_peak()

    def _has_children(self) -> bool:
        try:
            return os.stat(self.folder).st_nlink > 2  # noqa: PTH116 - a folder is linked by each one inside it
        except OSError:
            return False

    def _read(self, name: str) -> bytes:
        return _read(f"{self.folder}/{name}")

    def _write(self, name: str, text: str, *, where_it_exists: bool = False) -> None:
        """Raises OSError; never makes a file."""
        try:
            fd = os.open(f"{self.folder}/{name}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        except FileNotFoundError:
            if where_it_exists:
                return
            raise
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _read(path: Path | str) -> bytes:
    """b"" when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
    finally:
        os.close(fd)

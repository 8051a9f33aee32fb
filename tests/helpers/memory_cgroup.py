"""A memory cgroup of our own with a limit, below the one that we live in: where hogs may run without harm.

    with MemoryCgroup.made(512 * 2**20) as cgroup:
        subprocess.run(cgroup.join("python", "hog.py"))
        assert cgroup.oom_kills() == 0

v1, and v2 where the memory controller is delegated. Swap is forbidden in it, so that its limit is one.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overnight_watchdog.limits import memory_cgroups

_END_DEADLINE_S = 20.0
_numbers = itertools.count()


class Unavailable(Exception):
    """No memory cgroup can be made here. `str()` is the reason, for a skip."""


@dataclass(frozen=True)
class _Names:
    """The files of one version of the interface."""

    limit: str
    swap: str  # v1: memory and swap together
    charged: str
    events: str  # holds the line `oom_kill N`


_NAMES = {
    "cgroup1": _Names(
        "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"
    ),
    "cgroup2": _Names("memory.max", "memory.swap.max", "memory.current", "memory.events"),
}


class MemoryCgroup:
    """One cgroup. The counters are the kernel's own, read afresh at each call."""

    def __init__(self, folder: Path, kind: str, limit_bytes: int) -> None:
        self.folder, self.kind, self.limit_bytes = folder, kind, limit_bytes
        self._names = _NAMES[kind]

    @classmethod
    @contextmanager
    def made(cls, limit_bytes: int) -> Iterator[MemoryCgroup]:
        """Make it; at the end kill all that is in it and remove it. Raises Unavailable."""
        cgroup = cls._make(limit_bytes)
        try:
            yield cgroup
        finally:
            cgroup.end()

    @classmethod
    def _make(cls, limit_bytes: int) -> MemoryCgroup:
        if os.geteuid() != 0:
            raise Unavailable("making a memory cgroup needs root")
        why = "there is no memory cgroup here"
        # On v2 the cgroup that we are in holds processes, so it may have no children with a limit: one of its
        # parents may.
        for parent in memory_cgroups():
            if not (parent.path / "cgroup.procs").exists() or not _has_controller(parent.path, parent.kind):
                continue
            folder = parent.path / f"overnight-test-{os.getpid()}-{next(_numbers)}"
            cgroup = cls(folder, parent.kind, limit_bytes)
            try:
                folder.mkdir()
                cgroup._limit()
            except OSError as error:
                why = f"no memory cgroup can be made here: {error}"
                if folder.exists():
                    folder.rmdir()
                continue
            return cgroup
        raise Unavailable(why)

    def _limit(self) -> None:
        (self.folder / self._names.limit).write_text(str(self.limit_bytes))
        swap = self.folder / self._names.swap
        if swap.exists():
            swap.write_text(str(self.limit_bytes if self.kind == "cgroup1" else 0))

    def join(self, *command: str) -> list[str]:
        """`command`, run inside: the shell that joins becomes the command, so the pid stays the same."""
        return ["sh", "-c", f'echo $$ >"{self.folder}/cgroup.procs" && exec "$@"', "sh", *command]

    @property
    def charged_path(self) -> Path:
        """The kernel's counter of all that is charged, page cache included; exact to 64 pages a CPU."""
        return self.folder / self._names.charged

    def charged_bytes(self) -> int:
        return int(self.charged_path.read_text())

    def file_bytes(self) -> int:
        """Page cache of files, clean or not. What is charged beyond it cannot be had back from anybody alive."""
        total, cache = ("total_", "cache") if self.kind == "cgroup1" else ("", "file")
        stat = self._fields("memory.stat")
        return stat[total + cache] - stat.get(total + "shmem", 0)

    def firm_bytes(self) -> int:
        """Anonymous and shared memory, and the kernel's own."""
        return self.charged_bytes() - self.file_bytes()

    def oom_kills(self) -> int:
        """How often the kernel's OOM killer has struck in here."""
        return self._fields(self._names.events)["oom_kill"]

    def limit_hits(self) -> int:
        """How often a charge met the limit. Not every kernel counts those that page cache made room for."""
        if self.kind == "cgroup1":  # of the two equal limits the one with swap is asked first
            counters = (self.folder / f"memory.{name}failcnt" for name in ("", "memsw."))
            return sum(int(counter.read_text()) for counter in counters if counter.exists())
        return self._fields("memory.events")["max"]

    def pids(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def end(self) -> None:
        """Kill all that is inside and remove it. Nothing else can be hit: who is in here was put in here."""
        deadline = time.monotonic() + _END_DEADLINE_S
        while True:
            pids = self.pids()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:  # busy: the dying are still charged
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self.folder}: {pids} will not die: {error}") from None
                time.sleep(0.01)
            else:
                return

    def _fields(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in (self.folder / name).read_text().splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2}


def _has_controller(folder: Path, kind: str) -> bool:
    if kind == "cgroup1":
        return (folder / _NAMES[kind].limit).exists()
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False

"""Did the kernel's OOM killer strike? The counters that tell, for cells without a cgroup of their own and for servers.

The kernel counts an OOM kill in the cgroup of the process that it killed (on v2 also in those above), whoever called
the killer, and once for the whole machine. So the counter of the cgroup that the daemon and what it forks live in is
nearly proof, and the machine's is asked only where there is none: it counts other people's too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from overnight import cgroup_memory
from overnight.dispatch import budget_cgroup
from overnight.dispatch.budget_cgroup import PROC, SYS

_FILES = ("memory.events.local", "memory.events", "memory.oom_control")
"""The first that is there counts. Of v2 the cgroup's own alone: slots below it have their own word."""

RECENT_S = 3.0


@dataclass(frozen=True)
class OomCounts:
    """One look. None where nobody counts."""

    machine: int | None
    folders: tuple[int | None, ...] = ()

    def rose_since(self, before: OomCounts) -> bool:
        """Has the OOM killer struck among our processes since? In doubt, that it struck anywhere counts."""
        pairs = list(zip(self.folders, before.folders, strict=True))
        known = [now > then for now, then in pairs if now is not None and then is not None]
        if known:
            return any(known)
        return self.machine is not None and before.machine is not None and self.machine > before.machine


class OomWatch:
    """folders: the cgroups that processes without a slot live in."""

    def __init__(self, folders: Iterable[Path], *, proc_root: Path = PROC) -> None:
        self._folders = tuple(folders)
        self._vmstat = proc_root / "vmstat"
        self._looks: deque[tuple[float, OomCounts]] = deque()

    @classmethod
    def of_own(cls, *, proc_root: Path = PROC, sys_root: Path = SYS) -> OomWatch:
        """Of the cgroup that this process is in, once it has joined the budget's."""
        try:
            folders = [budget_cgroup.find_own(proc_root, sys_root).folder]
        except budget_cgroup.Missing:
            folders = []
        return cls(folders, proc_root=proc_root)

    def look(self) -> OomCounts:
        """A few reads of small files. The machine's own counter is asked where a cgroup does not count."""
        folders = tuple(_kills(folder) for folder in self._folders)
        machine = None
        if not any(count is not None for count in folders):
            machine = cgroup_memory.field(_read(self._vmstat), b"oom_kill")
        return OomCounts(machine, folders)

    def remember(self, now_s: float) -> None:
        """Called about once a second, so that `struck` has something to compare with. now_s: monotonic."""
        self._looks.append((now_s, self.look()))
        while len(self._looks) > 1 and now_s - self._looks[1][0] >= RECENT_S:
            self._looks.popleft()

    def struck(self) -> bool:
        """Has it struck within the last RECENT_S, or a little more? A death is heard of some time after the kill, and
        of several cells that die with one server one after the other."""
        return bool(self._looks) and self.look().rose_since(self._looks[0][1])


def _kills(folder: Path) -> int | None:
    for name in _FILES:
        if (count := cgroup_memory.field(_read(folder / name), b"oom_kill")) is not None:
            return count
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

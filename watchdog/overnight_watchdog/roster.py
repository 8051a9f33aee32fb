"""Whom we guard: the registrations in var/run/cells, and what each of them holds.

A registration is believed only about the process that it names: pid *and* start time, checked after a pidfd is open. A
stale file, a used-again pid, a damaged or a foreign one names nobody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from overnight_watchdog.decide import Candidate
from overnight_watchdog.forecast import Track
from overnight_watchdog.kernel import Kernel
from overnight_watchdog.limits import PROC
from overnight_watchdog.tree import Tree, stat_of

ROLES = ("cell", "command", "warm", "daemon")
OURS = "overnight"
"""Who registers what the daemon starts."""
_MOST_BYTES = 16384
_FOREVER_S = 1e12
PID_MOST = 2**22
"""The kernel's PID_MAX_LIMIT."""
FAULTS_S = 1.0
STEP_FADES = 0.8
"""What is left, after a turn, of the largest rise in an earlier one: one odd turn must not hold the grid for ever."""
RESCAN_S = 2.0
RECHECK_S = 0.05
"""A folder's time stamp is as coarse as a clock tick of the kernel: a change so young is looked at once more."""


class Guarded:
    """One registered process, and what was done to it so far. Times are monotonic seconds."""

    def __init__(self, entry: dict[str, Any], pidfd: int, tree: Tree) -> None:
        self.entry, self.pidfd, self.tree = entry, pidfd, tree
        self.pid: int = entry["pid"]
        self.start_ticks: int = entry["start_ticks"]
        self.role: str = entry["role"]
        self.track = Track()
        self.own_bytes = 0
        self.step_bytes = 0
        self.major_faults_per_s = 0.0
        self.shrunk_s: float | None = None
        self.frozen_s: float | None = None
        self.thawed_s: float | None = None
        self.leaving_s: float | None = None
        self.killed_s: float | None = None
        self.reported = False
        self.dropped = False
        self._turn_floor: tuple[float, int] | None = None
        self._faults: tuple[float, int] | None = None

    @property
    def cell(self) -> str:
        return str(self.entry.get("cell", ""))

    def measure(self, now_s: float) -> None:
        self.own_bytes = self.tree.measure(now_s)
        self.track.add(now_s, self.own_bytes)
        self._measure_step()

    def _measure_step(self) -> None:
        """The rise within a turn: from the least that it held since its last finished turn. What comes before the first
        one (imports, a replay, the first caches) is no turn's."""
        last_turn_s = self._seconds("last_turn_s")
        if last_turn_s is None or not number(self.entry.get("turn")):
            self._turn_floor, self.step_bytes = None, 0
            return
        if self._turn_floor is None or self._turn_floor[0] != last_turn_s:
            self._turn_floor = (last_turn_s, self.own_bytes)
            self.step_bytes = int(self.step_bytes * STEP_FADES)
        self._turn_floor = (last_turn_s, min(self._turn_floor[1], self.own_bytes))
        self.step_bytes = max(self.step_bytes, self.own_bytes - self._turn_floor[1])

    @property
    def leaves(self) -> bool:
        """It was told to go."""
        return (self.leaving_s, self.killed_s) != (None, None)

    @property
    def touched(self) -> bool:
        """Something has been begun with it that is not over."""
        return (self.frozen_s, self.leaving_s, self.killed_s) != (None, None, None)

    def count_faults(self, now_s: float, proc_root: Path) -> None:
        """Once a second: the rate of major faults, by which a thrashing one is known."""
        if self._faults is not None and now_s - self._faults[0] < FAULTS_S:
            return
        found = stat_of(self.pid, proc_root)
        if found is None:
            return
        if self._faults is not None:
            self.major_faults_per_s = (found.major_faults - self._faults[1]) / (now_s - self._faults[0])
        self._faults = (now_s, found.major_faults)

    def loss_s(self, now_s: float) -> float:
        """Seconds of work that are lost if it dies now: since its last durable turn, and what replaying will cost."""
        since, replay = self._seconds("last_turn_s") or self._seconds("started_s"), self._seconds("replay_s") or 0.0
        lost = 0.0 if since is None else now_s - since
        return max(0.0, lost) + max(0.0, replay)

    def _seconds(self, name: str) -> float | None:
        """A finite number of the registration, None for anything else."""
        value: Any = self.entry.get(name)
        if type(value) not in (int, float) or not abs(value) < _FOREVER_S:
            return None
        return float(value)

    def candidate(self, now_s: float) -> Candidate:
        return Candidate(
            pid=self.pid,
            role=self.role,
            cells=number(self.entry.get("cells")),
            commands=self.entry.get("engine") == "command",
            own_bytes=self.own_bytes,
            slope_bytes_per_s=self.track.slope() or 0.0,
            loss_s=self.loss_s(now_s),
            started_s=self._seconds("started_s") or 0.0,
            shrinks=self.entry.get("shrinks") is True,
            freezes=self.entry.get("freezes", True) is not False and self.role in ("cell", "command"),
            major_faults_per_s=self.major_faults_per_s,
            shrunk_s=self.shrunk_s,
            frozen_s=self.frozen_s,
            thawed_s=self.thawed_s,
            leaving_s=self.leaving_s,
            killed_s=self.killed_s,
            grace_s=self._seconds("grace_s"),
        )


class Roster:
    """The registered processes that are alive, by pid."""

    def __init__(self, folder: Path, kernel: Kernel, boot_id: str, *, proc_root: Path = PROC) -> None:
        self._folder, self._kernel, self._boot_id, self._proc = folder, kernel, boot_id, proc_root
        self._guarded: dict[int, Guarded] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._seen: tuple[int, int] | None = None
        self._settled_s = 0.0
        self._due_s = 0.0

    def __iter__(self) -> Iterator[Guarded]:
        return iter(tuple(self._guarded.values()))

    def __len__(self) -> int:
        return len(self._guarded)

    def get(self, pid: int) -> Guarded | None:
        return self._guarded.get(pid)

    def add(self, entry: dict[str, Any]) -> Guarded | None:
        """Guard what a registration names; None when that process is not there (any more)."""
        pid, ticks = entry["pid"], entry["start_ticks"]
        known = self._guarded.get(pid)
        if known is not None and known.start_ticks == ticks:
            known.entry = entry
            return known
        pidfd = self._kernel.open(pid, ticks)
        if pidfd is None:
            return None
        if known is not None and known.leaving_s is None and known.killed_s is None:
            self.drop(known)  # else it is still waited for, by its pidfd
        cgroup = entry.get("cgroup") if entry["role"] in ("cell", "command") else None
        tree = Tree(
            pid,
            start_ticks=ticks,
            own_root=_forked(entry),
            alone=entry["role"] in ("warm", "daemon"),
            cgroup=cgroup if isinstance(cgroup, str) else "",
            proc_root=self._proc,
        )
        guarded = self._guarded[pid] = Guarded(entry, pidfd, tree)
        return guarded

    def drop(self, guarded: Guarded) -> None:
        if guarded.dropped:
            return  # its descriptor's number may be somebody else's by now
        guarded.dropped = True
        if self._guarded.get(guarded.pid) is guarded:
            del self._guarded[guarded.pid]
        guarded.tree.close()
        self._kernel.close(guarded.pidfd)

    def refresh(self, now_s: float, on_new: Callable[[Guarded], None] = lambda guarded: None) -> None:
        """Read what changed in the folder: whenever its time stamp tells, and every RESCAN_S without being told."""
        try:
            status = os.stat(self._folder)  # noqa: PTH116 - a hundred times a second: no objects
            stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            stamp = None
        if stamp != self._seen:
            self._settled_s = now_s + RECHECK_S
        elif self._settled_s <= now_s < self._due_s:
            return
        self._seen, self._due_s = stamp, now_s + RESCAN_S
        self._read_folder(on_new)

    def _read_folder(self, on_new: Callable[[Guarded], None]) -> None:
        files: dict[str, tuple[int, int]] = {}
        try:
            with os.scandir(self._folder) as found:
                for each in found:
                    if each.name.endswith(".json") and not each.name.startswith("."):
                        files[each.name] = _stamp(each)
        except OSError:
            return  # somebody clears var/run: whom we know stays guarded until he ends
        named, known = set(), {f"{pid}.json" for pid in self._guarded}
        for name, stamp in files.items():
            if self._files.get(name) != stamp or name not in known:
                self._read_file(name, on_new)  # also one that named nobody whom we could open so far
            named.add(name.removesuffix(".json"))
        self._files = files
        for guarded in self:
            # Its registration was taken back: it is somebody else's business now (unless we have begun something).
            if str(guarded.pid) not in named and not guarded.touched:
                self.drop(guarded)

    def _read_file(self, name: str, on_new: Callable[[Guarded], None]) -> None:
        entry = parse(read_small(f"{self._folder}/{name}", _MOST_BYTES + 1), self._boot_id)
        if entry is None or f"{entry['pid']}.json" != name:
            return
        before = self._guarded.get(entry["pid"])
        guarded = self.add(entry)
        if guarded is not None and guarded is not before:
            on_new(guarded)

    def close(self) -> None:
        for guarded in self:
            self.drop(guarded)


def parse(data: bytes, boot_id: str) -> dict[str, Any] | None:
    """A registration of this boot, or None: torn, foreign, of another boot, or naming no process that we may touch."""
    if len(data) > _MOST_BYTES:
        return None
    try:
        entry = json.loads(data)
        if not isinstance(entry, dict) or entry.get("v") != 1 or entry.get("boot_id") != boot_id:
            return None
        pid, ticks = entry["pid"], entry["start_ticks"]
    except (ValueError, KeyError, RecursionError):
        return None
    if type(pid) is not int or type(ticks) is not int or ticks <= 0:
        return None
    if not 1 < pid <= PID_MOST or pid == os.getpid():
        return None
    return entry if entry.get("role") in ROLES else None


def read_small(path: Path | str, most_bytes: int) -> bytes:
    """At most so much of a file's beginning, b"" when it cannot be read. Neither a huge file nor a pipe holds us up."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        # A registration says whom to signal: nobody else's file is believed.
        if os.fstat(fd).st_uid != os.geteuid():
            return b""
        return os.read(fd, most_bytes)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _stamp(file: os.DirEntry[str]) -> tuple[int, int]:
    """Changes with the file. One that vanished meanwhile must not hide the others."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return (status.st_ino, status.st_mtime_ns)


def _forked(entry: dict[str, Any]) -> bool:
    """Was it forked by a warm server that is registered itself? A command that people registered was not."""
    return bool(entry["role"] == "cell" or (entry["role"] == "command" and entry.get("by") == OURS))


def number(value: Any) -> int:
    """A count of a registration; 0 for anything else."""
    return value if type(value) is int and value >= 0 else 0

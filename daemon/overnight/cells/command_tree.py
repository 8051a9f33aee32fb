"""Everybody that a command has started, however far they went: found, signalled, reaped.

The runner is a subreaper, so who daemonises himself (double fork, setsid) becomes its child, not init's; no children
left means nobody left. A cgroup of the cell's own names its members too. A pid alone names nobody: it is signalled
through a pidfd, after the start time under which it was found was seen again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_STOP_ROUNDS = 50
"""Looks for somebody new while all who were seen stand still."""

_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Member:
    """group: its process group."""

    pid: int
    start_ticks: int
    parent: int
    group: int


def descendants(pid: int, proc_root: Path = PROC) -> list[Member]:
    """Everybody below a process that is alive (no zombies), parents before their children."""
    found: dict[int, Member] = {}
    by_parent = None if _has_children_file(proc_root) else _table(proc_root)
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in _children(parent, proc_root) if by_parent is None else by_parent.get(parent, ()):
            if child in found or child == pid:
                continue  # pids that are used again make circles
            member = member_of(child, proc_root)
            # Between the two looks the pid may have gone to somebody else, whose parent is none of ours.
            if member is not None and member.parent == parent:
                found[child] = member
                waiting.append(child)
    return list(found.values())


def in_cgroup(folder: str | os.PathLike[str], proc_root: Path = PROC) -> list[Member]:
    """Everybody in a cgroup's own folder; nobody when that is gone."""
    members = [member for pid in _procs(folder) if (member := member_of(pid, proc_root)) is not None]
    still = set(_procs(folder)) if members else set()  # a pid that was used again meanwhile is not in here now
    return [member for member in members if member.pid in still]


def oldest_child(pid: int, proc_root: Path = PROC) -> Member | None:
    """Of a runner: its command, while that is alive. All others were started by that one, and orphaned."""
    found = _children(pid, proc_root) if _has_children_file(proc_root) else _table(proc_root).get(pid, ())
    members = [member for child in found if (member := member_of(child, proc_root)) is not None]
    mine = [member for member in members if member.parent == pid]
    return min(mine, key=lambda member: (member.start_ticks, member.pid), default=None)


def member_of(pid: int, proc_root: Path = PROC) -> Member | None:
    """None when there is no such process, or a zombie."""
    data = _read(f"{proc_root}/{pid}/stat")
    # The command name may hold spaces and parentheses: fields are counted from behind the last ')'.
    fields = data[data.rfind(b")") + 1 :].split(None, 20)
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    try:
        return Member(pid, int(fields[19]), int(fields[1]), int(fields[2]))
    except ValueError:
        return None


def _has_children_file(proc_root: Path) -> bool:
    """Some kernels are built without it (CONFIG_PROC_CHILDREN)."""
    own = os.getpid()
    return (proc_root / str(own) / "task" / str(own) / "children").exists()


def _children(pid: int, proc_root: Path) -> Iterator[int]:
    folder = f"{proc_root}/{pid}/task"
    try:
        threads = os.listdir(folder)  # noqa: PTH208 - names, not objects, in a loop
    except OSError:
        return
    for thread in threads:
        yield from _pids(_read(f"{folder}/{thread}/children"))


def _table(proc_root: Path) -> dict[int, list[int]]:
    """Children by parent, of the whole machine."""
    table: dict[int, list[int]] = {}
    for name in os.listdir(proc_root):  # noqa: PTH208 - the same
        if name.isdigit() and (member := member_of(int(name), proc_root)) is not None:
            table.setdefault(member.parent, []).append(member.pid)
    return table


def _procs(folder: str | os.PathLike[str]) -> list[int]:
    return _pids(_read(f"{os.fspath(folder)}/cgroup.procs"))


def _pids(data: bytes) -> list[int]:
    """The pids of a list of the kernel; who is in another namespace is a 0 there."""
    return [pid for each in data.split() if each.isdigit() and len(each) <= 10 and (pid := int(each))]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - no object for each of a thousand processes
            return stream.read()
    except OSError:
        return b""


def step_out(cgroup: str) -> None:
    """Leave a cell's cgroup for the one that its slot lies in, or that one's `main`, since on v2 only leaves hold
    processes. In a cgroup that is full, whoever looks after the cell could not do anything any more."""
    parent = Path(cgroup).parent
    for folder in (parent / "main", parent):
        try:
            with open(folder / "cgroup.procs", "r+b", buffering=0) as procs:  # noqa: PTH123 - it must not be created
                procs.write(b"0")
        except OSError:
            continue
        return


@contextmanager
def _hurried() -> Iterator[None]:
    """Before everybody else for a moment: hundreds may want the processor too, and in sessions of their own each has
    as much of it as we have (autogroups, which niceness does not reach across). Only root may.

    *Measured*: one look at 200 members of a bomb took up to 9 s without it on two busy cores, 7 ms with it."""
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameter)


class CommandTree:
    """The tree of the command `pid`: all descendants of this process, and all others in `cgroup`; never ourselves.

    status: the command's own wait status, once `reap` has seen it.
    """

    def __init__(self, pid: int, cgroup: str | None = None) -> None:
        self._pid, self._cgroup, self._own = pid, cgroup, os.getpid()
        self._children = True
        self.status: int | None = None

    def reap(self) -> None:
        """Wait for whoever has ended, without waiting."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._children = False
                return
            if pid == 0:
                return
            if pid == self._pid:
                self.status = status

    def anybody(self) -> bool:
        """Is anybody left, as of the last `reap`? A zombie whose parent lives counts: that one lives too."""
        return self._children or any(pid != self._own for pid in self._cgroup_pids())

    def members(self) -> list[Member]:
        found = {member.pid: member for member in descendants(self._own)}
        if self._cgroup is not None:
            found |= {member.pid: member for member in in_cgroup(self._cgroup)}
        found.pop(self._own, None)
        return list(found.values())

    def ask_to_leave(self) -> None:
        """SIGTERM, then SIGCONT, so that who is stopped hears it too: to everybody, once."""
        with _hurried():
            members = self.members()
            for number in (signal.SIGTERM, signal.SIGCONT):
                _send(members, number)

    def continue_all(self) -> None:
        """SIGCONT to everybody."""
        with _hurried():
            _send(self.members(), signal.SIGCONT)

    def kill(self, within_s: float) -> int:
        """SIGKILL everybody, until nobody is left. Returns how many do not die within the time.

        All are stopped first, until a look finds nobody who was not seen yet: who stands still does not fork, so a
        fork bomb ends. A process group of the tree is stopped at one stroke, which no fork can slip through."""
        self.reap()
        if not self.anybody():
            return 0
        until_s = time.monotonic() + within_s
        with _hurried():
            while True:
                self._kill_cgroup()
                self._stop_all()
                members = self.members()
                self._send_groups(members, signal.SIGKILL)
                _send(members, signal.SIGKILL)
                self.reap()
                if not self.anybody():
                    return 0
                if time.monotonic() >= until_s:
                    return len(members)
                time.sleep(_PAUSE_S)
                self.reap()

    def _stop_all(self) -> None:
        seen: set[tuple[int, int]] = set()
        for _ in range(_STOP_ROUNDS):
            new = [member for member in self.members() if (member.pid, member.start_ticks) not in seen]
            if not new:
                return
            self._send_groups(new, signal.SIGSTOP)
            _send(new, signal.SIGSTOP)
            seen.update((member.pid, member.start_ticks) for member in new)

    def _kill_cgroup(self) -> None:
        """At one stroke, where the kernel offers it (v2) and it would not hit us."""
        if self._cgroup is None or self._own in _procs(self._cgroup):
            return
        try:
            with open(f"{self._cgroup}/cgroup.kill", "wb", buffering=0) as switch:  # noqa: PTH123 - as in _read
                switch.write(b"1")
        except OSError:
            pass

    def _send_groups(self, members: list[Member], number: signal.Signals) -> None:
        """To the command's process group and those that members lead: the tree made them, so only its like is there."""
        told = {os.getpgrp()}
        for member in members:
            if member.group in told or member.group not in (member.pid, self._pid) or member_of(member.pid) != member:
                continue
            told.add(member.group)
            try:
                os.killpg(member.group, number)
            except (ProcessLookupError, PermissionError):
                pass

    def _cgroup_pids(self) -> list[int]:
        return [] if self._cgroup is None else _procs(self._cgroup)


def end_strangers(known: Collection[int], within_s: float = 2.0) -> None:
    """For a subreaper whose children were subreapers themselves: kill and reap all children but the `known` ones. They
    are what a runner that was killed had been looking after; their own children become ours when they die."""
    until_s, own = time.monotonic() + within_s, os.getpid()
    while strangers := [pid for pid in _children(own, PROC) if pid not in known]:
        _send([member for pid in strangers if (member := member_of(pid)) is not None], signal.SIGKILL)
        for pid in strangers:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
        if time.monotonic() >= until_s:
            return
        time.sleep(_PAUSE_S)


def _send(members: list[Member], number: signal.Signals) -> None:
    for member in members:
        try:
            pidfd = os.pidfd_open(member.pid)
        except OSError:
            continue
        try:
            # Its parent may have changed since it was found: who is orphaned becomes ours.
            found = member_of(member.pid)
            if found is not None and found.start_ticks == member.start_ticks:
                signal.pidfd_send_signal(pidfd, number)
        except (ProcessLookupError, PermissionError):
            pass
        finally:
            os.close(pidfd)

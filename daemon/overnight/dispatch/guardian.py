"""Who guards the watchdog: nothing stays frozen without it, and one that hangs is started again.

dead (its process is gone)        thaw at once; supervisord starts another
silent (no heartbeat for 5 s)     thaw at once; when its process is there it hangs: SIGTERM through supervisord,
                                  SIGKILL two seconds later

What it freezes is counted, so that no cell's time limit runs on meanwhile. Of a command it freezes the runner and the
whole tree, so all of that is thawed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from overnight import checked, procfs
from overnight.cells.command_tree import Member, descendants, in_cgroup, oldest_child
from overnight.dispatch import pressure, supervisor_call
from overnight.dispatch.attempt import Attempt
from overnight.dispatch.pressure import STALE_S, Pressure
from overnight.dispatch.signals import Handle
from overnight.paths import Paths

_THAW_S = 4.5
"""Frozen cells are not left to a heartbeat of this age: a watchdog that froze somebody looks many times a second. It
is below STALE_S so that a thaw comes within 6 s although the loop may be held up for a second by a locked queue."""
_START_S = 15.0
"""A watchdog that holds its lock but has never beaten is given this long: it may be starting."""
_SURE_S = 1.0
"""Silence must be seen for this long before a watchdog is restarted: after a stall of the whole machine both wake up
at once, and its heartbeat is merely late."""
_WALK_S = 0.5
"""Without a watchdog whole trees of commands are looked through no more often: the loop looks several times a turn."""
_AGAIN_S = 5.0
"""A watchdog stops nobody again so soon, and a dead one nobody at all: who stands still again was stopped by somebody
else, such as himself. That is undone as well, but neither told each time nor taken off his time."""
_FREEZING = ("freeze", "evict", "kill")
_ASK_S = 1.0
_GRACE_S = 2.0


@dataclass
class _Hanging:
    """A watchdog that does not beat: since when it was seen so, when it was asked to leave, and by whose word."""

    pid: int
    start_ticks: int
    seen_s: float
    asked_s: float | None = None
    killed: bool = False


class Guardian:
    """Looks at the heartbeat between the steps of the dispatcher's loop. `pressure`: the last word of a watchdog that
    lives and is not silent, else None."""

    def __init__(
        self,
        paths: Paths,
        log: Any,
        *,
        supervised: bool,
        clock: Callable[[], float] = time.monotonic,
        signal_process: Callable[..., bool] = supervisor_call.signal_process,
    ) -> None:
        self.pressure: Pressure | None = None
        self._paths, self._log, self._clock = paths, log, clock
        self._supervised = supervised
        self._signal_process = signal_process
        self._began_s = clock()
        self._looked_s = self._began_s
        self._walk_s = self._began_s
        self._thawed_s: dict[int, float] = {}
        self._silent = False
        self._heard = False
        self._hanging: _Hanging | None = None

    def look(self, attempts: Iterable[Attempt]) -> None:
        """Read the heartbeat; thaw, count, tell and restart as far as it takes."""
        attempts = list(attempts)
        last = pressure.last(self._paths.pressure)
        there = last is not None and not _gone(last)
        self.pressure = last if last is not None and there and last.age_s <= STALE_S else None
        if last is None or not there or last.age_s > _THAW_S:
            self._thaw(attempts)
        self._count(attempts)
        self._looked_s = self._clock()
        self._tell(last)
        if self._supervised:
            self._restart(last if there else None)

    def tick_s(self, longest_s: float) -> float:
        """How long the loop may sleep, so that it is awake when the heartbeat becomes too old."""
        if self.pressure is None:
            return longest_s
        left_s = _THAW_S - self.pressure.age_s
        if left_s <= 0:
            return min(longest_s, 0.1)
        return min(longest_s, left_s + 0.01)

    # -- thaw -------------------------------------------------------------------------------------------------

    def _thaw(self, attempts: Iterable[Attempt]) -> None:
        """Only while no living watchdog is heard: a command may have stopped children of its own on purpose (a shell
        with job control), and nothing tells these from frozen ones."""
        now_s, thawed = self._clock(), []
        self._thawed_s = {each: at_s for each, at_s in self._thawed_s.items() if now_s - at_s < _AGAIN_S}
        walk = now_s >= self._walk_s
        if walk:
            self._walk_s = now_s + _WALK_S
        for attempt in attempts:
            if attempt.handle is None or not _let_go(attempt, attempt.handle, walk=walk):
                continue
            if attempt.id not in self._thawed_s:
                thawed.append(f"{attempt.grid}/{attempt.key}")
                # It was seen to run at the last look, or was not there yet; nobody told since when it stood still.
                attempt.look(max(self._looked_s, attempt.forked_s or 0.0), frozen=True)
            self._thawed_s[attempt.id] = now_s
        if thawed:
            self._log.warning("cells_thawed", cells=thawed)

    def _count(self, attempts: Iterable[Attempt]) -> None:
        """How long each has been frozen. /proc is asked only while somebody may be; one that is stopped while the
        watchdog freezes nobody was stopped by somebody else."""
        told, now_s = self.pressure, self._clock()
        freezing = told is not None and (told.frozen > 0 or told.level in _FREEZING)
        for attempt in attempts:
            attempt.look(now_s, frozen=freezing and _stands_still(attempt))

    def _tell(self, last: Pressure | None) -> None:
        """Silence is told once, and its end. One that starts at the same time as we do is given a moment."""
        if self.pressure is not None:
            if self._silent:
                self._log.info("watchdog_back", pid=self.pressure.pid)
            self._silent, self._heard = False, True
        elif not self._silent and (self._heard or self._clock() - self._began_s > STALE_S):
            self._silent = True
            age_s = None if last is None else round(last.age_s, 1)
            self._log.warning("watchdog_silent", pid=None if last is None else last.pid, heartbeat_age_s=age_s)

    # -- restart ----------------------------------------------------------------------------------------------

    def _restart(self, last: Pressure | None) -> None:
        """last: the heartbeat of a watchdog whose process is there."""
        who = self._suspect(last)
        if who is None:
            self._hanging = None
            return
        now_s = self._clock()
        pid, ticks, patience_s = who
        hanging = self._hanging
        if hanging is None or (hanging.pid, hanging.start_ticks) != (pid, ticks):
            self._hanging = _Hanging(pid, ticks, now_s)
            return
        if hanging.asked_s is None:
            if now_s - hanging.seen_s >= patience_s:
                hanging.asked_s = now_s
                asked = self._signal_process(self._paths.supervisor_socket, "watchdog", "TERM", timeout_s=_ASK_S)
                self._log.warning("watchdog_restarted", pid=pid, step="TERM", supervisord_answered=asked)
        elif not hanging.killed and now_s - hanging.asked_s >= _GRACE_S:
            hanging.killed = True
            if (handle := Handle.open(pid, ticks)) is not None:
                handle.kill()
                handle.close()
                self._log.warning("watchdog_restarted", pid=pid, step="KILL")

    def _suspect(self, last: Pressure | None) -> tuple[int, int, float] | None:
        """Pid, start time and patience for a watchdog of our supervisord that is there and does not beat."""
        if last is not None and last.pid is not None and last.start_ticks is not None:
            found = None if last.age_s <= STALE_S else (last.pid, last.start_ticks, _SURE_S)
        else:
            holder = self._holder()
            found = None if holder is None else (*holder, _START_S)
        # Only a sibling: one that was started by hand is not supervisord's to start again.
        return found if found is not None and procfs.parent(found[0]) == os.getppid() else None

    def _holder(self) -> tuple[int, int] | None:
        """Who holds the watchdog's lock, when that process is there."""
        try:
            record = checked.json_object(checked.read_small(self._paths.watchdog_lock))
            pid, ticks = checked.whole(record["pid"], 2, procfs.PID_MOST), checked.whole(record["start_ticks"], 1)
            ours = record["boot_id"] == procfs.boot_id()
        except (OSError, ValueError, KeyError):
            return None
        return (pid, ticks) if ours and procfs.alive(pid, ticks) else None


def _let_go(attempt: Attempt, handle: Handle, *, walk: bool) -> bool:
    """Continue a cell, a command with its whole tree, when any of it is stopped. walk: look through the tree though
    its runner runs. True when somebody was stopped."""
    stopped = procfs.stopped(handle.pid)
    others = _others(attempt, handle) if attempt.is_command and (stopped or walk) else []
    if not stopped and not any(procfs.stopped(member.pid) for member in others):
        return False
    handle.thaw()
    for member in others:
        if (other := Handle.open(member.pid, member.start_ticks)) is not None:
            other.thaw()
            other.close()
    return True


def _others(attempt: Attempt, handle: Handle) -> list[Member]:
    """Whom the watchdog stops together with a command's runner: its tree, and whoever else is in its cgroup."""
    found = {member.pid: member for member in descendants(handle.pid)}
    if attempt.grant.slot is not None:
        found |= {member.pid: member for member in in_cgroup(attempt.grant.slot.folder)}
    found.pop(handle.pid, None)
    return list(found.values())


def _stands_still(attempt: Attempt) -> bool:
    """Is a cell stopped; of a command the runner, or the command itself? Children that it stopped are its affair."""
    if attempt.handle is None or procfs.stopped(attempt.handle.pid):
        return attempt.handle is not None
    command = oldest_child(attempt.handle.pid) if attempt.is_command else None
    return command is not None and procfs.stopped(command.pid)


def _gone(last: Pressure) -> bool:
    """Is the process that wrote this heartbeat over? One that did not say who it is, is judged by its age alone."""
    return last.pid is not None and last.start_ticks is not None and not procfs.alive(last.pid, last.start_ticks)

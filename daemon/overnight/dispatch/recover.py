"""What a daemon does before anything else: see that nothing of its predecessor is left, and take its cells back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from overnight import procfs
from overnight.dispatch.registry import Registry
from overnight.dispatch.signals import Handle
from overnight.paths import Paths
from overnight.queue.store import Queue


def recover(
    queue: Queue,
    registry: Registry,
    log: Any,
    *,
    others: Callable[[], Iterable[tuple[int, int]]] = tuple,
    grace_s: float = 5.0,
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Under the daemon's lock: kill leftovers, forget them, put in-flight cells back. Returns how many cells.

    Leftovers are what a daemon registered, and `others` (pid, start time): what commands left behind, found by their
    memory cgroup or environment, until a look finds nobody, since who forks may have a child that was not seen. What
    people registered by hand is left alone.

    Leftovers are rare: cells die with their warm server and warm servers with their daemon. One that is stopped, or
    sits in an uninterruptible read, may take its time; `beat` is called while they are waited for. One that may not be
    signalled (it became another user's) stays, and is not waited for.

    A registered daemon is ourselves, or one that is about to end: it no longer has the lock.
    """
    known = [(entry["pid"], entry["start_ticks"]) for entry in registry.ours() if entry.get("role") != "daemon"]
    _end(known, log, grace_s, beat)
    deadline = time.monotonic() + grace_s
    told: set[tuple[int, int]] = set()
    while (left := set(others()) - told) and time.monotonic() < deadline:
        _end(left, log, grace_s, beat)
        told |= left
    registry.clear()
    cells = queue.recover(reason="the daemon that ran it died")
    if cells:
        log.warning("cells_recovered", cells=len(cells))
    return len(cells)


def forget_half_written(paths: Paths) -> None:
    """Remove what a daemon that was killed had not renamed yet: daemon.json, and the state of its grids, which may be
    large. Not that of a process which lives: `overnight status --write-grid-state` may be writing beside us.

    With a queue there is no unfinished restore: its mark goes, too, before results get in that no backup holds."""
    if paths.queue.exists():
        with suppress(OSError):
            paths.restoring.unlink(missing_ok=True)
    for path in (*paths.run.glob(".daemon.json.*.tmp"), *paths.results.glob("*/.grid_state.json.*.tmp")):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and procfs.start_ticks(int(pid)) is None:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                pass  # the next start tries again


def _end(processes: Iterable[tuple[int, int]], log: Any, grace_s: float, beat: Callable[[], None]) -> None:
    left = [handle for each in dict.fromkeys(processes) if (handle := Handle.open(*each)) is not None]
    killed = {handle: handle.kill() for handle in left}
    for handle in left:
        if killed[handle]:
            log.warning("leftover_killed", pid=handle.pid)
    for handle in left:
        if not killed[handle] or not _wait(handle, grace_s, beat):
            log.error("leftover_stays", pid=handle.pid)
        handle.close()


def _wait(handle: Handle, timeout_s: float, beat: Callable[[], None]) -> bool:
    deadline = time.monotonic() + timeout_s
    while not handle.wait(0.5):
        beat()
        if time.monotonic() >= deadline:
            return False
    return True

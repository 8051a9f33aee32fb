"""Nothing of a cell may run any more when it begins again: whoever is left when its process is gone is ended."""

from __future__ import annotations

import time
from typing import Any

from overnight.dispatch import leftovers
from overnight.dispatch.attempt import Attempt
from overnight.dispatch.signals import Handle

SWEEP_S = 10.0
_TOLD = 20


def swept(attempt: Attempt, token: str, log: Any) -> bool:
    """Is nobody left of a cell whose process is gone? Its cgroup tells, else its environment (`token`).

    Whoever is there is killed, at each call again, since one who forks may have a child that was not seen. What does
    not die of it is told, and not waited for for ever. A cell that told of its own end has seen to that itself."""
    slot, now_s = attempt.grant.slot, time.monotonic()
    if attempt.sweeping_s is None and attempt.report is not None and (slot is None or not slot.processes()):
        return True
    left = set() if slot is None else set(leftovers.in_cgroup(slot.folder))
    if attempt.is_command:
        left |= set(leftovers.find(token))
    if not left:
        return True
    pids = sorted(pid for pid, _ in left)[:_TOLD]
    if attempt.sweeping_s is None:
        attempt.sweeping_s = now_s
        log.warning("leftover_killed", **attempt.names(), pids=pids)
    for pid, ticks in left:
        if (handle := Handle.open(pid, ticks)) is not None:
            handle.kill()
            handle.close()
    if now_s - attempt.sweeping_s < SWEEP_S:
        return False
    log.error("leftover_stays", **attempt.names(), pids=pids)
    return True

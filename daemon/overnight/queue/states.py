"""The states of a cell and how one gives way to another. Pure: no clock, no database.

                 claim                     completed
    (a) pending -------> (b) running --------------------> (c) done
          ^  ^             |  |  |
          |  |  (e) put    |  |  +-- failed too often ----> (d) failed
          |  +---- back ---+  +----- cannot go on truthfully, or fit -> quarantined
          |                   +----- cancelled ------------> cancelled
          +-- retry: from failed, quarantined, cancelled
          +-- reset: from everything but running

A cell's status says where it is, an attempt's outcome how one try ended; `after` leads from one to the other.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a cell is. The strings are what the database holds."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How an attempt ended. The strings are what the database holds."""

    COMPLETED = "completed"
    EVICTED = "evicted"
    YIELDED = "yielded"
    LOST = "lost"
    OVER_CAP = "over_cap"
    OOM_KILLED = "oom_killed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CORRUPT = "corrupt"
    DIVERGED = "diverged"
    CONDITIONS_CHANGED = "conditions_changed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.PENDING, Status.DONE, Status.FAILED, Status.QUARANTINED, Status.CANCELLED}),
    Status.DONE: frozenset(),
    Status.FAILED: frozenset({Status.PENDING}),
    Status.QUARANTINED: frozenset({Status.PENDING}),
    Status.CANCELLED: frozenset({Status.PENDING}),
}
"""What may follow what, but for a cell that starts afresh (`RESETTABLE`)."""

ENDED = frozenset({Status.DONE, Status.FAILED, Status.QUARANTINED, Status.CANCELLED})
"""Nothing happens to such a cell any more unless somebody asks for it."""

RETRYABLE = frozenset({Status.FAILED, Status.QUARANTINED, Status.CANCELLED})
"""`retry` takes these back to pending, with what they have on disk."""

RESETTABLE = frozenset(Status) - {Status.RUNNING}
"""`reset` and `--replace` take these back to pending, with nothing."""

AFTER: dict[Outcome, Status] = {
    Outcome.COMPLETED: Status.DONE,
    Outcome.EVICTED: Status.PENDING,
    Outcome.YIELDED: Status.PENDING,
    Outcome.LOST: Status.PENDING,
    Outcome.OVER_CAP: Status.PENDING,
    Outcome.OOM_KILLED: Status.PENDING,
    Outcome.FAILED: Status.PENDING,
    Outcome.TIMED_OUT: Status.PENDING,
    Outcome.CORRUPT: Status.QUARANTINED,
    Outcome.DIVERGED: Status.QUARANTINED,
    Outcome.CONDITIONS_CHANGED: Status.QUARANTINED,
    Outcome.CANCELLED: Status.CANCELLED,
}
"""What a cell becomes while it has tries left."""

USES_A_TRY = frozenset({Outcome.FAILED, Outcome.TIMED_OUT})
"""The experiment's own fault. An interruption is no failure."""

INTERRUPTED = frozenset({Outcome.EVICTED, Outcome.YIELDED, Outcome.LOST, Outcome.OVER_CAP, Outcome.OOM_KILLED})
"""The attempt was cut short; the cell goes on at its last turn."""


MEMORY = frozenset({Outcome.EVICTED, Outcome.OVER_CAP, Outcome.OOM_KILLED})
"""Memory was short: a cell that can never fit is quarantined after one of these."""


def allowed(old: Status, new: Status, *, afresh: bool = False) -> bool:
    """May a cell go from `old` to `new`? afresh: its counters go back to nothing too (reset, replace)."""
    if afresh:
        return old in RESETTABLE and new is Status.PENDING
    return new in TRANSITIONS[old]


def after(
    outcome: Outcome, tries_used: int, tries: int, *, cancel_requested: bool = False, quarantine: bool = False
) -> Status:
    """What a cell becomes when an attempt ends.

    tries_used counts this attempt too when its outcome uses a try; tries is how many the grid allows. A cell
    whose cancellation was asked for while it ran is not put back. quarantine: it can never fit; raises
    ValueError for an outcome that says nothing of memory.
    """
    if quarantine:
        if outcome not in MEMORY:
            raise ValueError(f"an attempt that ended as {outcome} says nothing of memory: its cell cannot be too large")
        return Status.QUARANTINED
    status = AFTER[outcome]
    if outcome in USES_A_TRY and tries_used >= tries:
        status = Status.FAILED
    if status is Status.PENDING and cancel_requested:
        return Status.CANCELLED
    return status

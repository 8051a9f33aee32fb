"""The queue: every grid, cell, attempt and event, in one SQLite file (`var/queue.db`).

    Attempts     claim, started, extended, finish, recover, cancel_requested        the dispatcher
    Readiness    next_ready, next_ready_many, next_ready_at                         the dispatcher
    Peaks        peaks, family_peaks                                                the dispatcher, show
    Enqueueing   enqueue                                                            submit
    Importing    take_in                                                            import
    Changes      cancel, retry, reset, cell_ids                                     the other commands
    Views        grids, cells, attempts, events, counts, pace, ...                  everybody

The daemon and any number of commands use it at once, each with a `Queue` of its own. Each call is one
transaction (long ones: one for each batch), durable when it returns. The cells' states are in `states`, the
gate in `gate`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from overnight.queue.attempts import Attempts
from overnight.queue.changes import Changes
from overnight.queue.connection import Database
from overnight.queue.enqueue import Enqueueing
from overnight.queue.errors import QueueUnavailable, StaleAttempt
from overnight.queue.importing import Importing
from overnight.queue.peaks import Peaks
from overnight.queue.ready import Readiness
from overnight.queue.rows import (
    AttemptRow,
    CellRow,
    Claimed,
    Enqueued,
    EventRow,
    GridRow,
    Pace,
    Peak,
    PeakRow,
    Ready,
)
from overnight.queue.views import Views

__all__ = [
    "AttemptRow",
    "CellRow",
    "Claimed",
    "Enqueued",
    "EventRow",
    "GridRow",
    "Pace",
    "Peak",
    "PeakRow",
    "Queue",
    "QueueUnavailable",
    "Ready",
    "StaleAttempt",
]


class Queue(Attempts, Readiness, Peaks, Enqueueing, Importing, Changes, Views):
    """Not for several threads, and never open across a fork without exec."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        create: bool = True,
        check: bool = False,
        busy_timeout_s: float = 10.0,
    ) -> Queue:
        """Open the queue at `path`; make it when there is none, unless `create` is off.

        check: also look through a file of at most 64 MiB for damage. busy_timeout_s: how long any call waits
        for another process's transaction. Raises QueueError, one line that says what to do, for a file that
        is damaged, not a queue, or newer than this program: its bytes are not changed. Raises
        QueueUnavailable for a full disk.
        """
        database = Database(Path(path), now=clock(), create=create, check=check, busy_timeout_s=busy_timeout_s)
        return cls(database, clock)

    @property
    def path(self) -> Path:
        return self._db.path

    def changed(self) -> bool:
        """Did another process change the queue since the last call? True at the first. Reads one number."""
        return self._db.changed()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

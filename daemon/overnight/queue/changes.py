"""What people ask for: cancel, retry, reset. In batches: the dispatcher never waits long for the lock."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from overnight.errors import QueueError
from overnight.queue import gate
from overnight.queue.base import Base, grid_id, holds_imported
from overnight.queue.rows import CELL, CellRow, cell_row
from overnight.queue.states import ENDED, RETRYABLE, Status

BATCH = 500
"""Cells changed in one transaction: about 20 ms of write lock."""

_LONGEST_PAUSE_S = 0.05


class Changes(Base):
    """The commands' side of the queue."""

    def cell_ids(self, grid: str, statuses: Collection[Status | str] = tuple(Status)) -> Iterator[int]:
        """Ids of a grid's cells in these statuses, by index, a page at a time: what `cancel` and `retry`
        take.

        No transaction stays open between pages. Cells that change meanwhile are given once or not at all,
        never twice for one status. Raises QueueError for an unknown grid."""
        with self._db.read() as db:
            number = grid_id(db, grid)
        return self._ids(number, [Status(status) for status in statuses])

    def _ids(self, grid: int, statuses: Iterable[Status]) -> Iterator[int]:
        for status in statuses:
            page = [0]
            while page:
                with self._db.read() as db:
                    page = [
                        number
                        for (number,) in db.execute(
                            "SELECT id FROM cells WHERE grid_id = ? AND status = ? AND id > ? ORDER BY id LIMIT ?",
                            (grid, status, page[-1], BATCH),
                        )
                    ]
                yield from page

    def cancel(self, cells: Iterable[int]) -> tuple[int, int]:
        """Pending cells are cancelled at once, running ones marked for the daemon; (cancelled, marked). Imported
        cells stay as they are."""
        cancelled = marked = 0
        for batch in _batches(cells):
            with self._db.write() as db:
                now = self._clock()
                for cell in _existing(db, batch):
                    if cell.status is Status.PENDING:
                        columns = {"not_before": 0.0, "finished_at": now, "reason_code": "", "reason": ""}
                        gate.move(db, cell, Status.CANCELLED, now=now, kind="cancelled", columns=columns)
                        cancelled += 1
                    elif cell.status is Status.RUNNING and not cell.cancel_requested:
                        gate.amend(db, cell, now=now, kind="cancel_requested", columns={"cancel_requested": 1})
                        marked += 1
        return cancelled, marked

    def retry(self, cells: Iterable[int], *, accept_conditions: bool = False) -> int:
        """Failed, quarantined and cancelled cells are pending again with all their tries, and what they have
        on disk, and no longer have to run alone (a raised claim stays); pending ones that wait are ready now.
        Imported cells stay as they are. Returns how many cells that were.

        accept_conditions: the cell may go on under other conditions than its transcript was begun under."""
        changed = 0
        for batch in _batches(cells):
            with self._db.write() as db:
                now = self._clock()
                changed += sum(_retry(db, cell, now, accept_conditions) for cell in _existing(db, batch))
        return changed

    def reset(self, grid: str, *, aside: Callable[[Sequence[str]], None] | None = None) -> int:
        """Every cell of a grid is pending, as if it had never run; returns how many had anything to forget.

        aside: called with the keys of each batch while nobody can claim them, to move their old results away.
        Raises QueueError when cells are running at the start, and for imported ones. Asking again finishes a
        reset that was interrupted."""
        with self._db.write() as db:
            number = grid_id(db, grid)
            if holds_imported(db, grid):
                raise QueueError(
                    f"grid {grid!r} was imported: its cells record what another harness did, and nothing here can run "
                    "them again; `overnight import --replace` takes in what its files say now"
                )
            (running,) = db.execute(
                "SELECT n FROM grid_counts WHERE grid_id = ? AND status = 'running'", (number,)
            ).fetchone()
            if running:
                what = "1 cell is" if running == 1 else f"{running} cells are"
                raise QueueError(f"grid {grid!r}: {what} running: cancel them or wait, then reset it again")
            # In this transaction: these could be claimed, with their history, before a later batch.
            rows = db.execute(
                f"{CELL} WHERE c.grid_id = ? AND c.status = 'pending' AND (c.attempts > 0 OR c.accept_conditions = 1)",
                (number,),
            )
            changed = self._afresh(db, [cell_row(row) for row in rows], aside)
        for batch in _batches(self._ids(number, sorted(ENDED))):
            with self._db.write() as db:
                cells = [cell for cell in _existing(db, batch) if cell.status in ENDED]
                changed += self._afresh(db, cells, aside)
        return changed

    def _afresh(
        self, db: sqlite3.Connection, cells: Sequence[CellRow], aside: Callable[[Sequence[str]], None] | None
    ) -> int:
        now = self._clock()
        for cell in cells:
            gate.move(db, cell, Status.PENDING, now=now, kind="reset", columns={}, afresh=True)
        if cells and aside is not None:
            aside([cell.key for cell in cells])
        return len(cells)


def _retry(db: sqlite3.Connection, cell: CellRow, now: float, accept_conditions: bool) -> bool:
    if cell.status in RETRYABLE:
        columns = {
            "not_before": 0.0,
            "tries_used": 0,
            "stalled": 0,
            "evictions": 0,
            "alone": 0,
            "reason_code": "",
            "reason": "",
            "end_reason": None,
            "finished_at": None,
            "accept_conditions": int(accept_conditions),
        }
        gate.move(db, cell, Status.PENDING, now=now, kind="retried", columns=columns)
        return True
    if cell.status is Status.PENDING and (cell.not_before > now or accept_conditions > cell.accept_conditions):
        accepted = int(accept_conditions or cell.accept_conditions)
        columns = {"not_before": 0.0, "accept_conditions": accepted}
        gate.amend(db, cell, now=now, kind="retried", columns=columns)
        return True
    return False


def _existing(db: sqlite3.Connection, ids: Iterable[int]) -> Iterator[CellRow]:
    """Read one by one, each after the one before was changed: an id that is given twice counts once. Imported cells
    are passed over: what they record is over, and only another import may change it."""
    imported: dict[int, bool] = {}
    for number in ids:
        if (cell := gate.cell(db, number)) is None:
            continue
        if cell.grid_id not in imported:
            imported[cell.grid_id] = holds_imported(db, cell.grid)
        if not imported[cell.grid_id]:
            yield cell


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    """The iterable is read between transactions, never inside one: it may ask the queue itself.

    After each full batch the lock stays free for as long as it was held: SQLite's waiters only look now and then (at
    most every 100 ms), and the dispatcher would starve behind a million cells otherwise.
    """
    iterator = iter(ids)
    while batch := list(itertools.islice(iterator, BATCH)):
        began_s = time.monotonic()
        yield batch
        if len(batch) == BATCH:
            time.sleep(min(_LONGEST_PAUSE_S, time.monotonic() - began_s))

"""What a repair changes in a queue that is sound: cells whose files say something else. Through the gate, as all."""

from __future__ import annotations

import sqlite3
from typing import Any

from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.queue import audit, gate
from overnight.queue.base import Base
from overnight.queue.rows import CellRow
from overnight.queue.states import Status
from overnight.repair.check_queue import REPAIRED


class Mending(Base):
    """The repair's side of the queue; nobody else may have anything running."""

    def put_back(self, cell: CellRow, *, turns: int, output_tokens: int, why: str) -> None:
        """A done or a quarantined cell is pending again, with the turns that its transcript has.

        A done cell starts its counters anew, as after a reset, but keeps its results. Raises QueueError when the cell
        has changed since it was read."""
        with self._db.write() as db:
            now = self._clock()
            before = _unchanged(db, cell)
            done = before.status is Status.DONE
            columns = {} if done else {**_RETRIED, **_turned(db, before, turns, output_tokens)}
            gate.move(
                db, before, Status.PENDING, now=now, kind=REPAIRED, columns=columns, detail={"why": why}, afresh=done
            )

    def set_turns(self, cell: CellRow, *, turns: int, output_tokens: int) -> None:
        """What a cell has on disk, which stays where it is. Raises QueueError when it changed since it was read."""
        with self._db.write() as db:
            before = _unchanged(db, cell)
            columns = _turned(db, before, turns, output_tokens)
            gate.amend(db, before, now=self._clock(), kind=REPAIRED, columns=columns)

    def set_own(self, cell: CellRow, *, seed: int, coords: dict[str, Any]) -> None:
        """What a cell has of its own in its specification. Raises QueueError when it changed since it was read."""
        with self._db.write() as db:
            columns = {"seed": seed, "coords": canonical(coords)}
            gate.amend(db, _unchanged(db, cell), now=self._clock(), kind=REPAIRED, columns=columns)

    def contradictions(self) -> list[str]:
        """What a daemon would refuse the queue for, one sentence each. Reads every row."""
        with self._db.read() as db:
            return list(audit.of_rows(db))


def _unchanged(db: sqlite3.Connection, cell: CellRow) -> CellRow:
    before = gate.existing(db, cell.id)
    if before != cell:
        raise QueueError(f"{cell.grid}/{cell.key} changed meanwhile: run `overnight repair` again")
    return before


def _turned(db: sqlite3.Connection, cell: CellRow, turns: int, output_tokens: int) -> dict[str, Any]:
    """Columns of the cell. The attempt that made its last known turn told the same figures, and they stay alike.

    Where no attempt told any (each met a damaged transcript first) the cell has none either, however many turns are on
    disk: it learns of them when it goes on. Anything else would contradict the attempts (`queue.audit`)."""
    figures = {"turns": turns, "output_tokens": output_tokens}
    for name, figure in figures.items():
        told = db.execute(
            f"UPDATE attempts SET {name} = ? WHERE id = (SELECT id FROM attempts WHERE cell_id = ? AND generation = ?"  # noqa: S608 - literals
            f" AND {name} IS NOT NULL ORDER BY number DESC LIMIT 1) RETURNING id",
            (figure, cell.id, cell.generation),
        ).fetchall()
        figures[name] = figure if told else 0
    return figures


_RETRIED: dict[str, Any] = {
    "not_before": 0.0,
    "tries_used": 0,
    "stalled": 0,
    "evictions": 0,
    "alone": 0,
    "reason_code": "",
    "reason": "",
    "end_reason": None,
    "finished_at": None,
}

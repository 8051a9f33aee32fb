"""Reading the queue: grids, cells, attempts, events. Everything by index, a page at a time."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator
from typing import Any

from overnight.errors import QueueError
from overnight.queue import audit, gate, specs
from overnight.queue.base import Base, grid_id, hint
from overnight.queue.rows import (
    ATTEMPT,
    CELL,
    EVENT,
    AttemptRow,
    CellRow,
    EventRow,
    GridRow,
    Pace,
    attempt_row,
    cell_row,
    event_row,
    parsed,
)
from overnight.queue.states import Status

_NEIGHBOURS = 50
"""Keys before and behind a misspelt one that are looked through for the one that was meant."""

_FIRST_KEYS = 500
"""And so many of the first keys of each grid, for a mistake at the beginning."""


class Views(Base):
    """Every look at the queue that changes nothing."""

    def grids(self) -> list[GridRow]:
        """All grids, by id."""
        with self._db.read() as db:
            return [_grid_row(db, row) for row in db.execute("SELECT * FROM grids ORDER BY id").fetchall()]

    def grid(self, name: str) -> GridRow:
        """Raises QueueError that names the nearest grid when there is none of this name."""
        with self._db.read() as db:
            return _grid_row(db, db.execute("SELECT * FROM grids WHERE id = ?", (grid_id(db, name),)).fetchone())

    def counts(self) -> dict[Status, int]:
        """How many cells of all grids are in each status."""
        total = dict.fromkeys(Status, 0)
        with self._db.read() as db:
            for status, n in db.execute("SELECT status, n FROM grid_counts"):
                total[Status(status)] += n
        return total

    def never_run(self) -> int:
        """How many pending cells are imported ones, which nothing runs."""
        with self._db.read() as db:
            query = (
                "SELECT count(*) FROM cells INDEXED BY cells_pending WHERE status = 'pending'"
                " AND warm_id = (SELECT id FROM warms WHERE key = ?)"
            )
            return int(db.execute(query, (specs.IMPORTED_WARM_KEY,)).fetchone()[0])

    def pace(self, grid: int) -> Pace:
        """How long the done cells of a grid (its id) took: what an ETA is made of."""
        with self._db.read() as db:
            rows = db.execute("SELECT status, n, run_ms FROM grid_counts WHERE grid_id = ?", (grid,)).fetchall()
        counts = {Status(status): (n, run_ms / 1000) for status, n, run_ms in rows}
        done, seconds = counts.get(Status.DONE, (0, 0.0))
        left = sum(counts.get(status, (0, 0.0))[0] for status in (Status.PENDING, Status.RUNNING))
        return Pace(done, seconds, seconds / done if done else None, left)

    def cells(
        self,
        grid: str | None = None,
        status: Status | str | None = None,
        *,
        after_id: int = 0,
        limit: int = 1000,
    ) -> list[CellRow]:
        """Up to `limit` cells with an id above `after_id`, by id; of one grid, in one status. Raises
        QueueError for an unknown grid."""
        with self._db.read() as db:
            if grid is None and status is None:
                query = f"{CELL} WHERE c.id > ? ORDER BY c.id LIMIT ?"
                return [cell_row(row) for row in db.execute(query, (after_id, limit))]
            grids = [grid_id(db, grid)] if grid is not None else [n for (n,) in db.execute("SELECT id FROM grids")]
            wanted = tuple(Status) if status is None else (Status(status),)
            streams = [_stream(db, one, state, after_id, limit) for one in grids for state in wanted]
            # Each stream is ordered by id and read only as far as it is needed.
            merged = heapq.merge(*streams, key=lambda row: row[0])
            return [cell_row(row) for row, _ in zip(merged, range(limit), strict=False)]

    def cell(self, cell_id: int) -> CellRow:
        """Raises QueueError when there is no such cell."""
        with self._db.read() as db:
            found = gate.cell(db, cell_id)
        if found is None:
            raise QueueError(f"cell #{cell_id} is not in the queue")
        return found

    def find_cell(self, text: str, grid: str | None = None) -> list[CellRow]:
        """The cells that KEY, GRID/KEY or #ID means: several when grids share a key.

        Raises QueueError that names the nearest key when there is none."""
        if text.startswith("#") and text[1:].isascii() and text[1:].isdigit():
            return [self.cell(min(int(text[1:]), 2**63 - 1))]
        with self._db.read() as db:
            key = text
            if grid is None and "/" in text:
                grid, key = text.split("/", 1)
            if grid is not None:
                grids = [(grid_id(db, grid), grid)]
            else:
                grids = db.execute("SELECT id, name FROM grids ORDER BY id").fetchall()
            found = [
                cell_row(row)
                for number, _ in grids
                for row in db.execute(f"{CELL} WHERE c.grid_id = ? AND c.key = ?", (number, key))
            ]
            if not found:
                near = sorted({known for number, _ in grids for known in _keys_near(db, number, key)})
                where = f"grid {grid!r}" if grid is not None else "any grid"
                raise QueueError(f"cell {key!r} is not in {where}{hint(key, near)}")
            return found

    def cell_spec(self, cell_id: int) -> dict[str, Any]:
        """A cell's whole specification. Raises QueueError when there is no such cell."""
        with self._db.read() as db:
            row = db.execute(
                "SELECT s.id, s.json, c.key, c.coords, c.seed FROM cells AS c CROSS JOIN specs AS s"
                " ON s.id = c.spec_id WHERE c.id = ?",
                (cell_id,),
            ).fetchone()
            if row is None:
                raise QueueError(f"cell #{cell_id} is not in the queue")
            number, template, key, coords, seed = row
            return specs.full(parsed(template, "specification", number), key, parsed(coords, "cell", cell_id), seed)

    def contradictions(self) -> list[str]:
        """Where the queue contradicts itself, one sentence each; empty for a sound one. Reads all of it."""
        with self._db.read() as db:
            try:
                return list(audit.contradictions(db))
            except UnicodeDecodeError as error:
                return [str(error)]

    def attempts(self, cell_id: int) -> list[AttemptRow]:
        """A cell's attempts, oldest first, those of earlier generations too."""
        with self._db.read() as db:
            rows = db.execute(f"{ATTEMPT} WHERE cell_id = ? ORDER BY cell_id, generation, number", (cell_id,))
            return [attempt_row(row) for row in rows]

    def events(self, cell_id: int | None = None, *, limit: int = 1000) -> list[EventRow]:
        """The newest `limit` events, of one cell or of all, oldest first."""
        with self._db.read() as db:
            if cell_id is None:
                rows = db.execute(f"{EVENT} ORDER BY id DESC LIMIT ?", (limit,))
            else:
                rows = db.execute(f"{EVENT} WHERE cell_id = ? ORDER BY id DESC LIMIT ?", (cell_id, limit))
            return [event_row(row) for row in rows][::-1]


def _grid_row(db: sqlite3.Connection, row: tuple[Any, ...]) -> GridRow:
    number, name, spec, policy, created_at, last_submitted_at = row
    counts = dict.fromkeys(Status, 0)
    for status, n in db.execute("SELECT status, n FROM grid_counts WHERE grid_id = ?", (number,)):
        counts[Status(status)] = n
    return GridRow(
        id=number,
        name=name,
        spec=parsed(spec, "grid", number),
        policy=parsed(policy, "grid", number),
        created_at=created_at,
        last_submitted_at=last_submitted_at,
        counts=counts,
    )


def _stream(db: sqlite3.Connection, grid: int, status: Status, after_id: int, limit: int) -> Iterator[Any]:
    rows = db.execute(
        f"{CELL} WHERE c.grid_id = ? AND c.status = ? AND c.id > ? ORDER BY c.id LIMIT ?",
        (grid, status, after_id, limit),
    )
    # Not the cursor itself: `heapq.merge` would close it when it is thrown away, after the connection.
    return (row for row in rows)


def _keys_near(db: sqlite3.Connection, grid: int, key: str) -> Iterator[str]:
    """Keys that `key` may have been meant to be, however many cells the grid has."""
    for query, values in (
        (
            "SELECT key FROM cells WHERE grid_id = ? AND key > ? ORDER BY key LIMIT ?",
            (grid, key, _NEIGHBOURS),
        ),
        (
            "SELECT key FROM cells WHERE grid_id = ? AND key < ? ORDER BY key DESC LIMIT ?",
            (grid, key, _NEIGHBOURS),
        ),
        ("SELECT key FROM cells WHERE grid_id = ? ORDER BY key LIMIT ?", (grid, _FIRST_KEYS)),
    ):
        for (known,) in db.execute(query, values):
            yield known

"""Which pending cells come next: found by index, however many cells wait, are done or are passed over.

Imported cells never come: every look at pending cells that leads to a claim goes through here."""

from __future__ import annotations

import heapq
import itertools
import sqlite3
import sys
from collections.abc import Collection, Iterator
from typing import NamedTuple

from overnight.queue.specs import IMPORTED_WARM_KEY

_EVER = sys.float_info.max
_AFTER_NONE = sys.float_info.min
"""The smallest time that is not 0, which stands for no delay."""


class Head(NamedTuple):
    """A pending cell."""

    not_before: float
    cell_id: int

    @property
    def place(self) -> tuple[bool, float, int]:
        """Ordered as cells are claimed: those that have waited out a delay, longest first, before those without one.
        They began before the others did; behind a million fresh cells they would never end."""
        return (self.not_before == 0, self.not_before, self.cell_id)


def find_head(
    db: sqlite3.Connection, now: float, *, only: str | None = None, exclude: Collection[str] = ()
) -> Head | None:
    """The cell that is claimed next at `now`, of one warm server or of all; None when none is ready."""
    return next(_merged(db, now, only, exclude), None)


def find_first(db: sqlite3.Connection, *, exclude: Collection[str] = ()) -> Head | None:
    """The pending cell that is ready first, now or later."""
    streams = (_stream(db, warm_id, 0.0, _EVER) for warm_id in _chosen(db, None, exclude))
    return min((head for stream in streams for head in itertools.islice(stream, 1)), default=None)


def find_heads(db: sqlite3.Connection, now: float, limit: int, *, exclude: Collection[str] = ()) -> list[Head]:
    """The first `limit` cells that are ready at `now`, in the order in which they are claimed.

    The heads of the warm servers are merged, each read only as far as it is needed: the work is one lookup for each
    warm server and one step for each cell that is given."""
    return list(itertools.islice(_merged(db, now, None, exclude), max(0, limit)))


def find_waiting(db: sqlite3.Connection, now: float) -> list[Head]:
    """The pending cells that are ready only after `now`. The work grows with these alone."""
    streams = [_stream(db, warm_id, max(now, _AFTER_NONE), _EVER) for warm_id in _chosen(db, None, ())]
    return [head for stream in streams for head in stream if head.not_before > now]


def that_cell(
    db: sqlite3.Connection, cell_id: int, *, only: str | None = None, exclude: Collection[str] = ()
) -> Head | None:
    """This very cell, if it is pending (and of a warm server that may be chosen)."""
    row = db.execute(
        "SELECT c.not_before, w.key FROM cells AS c CROSS JOIN warms AS w ON w.id = c.warm_id"
        " WHERE c.id = ? AND c.status = 'pending'",
        (cell_id,),
    ).fetchone()
    if row is None or only not in (None, row[1]) or row[1] in exclude or row[1] == IMPORTED_WARM_KEY:
        return None
    return Head(row[0], cell_id)


def _chosen(db: sqlite3.Connection, only: str | None, exclude: Collection[str]) -> Iterator[int]:
    """The warm servers, by id, that pending cells may be taken of."""
    exclude = {*exclude, IMPORTED_WARM_KEY}
    if only is not None:
        if only not in exclude:
            yield from (number for (number,) in db.execute("SELECT id FROM warms WHERE key = ?", (only,)))
        return
    passed = {number for key in exclude for (number,) in db.execute("SELECT id FROM warms WHERE key = ?", (key,))}
    warm_id = -1
    # The next warm_id begins behind the last entry of this one: the cells between are never visited.
    while row := db.execute(
        "SELECT warm_id FROM cells INDEXED BY cells_pending"
        " WHERE status = 'pending' AND warm_id > ? ORDER BY warm_id LIMIT 1",
        (warm_id,),
    ).fetchone():
        (warm_id,) = row
        if warm_id not in passed:
            yield warm_id


def _merged(db: sqlite3.Connection, now: float, only: str | None, exclude: Collection[str]) -> Iterator[Head]:
    streams = [
        itertools.chain(_stream(db, warm_id, _AFTER_NONE, now), _stream(db, warm_id, 0.0, 0.0))
        for warm_id in _chosen(db, only, exclude)
    ]
    return heapq.merge(*streams, key=lambda head: head.place)


def _stream(db: sqlite3.Connection, warm_id: int, since: float, until: float) -> Iterator[Head]:
    """The pending cells of a warm server with since <= not_before <= until, in the index's own order."""
    rows = db.execute(
        "SELECT not_before, id FROM cells INDEXED BY cells_pending"
        " WHERE status = 'pending' AND warm_id = ? AND not_before BETWEEN ? AND ? ORDER BY not_before, id",
        (warm_id, since, until),
    )
    return (Head(*row) for row in rows)

"""Which pending cells come next: found by index, however many cells wait, are done or are passed over."""

from __future__ import annotations

import heapq
import itertools
import sqlite3
import sys
from collections.abc import Collection, Iterator
from typing import NamedTuple

_EVER = sys.float_info.max


class Head(NamedTuple):
    """A pending cell; ordered as cells are claimed."""

    not_before: float
    cell_id: int


def find_head(db: sqlite3.Connection, *, only: str | None = None, exclude: Collection[str] = ()) -> Head | None:
    """The pending cell that is ready first, of one warm server or of all."""
    streams = (_stream(db, warm_id) for warm_id in _chosen(db, only, exclude))
    return min((head for stream in streams for head in itertools.islice(stream, 1)), default=None)


def find_heads(db: sqlite3.Connection, now: float, limit: int, *, exclude: Collection[str] = ()) -> list[Head]:
    """The first `limit` cells that are ready at `now`, in the order in which they are claimed.

    The heads of the warm servers are merged, each read only as far as it is needed: the work is one lookup for each
    warm server and one step for each cell that is given."""
    streams = [_stream(db, warm_id, now) for warm_id in _chosen(db, None, exclude)]
    return list(itertools.islice(heapq.merge(*streams), max(0, limit)))


def that_cell(
    db: sqlite3.Connection, cell_id: int, *, only: str | None = None, exclude: Collection[str] = ()
) -> Head | None:
    """This very cell, if it is pending (and of a warm server that may be chosen)."""
    row = db.execute(
        "SELECT c.not_before, w.key FROM cells AS c CROSS JOIN warms AS w ON w.id = c.warm_id"
        " WHERE c.id = ? AND c.status = 'pending'",
        (cell_id,),
    ).fetchone()
    if row is None or only not in (None, row[1]) or row[1] in exclude:
        return None
    return Head(row[0], cell_id)


def _chosen(db: sqlite3.Connection, only: str | None, exclude: Collection[str]) -> Iterator[int]:
    """The warm servers, by id, that pending cells may be taken of."""
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


def _stream(db: sqlite3.Connection, warm_id: int, now: float = _EVER) -> Iterator[Head]:
    """The pending cells of a warm server that are ready at `now`, in the index's own order."""
    rows = db.execute(
        "SELECT not_before, id FROM cells INDEXED BY cells_pending"
        " WHERE status = 'pending' AND warm_id = ? AND not_before <= ? ORDER BY not_before, id",
        (warm_id, now),
    )
    return (Head(*row) for row in rows)

"""Which pending cell comes next: found by index, however many cells wait, are done or are passed over."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import NamedTuple


class Head(NamedTuple):
    """The first pending cell of one warm server; ordered as cells are claimed."""

    not_before: float
    cell_id: int


def find_head(db: sqlite3.Connection, *, only: str | None = None, exclude: Collection[str] = ()) -> Head | None:
    """The pending cell that is ready first. One index lookup for each warm server that has pending cells.

    The index is ordered by (warm_id, not_before, id): the first entry of each warm_id is its head, and the
    next warm_id begins behind its last entry, so cells that are passed over are never visited.
    """
    if only is not None:
        chosen = db.execute("SELECT id FROM warms WHERE key = ?", (only,)).fetchone()
        if chosen is None or only in exclude:
            return None
        row = db.execute(
            "SELECT not_before, id FROM cells INDEXED BY cells_pending"
            " WHERE status = 'pending' AND warm_id = ? ORDER BY not_before, id LIMIT 1",
            chosen,
        ).fetchone()
        return None if row is None else Head(*row)
    passed = {number for key in exclude for (number,) in db.execute("SELECT id FROM warms WHERE key = ?", (key,))}
    heads: list[Head] = []
    warm_id = -1
    while True:
        row = db.execute(
            "SELECT warm_id, not_before, id FROM cells INDEXED BY cells_pending"
            " WHERE status = 'pending' AND warm_id > ? ORDER BY warm_id, not_before, id LIMIT 1",
            (warm_id,),
        ).fetchone()
        if row is None:
            return min(heads, default=None)
        warm_id = row[0]
        if warm_id not in passed:
            heads.append(Head(*row[1:]))

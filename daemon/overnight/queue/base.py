"""What the parts of `Queue` share."""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Callable

from overnight.errors import QueueError
from overnight.queue.connection import Database
from overnight.queue.specs import IMPORTED_WARM_KEY


class Base:
    """One connection and one clock (unix seconds)."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock


def grid_id(db: sqlite3.Connection, name: str) -> int:
    """Raises QueueError that names the nearest grid when there is none of this name."""
    row = db.execute("SELECT id FROM grids WHERE name = ?", (name,)).fetchone()
    if row is None:
        names = [known for (known,) in db.execute("SELECT name FROM grids ORDER BY name")]
        raise QueueError(f"grid {name!r} is not in the queue{hint(name, names)}")
    return int(row[0])


def holds_imported(db: sqlite3.Connection, grid: str) -> bool:
    """Is this a grid of imported cells? All cells of a grid are, or none: its first one tells."""
    row = db.execute(
        "SELECT w.key FROM cells AS c CROSS JOIN warms AS w ON w.id = c.warm_id"
        " WHERE c.grid_id = (SELECT id FROM grids WHERE name = ?) LIMIT 1",
        (grid,),
    ).fetchone()
    return row is not None and row[0] == IMPORTED_WARM_KEY


def hint(wanted: str, known: list[str]) -> str:
    """`; did you mean X?`, or what there is."""
    if near := difflib.get_close_matches(wanted, known, n=1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    if not known:
        return "; it holds none"
    return f"; there is {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"

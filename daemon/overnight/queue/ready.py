"""A look at the cells that may be claimed now, with all that admission asks about them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any

from overnight.queue import specs
from overnight.queue.base import Base
from overnight.queue.head import Head, find_first, find_heads
from overnight.queue.rows import Ready, parsed


class Readiness(Base):
    """What comes next, without changing anything."""

    def next_ready(self, exclude: Collection[str] = ()) -> Ready | None:
        """The cell that `claim` would give now; None when none is ready.

        exclude: warm keys whose cells are passed over."""
        return next(iter(self.next_ready_many(1, exclude)), None)

    def next_ready_many(self, limit: int, exclude: Collection[str] = ()) -> list[Ready]:
        """The next `limit` cells that are ready now, over all warm keys, in the order in which `claim` gives
        them. Costs as much as it returns, however many cells there are.

        exclude: warm keys whose cells are passed over. Cells that share a template or a grid share the objects
        in `spec`, `warm` and `policy`: these are to be read only."""
        with self._db.read() as db:
            shared = Shared(db)
            return [_ready(db, shared, head) for head in find_heads(db, self._clock(), limit, exclude=exclude)]

    def next_ready_at(self, exclude: Collection[str] = ()) -> float | None:
        """When the first pending cell is ready, in unix seconds (0 = already); None when none is pending."""
        with self._db.read() as db:
            head = find_first(db, exclude=exclude)
        return None if head is None else head.not_before


class Shared:
    """What many cells have in common, read and parsed once for each transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[tuple[str, int], dict[str, Any]] = {}

    def template(self, spec_id: int) -> dict[str, Any]:
        return self._once("SELECT json FROM specs WHERE id = ?", "specification", spec_id)

    def warm(self, warm_id: int) -> dict[str, Any]:
        return self._once("SELECT json FROM warms WHERE id = ?", "warm specification", warm_id)

    def policy(self, grid_id: int) -> dict[str, Any]:
        return self._once("SELECT policy FROM grids WHERE id = ?", "policy of grid", grid_id)

    def _once(self, query: str, what: str, number: int) -> dict[str, Any]:
        if (value := self._known.get((what, number))) is None:
            (text,) = self._db.execute(query, (number,)).fetchone()
            value = self._known[what, number] = parsed(text, what, number)
        return value


def _ready(db: sqlite3.Connection, shared: Shared, head: Head) -> Ready:
    grid_id, grid, key, coords, seed, spec_id, threads, warm_id, warm_key, *figures = db.execute(
        "SELECT g.id, g.name, c.key, c.coords, c.seed, s.id, s.threads, w.id, w.key,"
        " c.claim_bytes, c.evictions, c.alone, c.attempts FROM cells AS c"
        " CROSS JOIN grids AS g ON g.id = c.grid_id CROSS JOIN specs AS s ON s.id = c.spec_id"
        " CROSS JOIN warms AS w ON w.id = c.warm_id WHERE c.id = ?",
        (head.cell_id,),
    ).fetchone()
    claim_bytes, evictions, alone, attempts = figures
    return Ready(
        cell_id=head.cell_id,
        grid=grid,
        key=key,
        not_before=head.not_before,
        warm_key=warm_key,
        warm=shared.warm(warm_id),
        threads=threads,
        spec=specs.full(shared.template(spec_id), key, parsed(coords, "cell", head.cell_id), seed),
        policy=shared.policy(grid_id),
        claim_bytes=claim_bytes,
        evictions=evictions,
        alone=bool(alone),
        attempts=attempts,
    )

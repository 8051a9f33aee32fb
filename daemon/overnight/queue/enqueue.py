"""Putting a grid's cells into the queue: streamed, in one transaction, adding only what is missing."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.queue import follow, gate, specs
from overnight.queue.base import Base, holds_imported
from overnight.queue.rows import Enqueued, parsed
from overnight.queue.specs import Planned
from overnight.queue.states import Status

_BATCH = 5_000
"""Cells in memory at a time."""

_CACHE_KIB = 32 * 1024
"""Page cache while cells are added: the index of keys is written in no order, and 2 MiB would thrash."""

_SPEC_CACHE = 1_024

_Row = tuple[int, int, int, str, str, int]
"""grid_id, spec_id, warm_id, key, coords, seed."""


class Enqueueing(Base):
    """The submitter's side of the queue."""

    def enqueue(
        self,
        name: str,
        *,
        cells: Iterable[Planned],
        spec: Mapping[str, Any],
        policy: Mapping[str, Any],
        replace: bool = False,
        aside: Callable[[Sequence[str]], None] | None = None,
    ) -> Enqueued:
        """Add the cells that are missing to the grid `name`, in one transaction; memory does not grow with
        them.

        spec, policy: the grid as JSON values; a changed policy takes effect for cells that exist, too.
        `cells` may not use this queue while it is read. replace: a cell whose specification changed starts
        afresh; aside is then called with the keys of these cells, just before anybody can claim them, to move
        their results away. Raises QueueError, and adds nothing, when a specification changed without
        `replace`, or of a running cell.
        """
        with self._db.write() as db:
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            try:
                return _Work(db, self._clock(), name, replace).run(cells, spec, policy, aside)
            finally:
                db.execute("PRAGMA cache_size = -2048")
                db.execute("PRAGMA shrink_memory")


class _Work:
    """One call of `enqueue`, inside its transaction."""

    def __init__(self, db: sqlite3.Connection, now: float, name: str, replace: bool) -> None:
        self.db, self.now, self.name, self.replace = db, now, name, replace
        self.added = self.existing = self.changed = 0
        self.first = ""
        self.replaced: list[str] = []
        self._specs: dict[int, tuple[Any, int, int]] = {}

    def run(
        self,
        cells: Iterable[Planned],
        spec: Mapping[str, Any],
        policy: Mapping[str, Any],
        aside: Callable[[Sequence[str]], None] | None,
    ) -> Enqueued:
        if holds_imported(self.db, self.name):
            raise QueueError(
                f"grid {self.name!r} was imported: its cells record what another harness did, and none of ours is put "
                "among them; choose another grid name"
            )
        grid_id = self._grid(spec, policy)
        iterator = iter(cells)
        while rows := [self._row(grid_id, cell) for cell in itertools.islice(iterator, _BATCH)]:
            self._add(rows)
        if self.changed and not self.replace:
            others = f" (and {self.changed - 1} more cells differ)" if self.changed > 1 else ""
            raise QueueError(
                f"grid {self.name!r}: the specification of an existing cell changed: {self.first}{others};"
                " nothing was added: choose another grid name, or start these cells afresh with --replace"
            )
        gate.event(
            self.db,
            now=self.now,
            kind="grid_enqueued",
            grid_id=grid_id,
            detail={"added": self.added, "existing": self.existing, "replaced": len(self.replaced)},
        )
        if self.replaced and aside is not None:
            aside(self.replaced)
        return Enqueued(self.added, self.existing, len(self.replaced), tuple(self.replaced))

    def _grid(self, spec: Mapping[str, Any], policy: Mapping[str, Any]) -> int:
        follow.refuse_clash(self.db, self.name, policy)
        (number,) = self.db.execute(
            "INSERT INTO grids (name, spec, policy, created_at, last_submitted_at) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, policy = excluded.policy,"
            " last_submitted_at = excluded.last_submitted_at RETURNING id",
            (self.name, canonical(spec), canonical(policy), self.now, self.now),
        ).fetchall()[0]
        follow.prepare(self.db, self.name, policy, self.now)
        return int(number)

    def _row(self, grid_id: int, cell: Planned) -> _Row:
        spec_id, warm_id = self._spec(cell.template)
        return grid_id, spec_id, warm_id, cell.key, canonical(cell.coords), cell.seed

    def _spec(self, template: dict[str, Any]) -> tuple[int, int]:
        """(spec_id, warm_id). Found by the object's identity first: cells share templates, and hashing costs.

        The cache holds the template itself, so that its identity stays taken while it is in there."""
        if (known := self._specs.get(id(template))) is not None:
            return known[1], known[2]
        spec_id, warm_id = specs.put(self.db, template)
        if len(self._specs) >= _SPEC_CACHE:
            self._specs.clear()
        self._specs[id(template)] = (template, spec_id, warm_id)
        return spec_id, warm_id

    def _add(self, rows: list[_Row]) -> None:
        added = self.db.executemany(
            "INSERT INTO cells (grid_id, spec_id, warm_id, key, coords, seed) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (grid_id, key) DO NOTHING",
            rows,
        ).rowcount
        self.added += added
        if added == len(rows):
            return
        unlike = [found for row in rows if (found := self._changed(row)) is not None]
        self.existing += len(rows) - added - len(unlike)
        self.changed += len(unlike)
        for cell_id, row in unlike:
            if not self.first:
                self.first = self._difference(cell_id, row)
            if self.replace:
                self._replace(cell_id, row)

    def _changed(self, row: _Row) -> tuple[int, _Row] | None:
        """The existing cell of this key, when it is specified otherwise."""
        cell_id, *old = self.db.execute(
            "SELECT id, spec_id, coords, seed FROM cells WHERE grid_id = ? AND key = ?", (row[0], row[3])
        ).fetchone()
        return None if tuple(old) == (row[1], row[4], row[5]) else (cell_id, row)

    def _difference(self, cell_id: int, row: _Row) -> str:
        old_spec, coords, seed = self.db.execute(
            "SELECT spec_id, coords, seed FROM cells WHERE id = ?", (cell_id,)
        ).fetchone()
        old = specs.full(self._template(old_spec), row[3], parsed(coords, "cell", cell_id), seed)
        new = specs.full(self._template(row[1]), row[3], json.loads(row[4]), row[5])
        return f"{row[3]}: {specs.first_difference(old, new)}"

    def _template(self, spec_id: int) -> dict[str, Any]:
        (text,) = self.db.execute("SELECT json FROM specs WHERE id = ?", (spec_id,)).fetchone()
        return parsed(text, "specification", spec_id)

    def _replace(self, cell_id: int, row: _Row) -> None:
        before = gate.cell(self.db, cell_id)
        assert before is not None  # noqa: S101 - its id was read in this very transaction
        if before.status is Status.RUNNING:
            raise QueueError(
                f"{self.name}/{row[3]} is running and its specification changed: cancel it or wait; nothing was added"
            )
        columns = {"spec_id": row[1], "warm_id": row[2], "coords": row[4], "seed": row[5]}
        gate.move(self.db, before, Status.PENDING, now=self.now, kind="replaced", columns=columns, afresh=True)
        self.replaced.append(row[3])

"""A database of the queue's, read without the queue: pages of cells and their specifications."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.queue import specs
from overnight.queue.probe import frozen
from overnight.queue.rows import CELL, CellRow, DamagedRow, cell_row, parsed

_PAGE = 500
_TEMPLATES = 256


def connect(path: Path, *, immutable: bool = False) -> sqlite3.Connection:
    """Read-only. immutable: nobody writes it, and no file may appear beside it. Raises sqlite3.Error."""
    mode = "mode=ro&immutable=1" if immutable or frozen(path) else "mode=ro"
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=10, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        db.close()
        raise
    return db


class View:
    """No transaction stays open between two pages. All raise sqlite3.Error and DamagedRow."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._templates: dict[int, dict[str, Any]] = {}

    def grids(self) -> set[str]:
        return {name for (name,) in self.db.execute("SELECT name FROM grids")}

    def has_grid(self, grid: str) -> bool:
        return self.db.execute("SELECT 1 FROM grids WHERE name = ?", (grid,)).fetchone() is not None

    def count(self, grid: str | None) -> int:
        """How many cells there are, by the kept counters."""
        query = "SELECT coalesce(sum(n), 0) FROM grid_counts"
        if grid is None:
            return int(self.db.execute(query).fetchone()[0])
        query += " WHERE grid_id = (SELECT id FROM grids WHERE name = ?)"
        return int(self.db.execute(query, (grid,)).fetchone()[0])

    def cells(self, grid: str | None = None) -> Iterator[CellRow]:
        """Every cell, or every one of a grid, by id."""
        query, named = f"{CELL} WHERE c.id > ? ORDER BY c.id LIMIT ?", list[int]()
        if grid is not None:
            named = list(self.db.execute("SELECT id FROM grids WHERE name = ?", (grid,)).fetchone())
            query = f"{CELL} WHERE c.grid_id = ? AND c.id > ? ORDER BY c.id LIMIT ?"
        after = 0
        while rows := self.db.execute(query, (*named, after, _PAGE)).fetchall():
            yield from map(cell_row, rows)
            after = rows[-1][0]

    def cell(self, cell_id: int) -> CellRow | None:
        row = self.db.execute(f"{CELL} WHERE c.id = ?", (cell_id,)).fetchone()
        return None if row is None else cell_row(row)

    def has_cell(self, grid: str, key: str) -> bool:
        query = "SELECT 1 FROM cells WHERE grid_id = (SELECT id FROM grids WHERE name = ?) AND key = ?"
        return self.db.execute(query, (grid, key)).fetchone() is not None

    def spec(self, row: CellRow) -> dict[str, Any]:
        """A cell's whole specification."""
        (number,) = self.db.execute("SELECT spec_id FROM cells WHERE id = ?", (row.id,)).fetchone()
        if (template := self._templates.get(number)) is None:
            found = self.db.execute("SELECT json FROM specs WHERE id = ?", (number,)).fetchone()
            if found is None:
                raise DamagedRow(f"cell {row.id}: its specification {number} is missing")
            template = parsed(found[0], "specification", number)
            if len(self._templates) >= _TEMPLATES:
                self._templates.clear()
            self._templates[number] = template
        return specs.full(template, row.key, row.coords, row.seed)

"""queue.db: the probe that says whose file it is, and then the views of commands on what it let through."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz import documents
from fuzz.target import Case, Target, expect
from helpers.queue_cells import used_queue
from overnight.errors import QueueError
from overnight.queue.probe import probe
from overnight.queue.store import Queue

_PAGE = 4096


class File(Target):
    """Its bytes."""

    name = "queue.db"
    clear = (QueueError,)
    share = 0.25
    tokens = (
        b"SQLite format 3\0",
        b"\x10\0\1\1\0",
        b"\r\0\0\0",
        b"\x05\0\0\0",
        b"CREATE TABLE ",
        b"\0" * 512,
        b"running",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        whole = folder / "whole.db"
        used_queue(whole, cells=8)
        with sqlite3.connect(whole) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        self._whole = whole.read_bytes()
        self._path = folder / "queue.db"

    def seeds(self) -> Sequence[bytes]:
        return [self._whole]

    def read(self, case: Case) -> str:
        for suffix in ("-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.write_bytes(case.data)
        try:
            found = probe(self._path, check=len(case.data) % 2 == 0)
        except QueueError as error:
            expect("queue.db" in str(error), f"it does not say which file: {error}")
            raise
        expect(self._path.read_bytes() == case.data, "a look has changed the file")
        return looked_through(self._path) if found else "nothing yet"


def looked_through(path: Path) -> str:
    """What commands show of it."""
    with Queue.open(path) as queue:
        cells = 0
        for grid in queue.grids():
            queue.pace(grid.id)
            after = 0
            while rows := queue.cells(grid.name, after_id=after, limit=50):
                cells += len(rows)
                expect(rows[-1].id > after, "it goes round in circles")
                after = rows[-1].id
                for row in rows[:3]:
                    queue.cell_spec(row.id)
                    queue.attempts(row.id)
                if cells > 500:
                    break
        queue.counts()
        queue.next_ready_at()
    return f"{min(cells, 50) // 10} tens of cells"


class Values(File):
    """A JSON column, or a figure, that holds what nobody wrote. No file is rebuilt for that: SQLite puts it in."""

    name = "queue.db values"
    share = 0.25
    _COLUMNS = (
        *(("cells", "coords"), ("cells", "status"), ("cells", "reason"), ("cells", "run_ms"), ("cells", "key")),
        *(("specs", "template"), ("grids", "spec"), ("attempts", "evidence"), ("attempts", "outcome")),
    )

    def seeds(self) -> Sequence[bytes]:
        return [
            b'{"scaffold": "baseline", "model": "135m", "run": 1}',
            b"pending",
            b'{"v": 1, "kind": "idle_loop"}',
            b"7",
        ]

    def documents(self) -> Sequence[Any]:
        return [{"scaffold": "baseline", "model": "135m", "run": 1}, {"v": 1, "kind": "idle_loop", "threads": 1}]

    def render(self, document: Any) -> bytes:
        return documents.dump(document).encode("utf-8", "surrogatepass")

    def read(self, case: Case) -> str:
        for suffix in ("-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.write_bytes(self._whole)
        table, column = self._COLUMNS[sum(case.data[:64]) % len(self._COLUMNS)]
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE id = 1", (case.data[:200_000],))
        except sqlite3.Error:
            return "not put in"  # a trigger or a constraint of the schema refuses it
        finally:
            connection.close()
        try:
            return f"{column} {looked_through(self._path)}"
        except QueueError as error:
            expect("queue.db" in str(error), f"it does not say which file: {error}")
            raise

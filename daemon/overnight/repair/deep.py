"""`overnight verify --deep`: everything that can be checked without running a model again, also while cells run."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from overnight.errors import QueueError
from overnight.paths import Paths
from overnight.queue.errors import QueueUnavailable
from overnight.queue.rows import CellRow, DamagedRow
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair import check_cell, check_files, check_queue, check_store, pages, wal
from overnight.repair.check_cell import Seen
from overnight.repair.finding import REPAIR, Finding
from overnight.repair.queue_file import beside
from overnight.repair.view import View, connect

_LOOKS = 5
"""So often is a cell looked at that changes meanwhile."""


class Deep:
    """One run. `checked` counts what was looked at: filled while `findings` is read."""

    def __init__(
        self, paths: Paths, grid: str | None, tell: Callable[[int, int], None] = lambda done, of: None
    ) -> None:
        """grid: only its cells, and no models. tell: called with (cells so far, cells in all)."""
        self._paths, self._grid, self._tell = paths, grid, tell
        self.checked: Counter[str] = Counter()

    def findings(self) -> Iterator[Finding]:
        """Streamed. Raises QueueUnavailable, and QueueError for a grid that is not there."""
        try:
            with Queue.open(self._paths.queue, create=self._paths.queue.exists()) as queue:
                if self._grid is not None:
                    queue.grid(self._grid)
                yield from self._of_queue()
        except QueueUnavailable:
            raise
        except QueueError as error:
            if self._grid is not None and "is not in the queue" in str(error):
                raise
            if not self._paths.queue.exists() and "there is no queue yet" in str(error):
                if any(self._paths.results.glob("*/*")):
                    yield Finding("queue", "queue.db", "missing, and there are results", REPAIR)
            else:
                yield Finding("queue", "queue.db", str(error), REPAIR)
        yield from check_files.lax(self._paths)
        yield from check_files.unpacked(self._paths)
        if self._grid is None:
            self.checked["models"] += len(check_store.models(self._paths.models))
            yield from check_store.check(self._paths.models)

    def _of_queue(self) -> Iterator[Finding]:
        yield from self._log()
        db = connect(self._paths.queue)
        try:
            view = View(db)
            yield from check_queue.check(db)
            self.checked["queue"] += 1
            yield from self._cells(view)
            if self._grid is None:
                yield from check_files.unknown(self._paths, view.has_grid, view.has_cell)
        except (sqlite3.Error, DamagedRow) as error:
            yield Finding("queue", "queue.db", f"its cells cannot be read ({error})", REPAIR)
        finally:
            db.close()

    def _log(self) -> Iterator[Finding]:
        """Damage in the middle of the write-ahead log: SQLite takes it for the log's end. Seen twice, alike: somebody
        may be writing it just now."""
        log = beside(self._paths.queue, "-wal")
        try:
            seen = [wal.read(log, pages.PAGE_BYTES).damage for _ in range(2)]
        except OSError:
            return
        if seen[0] == seen[1]:
            yield from (Finding("queue", "queue.db-wal", what, REPAIR) for what in seen[0])

    def _cells(self, view: View) -> Iterator[Finding]:
        total = view.count(self._grid)
        for number, row in enumerate(view.cells(self._grid), 1):
            self._tell(number, total)
            spec = view.spec(row)
            self.checked["cells"] += 1
            seen = self._settled(view, row, spec)
            self.checked["files"] += seen.files
            if seen.scan is not None:
                self.checked["transcripts"] += 1
                self.checked["turns"] += seen.scan.turns
            where = f"{row.grid}/{row.key}"
            yield from (Finding("cell", where, what, REPAIR) for what in seen.problems)
            yield from (Finding("cell", where, what) for what in seen.strange)
            yield from (Finding("cell", where, what, note=True) for what in seen.notes)

    def _settled(self, view: View, row: CellRow, spec: dict[str, Any]) -> Seen:
        """A problem counts when the cell did not change while it was looked at; of one that runs, when it is seen
        twice in the same place."""
        seen, before = check_cell.check(self._paths, row, spec), None
        for _ in range(_LOOKS):
            if not (seen.problems or seen.strange):
                return seen
            now = view.cell(row.id)
            if now is None:
                return Seen(())
            settled = now == row and (row.status is not Status.RUNNING or before == (seen.problems, seen.strange))
            if settled:
                return seen
            before, row = (seen.problems, seen.strange), now
            seen = check_cell.check(self._paths, row, view.spec(row))
        return Seen((), notes=("changed all the time while it was looked at", *seen.notes), scan=seen.scan)

"""What is kept of the analysis of each conversation (`var/analysis/GRID/KEY.BACKEND-METHOD.json`); does it still hold?

A record holds as long as the transcript has the same SHA-256 and the same analysis (backend, method, their parameters,
the model, the revision of our own code) would be made of it. All of it can be made again from the results, so it is in
no backup.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight import checked, durable, procfs
from overnight.analysis import conversation
from overnight.cells.transcript import Reader
from overnight.paths import IMPORTED, Paths
from overnight.queue.rows import CellRow
from overnight.queue.store import Queue

VERSION = 1
_MOST_BYTES = 256 * 2**20
"""A turn takes some 300 bytes of it: a million turns."""


@dataclass(frozen=True)
class Wanted:
    """One analysis. parameters: of backend and method; version: of the code that makes records."""

    backend: str
    method: str
    model: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    version: int = 0

    def of(self, record: dict[str, Any]) -> bool:
        """Was this record made by this very analysis?"""
        mine = (self.backend, self.method, self.model, self.parameters, self.version)
        names = ("backend", "method", "embedding_model", "parameters", "version")
        return mine == tuple(record.get(name) for name in names)


def read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none, or nothing that can be understood (it is made again)."""
    try:
        found = checked.json_object(checked.read_small(path, _MOST_BYTES))
    except (OSError, ValueError):
        return None
    return found if found.get("v") == VERSION else None


def write(path: Path, record: dict[str, Any]) -> None:
    """Replace a record, whole or not at all. Raises OSError."""
    durable.make_folders(path.parent)
    durable.write_atomic(path, (durable.canonical(record) + "\n").encode())


def forget_half_written(paths: Paths, grid: str) -> None:
    """Remove what processes that were killed had not renamed yet; not that of one which lives."""
    for path in (paths.analysis / grid).glob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and procfs.start_ticks(int(pid)) is None:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def holds(paths: Paths, cell: CellRow, record: Mapping[str, Any]) -> bool:
    """Was this record made of the conversation that the cell has now? A cell that was started afresh has none until it
    begins, and one that has not ended is at another turn by now, perhaps: its transcript is read."""
    path = conversation.source_of(paths, cell.grid, cell.key)
    if path is None:
        return False
    sha256 = cell.transcript_sha256 if cell.transcript_sha256 is not None else _sha256(path)
    return sha256 is not None and record.get("transcript_sha256") == sha256


def _sha256(path: Path) -> str | None:
    """As the analysis has it: of finished turns alone."""
    try:
        with path.open("rb") as stream:
            if path.name == IMPORTED:
                return hashlib.file_digest(stream, "sha256").hexdigest()
            reader = Reader(stream)
            deque(reader, maxlen=0)
            return reader.sha256
    except OSError:
        return None


def as_of_now(cell: CellRow, record: dict[str, Any]) -> dict[str, Any]:
    """A record that holds, with how the cell stands now: the same turns may have been cancelled since."""
    return record | {"status": str(cell.status), "end_reason": cell.end_reason or ""}


def records(paths: Paths, queue: Queue, grid: str, backend: str, method: str) -> Iterator[dict[str, Any]]:
    """The records of a grid's cells that hold, in the order of the queue, one in memory at a time. Raises QueueError
    for an unknown grid."""
    for cell in conversation.cells_of(queue, grid):
        record = read(paths.analysis_record(grid, cell.key, backend, method))
        if record is not None and holds(paths, cell, record):
            yield as_of_now(cell, record)

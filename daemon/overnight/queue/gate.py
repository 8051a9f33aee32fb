"""The one gate through which every change of a cell's status goes: one guarded UPDATE and one event row.

`move` is called inside a transaction of the caller and is the only code that writes `cells.status`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.queue.rows import CELL, CellRow, cell_row
from overnight.queue.states import Status, allowed

AFRESH: dict[str, Any] = {
    "not_before": 0.0,
    "attempts": 0,
    "tries_used": 0,
    "stalled": 0,
    "turns": 0,
    "output_tokens": 0,
    "run_ms": 0,
    "cancel_requested": 0,
    "accept_conditions": 0,
    "reason_code": "",
    "reason": "",
    "end_reason": None,
    "transcript_sha256": None,
    "started_at": None,
    "finished_at": None,
    "claim_bytes": None,
    "evictions": 0,
    "alone": 0,
}
"""Columns of a cell that starts afresh; its generation grows by one as well."""


def cell(db: sqlite3.Connection, cell_id: int) -> CellRow | None:
    row = db.execute(f"{CELL} WHERE c.id = ?", (cell_id,)).fetchone()
    return None if row is None else cell_row(row)


def existing(db: sqlite3.Connection, cell_id: int) -> CellRow:
    """A cell whose id was read in this very transaction."""
    found = cell(db, cell_id)
    assert found is not None  # noqa: S101 - see above
    return found


def move(
    db: sqlite3.Connection,
    before: CellRow,
    new: Status,
    *,
    now: float,
    kind: str,
    columns: Mapping[str, Any],
    attempt_id: int | None = None,
    detail: Mapping[str, Any] | None = None,
    afresh: bool = False,
) -> None:
    """Take a cell from the status it was read with to `new`, and write it into the events.

    columns: what else changes in the row. Raises QueueError when the change is not allowed, or when the cell
    is no longer where `before` says.
    """
    if not allowed(before.status, new, afresh=afresh):
        raise QueueError(f"{before.grid}/{before.key} is {before.status}: it cannot become {new}")
    if afresh:
        columns = {**AFRESH, **columns, "generation": before.generation + 1}
    _update(db, before, {"status": str(new), **columns})
    event(
        db,
        now=now,
        kind=kind,
        grid_id=before.grid_id,
        cell_id=before.id,
        attempt_id=attempt_id,
        old=before.status,
        new=new,
        detail=detail,
    )


def amend(db: sqlite3.Connection, before: CellRow, *, now: float, kind: str, columns: Mapping[str, Any]) -> None:
    """Change columns of a cell that stays in its status, and write that into the events too."""
    _update(db, before, columns)
    event(db, now=now, kind=kind, grid_id=before.grid_id, cell_id=before.id)


def event(
    db: sqlite3.Connection,
    *,
    now: float,
    kind: str,
    grid_id: int | None = None,
    cell_id: int | None = None,
    attempt_id: int | None = None,
    old: Status | None = None,
    new: Status | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    db.execute(
        "INSERT INTO events (at, kind, grid_id, cell_id, attempt_id, old_status, new_status, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (now, kind, grid_id, cell_id, attempt_id, old, new, canonical(detail or {})),
    )


def _update(db: sqlite3.Connection, before: CellRow, columns: Mapping[str, Any]) -> None:
    sets = ", ".join(f"{name} = ?" for name in columns)  # names are literals of this package, never input
    row = db.execute(
        f"UPDATE cells SET {sets} WHERE id = ? AND status = ? RETURNING id",  # noqa: S608 - see above
        (*columns.values(), before.id, before.status),
    ).fetchall()
    if not row:
        raise QueueError(f"{before.grid}/{before.key} is not {before.status} any more")

"""After a salvage: what is written down twice is alike again, and what was lost has a placeholder that says so.

Nothing becomes done, and nothing becomes better than it was: the cells are compared with their results afterwards.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from overnight.queue import gate
from overnight.queue.states import Outcome, Status
from overnight.repair.check_queue import LED_TO, REPAIRED

Evidence = Callable[[str, str], set[str]]

_PAGE = 1000
_MOST_LOST = 100
"""A cell that counts more attempts than it has, by more than this, has a damaged counter."""

_LOST = {"reason_code": "record_lost", "reason": "the record of this attempt could not be read"}
_OF_REASON = {
    "transcript_corrupt": Outcome.CORRUPT,
    "replay_diverged": Outcome.DIVERGED,
    "conditions_changed": Outcome.CONDITIONS_CHANGED,
}
_SHARED = ("end_reason", "reason_code", "reason")


def settle(db: sqlite3.Connection, now: float, evidence: Evidence) -> None:
    """Inside the caller's transaction. evidence: (grid, key) -> hashes of what the cell left."""
    for cell in _pages(db, "SELECT id, generation, attempts, status FROM cells WHERE id > ?"):
        _number(db, now, *cell)
    db.execute(
        "UPDATE cells SET status = 'pending', cancel_requested = 0 WHERE status = 'running'"
        " AND id NOT IN (SELECT cell_id FROM attempts WHERE outcome IS NULL)"
    )
    for name in ("turns", "output_tokens"):
        told = (
            f"coalesce((SELECT a.{name} FROM attempts AS a WHERE a.cell_id = cells.id AND"  # noqa: S608 - literals
            f" a.generation = cells.generation AND a.{name} IS NOT NULL ORDER BY a.number DESC LIMIT 1), 0)"
        )
        db.execute(f"UPDATE cells SET {name} = {told} WHERE {name} <> {told}")  # noqa: S608 - literals
    _ends(db, evidence)
    query = (
        "SELECT c.id, c.grid_id, c.status, coalesce((SELECT new_status FROM events AS e WHERE e.cell_id = c.id"
        " AND new_status IS NOT NULL ORDER BY e.id DESC LIMIT 1), 'pending') AS told"
        " FROM cells AS c WHERE c.status <> told AND c.id > ?"
    )
    for number, grid, status, told in _pages(db, query):
        gate.event(db, now=now, kind=REPAIRED, grid_id=grid, cell_id=number, old=Status(told), new=Status(status))


def _pages(db: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    """Rows by id, read a page at a time, so that they may be changed meanwhile."""
    after = 0
    while rows := db.execute(f"{query} ORDER BY 1 LIMIT {_PAGE}", (after,)).fetchall():
        yield from rows
        after = rows[-1][0]


def _number(db: sqlite3.Connection, now: float, cell: int, generation: int, told: int, status: str) -> None:
    """The attempts of a cell's generation are numbered from 1 without a gap, as many as the cell counts."""
    rows = db.execute(
        "SELECT id, number FROM attempts WHERE cell_id = ? AND generation = ? ORDER BY number", (cell, generation)
    ).fetchall()
    numbers = [number for _, number in rows]
    if told == len(rows) and numbers == list(range(1, told + 1)):
        return
    most = len(rows) + _MOST_LOST
    last = max(numbers, default=0)
    if last > most or (numbers and numbers[0] < 1):
        for place, (attempt, _) in enumerate(rows, 1):  # upwards from 1: the numbers only become smaller
            db.execute("UPDATE attempts SET number = ? WHERE id = ?", (-place, attempt))
        db.execute("UPDATE attempts SET number = -number WHERE cell_id = ? AND generation = ?", (cell, generation))
        numbers, last = list(range(1, len(rows) + 1)), len(rows)
    count = told if last <= told <= most else last
    for number in sorted(set(range(1, count + 1)) - set(numbers)):
        _placeholder(db, now, cell, generation, number, status if number == count else "")
    db.execute("UPDATE cells SET attempts = ? WHERE id = ?", (count, cell))


def _placeholder(db: sqlite3.Connection, now: float, cell: int, generation: int, number: int, status: str) -> None:
    """A lost attempt. Of the last one of a cell that has ended, the cell itself still tells how it ended."""
    values: dict[str, Any] = {"outcome": str(Outcome.LOST), "ended_at": now, **_LOST}
    if status in map(str, LED_TO):
        names = (*_SHARED, "transcript_sha256", "turns", "output_tokens", "finished_at")
        row = db.execute(f"SELECT {', '.join(names)} FROM cells WHERE id = ?", (cell,)).fetchone()  # noqa: S608
        values = dict(zip(names, row, strict=True))
        values["ended_at"] = values.pop("finished_at") or now
        values["outcome"] = str(_outcome(status, values["reason_code"]))
    columns = ("cell_id", "generation", "number", "boot_id", "daemon", "claimed_at", *values)
    db.execute(
        f"INSERT INTO attempts ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",  # noqa: S608 - literals
        (cell, generation, number, "", "", values["ended_at"], *values.values()),
    )


def _outcome(status: str, reason_code: str) -> Outcome:
    if status == str(Status.DONE):
        return Outcome.COMPLETED
    return Outcome.FAILED if status == str(Status.FAILED) else _OF_REASON.get(reason_code, Outcome.OVER_CAP)


def _ends(db: sqlite3.Connection, evidence: Evidence) -> None:
    """A cell that has ended tells of it as its last attempt does. Where the hashes differ, that counts which something
    on disk has; where the outcome is another, the cell is pending."""
    query = (
        "SELECT c.id, g.name, c.key, c.status, a.id, a.outcome, c.transcript_sha256, a.transcript_sha256, a.ended_at"
        " FROM cells AS c JOIN grids AS g ON g.id = c.grid_id LEFT JOIN attempts AS a"
        " ON a.cell_id = c.id AND a.generation = c.generation AND a.number = c.attempts"
        " WHERE c.status IN ('done', 'failed', 'quarantined') AND (a.id IS NULL OR c.end_reason IS NOT a.end_reason"
        " OR c.transcript_sha256 IS NOT a.transcript_sha256 OR c.reason_code <> a.reason_code OR c.reason <> a.reason"
        " OR c.finished_at IS NOT a.ended_at OR c.status <> CASE a.outcome WHEN 'completed' THEN 'done'"
        " WHEN 'failed' THEN 'failed' WHEN 'timed_out' THEN 'failed' ELSE 'quarantined' END) AND c.id > ?"
    )
    for number, grid, key, status, attempt, outcome, own, told, ended_at in _pages(db, query):
        if outcome not in LED_TO[Status(status)]:
            db.execute(
                "UPDATE cells SET status = 'pending', end_reason = NULL, transcript_sha256 = NULL, finished_at = NULL"
                " WHERE id = ?",
                (number,),
            )
            continue
        sha = own if own != told and own in evidence(grid, key) else told
        db.execute("UPDATE attempts SET transcript_sha256 = ? WHERE id = ?", (sha, attempt))
        db.execute(
            "UPDATE cells SET (end_reason, reason_code, reason) = (SELECT end_reason, reason_code, reason FROM attempts"
            " WHERE id = ?), transcript_sha256 = ?, finished_at = ? WHERE id = ?",
            (attempt, sha, ended_at, number),
        )

"""The queue by itself: pages, references, counters, specifications, attempts, and each cell's history.

Reads with plain SQL past the code that wrote it. Streams: a million cells need no more memory than one.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from overnight.grid.keys import LONGEST_KEY, NAME
from overnight.queue import audit, specs
from overnight.queue.states import AFTER, MEMORY, USES_A_TRY, Status, allowed
from overnight.repair.finding import REPAIR, Finding, shortened

REPAIRED_ALL = "queue_repaired"
"""An event: rows were lost before it, so the history up to it may have gaps."""
REPAIRED = "repaired"
"""An event: a repair put this cell where it is, whatever the history says."""

KEY = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{LONGEST_KEY - 1}}}")
GRID = re.compile(NAME)
_AFRESH = ("reset", "replaced")
_MOST = 20
"""Findings of one kind that are told one by one."""

LED_TO = {
    status: {str(outcome) for outcome, leads in AFTER.items() if leads is status}
    for status in (Status.DONE, Status.QUARANTINED)
}
LED_TO[Status.QUARANTINED] |= set(map(str, MEMORY))
LED_TO[Status.FAILED] = set(map(str, USES_A_TRY))


def check(db: sqlite3.Connection) -> Iterator[Finding]:
    """Everything that can be said of a queue without its results. One consistent view: one read transaction.

    Where the pages themselves are damaged nothing is said of the rows."""
    db.execute("BEGIN")
    try:
        broken = False
        for found in _guarded(db, _pages):
            broken = True
            yield found
        if not broken:
            for step in (_readable, _rows, _counters, _texts, _names, _specifications, _attempts, _outcomes, _history):
                yield from _capped(_guarded(db, step))
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _guarded(db: sqlite3.Connection, step: Callable[[sqlite3.Connection], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from step(db)
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        yield _queue("queue.db", f"cannot be read through ({error})")


def _capped(findings: Iterator[Finding]) -> Iterator[Finding]:
    more = 0
    for number, found in enumerate(findings):
        if number < _MOST:
            yield found
        else:
            more += 1
    if more:
        yield _queue("queue.db", f"{more} more of the same kind")


def _queue(where: str, what: str) -> Finding:
    return Finding("queue", where, shortened(what), REPAIR)


def _pages(db: sqlite3.Connection) -> Iterator[Finding]:
    for what in (*audit.of_schema(db), *audit.of_pages(db)):
        yield _queue("queue.db", what)


def _readable(db: sqlite3.Connection) -> Iterator[Finding]:
    """Every value of every row: SQLite takes text that is no UTF-8 for text, and even for JSON."""
    for table in ("grids", "warms", "specs", "cells", "attempts", "events", "peaks"):
        if db.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone():
            try:
                for _ in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 - literals
                    pass
            except sqlite3.OperationalError as error:
                yield _queue(f"queue.db, {table}", str(error))


def _rows(db: sqlite3.Connection) -> Iterator[Finding]:
    for what in audit.of_rows(db):
        yield _queue("queue.db, rows", what)


def _counters(db: sqlite3.Connection) -> Iterator[Finding]:
    kept = set(db.execute("SELECT grid_id, status FROM grid_counts"))
    for (grid,) in db.execute("SELECT id FROM grids"):
        if missing := [str(status) for status in Status if (grid, str(status)) not in kept]:
            yield _queue(f"queue.db, grid #{grid}", f"has no counter for {', '.join(missing)}")


def _texts(db: sqlite3.Connection) -> Iterator[Finding]:
    """What is stored as JSON is an object."""
    for table, column in (("cells", "coords"), ("grids", "spec"), ("grids", "policy"), ("warms", "json"),
                          ("attempts", "evidence"), ("events", "detail")):  # fmt: skip
        query = (
            f"SELECT id FROM {table} WHERE CASE WHEN json_valid({column})"  # noqa: S608 - literals
            f" THEN json_type({column}) <> 'object' ELSE 1 END"
        )
        for (number,) in db.execute(query):
            yield _queue(f"queue.db, {table} #{number}", f"its {column} is no JSON object")


def _names(db: sqlite3.Connection) -> Iterator[Finding]:
    """Names of grids and keys of cells are names of folders, and cannot leave theirs."""
    for table, column, wanted in (("grids", "name", GRID), ("cells", "key", KEY)):
        for number, name in db.execute(f"SELECT id, {column} FROM {table}"):  # noqa: S608 - literals
            if not wanted.fullmatch(name):
                yield _queue(f"queue.db, {table} #{number}", f"{name[:80]!r} is no name that was given to one")


def _specifications(db: sqlite3.Connection) -> Iterator[Finding]:
    """What a warm server loads follows from the specification."""
    for number, text, *loaded in db.execute(
        "SELECT s.id, s.json, w.key, w.json, s.threads FROM specs AS s JOIN warms AS w ON w.id = s.warm_id"
    ):
        again = specs.stored(json.loads(text))
        if [again.warm_key, again.warm_json, again.threads] != loaded:
            yield _queue(f"queue.db, specification #{number}", "what its warm server loads does not follow from it")


def repaired_at(db: sqlite3.Connection) -> int:
    """Up to which event the history may have gaps, 0 = nowhere."""
    query = "SELECT coalesce(max(id), 0) FROM events WHERE cell_id IS NULL AND kind = ?"
    return int(db.execute(query, (REPAIRED_ALL,)).fetchone()[0])


def _attempts(db: sqlite3.Connection) -> Iterator[Finding]:
    for query, what in (
        ("SELECT id FROM cells WHERE cancel_requested = 1 AND status <> 'running'", "idle, and to be cancelled"),
        (
            "SELECT c.id FROM attempts AS a JOIN cells AS c ON c.id = a.cell_id"
            " AND a.generation = c.generation WHERE a.number > c.attempts",
            "it has an attempt beyond its last",
        ),
    ):
        for (number,) in db.execute(query):
            yield _queue(f"queue.db, cell #{number}", what)


def _outcomes(db: sqlite3.Connection) -> Iterator[Finding]:
    """A cell's status follows from how its last attempt ended."""
    for number, status, outcome in db.execute(
        "SELECT c.id, c.status, a.outcome FROM cells AS c JOIN attempts AS a"
        " ON a.cell_id = c.id AND a.generation = c.generation AND a.number = c.attempts"
        " WHERE c.status IN ('done', 'failed', 'quarantined')"
    ):
        if outcome not in LED_TO[Status(status)]:
            yield _queue(f"queue.db, cell #{number}", f"it is {status}, but its last attempt ended {outcome}")


def _history(db: sqlite3.Connection) -> Iterator[Finding]:
    """The events of each cell lead from pending to where it is, by allowed steps alone."""
    since = repaired_at(db)
    events = db.execute(
        "SELECT cell_id, id, kind, old_status, new_status FROM events"
        " WHERE cell_id IS NOT NULL AND new_status IS NOT NULL ORDER BY cell_id, id"
    )
    ahead: tuple[Any, ...] | None = events.fetchone()
    for (number,) in db.execute("SELECT id FROM cells ORDER BY id"):
        at, told = "pending", False
        while ahead is not None and ahead[0] <= number:
            cell, event, kind, old, new = ahead
            ahead = events.fetchone()
            if cell != number:
                continue
            wrong = kind != REPAIRED and event > since and (old != at or not _step(old, new, kind))
            if wrong and not told:
                told = True
                yield _queue(
                    f"queue.db, cell #{number}", f"event {event} takes it from {old} to {new}, and it was {at}"
                )
            at = new


def _step(old: str, new: str, kind: str) -> bool:
    return allowed(Status(old), Status(new), afresh=kind in _AFRESH)

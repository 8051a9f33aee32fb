"""Does the queue contradict itself? SQLite has no checksum over its pages, so a bit that flips inside a value is seen
only where the same thing is written down twice: indexes, counters, hashes, the last event and attempt of each cell.

What stands in one place alone (a time, the detail of an event, the policy of a grid) cannot be told from what was
written; see docs/guarantees.md for how much that is.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

from overnight.queue.migrate import scripts
from overnight.queue.states import Status

_MOST = 20
"""Contradictions of one kind that are told: a damaged page gives hundreds."""

_STATUSES = ", ".join(f"'{status}'" for status in Status)

_CONTRADICTIONS = (
    (
        "grid {} counts a status that there is not",
        f"SELECT grid_id FROM grid_counts WHERE status NOT IN ({_STATUSES})",  # noqa: S608 - our own constants
    ),
    (
        "grid {} counts other cells or times than it has",
        "SELECT grid_id FROM (SELECT grid_id, status, n, run_ms FROM grid_counts WHERE n <> 0 OR run_ms <> 0 UNION ALL"
        " SELECT grid_id, status, count(*), sum(run_ms) FROM cells GROUP BY grid_id, status)"
        " GROUP BY grid_id, status, n, run_ms HAVING count(*) <> 2 OR grid_id IS NULL",
    ),
    (
        "cell {} is in another status than its last event says",
        "SELECT c.id FROM cells AS c LEFT JOIN events AS e ON e.id ="
        " (SELECT max(id) FROM events WHERE cell_id = c.id AND new_status IS NOT NULL)"
        " WHERE c.status <> coalesce(e.new_status, 'pending')",
    ),
    (
        "cell {} does not have the attempts that it counts",
        "SELECT c.id FROM cells AS c WHERE c.attempts <>"
        " (SELECT count(*) FROM attempts AS a WHERE a.cell_id = c.id AND a.generation = c.generation)",
    ),
    (
        "cell {} and its open attempt contradict each other",
        "SELECT c.id FROM cells AS c WHERE (c.status = 'running') <>"
        " EXISTS (SELECT 1 FROM attempts AS a WHERE a.cell_id = c.id AND a.outcome IS NULL)",
    ),
    (
        "cell {} has other turns or tokens than its attempts",
        "SELECT c.id FROM cells AS c WHERE c.turns <> coalesce((SELECT a.turns FROM attempts AS a WHERE"
        " a.cell_id = c.id AND a.generation = c.generation AND a.turns IS NOT NULL ORDER BY a.number DESC LIMIT 1), 0)"
        " OR c.output_tokens <> coalesce((SELECT a.output_tokens FROM attempts AS a WHERE a.cell_id = c.id AND"
        " a.generation = c.generation AND a.output_tokens IS NOT NULL ORDER BY a.number DESC LIMIT 1), 0)",
    ),
    (
        "cell {} tells of its end otherwise than its last attempt",
        "SELECT c.id FROM cells AS c JOIN attempts AS a"
        " ON a.cell_id = c.id AND a.generation = c.generation AND a.number = c.attempts"
        " WHERE c.status IN ('done', 'failed', 'quarantined') AND (c.end_reason IS NOT a.end_reason"
        " OR c.transcript_sha256 IS NOT a.transcript_sha256 OR c.reason_code <> a.reason_code OR c.reason <> a.reason"
        " OR c.finished_at IS NOT a.ended_at)",
    ),
    (
        "cell {} has another warm server than its specification",
        "SELECT c.id FROM cells AS c JOIN specs AS s ON s.id = c.spec_id WHERE s.warm_id <> c.warm_id",
    ),
    ("a value of table {} refers to nothing", 'SELECT DISTINCT "table" FROM pragma_foreign_key_check'),
)


def contradictions(db: sqlite3.Connection) -> Iterator[str]:
    """One sentence each; nothing for a sound queue. Reads all of it. Raises sqlite3.Error where it cannot be read."""
    yield from of_schema(db)
    yield from of_pages(db)
    yield from of_rows(db)


def of_schema(db: sqlite3.Connection) -> Iterator[str]:
    """Tables, indexes and triggers that are not as the migrations made them: SQLite meets a damaged trigger only when
    it has to run it."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    query = "SELECT type, name, CAST(sql AS BLOB) FROM sqlite_schema"
    there = {tuple(row) for row in db.execute(query)}
    made = sqlite3.connect(":memory:")
    try:
        for number, script in scripts().items():
            if number <= version:
                made.executescript(script)
        missing = [name for kind, name, sql in made.execute(query) if (kind, name, sql) not in there]
    finally:
        made.close()
    yield from (f"{name} is not defined as it was made" for name in sorted(missing))


def of_pages(db: sqlite3.Connection) -> Iterator[str]:
    """What SQLite itself finds in pages, indexes and constraints."""
    for (said,) in db.execute(f"PRAGMA integrity_check({_MOST})"):
        if said != "ok":
            yield " ".join(said.split())


def of_rows(db: sqlite3.Connection) -> Iterator[str]:
    """What is written down twice, and not alike."""
    yield from _hashes(db)
    for sentence, query in _CONTRADICTIONS:
        for (what,) in db.execute(f"SELECT * FROM ({query}) LIMIT {_MOST}"):  # noqa: S608 - our own constants
            yield sentence.format(what)


def _hashes(db: sqlite3.Connection) -> Iterator[str]:
    """The key of a warm server is the beginning of the hash of what it loads, and nothing when it loads nothing."""
    for number, known, text in db.execute("SELECT id, hash, json FROM specs"):
        if _sha256(text) != known:
            yield f"specification {number} does not have its hash"
    for number, known, text in db.execute("SELECT id, key, json FROM warms"):
        if known != ("" if text == "{}" else _sha256(text)[:16]):
            yield f"warm specification {number} does not have its hash"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

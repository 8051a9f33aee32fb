"""What must hold of a queue's file at any moment, whoever was killed when. Read past the code under test."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from pathlib import Path

from overnight.queue import audit


def assert_sound(path: Path, *, whole: bool = True) -> None:
    """whole: also SQLite's own check of every page."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        db.execute("BEGIN")
        if whole:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert list(audit.contradictions(db)) == []
        _assert_counts(db)
        _assert_one_open_attempt(db)
        _assert_events(db)
    finally:
        db.close()


def _assert_counts(db: sqlite3.Connection) -> None:
    kept = db.execute("SELECT grid_id, status, n, run_ms FROM grid_counts WHERE n > 0 OR run_ms > 0").fetchall()
    real = db.execute("SELECT grid_id, status, count(*), sum(run_ms) FROM cells GROUP BY 1, 2").fetchall()
    assert sorted(kept) == sorted(real)


def _assert_one_open_attempt(db: sqlite3.Connection) -> None:
    running = [cell for (cell,) in db.execute("SELECT id FROM cells WHERE status = 'running' ORDER BY id")]
    begun = [cell for (cell,) in db.execute("SELECT cell_id FROM attempts WHERE outcome IS NULL ORDER BY cell_id")]
    assert running == begun
    assert not db.execute("SELECT 1 FROM cells WHERE status <> 'running' AND cancel_requested = 1").fetchall()
    wrong = db.execute(
        "SELECT c.id FROM cells AS c WHERE c.attempts <>"
        " (SELECT count(*) FROM attempts AS a WHERE a.cell_id = c.id AND a.generation = c.generation)"
    ).fetchall()
    assert wrong == []


def _assert_events(db: sqlite3.Connection) -> None:
    """The events of each cell lead from pending to where it is, without a gap."""
    at: dict[int, str] = defaultdict(lambda: "pending")
    rows = db.execute("SELECT cell_id, old_status, new_status FROM events WHERE new_status IS NOT NULL ORDER BY id")
    for cell, old, new in rows:
        assert at[cell] == old, f"cell {cell}: an event says {old}, the one before said {at[cell]}"
        at[cell] = new
    for cell, status in db.execute("SELECT id, status FROM cells"):
        assert at[cell] == status, f"cell {cell} is {status}, its last event says {at[cell]}"


def fingerprints(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder. Only while this process has none of them open as a database: closing a
    descriptor would drop SQLite's locks."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}

"""A queue that an older program left opens in this one, with everything that was in it.

Of every schema before the present one there is a database, `tests/data/queue_version_N.sql`: whoever adds a migration
adds the one of the version before it, with cells in every status and attempts of every outcome (`.dump` of a queue that
was used, and its two PRAGMAs).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from helpers import queue_worker
from helpers.queue_cells import Clock, planned, take
from helpers.queue_checks import assert_sound, fingerprints
from overnight.errors import QueueError
from overnight.queue import migrate
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Peak, Queue, QueueUnavailable

DATA = Path(__file__).parents[1] / "data"
VERSIONS = range(1, migrate.LATEST)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def path(tmp_path: Path, version: int) -> Path:
    """The old queue, in a write-ahead log's file as the old program left it."""
    found = tmp_path / "queue.db"
    db = sqlite3.connect(found)
    db.executescript((DATA / f"queue_version_{version}.sql").read_text("utf-8"))
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    return found


def everything(path: Path) -> dict[str, list[dict[str, Any]]]:
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    rows = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in tables}
    db.close()
    return rows


def schema(path: Path) -> dict[str, Any]:
    """Columns, indexes and triggers as SQLite sees them: their text differs after ALTER TABLE."""
    db = sqlite3.connect(path)
    rows = db.execute("SELECT type, name, tbl_name FROM sqlite_schema").fetchall()
    columns = {
        name: sorted(column[1:] for column in db.execute(f"PRAGMA table_info({name})"))
        for kind, name, _ in rows
        if kind == "table"
    }
    db.close()
    return {"objects": sorted(rows), "columns": columns}


def defaults(path: Path, table: str) -> dict[str, Any]:
    """What a column has where nobody gave it a value."""
    db = sqlite3.connect(path)
    columns = db.execute(f"PRAGMA table_info({table})").fetchall()
    found = {name: db.execute(f"SELECT {value or 'NULL'}").fetchone()[0] for _, name, _, _, value, _ in columns}
    db.close()
    return found


def test_there_is_an_old_database_of_every_version() -> None:
    """And each is what it says, and has a bit of everything in it."""
    files = {path.name for path in DATA.glob("queue_version_*.sql")}
    assert files == {f"queue_version_{version}.sql" for version in VERSIONS}
    assert list(migrate.scripts()) == [*VERSIONS, migrate.LATEST]
    for version in VERSIONS:
        db = sqlite3.connect(":memory:")
        db.executescript((DATA / f"queue_version_{version}.sql").read_text("utf-8"))
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert db.execute("PRAGMA application_id").fetchone() == (migrate.APPLICATION_ID,)
        assert {Status(status) for (status,) in db.execute("SELECT DISTINCT status FROM cells")} == set(Status)
        outcomes = db.execute("SELECT DISTINCT outcome FROM attempts WHERE outcome IS NOT NULL")
        assert {Outcome(outcome) for (outcome,) in outcomes} == set(Outcome)
        db.close()


def test_an_old_queue_keeps_all_that_is_in_it(path: Path, version: int) -> None:
    """New columns have their defaults, new tables are empty."""
    before = everything(path)
    with Queue.open(path, check=True, clock=Clock()) as queue:
        assert {row.status for row in queue.cells()} == set(Status)
        assert {attempt.outcome for row in queue.cells() for attempt in queue.attempts(row.id)} == {*Outcome, None}
    assert_sound(path)
    after = everything(path)
    assert [row["version"] for row in after.pop("migrations")] == list(migrate.scripts())
    del before["migrations"]
    for table, rows in after.items():
        old = before.get(table, [])
        assert rows == [{**defaults(path, table), **row} for row in old], table


def test_an_old_queue_becomes_what_a_new_one_is(path: Path, tmp_path: Path) -> None:
    Queue.open(path).close()
    Queue.open(tmp_path / "new.db").close()
    assert schema(path) == schema(tmp_path / "new.db")


def test_any_old_queue_can_be_used(path: Path) -> None:
    with Queue.open(path, clock=Clock(1_800_000_000.0)) as queue:
        running = [row.id for row in queue.cells(status=Status.RUNNING)]
        assert queue.recover() == running
        counts = queue.counts()
        waiting = counts[Status.PENDING]
        for _ in range(waiting):
            queue.finish(take(queue).attempt_id, Outcome.COMPLETED, learn=Peak("kind", "family", 9, True))
        assert queue.counts()[Status.DONE] == counts[Status.DONE] + waiting
        assert queue.peaks("kind")
        for grid in queue.grids():
            assert queue.reset(grid.name) > 0
        assert queue.counts()[Status.PENDING] == sum(counts.values())
    assert_sound(path)


@pytest.mark.parametrize("version", [1])
def test_work_goes_on_in_an_old_queue(path: Path) -> None:
    with Queue.open(path, clock=Clock(1_700_001_000.0)) as queue:
        assert queue.recover() == [8, 12]
        assert queue.cell(8).status is Status.CANCELLED  # as was asked for while it ran
        ready = queue.next_ready_many(64)
        assert [one.cell_id for one in ready] == [2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16]
        claimed = take(queue, cell_id=5, claim_bytes=10, claim_source="prior", cap_bytes=10)
        assert (claimed.attempt_number, claimed.cell.turns, claimed.policy) == (2, 2, {"tries": 3})
        peak = Peak("kind", "family", 9, True)
        assert queue.finish(claimed.attempt_id, Outcome.COMPLETED, turns=3, peak_bytes=9, learn=peak) is Status.DONE
        assert [attempt.peak_bytes for attempt in queue.attempts(5)] == [None, 9]
        assert queue.retry([9, 10]) == 2
        assert queue.enqueue("day", cells=planned(4, model="360m", first=2), spec={}, policy={}).added == 2
        assert queue.reset("night") > 0
    assert_sound(path)


def test_a_migration_that_breaks_off_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error in its last statement, or since somebody else holds the lock; then it goes through."""
    before = everything(path)
    scripts = migrate.scripts()
    last = migrate.LATEST
    broken = {**scripts, last: scripts[last] + "INSERT INTO peaks SELECT * FROM no_such_table;\n"}
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "scripts", lambda: broken)
        with pytest.raises(QueueError, match=r"no such table.*restore a backup"):
            Queue.open(path)
    assert everything(path) == before
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(QueueUnavailable, match="locked"):
        Queue.open(path, busy_timeout_s=0)
    other.execute("ROLLBACK")
    other.close()
    assert everything(path) == before
    Queue.open(path).close()
    assert_sound(path)


def test_several_processes_migrate_at_once(path: Path) -> None:
    workers = [queue_worker.start("open", path) for _ in range(3)]
    assert [worker.communicate(timeout=60)[0] for worker in workers] == ["open\n"] * 3
    assert_sound(path)
    assert [row["version"] for row in everything(path)["migrations"]] == list(migrate.scripts())


def test_a_damaged_old_queue_is_refused_before_it_is_changed(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("DROP TABLE events")
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()
    before = fingerprints(path.parent)
    with pytest.raises(QueueError, match=r"damaged \(without its tables events\)"):
        Queue.open(path)
    assert fingerprints(path.parent) == before

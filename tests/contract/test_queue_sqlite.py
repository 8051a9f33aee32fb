"""What is the queue's on disk alone: its settings, its one gate, what a hand in the database can do to it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import overnight.queue
from helpers.queue_cells import Clock, planned, run_one, submit, take, template
from helpers.queue_checks import assert_sound
from overnight.errors import QueueError
from overnight.queue import gate, migrate
from overnight.queue.states import Outcome, Status
from overnight.queue.store import CellRow, Queue


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[Queue]:
    """Sound at the end of every test, too."""
    with Queue.open(tmp_path / "queue.db", clock=clock) as found:
        yield found
    assert_sound(tmp_path / "queue.db")


def statuses(queue: Queue) -> list[Status]:
    return [row.status for row in queue.cells()]


def test_it_survives_a_power_cut_by_its_settings(queue: Queue) -> None:
    with queue._db.read() as db:
        read = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "journal_size_limit", "wal_autocheckpoint")
        }
    assert read == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "journal_size_limit": 8 << 20,
        "wal_autocheckpoint": 1000,
    }


def test_the_file_is_private(queue: Queue, tmp_path: Path) -> None:
    submit(queue)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_migrations_are_recorded_once(tmp_path: Path, queue: Queue, clock: Clock) -> None:
    Queue.open(tmp_path / "queue.db", clock=clock).close()
    with queue._db.read() as db:
        assert db.execute("SELECT version, applied_at FROM migrations").fetchall() == [
            (number, clock.now) for number in migrate.scripts()
        ]


def test_only_the_gate_writes_a_status() -> None:
    """Invariant 4 of the design, by looking at the source."""
    folder = Path(overnight.queue.__file__).parent
    writers = {
        file.name: re.findall(r"(?i)\bupdate\s+cells\b", file.read_text("utf-8")) for file in folder.glob("*.py")
    }
    assert [name for name, found in writers.items() if found] == ["gate.py"]
    assert len(writers["gate.py"]) == 1


def test_the_gate_refuses_a_cell_that_is_elsewhere_by_now(queue: Queue) -> None:
    submit(queue)
    before = queue.cell(1)
    run_one(queue)
    with pytest.raises(QueueError, match="night/baseline_135m_run1 is not pending any more"), queue._db.write() as db:
        gate.move(db, before, Status.CANCELLED, now=0, kind="cancelled", columns={})
    with pytest.raises(QueueError, match="is done: it cannot become running"), queue._db.write() as db:
        gate.move(db, queue_cell(db), Status.RUNNING, now=0, kind="claimed", columns={})
    assert [event.kind for event in queue.events(1)] == ["claimed", "finished"]


def queue_cell(db: sqlite3.Connection) -> CellRow:
    found = gate.cell(db, 1)
    assert found is not None
    return found


def test_a_template_is_stored_once(queue: Queue) -> None:
    submit(queue, count=50)
    queue.enqueue("day", cells=planned(50, shared=template()), spec={}, policy={})
    with queue._db.read() as db:
        assert db.execute("SELECT count(*) FROM specs").fetchone() == (1,)


def test_recover_takes_back_a_running_cell_without_an_attempt(queue: Queue) -> None:
    """Which only a hand in the database can make."""
    submit(queue)
    claimed = take(queue)
    with queue._db.write() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute("UPDATE events SET attempt_id = NULL")
        db.execute("DELETE FROM attempts")
    assert queue.recover() == [claimed.cell.id]
    assert statuses(queue) == [Status.PENDING] * 3
    with queue._db.write() as db:  # for the check at the end
        db.execute("UPDATE cells SET attempts = 0")


def test_reset_passes_over_what_another_process_took_meanwhile(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches somebody retries a cell and the dispatcher claims it: it is not this reset's any more."""
    submit(queue, count=2)
    run_one(queue, Outcome.CORRUPT)
    run_one(queue, Outcome.COMPLETED)
    found = queue._ids

    def ids(grid: int, wanted: Iterable[Status]) -> Iterator[int]:
        chosen = list(found(grid, wanted))
        with Queue.open(tmp_path / "queue.db") as other:
            other.retry([1])
            assert take(other).cell.id == 1
        yield from chosen

    monkeypatch.setattr(queue, "_ids", ids)
    assert queue.reset("night") == 1
    assert statuses(queue) == [Status.RUNNING, Status.PENDING]

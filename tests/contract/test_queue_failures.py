"""Not now: a full disk, an I/O error, a lock, a read-only file. One line, nothing lost, and it goes on afterwards."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.queue_cells import planned, run_one, submit, take
from helpers.queue_checks import assert_sound
from overnight.errors import QueueError
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Queue, QueueUnavailable


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with Queue.open(tmp_path / "queue.db", busy_timeout_s=0.0) as found:
        submit(found, count=20)
        yield found
    assert_sound(tmp_path / "queue.db")


@contextmanager
def unavailable(said: str) -> Iterator[None]:
    with pytest.raises(QueueUnavailable) as caught:
        yield
    assert said in str(caught.value)
    assert "try again" in str(caught.value)
    assert "queue.db: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_database(queue: Queue) -> None:
    with queue._db.read() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
    claimed = take(queue)
    with unavailable("database or disk is full"):
        queue.finish(claimed.attempt_id, Outcome.COMPLETED, reason="x" * 50_000)
    with unavailable("database or disk is full"):
        submit(queue, "day", 2000)
    assert [grid.name for grid in queue.grids()] == ["night"]
    assert queue.cell(claimed.cell.id).status is Status.RUNNING
    db.execute("PRAGMA max_page_count = 1000000")
    assert queue.finish(claimed.attempt_id, Outcome.COMPLETED, reason="x" * 50_000) is Status.DONE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "overnight-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk(small_disk: Path) -> None:
    """A real one. Whatever was committed is there, whatever was not may be tried again."""
    path, ballast = small_disk / "queue.db", small_disk / "ballast"
    with Queue.open(path) as queue:
        submit(queue, count=50)
        claimed = take(queue)
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        done = 0
        with unavailable("full"):
            while True:
                queue.finish(claimed.attempt_id, Outcome.COMPLETED, reason="r" * 900)
                done += 1
                claimed = take(queue)
        counts = queue.counts()
        assert counts[Status.DONE] == done
        ballast.unlink()
        assert queue.counts() == counts
        queue.recover()
        while queue.next_ready() is not None:
            run_one(queue)
        assert queue.counts()[Status.DONE] == 50
    assert_sound(path)


@pytest.mark.root
def test_no_room_for_a_new_queue(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    path = small_disk / "queue.db"
    with unavailable("full"):
        Queue.open(path)
    (small_disk / "ballast").unlink()
    with Queue.open(path) as queue:
        submit(queue)
    assert_sound(path)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A write beyond fails with EFBIG, which SQLite takes for an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_io_error_throws_the_connection_away(queue: Queue, tmp_path: Path) -> None:
    claimed = take(queue)
    before = queue._db._connection
    log = tmp_path / "queue.db-wal"
    with files_no_larger_than(log.stat().st_size + 5000), unavailable("disk I/O error"):
        queue.finish(claimed.attempt_id, Outcome.COMPLETED, reason="x" * 50_000)
    assert queue.cell(claimed.cell.id).status is Status.RUNNING
    assert queue._db._connection is not before
    assert queue.changed()
    assert queue.finish(claimed.attempt_id, Outcome.COMPLETED) is Status.DONE


def test_locked_by_somebody_else(queue: Queue, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with unavailable("database is locked"):
        take(queue)
    assert queue.next_ready() is not None  # reading goes on
    assert queue.counts()[Status.PENDING] == 20
    other.execute("ROLLBACK")
    other.close()
    assert take(queue).cell.id == 1


def test_a_reader_blocks_nobody(queue: Queue, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM cells WHERE status = 'pending'").fetchone() == (20,)
    run_one(queue)
    assert other.execute("SELECT count(*) FROM cells WHERE status = 'pending'").fetchone() == (20,)
    other.close()


def test_read_only(queue: Queue) -> None:
    with queue._db.read() as db:
        db.execute("PRAGMA query_only = ON")
    with unavailable("attempt to write a readonly database"):
        take(queue)
    db.execute("PRAGMA query_only = OFF")
    assert take(queue).cell.id == 1


def test_moved_away_while_in_use(queue: Queue, tmp_path: Path) -> None:
    """SQLite would go on writing to a file that has no name any more."""
    path, elsewhere = tmp_path / "queue.db", tmp_path / "elsewhere.db"
    path.rename(elsewhere)
    with pytest.raises(QueueError, match="moved or replaced while it was in use"):
        take(queue)
    path.write_bytes(b"something else")
    with pytest.raises(QueueError, match="moved or replaced while it was in use"):
        queue.cancel([1])
    elsewhere.rename(path)
    assert take(queue).cell.id == 1


def test_an_error_of_the_caller_rolls_back(queue: Queue) -> None:
    def aside(keys: object) -> None:
        raise OSError("cannot be moved")

    run_one(queue)
    with pytest.raises(OSError, match="cannot be moved"):
        queue.reset("night", aside=aside)
    assert queue.cell(1).status is Status.DONE
    with pytest.raises(OSError, match="cannot be moved"):
        queue.enqueue("night", cells=planned(1, seed=1), spec={}, policy={}, replace=True, aside=aside)
    assert queue.cell(1).generation == 0


def test_a_bug_is_not_dressed_up_as_the_users_mistake(queue: Queue) -> None:
    with pytest.raises(sqlite3.IntegrityError), queue._db.write() as db:
        db.execute("UPDATE cells SET status = 'happy' WHERE id = 1")
    assert queue.cell(1).status is Status.PENDING

"""Files that are no queue, or no whole one: refused in one line that says what to do, with no byte changed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.queue_cells import submit, used_queue
from helpers.queue_checks import assert_sound, fingerprints
from overnight.errors import QueueError
from overnight.queue import probe
from overnight.queue.migrate import APPLICATION_ID, LATEST
from overnight.queue.states import Status
from overnight.queue.store import Queue


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a used and closed queue."""
    path = tmp_path_factory.mktemp("whole") / "queue.db"
    used_queue(path)
    assert not path.with_name("queue.db-wal").exists()
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def refused(path: Path, *, check: bool = False, create: bool = True, says: Path | None = None) -> str:
    """Open what cannot be opened; the line, after a look that nothing changed and nothing appeared."""
    before = fingerprints(path.parent)
    with pytest.raises(QueueError) as caught:
        Queue.open(path, check=check, create=create)
    line = str(caught.value)
    assert fingerprints(path.parent) == before
    assert str(says or path) in line
    assert "\n" not in line
    assert caught.value.exit_code == 2
    return line


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"hello, this is a text file\n" * 300,
        bytes(8192),
        os.urandom(40_000),
        b"\0SQLite format 3" + bytes(5000),
        b"SQLite format 3\0",
        b"SQLite format 3\0" + os.urandom(8176),
    ],
    ids=["one byte", "text", "zeros", "random", "shifted", "magic only", "magic and noise"],
)
def test_garbage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    line = refused(path)
    assert "move it aside and restore a backup; nothing was changed" in line


@pytest.mark.parametrize("keep", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_truncated(path: Path, whole: bytes, keep: float) -> None:
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert "move it aside and restore a backup" in refused(path)


def test_a_cut_off_end(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:-1])
    assert f"cut off ({len(whole) - 1} bytes of {len(whole)} are there)" in refused(path)


def test_cut_off_by_whole_pages(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:-4096])
    assert "malformed" in refused(path)


@pytest.mark.parametrize("at", range(100))
def test_a_flipped_byte_of_the_header(path: Path, whole: bytes, at: int) -> None:
    """Refused without a change, or a byte that does not matter: then everything is there."""
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    before = path.read_bytes()
    try:
        with Queue.open(path, check=True) as queue:
            assert sum(queue.counts().values()) == 43
            assert len(queue.cells()) == 43
            assert queue.claim(boot_id="boot", daemon="d1") is not None
        assert_sound(path)
    except QueueError as error:
        assert path.read_bytes() == before
        assert str(path) in str(error)
        assert "\n" not in str(error)


def test_damage_inside_is_found_when_asked_for(path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    middle = len(whole) // 8192 * 4096
    path.write_bytes(whole[:middle] + os.urandom(4096) + whole[middle + 4096 :])
    assert "damaged" in refused(path, check=True)
    monkeypatch.setattr(probe, "CHECK_LIMIT_BYTES", len(whole) - 1)
    Queue.open(path, check=True).close()


def test_damage_that_a_later_call_meets_is_one_line_too(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    db = sqlite3.connect(path)
    roots = [root for (root,) in db.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage > 0")]
    db.close()
    spoilt = bytearray(whole)
    for root in roots:
        spoilt[(root - 1) * 4096] = 0x77  # no kind of page
    path.write_bytes(bytes(spoilt))
    with Queue.open(path) as queue:
        for call in (queue.grids, queue.counts, queue.cells, queue.next_ready, queue.recover):
            with pytest.raises(QueueError, match=r"damaged.*restore a backup") as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE cells SET coords = '{not json'",
        "UPDATE cells SET coords = CAST(x'ff00fe' AS TEXT)",
        "PRAGMA ignore_check_constraints = 1; UPDATE cells SET status = 'happy'",
        "DROP INDEX cells_pending; ALTER TABLE attempts RENAME TO tries",
    ],
)
def test_values_that_nobody_wrote(path: Path, damage: str) -> None:
    with Queue.open(path) as queue:
        submit(queue)
        other = sqlite3.connect(path)
        other.executescript(damage)
        other.close()
        with pytest.raises(QueueError, match="damaged"):
            queue.cells()
            queue.claim(boot_id="boot", daemon="d1")


@pytest.mark.parametrize(
    ("pragmas", "said"),
    [
        ({"application_id": 0}, "not a queue of Overnight (no application id)"),
        ({"application_id": 0x12345678}, "not a queue of Overnight (application id 0x12345678)"),
        (
            {"user_version": LATEST + 1},
            f"made by a newer Overnight (its schema is {LATEST + 1}, this program knows {LATEST})",
        ),
    ],
)
def test_not_ours_or_newer(path: Path, whole: bytes, pragmas: dict[str, int], said: str) -> None:
    path.write_bytes(whole)
    db = sqlite3.connect(path)
    for name, value in pragmas.items():
        db.execute(f"PRAGMA {name} = {value}")
    db.close()
    line = refused(path)
    assert said in line
    assert "nothing was changed" in line


def test_somebody_elses_database(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.commit()
    db.close()
    assert "not a queue of Overnight" in refused(path)


@pytest.mark.parametrize(
    ("version", "tables"),
    [
        (1, "attempts, events, grid_counts, grids, migrations, specs, warms"),
        (2, "attempts, events, grid_counts, grids, migrations, peaks, specs, warms"),
    ],
)
def test_a_table_is_missing(path: Path, version: int, tables: str) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE cells (a)")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    assert f"damaged (without its tables {tables})" in refused(path)


_CRASH = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA wal_autocheckpoint = 0")
db.execute(sys.argv[2])
os._exit(0)
"""


def crash_after(path: Path, sql: str) -> None:
    """Commit in a process that never closes the database: what it wrote stays in the log beside the file."""
    subprocess.run([sys.executable, "-c", _CRASH, str(path), sql], check=True)
    assert path.with_name("queue.db-wal").stat().st_size > 0


def test_newer_by_what_is_still_in_the_log(path: Path, whole: bytes) -> None:
    """The file's own header still says 1. Closing a connection that could write would move the log into the file."""
    path.write_bytes(whole)
    crash_after(path, "PRAGMA user_version = 77")
    before = fingerprints(path.parent)
    with pytest.raises(QueueError, match="its schema is 77"):
        Queue.open(path)
    after = fingerprints(path.parent)
    assert {**before, "queue.db-shm": after["queue.db-shm"]} == after  # its index, which every reader rebuilds


def test_a_damaged_log(path: Path, whole: bytes) -> None:
    """SQLite would take it for empty, and what was committed would be gone without a word."""
    path.write_bytes(whole)
    crash_after(path, "UPDATE grids SET name = 'renamed' WHERE name = 'night'")
    log = path.with_name("queue.db-wal")
    good = log.read_bytes()
    for bad in (good[:9] + bytes([good[9] ^ 1]) + good[10:], b"garbage" + good[7:], good[:20]):
        log.write_bytes(bad)
        assert "its header is not that of a write-ahead log" in refused(path, says=log)
    log.write_bytes(good)
    with Queue.open(path) as queue:
        assert [grid.name for grid in queue.grids()] == ["renamed", "day"]


@pytest.mark.parametrize("log", [b"", bytes(32), bytes(5000)], ids=["empty", "32 zeros", "many zeros"])
def test_a_log_that_holds_nothing_is_no_obstacle(path: Path, whole: bytes, log: bytes) -> None:
    path.write_bytes(whole)
    path.with_name("queue.db-wal").write_bytes(log)
    with Queue.open(path, check=True) as queue:
        assert sum(queue.counts().values()) == 43
    assert_sound(path)


def test_a_log_whose_queue_is_gone(path: Path, whole: bytes) -> None:
    """SQLite would delete it when it makes the file anew."""
    path.write_bytes(whole)
    crash_after(path, "UPDATE grids SET created_at = 1")
    path.unlink()
    assert "missing, but queue.db-wal beside it holds data" in refused(path)
    path.touch()
    assert "empty, but queue.db-wal beside it holds data" in refused(path)


def test_an_empty_file_is_a_new_queue(path: Path) -> None:
    path.touch()
    path.with_name("queue.db-wal").touch()
    with Queue.open(path) as queue:
        submit(queue)
        assert queue.counts()[Status.PENDING] == 3
    assert_sound(path)


_DIE_WHILE_MAKING = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("CREATE TABLE half_made (text)")
db.executemany("INSERT INTO half_made VALUES (?)", [("x" * 1000,)] * 500)
os._exit(0)
"""


def test_a_queue_whose_maker_died_is_made_anew(path: Path) -> None:
    subprocess.run([sys.executable, "-c", _DIE_WHILE_MAKING, str(path)], check=True)
    assert path.stat().st_size > 0
    assert path.with_name("queue.db-journal").stat().st_size > 0
    with Queue.open(path) as queue:
        submit(queue)
    assert_sound(path)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half_made'").fetchone() == (0,)
    db.close()


def test_somebody_elses_half_transaction(path: Path) -> None:
    """What was theirs stays theirs, and our tables do not get into it."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.commit()
    db.close()
    subprocess.run([sys.executable, "-c", _DIE_WHILE_MAKING, str(path)], check=True)
    with pytest.raises(QueueError, match="not a queue of Overnight"):
        Queue.open(path)
    db = sqlite3.connect(path)
    assert [name for (name,) in db.execute("SELECT name FROM sqlite_schema")] == ["theirs"]
    db.close()


def test_a_look_that_meets_another_processs_first_write_is_taken_again(
    path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(whole)
    honest, looks = probe._look, []

    def look(at: Path, *, immutable: bool, **wanted: Any) -> None:
        looks.append(immutable)
        if immutable:
            os.utime(at, ns=(1, 1))
            raise sqlite3.DatabaseError("database disk image is malformed")
        honest(at, immutable=immutable, **wanted)

    monkeypatch.setattr(probe, "_look", look)
    Queue.open(path).close()
    assert looks == [True, False]


def test_no_queue_and_none_wanted(path: Path) -> None:
    assert "there is no queue yet" in refused(path, create=False)
    assert not path.exists()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "said"),
    [(Path.mkdir, "a folder where"), (fifo, "not a regular file where"), (dangling, "a symbolic link to nothing")],
)
def test_something_else_is_at_its_place(path: Path, make: Callable[[Path], None], said: str) -> None:
    make(path)
    assert said in refused(path)


def test_its_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match=r"cannot be made \(No such file or directory\)"):
        Queue.open(tmp_path / "no" / "queue.db")


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything, so be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    path.chmod(0)
    for folder in (path.parent, *path.parent.parents):
        if folder.owner() == path.owner() and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    with nobody(), pytest.raises(QueueError, match=r"cannot be read \(permission denied\)") as caught:
        Queue.open(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == whole

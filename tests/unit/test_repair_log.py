"""The write-ahead log, read frame by frame: what counts, what a power cut left, what was damaged."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from overnight.repair import wal

PAGE = 4096


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A database whose eight last rows are in its log alone, one transaction each."""
    work = tmp_path / "work.db"
    db = sqlite3.connect(work, isolation_level=None)
    db.execute("PRAGMA page_size = 4096")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(8):
        db.execute("INSERT INTO t (text) VALUES (?)", (f"row {number}" * 400,))
    path = tmp_path / "q.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{work}{suffix}", f"{path}{suffix}")
    db.close()
    return path


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def folded(path: Path) -> list[int]:
    """Ids after the log was folded into the database by us."""
    held = wal.read(log_of(path), PAGE)
    wal.fold(log_of(path), held, path, PAGE)
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [number for (number,) in db.execute("SELECT id FROM t ORDER BY id")]
    finally:
        db.close()


def by_sqlite(path: Path) -> list[int]:
    """Ids as SQLite itself reads them, of a copy."""
    copy = path.with_name("copy.db")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    db = sqlite3.connect(copy)
    try:
        return [number for (number,) in db.execute("SELECT id FROM t ORDER BY id")]
    finally:
        db.close()
        for left in path.parent.glob("copy.db*"):
            left.unlink()


def frames(path: Path) -> int:
    return (log_of(path).stat().st_size - 32) // (24 + PAGE)


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def test_a_whole_log_says_what_sqlite_says(logged: Path) -> None:
    assert by_sqlite(logged) == list(range(1, 9))
    assert wal.read(log_of(logged), PAGE).damage == ()
    assert folded(logged) == list(range(1, 9))


def test_cut_anywhere_it_is_what_sqlite_makes_of_it(logged: Path, tmp_path: Path) -> None:
    """A power cut is no damage, and its half transaction is not brought back."""
    whole = log_of(logged).read_bytes()
    main = logged.read_bytes()
    for size in range(0, len(whole), 997):
        log_of(logged).write_bytes(whole[:size])
        logged.write_bytes(main)
        assert wal.read(log_of(logged), PAGE).damage == () or size < 32, size
        assert folded(logged) == by_sqlite(logged), size


@pytest.mark.parametrize("at", range(32))
def test_a_damaged_header_is_made_again_from_the_first_frame(logged: Path, at: int) -> None:
    flip(log_of(logged), at, 0x10)
    assert by_sqlite(logged) == []  # SQLite drops all of it
    assert wal.read(log_of(logged), PAGE).damage == ("the log's header is damaged",)
    assert folded(logged) == list(range(1, 9))


def test_transactions_behind_a_damaged_frame_are_found(logged: Path) -> None:
    third = 32 + 2 * (24 + PAGE)
    flip(log_of(logged), third + 8, 1)  # a salt: the page itself is whole
    assert len(by_sqlite(logged)) < 8
    assert folded(logged) == list(range(1, 9))


def test_a_damaged_page_is_named_and_the_rest_is_read(logged: Path) -> None:
    third = 32 + 2 * (24 + PAGE)
    flip(log_of(logged), third + 24 + 4000)
    held = wal.read(log_of(logged), PAGE)
    assert held.damage == ("frame 3 of the log is damaged, and whole transactions follow",)
    assert len(held.frames) == frames(logged)


def test_the_last_transaction_is_given_up_when_it_is_not_whole(logged: Path) -> None:
    """It may have been under way when the power went."""
    last = 32 + (frames(logged) - 1) * (24 + PAGE)
    flip(log_of(logged), last + 24 + 100)
    held = wal.read(log_of(logged), PAGE)
    assert held.damage == ()
    assert folded(logged) == by_sqlite(logged)
    assert 0 < len(held.frames) < frames(logged)


def test_a_half_transaction_is_given_up_though_its_end_is_there(tmp_path: Path) -> None:
    """A power cut may keep a transaction's last page and lose its first: nobody was told that it was done."""
    work = tmp_path / "work.db"
    db = sqlite3.connect(work, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.execute("INSERT INTO t (text) VALUES ('told')")
    db.execute("INSERT INTO t (text) VALUES (?)", ("not told" * 3000,))
    path = tmp_path / "q.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{work}{suffix}", f"{path}{suffix}")
    db.close()
    assert frames(path) > 4
    flip(log_of(path), 32 + (24 + PAGE) + 24 + 50)  # the second of its frames, the first of the last transaction
    assert wal.read(log_of(path), PAGE).damage == ()
    assert folded(path) == by_sqlite(path) == [1]


def test_frames_of_an_earlier_use_are_not_taken(logged: Path, tmp_path: Path) -> None:
    work = tmp_path / "again.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{logged}{suffix}", f"{work}{suffix}")
    db = sqlite3.connect(work, isolation_level=None)
    db.execute("PRAGMA wal_checkpoint(RESTART)")
    db.execute("INSERT INTO t (text) VALUES ('the first of the next round')")
    again = tmp_path / "next.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{work}{suffix}", f"{again}{suffix}")
    db.close()
    held = wal.read(log_of(again), PAGE)
    assert held.damage == ()
    assert len(held.frames) < frames(again)
    assert folded(again) == list(range(1, 10))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_checksum_can_be_taken_back(order: str) -> None:
    data = bytes(range(256)) * 3
    assert wal.take(data, wal.add(data, (12345, 0xFFFFFFFF), order), order) == (12345, 0xFFFFFFFF)

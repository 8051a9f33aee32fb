"""Is this file a queue that can be opened? Answered without changing one byte of it.

SQLite itself does the reading, never `open()`: closing a descriptor of the database in a process that also
holds a connection to it would drop that connection's POSIX locks. The database is opened read-only, so that
closing it does not move the write-ahead log into it, and when there is no log as `immutable`, so that no file
appears beside it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from overnight.errors import QueueError
from overnight.queue import audit
from overnight.queue.errors import MEND, on_read_only_disk, primary_code, refusal, translated
from overnight.queue.migrate import APPLICATION_ID, LATEST

CHECK_LIMIT_BYTES = 64 << 20
"""Larger files are not checked whole when they are opened, or met an error: it would take seconds."""

_TABLES = {
    1: {"attempts", "cells", "events", "grid_counts", "grids", "migrations", "specs", "warms"},
    2: {"peaks"},
}
"""What each version of the schema added."""

_WAL_MAGIC = (0x377F0682, 0x377F0683)
_WAL_HEADER_BYTES = 32
_SMALLEST_BYTES = 512
"""One page of the smallest size. SQLite would take less for an empty database, and write over it."""


def small_enough(path: Path) -> bool:
    """Can all of it be looked through while somebody waits? Raises OSError."""
    return path.stat().st_size <= CHECK_LIMIT_BYTES


def frozen(path: Path) -> bool:
    """Does nobody write this queue, since its disk is read-only and it was closed in good order? Then it can be read
    without its log, which SQLite could not make there. (With a log it can be read with that.)"""
    beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
    return on_read_only_disk(path) and not any(file.exists() for file in beside)


def grids(path: Path) -> set[str]:
    """Names of all grids; empty where there is no queue yet. Changes nothing. Raises QueueError."""
    found: set[str] = set()

    def read(connection: sqlite3.Connection) -> None:
        found.clear()
        found.update(name for (name,) in connection.execute("SELECT name FROM grids"))

    probe(path, read=read)
    return found


def probe(path: Path, *, check: bool = False, read: Callable[[sqlite3.Connection], None] | None = None) -> bool:
    """True when `path` holds a queue, False when there is nothing yet. Raises QueueError for anything else.

    check: also look through a file of at most 64 MiB for damage and contradictions (`audit`). read: is called with a
    connection to read from, again when what it read may not have been whole.
    """
    size = _size(path)
    log = path.with_name(path.name + "-wal")
    log_size = _size(log) or 0
    if not size:
        if log_size:
            found = f"{'missing' if size is None else 'empty'}, but {log.name} beside it holds data"
            raise refusal(path, found, "move that aside too, or restore a backup of both; nothing was changed")
        return False
    if size < _SMALLEST_BYTES:
        raise refusal(path, f"not an SQLite database ({size} bytes)")
    if log_size and not _whole_log(log):
        raise refusal(log, "damaged (its header is not that of a write-ahead log)", MEND)
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise refusal(path, "cannot be read (permission denied)", "make it yours and readable; nothing was changed")
    try:
        try:
            _look_settled(path, check=check, read=read)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            _roll_back(path)
            if not _size(path):
                return False
            _look_settled(path, check=check, read=read)
    except sqlite3.Error as error:
        raise _refused(path, error) from None
    except UnicodeDecodeError as error:  # Python's module meets damaged text while it complains of it
        raise refusal(path, f"damaged ({error})") from None
    return True


def _size(path: Path) -> int | None:
    """Bytes of a regular file, None when there is none. Raises QueueError for anything else at that place."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise refusal(path, "a symbolic link to nothing", "mend or remove the link; nothing was changed") from None
        return None
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror})", "see to its folder; nothing was changed") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise refusal(path, f"{kind} where the queue's file should be", "move it away; nothing was changed")
    return found.st_size


def _whole_log(log: Path) -> bool:
    """Is the log's header whole? SQLite would take a log with a broken one for empty and drop what it holds.

    All zeros are whole: a power cut can leave a file that grew without its bytes.
    """
    for _ in range(3):  # a writer may be half through its 32 bytes just now
        try:
            with log.open("rb") as file:
                header = file.read(_WAL_HEADER_BYTES)
        except OSError:
            return True  # gone or unreadable: SQLite says so better
        if not header.strip(b"\0"):
            return True
        if len(header) == _WAL_HEADER_BYTES:
            words = struct.unpack(">8I", header)
            if words[0] in _WAL_MAGIC and _checksum(header[:24], big_endian=bool(words[0] & 1)) == words[6:]:
                return True
    return False


def _checksum(data: bytes, *, big_endian: bool) -> tuple[int, int]:
    """SQLite's checksum of a write-ahead log (sqlite.org/fileformat2.html, section 4.2)."""
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    first = second = 0
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def _look_settled(path: Path, *, check: bool, read: Callable[[sqlite3.Connection], None] | None) -> None:
    """Look without locks while nobody else has it open, otherwise with them. Raises sqlite3.Error and QueueError.

    What looks like damage without locks may be another process that has just begun to write: then look again."""
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    before = path.stat()
    if not any(file.exists() for file in beside):
        try:
            _look(path, immutable=True, check=check, read=read)
        except (sqlite3.Error, QueueError):
            after = path.stat()
            alone = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if alone and not any(file.exists() for file in beside):
                raise
        else:
            return
    _look(path, immutable=False, check=check, read=read)


def _roll_back(path: Path) -> None:
    """Undo the half transaction of a process that died while it made the file: any reader that may write does."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=10, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    finally:
        connection.close()


def _look(path: Path, *, immutable: bool, check: bool, read: Callable[[sqlite3.Connection], None] | None) -> None:
    """Read what says whose file this is. Raises sqlite3.Error and QueueError."""
    mode = "mode=ro&immutable=1" if immutable else "mode=ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=10, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
        if owner != APPLICATION_ID:
            what = f"application id {owner:#x}" if owner else "no application id"
            todo = "move it away, or choose another --home; nothing was changed"
            raise refusal(path, f"an SQLite database, but not a queue of Overnight ({what})", todo)
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > LATEST:
            found = f"made by a newer Overnight (its schema is {version}, this program knows {LATEST})"
            raise refusal(path, found, "upgrade overnight, or choose another --home; nothing was changed")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        expected = set().union(*(added for since, added in _TABLES.items() if since <= max(1, version)))
        if missing := sorted(expected - tables):
            raise refusal(path, f"damaged (without its tables {', '.join(missing)})")
        if connection.execute("PRAGMA encoding").fetchone()[0] != "UTF-8":
            raise refusal(path, "damaged (its text encoding is not UTF-8)")
        if immutable:
            pages, page_bytes = (int(connection.execute(f"PRAGMA page_{of}").fetchone()[0]) for of in ("count", "size"))
            if pages * page_bytes > (size := path.stat().st_size):
                raise refusal(path, f"cut off ({size} bytes of {pages * page_bytes} are there)")
        if check and small_enough(path):
            connection.execute("BEGIN")  # one view, whatever others write meanwhile
            if (contradiction := next(audit.contradictions(connection), None)) is not None:
                raise refusal(path, f"damaged ({contradiction})")
        if read is not None:
            read(connection)
    finally:
        connection.close()


def _refused(path: Path, error: sqlite3.Error) -> Exception:
    code = primary_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return refusal(path, "not an SQLite database, or its header is damaged")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT) or code is None:
        return refusal(path, f"damaged ({error})")
    raised = translated(error, path)
    return raised if isinstance(raised, QueueError) else refusal(path, f"cannot be used ({error})")

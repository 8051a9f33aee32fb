"""What the queue raises, and how SQLite's own errors become one line that says what to do.

QueueError
 |- QueueUnavailable   not now: full disk, I/O error, locked, read-only. Nothing was changed; try again later
 |- StaleAttempt       this attempt has an outcome already, or its cell is no longer running it
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from overnight.errors import QueueError

MEND = "`overnight repair` mends what it can, or move it aside and restore a backup; nothing was changed"

_LATER = {
    sqlite3.SQLITE_BUSY: "another process has held it locked for too long; try again",
    sqlite3.SQLITE_LOCKED: "another process has held it locked for too long; try again",
    sqlite3.SQLITE_PROTOCOL: "another process has held it locked for too long; try again",
    sqlite3.SQLITE_FULL: "make room on its disk and try again",
    sqlite3.SQLITE_IOERR: "see what its disk says (dmesg) and try again",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable and try again",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder readable and writable and try again",
}
_READ_ONLY = {
    sqlite3.SQLITE_READONLY: "nothing can be changed there: see `dmesg`, or restore a backup on another disk",
    sqlite3.SQLITE_CANTOPEN: "it has a log that cannot be read there: copy var/ to another disk, and look there",
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)


class QueueUnavailable(QueueError):
    """The queue cannot be used just now. The transaction was rolled back: trying again later is safe."""


class StaleAttempt(QueueError):
    """An attempt that has ended already, or that its cell no longer runs, was to be changed."""


def refusal(path: Path, found: str, todo: str = MEND) -> QueueError:
    """One line: which file, what was found, what to do."""
    return QueueError(_line(path, found, todo))


def damage(path: Path, error: object) -> QueueError:
    """The line for a file that was found damaged while it was in use: SQLite's word, or what was found."""
    return refusal(
        path,
        f"damaged ({error})",
        "`overnight down`, then `overnight repair` mends what it can, or move the file aside and restore a backup",
    )


def on_read_only_disk(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code (the low byte); None for an error that Python's module made itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def translated(error: sqlite3.Error, path: Path) -> Exception:
    """The error to raise instead of SQLite's. A broken constraint or a misuse is a bug, and stays."""
    code = primary_code(error)
    if code is None and isinstance(error, sqlite3.OperationalError):
        return damage(path, error)  # text that is no UTF-8
    if code is None or code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE):
        return error
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) and on_read_only_disk(path):
        return QueueUnavailable(_line(path, "its disk is read-only", _READ_ONLY[code]))
    if code in _LATER:
        return QueueUnavailable(_line(path, str(error), _LATER[code]))
    if code in _DAMAGED:
        return damage(path, error)
    return refusal(path, f"SQLite refuses ({error})", "see docs/operations.md")


def _line(path: Path, found: str, todo: str) -> str:
    return " ".join(f"{path}: {found}: {todo}".split("\n"))

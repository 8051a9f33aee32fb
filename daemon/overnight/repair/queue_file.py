"""The queue's file as a whole: looked at in a copy, made anew in another, put in its place.

Putting a new file beside an old write-ahead log would mix them, so the log gives way first, to a mark that every
command refuses to open. Between any two steps below the queue is the old one, the new one, or refused:

    queue.db.repaired       the new file, whole and on disk
    queue.db-wal            becomes the mark (only where there was a log)
    queue.db                becomes the new file
    queue.db-wal            removed
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from dataclasses import dataclass, field
from pathlib import Path

from overnight import durable
from overnight.errors import QueueError
from overnight.queue.errors import refusal
from overnight.queue.migrate import APPLICATION_ID, LATEST, migrate
from overnight.repair import pages, wal
from overnight.repair.check_queue import check
from overnight.repair.finding import REPAIR, Finding, shortened
from overnight.repair.originals import pieces
from overnight.repair.view import connect

MARK = b"a repair of this queue was interrupted: run `overnight repair` again\n"
SUFFIXES = ("", "-wal", "-shm", "-journal")
_MOST_VERSIONS = 1000
"""A schema that is so much newer than ours is a damaged number."""


@dataclass
class Examined:
    """path: the queue's file, or a copy that has its log in it; None when there is nothing. findings: what is wrong
    with it. torn: its pages are damaged. older: it is sound, and has an earlier schema."""

    path: Path | None
    findings: list[Finding] = field(default_factory=list)
    torn: bool = False
    older: bool = False


def beside(queue: Path, suffix: str) -> Path:
    return queue.with_name(queue.name + suffix)


def size(path: Path) -> int:
    """Bytes of a regular file, 0 when there is none. Raises QueueError for anything else at that place."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise refusal(path, "a symbolic link to nothing", "mend or remove the link; nothing was changed") from None
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise refusal(path, "no regular file where the queue's should be", "move it away; nothing was changed")
    return found.st_size


def examine(queue: Path, work: Path) -> Examined:
    """Look at a queue that nobody writes, without changing it. work: a folder for a copy.

    Raises QueueError for what is not ours to mend: no file, another program's database, a newer schema. Raises
    OSError when a file cannot be read or copied."""
    log, journal = beside(queue, "-wal"), beside(queue, "-journal")
    if not size(queue) and not size(log):
        return Examined(None)
    seen = Examined(queue)
    if size(log) or size(journal) or not size(queue):
        seen.path = _copied(queue, work, seen)
    if size(queue) < pages.PAGE_BYTES:
        seen.findings.append(_damaged(f"not an SQLite database ({size(queue)} bytes)"))
        seen.torn = True
    assert seen.path is not None  # noqa: S101 - set above
    _look(queue, seen.path, seen)
    if seen.torn and seen.path == queue:
        seen.path = _copied(queue, work, seen)
    return seen


def _copied(queue: Path, work: Path, seen: Examined) -> Path:
    """A copy that holds what the log holds."""
    work.mkdir(parents=True, exist_ok=True)
    copy = work / "queue.db"
    for suffix in SUFFIXES:
        beside(copy, suffix).unlink(missing_ok=True)
    with copy.open("wb") as target:
        for piece in pieces(queue) if size(queue) else ():
            target.write(piece)
    if size(log := beside(queue, "-wal")):
        held = wal.read(log, pages.PAGE_BYTES)
        for what in held.damage:
            seen.findings.append(_damaged(what))
            seen.torn = True
        wal.fold(log, held, copy, pages.PAGE_BYTES)
    if size(journal := beside(queue, "-journal")):
        shutil.copyfile(journal, beside(copy, "-journal"))
        try:
            db = sqlite3.connect(copy, isolation_level=None)
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # rolls back what was half done
            db.close()
        except sqlite3.Error as error:
            seen.findings.append(_damaged(str(error)))
        beside(copy, "-journal").unlink(missing_ok=True)
    return copy


def _look(queue: Path, path: Path, seen: Examined) -> None:
    if seen.findings and seen.torn and path.stat().st_size < pages.PAGE_BYTES:
        return
    try:
        db = connect(path, immutable=True)
    except sqlite3.Error as error:
        seen.findings.append(_damaged(str(error)))
        seen.torn = True
        return
    try:
        owner = int(db.execute("PRAGMA application_id").fetchone()[0])
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        count, each = (int(db.execute(f"PRAGMA page_{of}").fetchone()[0]) for of in ("count", "size"))
        ours = {"cells", "attempts", "grid_counts"} <= tables
        if tables and not ours and owner != APPLICATION_ID:
            raise refusal(queue, "an SQLite database, but not a queue of Overnight", "move it away")
        if LATEST < version < _MOST_VERSIONS:
            raise refusal(queue, f"made by a newer Overnight (its schema is {version})", "upgrade overnight")
        if owner != APPLICATION_ID or not 1 <= version <= LATEST or each != pages.PAGE_BYTES or not ours:
            seen.findings.append(_damaged("its header or its schema is damaged"))
        if count * each > path.stat().st_size:
            seen.findings.append(_damaged(f"cut off ({path.stat().st_size} bytes of {count * each} are there)"))
        if db.execute("PRAGMA encoding").fetchone()[0] != "UTF-8":
            seen.findings.append(_damaged("its text encoding is damaged"))
        seen.torn = seen.torn or bool(seen.findings)
        if not seen.torn:
            seen.findings.extend(check(db))
            seen.torn = any(found.where == "queue.db" for found in seen.findings)
            seen.older = not seen.findings and version < LATEST
    except (sqlite3.Error, UnicodeDecodeError) as error:
        seen.findings.append(_damaged(str(error)))
        seen.torn = True
    finally:
        db.close()


def _damaged(what: str) -> Finding:
    return Finding("queue", "queue.db", shortened(what), REPAIR)


def upgraded(path: Path, copy: Path, now: float) -> Path:
    """A copy of a sound queue, with the newest schema and without a log."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    db = sqlite3.connect(copy, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA journal_mode = DELETE")
        migrate(db, now)
    finally:
        db.close()
    return copy


def install(new: Path, queue: Path) -> None:
    """Put a new file, whole and closed, in the place of the queue. Raises OSError; asking again finishes it."""
    fd = os.open(new, os.O_RDWR | os.O_CLOEXEC)
    try:
        durable.sync(fd)
    finally:
        os.close(fd)
    durable.calls.replace(new, beside(queue, ".repaired"))
    durable.sync_folder(queue.parent)
    if any(beside(queue, suffix).exists() for suffix in SUFFIXES[1:]):
        durable.write_atomic(beside(queue, "-wal"), MARK)
    finish(queue)


def interrupted(queue: Path) -> bool:
    """Was a repair ended while it put a new file in place?"""
    try:
        return beside(queue, "-wal").read_bytes()[: len(MARK)] == MARK
    except OSError:
        return False


def finish(queue: Path) -> None:
    """The rest of `install`. Raises OSError."""
    repaired = beside(queue, ".repaired")
    for suffix in ("-shm", "-journal"):
        durable.calls.unlink(beside(queue, suffix))
    if repaired.exists():
        durable.calls.replace(repaired, queue)
        durable.sync_folder(queue.parent)
    durable.calls.unlink(beside(queue, "-wal"))
    durable.sync_folder(queue.parent)


def unchanged(queue: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when somebody writes: compared before the new file takes its place. Raises QueueError."""
    found: list[tuple[int, int, int] | None] = []
    for suffix in ("", "-wal"):
        try:
            about = beside(queue, suffix).stat()
        except FileNotFoundError:
            found.append(None)
        except OSError as error:
            raise QueueError(f"{beside(queue, suffix)}: {error.strerror}") from None
        else:
            found.append((about.st_ino, about.st_size, about.st_mtime_ns))
    return tuple(found)

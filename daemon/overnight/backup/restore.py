"""Bringing a backup back, into a home that has nothing yet: whole or not at all.

    extract beside -> compare every sum -> look at the queue -> put everything in its place, the queue last

A home without its queue is no restored home: what a restore left that died before that last step is put aside by the
next one, never removed, since it might have become something else meanwhile. What fails is taken back. No daemon runs
meanwhile: its lock is held.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from overnight import durable, private
from overnight.backup import install, layout, leftovers
from overnight.backup.layout import BadBackup
from overnight.backup.reader import Member, Reader, check_told
from overnight.backup.truth import Sums, untrue
from overnight.dispatch.lock import DaemonLock
from overnight.errors import QueueError, UserError
from overnight.paths import Paths
from overnight.queue.migrate import LATEST
from overnight.queue.probe import probe


@dataclass
class Found:
    """What an archive holds. untrue: sentences about cells whose files are not those that the queue knows."""

    about: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    untrue: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def check(stream: BinaryIO) -> Found:
    """Read an archive through and compare everything that can be compared. Raises BadBackup, UserError."""
    place = Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryDirectory(prefix="overnight-check-", dir=place) as folder:
            return _check(stream, Path(folder))
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{_said(error, place)}; the archive was not read to its end (its queue is looked at in {place}: "
            "TMPDIR=DIR chooses another folder)"
        ) from None


def _check(stream: BinaryIO, folder: Path) -> Found:
    queue = folder / "queue.db"
    found = Found()
    reader, sums = Reader(stream), Sums(folder / "sums.db")
    try:
        for member, pieces in reader.members():
            _schema(reader)
            if member.name == layout.QUEUE:
                with queue.open("wb") as copy:
                    copy.writelines(pieces)
            else:
                for _ in pieces:
                    pass
            _note(sums, member, reader)
        _finish(found, reader, queue, sums)
    finally:
        sums.close()
    return found


def restore(stream: BinaryIO, paths: Paths) -> Found:
    """Fill the home with what the archive holds. Raises UserError; then the home is as it was."""
    made = [folder for folder in (paths.home, paths.var, paths.run) if not folder.exists()]
    private.refuse_to_lock_out(paths.var)
    try:
        durable.make_folders(paths.home)
        for folder in (paths.var, paths.run):
            private.make_folder(folder)
        with DaemonLock(paths.lock):
            return _restore(stream, paths)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{_said(error, paths.home)}; {paths.home} was not restored") from None
    finally:
        if made and not paths.queue.exists():
            with suppress(OSError):
                paths.lock.unlink(missing_ok=True)
                for folder in reversed(made):
                    folder.rmdir()  # only when it is empty


def _said(error: OSError | sqlite3.Error, folder: Path) -> str:
    """What an error says, and where: no room, and what SQLite says, is of `folder`. Another may be the archive's."""
    if isinstance(error, sqlite3.Error):
        return f"{folder}: {error}"
    where = error.filename or (folder if error.errno in (errno.ENOSPC, errno.EDQUOT) else None)
    return f"{where}: {error.strerror}" if where else str(error.strerror)


def _restore(stream: BinaryIO, paths: Paths) -> Found:
    _refuse(paths)
    staging = paths.home / f"{layout.STAGING}{os.getpid()}"
    durable.calls.mkdir(staging)
    try:
        found = _extract(stream, staging)
        found.kept = install.install(staging / "home", paths)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return found


def _refuse(paths: Paths) -> None:
    """Raises UserError for a home that has something to lose; takes away what a killed restore was extracting."""
    install.refuse_queue(paths.queue)
    for path in leftovers.of_restores(paths.home):
        shutil.rmtree(path, ignore_errors=True)
    for folder in (paths.var, paths.results, paths.models):
        if folder.is_symlink() or (folder.exists() and folder.stat().st_dev != paths.home.stat().st_dev):
            raise UserError(f"{folder}: a link or another file system; restore into a plain home, then move it there")
    unfinished = paths.restoring.exists()
    if not unfinished and paths.results.exists() and any(paths.results.iterdir()):
        raise UserError(f"{paths.results}: holds results; a backup is restored into an empty home (--home DIR)")


def _extract(stream: BinaryIO, staging: Path) -> Found:
    found = Found()
    home = staging / "home"
    durable.calls.mkdir(home)
    reader, sums = Reader(stream), Sums(staging / "sums.db")
    try:
        for member, pieces in reader.members():
            _schema(reader)
            _write(home, member, pieces)
            _note(sums, member, reader)
        _finish(found, reader, home / layout.QUEUE, sums)
    finally:
        sums.close()
    for folder, _, _ in os.walk(home, topdown=False):
        durable.sync_folder(Path(folder))
    return found


def _schema(reader: Reader) -> None:
    schema = reader.about.get("schema")
    if not isinstance(schema, int) or schema > LATEST:
        raise BadBackup(
            f"made by a newer Overnight (its schema is {schema!r}, this program knows {LATEST}); upgrade overnight"
        )


def _note(sums: Sums, member: Member, reader: Reader) -> None:
    if member.kind == "file":
        sums.note(member.name, reader.last_sha256)
    elif layout.cell_folder(member.name) == member.name:
        sums.forget(member.name)


def _finish(found: Found, reader: Reader, queue: Path, sums: Sums) -> None:
    found.about, found.end = reader.about, reader.end
    check_told(found.about, found.end)
    try:
        if not probe(queue, check=True):
            raise BadBackup("holds no queue")
    except QueueError as error:
        raise BadBackup(f"its queue cannot be used: {str(error).removeprefix(f'{queue}: ')}") from None
    found.untrue = list(untrue(queue, sums))


def _write(home: Path, member: Member, pieces: Iterator[bytes]) -> None:
    """One member, in a folder that only we write to. Nothing is ever written through a link."""
    path = home / member.name
    _parents(home, member.name)
    if member.kind == "folder":
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise BadBackup(f"holds {member.name!r} twice")
        if path.exists():
            shutil.rmtree(path)  # a cell that was taken again
        durable.calls.mkdir(path)
        path.chmod((member.mode & 0o755) | 0o700)
    elif member.kind == "link":
        if path.is_symlink() or path.exists():
            raise BadBackup(f"holds {member.name!r} twice")
        path.symlink_to(member.target)
    else:
        if member.name == layout.QUEUE:
            durable.calls.unlink(path)
        _file(path, member, pieces)


def _file(path: Path, member: Member, pieces: Iterator[bytes]) -> None:
    try:
        fd = durable.calls.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    except FileExistsError:
        raise BadBackup(f"holds {member.name!r} twice") from None
    try:
        for piece in pieces:
            durable.write_all(fd, piece)
        os.fchmod(fd, 0o600 if member.name == layout.QUEUE else (member.mode & 0o755) | 0o600)
        if math.isfinite(member.mtime_s) and abs(member.mtime_s) < 2**40:
            os.utime(fd, (member.mtime_s, member.mtime_s))
        durable.sync(fd)
    finally:
        os.close(fd)


def _parents(home: Path, name: str) -> None:
    at = home
    for part in name.split("/")[:-1]:
        at = at / part
        if at.is_symlink() or (at.exists() and not at.is_dir()):
            raise BadBackup(f"holds {name!r}, which leads through what is no folder")
        if not at.exists():
            durable.calls.mkdir(at)
            at.chmod(0o700)

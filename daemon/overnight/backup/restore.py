"""Bringing a backup back, into a home that has nothing yet: whole or not at all.

    extract beside -> compare every sum -> look at the queue -> put everything in its place, the queue last

A home without its queue is no restored home: whoever dies before that last step leaves something that the next restore
takes away.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from overnight import durable, procfs
from overnight.backup import layout
from overnight.backup.layout import BadBackup
from overnight.backup.reader import Member, Reader
from overnight.backup.truth import Sums, untrue
from overnight.errors import QueueError, UserError
from overnight.paths import Paths
from overnight.queue.migrate import LATEST
from overnight.queue.probe import probe

_STAGING = ".overnight-restore-"
_UNFINISHED = ".restoring"
"""In var/results from its appearance until the queue is there."""


@dataclass
class Found:
    """What an archive holds. untrue: sentences about cells whose files are not those that the queue knows."""

    about: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    untrue: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def check(stream: BinaryIO) -> Found:
    """Read an archive through and compare everything that can be compared. Raises BadBackup."""
    with tempfile.TemporaryDirectory(prefix="overnight-check-") as folder:
        queue = Path(folder) / "queue.db"
        found = Found()
        reader, sums = Reader(stream), Sums(Path(folder) / "sums.db")
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
    made = not paths.home.exists()
    try:
        durable.make_folders(paths.home)
        _refuse(paths)
        staging = paths.home / f"{_STAGING}{os.getpid()}"
        durable.calls.mkdir(staging)
        try:
            found = _extract(stream, staging)
            found.kept = list(_install(staging, paths))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror}; {paths.home} was not restored") from None
    finally:
        if made:
            with suppress(OSError):
                paths.home.rmdir()  # only when it is empty
    return found


def _refuse(paths: Paths) -> None:
    """Raises UserError for a home that has something to lose; takes away what a killed restore left."""
    if any(paths.queue.with_name(paths.queue.name + suffix).exists() for suffix in ("", "-wal")):
        raise UserError(
            f"{paths.queue}: is there already; a backup is restored into a home without a queue (--home DIR)"
        )
    for path in paths.home.glob(f"{_STAGING}*"):
        pid = re.fullmatch(rf"{re.escape(_STAGING)}(\d+)", path.name)
        if pid and procfs.start_ticks(int(pid[1])) is None:
            shutil.rmtree(path, ignore_errors=True)
    if (paths.results / _UNFINISHED).exists():
        shutil.rmtree(paths.results)
    if paths.results.exists() and any(paths.results.iterdir()):
        raise UserError(f"{paths.results}: holds results; a backup is restored into an empty home (--home DIR)")
    for folder in (paths.var, paths.results, paths.models):
        if folder.is_symlink() or (folder.exists() and folder.stat().st_dev != paths.home.stat().st_dev):
            raise UserError(f"{folder}: a link or another file system; restore into a plain home, then move it there")


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


def _install(staging: Path, paths: Paths) -> Iterator[str]:
    """Put everything in its place; gives the files of the home that were there and differ, under their new names."""
    home = staging / "home"
    for folder in (paths.var, paths.models, paths.log):
        if not folder.is_dir():
            durable.calls.mkdir(folder)
            folder.chmod(0o700)
    for name in ("etc", "grids", "var/log", "var/models"):
        if (home / name).is_dir():
            yield from _merge(home / name, paths.home / name)
    results = home / layout.RESULTS
    if not results.is_dir():
        durable.calls.mkdir(results)
    results.chmod(0o700)
    durable.write_atomic(results / _UNFINISHED, b"")
    durable.calls.replace(results, paths.results)  # over an empty folder, if there is one
    durable.sync_folder(paths.var)
    durable.calls.replace(home / layout.QUEUE, paths.queue)
    durable.sync_folder(paths.var)
    durable.calls.unlink(paths.results / _UNFINISHED)
    durable.sync_folder(paths.results)


def _merge(source: Path, target: Path) -> Iterator[str]:
    if not target.is_dir():
        durable.calls.mkdir(target)
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if place.is_dir() and entry.is_dir():
            if target.name == "models":
                continue  # a model that is here already stays
            yield from _merge(entry, place)
            continue
        if place.is_symlink() or place.exists():
            if place.is_file() and place.read_bytes() == entry.read_bytes():
                continue
            number, beside = 1, place.with_name(f"{place.name}.before-restore")
            while beside.exists():
                number, beside = number + 1, place.with_name(f"{place.name}.before-restore-{number + 1}")
            durable.calls.replace(place, beside)
            yield str(beside)
        durable.calls.replace(entry, place)
    durable.sync_folder(target)

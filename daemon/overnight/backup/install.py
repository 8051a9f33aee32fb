"""Putting what was extracted in its place: renames that are taken back unless the last of them succeeds."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from overnight import durable
from overnight.backup import layout
from overnight.errors import UserError
from overnight.paths import Paths

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems say that know none. There the queue is renamed, which would replace one that was made meanwhile."""


class _Moves:
    """Renames and new folders, and how each is taken back."""

    def __init__(self) -> None:
        self._back: list[Callable[[], None]] = []

    def folder(self, path: Path) -> None:
        if not path.is_dir():
            durable.calls.mkdir(path)
            self._back.append(path.rmdir)
            path.chmod(0o700)

    def move(self, source: Path, target: Path) -> None:
        durable.calls.replace(source, target)
        self._back.append(lambda: durable.calls.replace(target, source))

    def clear(self, folder: Path) -> None:
        """Remove an empty folder."""
        folder.rmdir()
        self._back.append(lambda: folder.mkdir(0o700))

    def take_back(self) -> None:
        """As far as the disk allows it: one that cannot be taken back is no reason to leave the others."""
        while self._back:
            with suppress(OSError):
                self._back.pop()()


def install(home: Path, paths: Paths) -> list[str]:
    """Move what is in `home` to its places, the queue last. Raises OSError and UserError; then all is as it was.

    Returns what was in the way, under its new names: files that differ, and results of a restore that was killed."""
    moves = _Moves()
    kept: list[str] = []
    try:
        with _no_queue(paths.queue) as held:
            for folder in (paths.var, paths.models, paths.log):
                moves.folder(folder)
            for name in ("etc", "grids", "var/log", "var/models"):
                if (home / name).is_dir():
                    kept += _merge(moves, home / name, paths.home / name)
            kept += _results(moves, home / layout.RESULTS, paths)
            _queue(home / layout.QUEUE, paths.queue, held=held)
    except BaseException:
        moves.take_back()
        raise
    try:
        durable.sync_folder(paths.var)
        durable.calls.unlink(paths.restoring)
        durable.sync_folder(paths.results)
    except OSError as error:
        raise UserError(
            f"{paths.home}: everything is in its place, but the disk did not confirm it ({error.strerror}); "
            "look at the disk, then at the cells with `overnight verify --deep`"
        ) from None
    return kept


def _queue(source: Path, queue: Path, *, held: bool) -> None:
    """The last step. A queue that somebody made meanwhile, by a submit, is not replaced; held: the empty one is."""
    if held:
        durable.calls.replace(source, queue)
        return
    try:
        durable.calls.link(source, queue)
    except FileExistsError:
        raise UserError(f"{queue}: was made while the backup was read; nothing was restored: try again") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        durable.calls.replace(source, queue)


def _results(moves: _Moves, results: Path, paths: Paths) -> Iterator[str]:
    if not results.is_dir():
        durable.calls.mkdir(results)
    results.chmod(0o700)
    durable.write_atomic(results / paths.restoring.name, b"")
    if paths.results.is_dir():
        if paths.restoring.exists():
            aside = _free(paths.results, "unfinished-restore")
            moves.move(paths.results, aside)
            yield str(aside)
        else:
            moves.clear(paths.results)
    moves.move(results, paths.results)
    durable.sync_folder(paths.var)


def _merge(moves: _Moves, source: Path, target: Path) -> Iterator[str]:
    moves.folder(target)
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if place.is_dir() and entry.is_dir():
            if target.name == "models":
                continue  # a model that is here already stays
            yield from _merge(moves, entry, place)
            continue
        if place.is_symlink() or place.exists():
            if place.is_file() and place.read_bytes() == entry.read_bytes():
                continue
            beside = _free(place, "before-restore")
            moves.move(place, beside)
            yield str(beside)
        moves.move(entry, place)
    durable.sync_folder(target)


def _free(path: Path, why: str) -> Path:
    """The first of `NAME.why`, `NAME.why-2`, ... that is not taken."""
    number, free = 1, path.with_name(f"{path.name}.{why}")
    while free.is_symlink() or free.exists():
        number, free = number + 1, path.with_name(f"{path.name}.{why}-{number + 1}")
    return free


@contextmanager
def _no_queue(queue: Path) -> Iterator[bool]:
    """A queue that is there has to be empty. Nobody else may write to it meanwhile, and nothing of it stays beside.
    Gives whether there is one.

    SQLite refuses later writes of whoever had it open: it sees that the file is another one now."""
    if not (queue.exists() or log(queue).exists()):
        yield False
        return
    try:
        with closing(sqlite3.connect(f"{queue.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("BEGIN EXCLUSIVE")
            if _holds_something(db):
                raise _there(queue)
            yield True
    except sqlite3.Error as error:
        raise UserError(
            f"{queue}: there is an empty queue, which cannot be replaced ({error}); "
            "end whatever looks at this home, and try again"
        ) from None


def refuse_queue(queue: Path) -> None:
    """Raises UserError where there is a queue that holds anything, or may."""
    if not (queue.exists() or log(queue).exists()):
        return
    try:
        with closing(sqlite3.connect(f"{queue.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            something = _holds_something(db)
    except sqlite3.Error:
        something = True
    if something:
        raise _there(queue)


def _holds_something(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT EXISTS(SELECT 1 FROM grids) OR EXISTS(SELECT 1 FROM cells)").fetchone()[0])


def _there(queue: Path) -> UserError:
    return UserError(f"{queue}: is there already; a backup is restored into a home without a queue (--home DIR)")


def log(queue: Path) -> Path:
    return queue.with_name(f"{queue.name}-wal")

"""The files of a home, as members of an archive: what is copied, how far, and what is left out.

- A transcript is copied up to its last whole line: what is behind it is a line that is being written just now.
- A command under way writes its own files while they are copied. They are taken as they are, as a kill at that moment
  would leave them; how many changed meanwhile is said.
- Links that stay in the folder of their cell are kept. Other links, sockets, pipes and devices are left out, by name.
- `etc/secrets.env`, editors' copies of it, and other names of these files are left out, by name.
- A file that vanishes is left out without a word; one that cannot be read is a fault of the backup.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from overnight.backup import layout
from overnight.backup.writer import Writer

_PIECE_BYTES = 1 << 20
_NAMED = 100
"""So many of those that were left out are listed."""


@dataclass
class Told:
    """What there is to say of a backup when it is made."""

    files: int = 0
    changing: int = 0
    left_out: list[str] = field(default_factory=list)
    left_out_count: int = 0
    unread: list[str] = field(default_factory=list)
    unread_count: int = 0

    def leave_out(self, name: str, why: str) -> None:
        self.left_out_count += 1
        if len(self.left_out) < _NAMED:
            self.left_out.append(f"{name}: {why}")

    def cannot_read(self, name: str, error: OSError) -> None:
        self.unread_count += 1
        if len(self.unread) < _NAMED:
            self.unread.append(f"{name}: {error.strerror}")


class Files:
    """The members of one home."""

    def __init__(self, home: Path, writer: Writer, told: Told) -> None:
        self._home, self._writer, self._told = home, writer, told
        self._secret_inodes: frozenset[tuple[int, int]] = frozenset()

    def tree(self, name: str) -> Iterator[bytes]:
        """A folder and all below it; nothing where there is none. `name` itself may be a link to a folder."""
        open_folders: list[tuple[str, Iterator[str]]] = []
        self._secret_inodes = frozenset(self._look_for_secrets())  # anew: they may have been written meanwhile
        yield from self._enter(name, open_folders)
        while open_folders:
            folder, entries = open_folders[-1]
            entry = next(entries, None)
            if entry is None:
                open_folders.pop()
            elif not _passing(folder, entry):
                yield from self._member(f"{folder}/{entry}", open_folders)

    def _enter(self, name: str, open_folders: list[tuple[str, Iterator[str]]]) -> Iterator[bytes]:
        try:
            found = (self._home / name).stat()
            entries = self._entries(name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._told.cannot_read(name, error)
            return
        open_folders.append((name, entries))
        yield from self._writer.folder(name, stat.S_IMODE(found.st_mode) | 0o700, found.st_mtime)

    def _entries(self, name: str) -> Iterator[str]:
        """A grid's folder may hold a million: it stays open and is read on the way. Others are read at once."""
        if name.startswith(layout.RESULTS) and layout.cell_folder(name) is None:
            return _scanned(os.scandir(self._home / name))
        return iter(sorted(path.name for path in (self._home / name).iterdir()))

    def _member(self, name: str, open_folders: list[tuple[str, Iterator[str]]]) -> Iterator[bytes]:
        if layout.holds_secrets(name):
            self._leave_secret_out(name)
            return
        try:
            found = self._stat(name)
            kind = found.st_mode
            if (found.st_dev, found.st_ino) in self._secret_inodes:
                self._leave_secret_out(name)
            elif stat.S_ISDIR(kind):
                yield from self._enter(name, open_folders)
            elif stat.S_ISLNK(kind):
                yield from self._link(name)
            elif stat.S_ISREG(kind):
                yield from self._file(name)
            else:
                self._told.leave_out(name, "no file, folder or link")
        except FileNotFoundError:
            return
        except OSError as error:
            self._told.cannot_read(name, error)

    def _look_for_secrets(self) -> Iterator[tuple[int, int]]:
        """Which files hold secrets, whatever other names they have."""
        try:
            names = os.listdir(self._home / "etc")  # noqa: PTH208 - names alone
        except OSError:
            return  # told of when etc/ itself is copied
        for name in names:
            if layout.holds_secrets(f"etc/{name}"):
                with suppress(OSError):
                    found = (self._home / "etc" / name).stat()
                    yield found.st_dev, found.st_ino

    def _leave_secret_out(self, name: str) -> None:
        self._told.leave_out(name, "it holds secrets: a backup goes where they shall not")

    def cell(self, grid: str, key: str) -> Iterator[bytes]:
        """What a cell has on disk now, in the place of what the archive holds of it already: an empty folder when it
        has nothing. With what was moved aside of it."""
        name = f"{layout.RESULTS}/{grid}/{key}"
        if (self._home / name).is_dir():
            yield from self.tree(name)
        else:
            yield from self._writer.folder(name, 0o700, 0.0)
        aside = f"{layout.RESULTS}/{grid}/.aside"
        for path in sorted((self._home / aside).glob("*")):
            if (path / key).is_dir():
                yield from self.tree(f"{aside}/{path.name}/{key}")

    def _stat(self, name: str) -> os.stat_result:
        """Links are followed where people keep things on another disk: a grid's, a cell's and a model's own folder, and
        files of etc/ and grids/."""
        path, depth = self._home / name, name.count("/")
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            try:
                behind = path.stat()
            except OSError:
                return found
            near = (name.startswith(f"{layout.RESULTS}/") and depth <= 3) or (
                name.startswith("var/models/") and depth == 2
            )
            if near if stat.S_ISDIR(behind.st_mode) else not name.startswith(f"{layout.RESULTS}/"):
                return behind
        return found

    def _link(self, name: str) -> Iterator[bytes]:
        path = self._home / name
        target = str(path.readlink())
        if target.startswith("/"):
            target = os.path.relpath(target, path.parent)
        if layout.link_inside(name, target):
            yield from self._writer.link(name, target, path.lstat().st_mtime)
        else:
            self._told.leave_out(name, "a link that leaves the folder of its cell")

    def _file(self, name: str) -> Iterator[bytes]:
        inside = os.O_NOFOLLOW if name.startswith(f"{layout.RESULTS}/") else 0
        fd = os.open(self._home / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | inside)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise FileNotFoundError
            size = before.st_size
            transcript = name == f"{layout.cell_folder(name)}/transcript.jsonl"
            if transcript:
                size = last_line_end(fd, size)
            content = _Content(fd, size)
            first = content.read()  # a disk that cannot be read is noticed before the member has begun
            mode, mtime_s = stat.S_IMODE(before.st_mode), before.st_mtime
            yield from self._writer.file(name, mode, mtime_s, size, content.pieces(first))
            after = os.fstat(fd)
            if content.fault is not None:
                self._told.cannot_read(name, content.fault)
            elif content.short or (not transcript and _times(before) != _times(after)):
                self._told.changing += 1
            self._told.files += 1
        finally:
            os.close(fd)


class _Content:
    """Exactly `size` bytes of a file: zeros for those that are gone or cannot be read."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._at, self._size = fd, 0, size
        self.short = False
        self.fault: OSError | None = None

    def read(self) -> bytes:
        piece = os.pread(self._fd, min(_PIECE_BYTES, self._size - self._at), self._at)
        self._at += len(piece)
        return piece

    def pieces(self, first: bytes) -> Iterator[bytes]:
        piece = first
        while piece:
            yield piece
            try:
                piece = self.read()
            except OSError as error:
                self.fault = error
                break
        self.short = self._at < self._size
        while (left := self._size - self._at) > 0:
            self._at += min(left, _PIECE_BYTES)
            yield bytes(min(left, _PIECE_BYTES))


def _scanned(entries: os._ScandirIterator[str]) -> Iterator[str]:
    with entries:
        for entry in entries:
            yield entry.name


def last_line_end(fd: int, size: int) -> int:
    """How many of the first `size` bytes of a file are whole lines."""
    at = size
    while at > 0:
        begin = max(0, at - (1 << 16))
        newline = os.pread(fd, at - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        at = begin
    return 0


def _passing(folder: str, entry: str) -> bool:
    """What an atomic write has beside its file while it lasts; attempts clear it away in their cell's folder."""
    ours = folder.count("/") in (2, 3) and folder.startswith(f"{layout.RESULTS}/")
    models = folder == "var/models" and entry.startswith(".")
    return models or (ours and entry.startswith(".") and entry.endswith(".tmp"))


def _times(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns

"""Reading an archive that may be damaged or hostile: one pass, forward only, in bounded memory.

Nothing of it is believed: names, kinds and sizes are checked before a member is handed out, and what its sums say is
compared with what was read. Python's own `tarfile` parses the headers; it is kept from reading more than a header at
once, and from going back.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from overnight import checked
from overnight.backup import layout
from overnight.backup.layout import BadBackup

_PIECE_BYTES = 1 << 16
"""Nothing is read in larger pieces. No header of ours is larger, and tarfile's expressions take quadratic time."""

_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, RecursionError)


@dataclass(frozen=True)
class Member:
    """kind: `file`, `folder` or `link`. target: where a link leads."""

    name: str
    kind: str
    mode: int
    mtime_s: float
    size: int
    target: str


class Reader:
    """`members` gives each one with its pieces, which have to be read before the next one is asked for. `about` is
    there from the first one on, `end` after the last; `last_sha256` is that of the file whose pieces were just read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = _Forward(stream)
        self.about: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.count = self.bytes = 0
        self.last_sha256 = ""
        self._sums: list[dict[str, Any]] = []
        self._parts = 0

    def members(self) -> Iterator[tuple[Member, Iterator[bytes]]]:
        """Raises BadBackup; what was given before stays suspect until `members` has come to its end."""
        with _unreadable():
            yield from self._members()

    def _members(self) -> Iterator[tuple[Member, Iterator[bytes]]]:
        with tarfile.open(fileobj=cast("BinaryIO", self._stream), mode="r:", errors="surrogateescape") as tar:
            first = True
            while (info := tar.next()) is not None:
                cast("Any", tar).members.clear()  # it would remember every one
                if first:
                    self._begin(tar, info)
                elif self.end:
                    raise BadBackup(f"holds {info.name!r} behind its end")
                elif info.name.startswith(layout.META):
                    self._meta(tar, info)
                else:
                    member = _checked(info)
                    if member.kind == "file":
                        self.last_sha256 = ""
                        yield member, self._pieces(tar, info, member)
                        if not self.last_sha256:
                            raise RuntimeError("the pieces of a member were not read")
                    else:
                        sums = {"folder": True} if member.kind == "folder" else {"link": member.target}
                        self._add({"name": member.name, **sums})
                        yield member, iter(())
                first = False
            if not self.end:
                raise BadBackup("cut off: it has no end" if not first else "empty")
            self._nothing_more()

    def _begin(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        if info.name != layout.ABOUT:
            raise BadBackup("not a backup of Overnight")
        data = _small(tar, info)
        self.about = _object(data, info.name)
        self._note(info.name, data)
        if self.about.get("v") != layout.VERSION:
            raise BadBackup(f"made by a newer Overnight (its format is {self.about.get('v')!r}); upgrade overnight")

    def _pieces(self, tar: tarfile.TarFile, info: tarfile.TarInfo, member: Member) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with _unreadable():  # it is read by whoever was given it
            for piece in _content(tar, info):
                digest.update(piece)
                yield piece
        self.last_sha256 = digest.hexdigest()
        self.bytes += member.size
        self._add({"name": member.name, "bytes": member.size, "sha256": self.last_sha256})

    def _note(self, name: str, data: bytes) -> None:
        self.bytes += len(data)
        self._add({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})

    def _add(self, sums: dict[str, Any]) -> None:
        self.count += 1
        self._sums.append(sums)
        if len(self._sums) > layout.SUMS_EVERY:
            raise BadBackup(f"has no sums for {self._sums[0]['name']!r}")

    def _meta(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        data = _small(tar, info)
        if info.name == layout.END:
            self._end(_object(data, info.name))
            return
        self._parts += 1
        if info.name != layout.sums_name(self._parts):
            raise BadBackup(f"holds {info.name!r} where {layout.sums_name(self._parts)!r} was expected")
        lines = data.split(b"\n")[:-1]
        for line, found in zip(lines, self._sums, strict=False):
            if json.loads(line) != found:
                raise BadBackup(f"damaged: {found['name']!r} is not what was backed up")
        if len(lines) != len(self._sums):
            raise BadBackup(f"damaged: {len(self._sums)} members have {len(lines)} sums")
        self._sums.clear()

    def _end(self, end: dict[str, Any]) -> None:
        told = (end.get("v"), end.get("members"), end.get("bytes"), end.get("sums"))
        if self._sums or told != (layout.VERSION, self.count, self.bytes, self._parts):
            raise BadBackup(f"damaged: it has {self.count} members, {self.bytes} bytes, not what its end says")
        if end.get("sha256") != layout.end_sha256(end):
            raise BadBackup(f"damaged: {layout.END!r} is not what was written")
        self.end = end

    def _nothing_more(self) -> None:
        """Behind the end there are zeros at most; the checksum of a compressed file is compared there, too."""
        while piece := self._stream.read(_PIECE_BYTES):
            if piece.strip(b"\0"):
                raise BadBackup("something else follows its end")


@contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        what = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
        raise BadBackup(f"damaged or cut off ({what})") from None


def open_archive(path: Path) -> BinaryIO:
    """The tar archive in a file, whatever its name. Raises BadBackup and OSError."""
    if path.is_dir():
        raise BadBackup("a folder; a file that `overnight backup` made is expected")
    raw = path.open("rb")
    try:
        return unpacked(raw)
    except BaseException:
        raw.close()
        raise


def unpacked(raw: io.BufferedReader) -> BinaryIO:
    """The tar archive in a stream, packed or not. Raises OSError."""
    magic = raw.peek(2)[:2]
    if magic == b"\x1f\x8b":
        return cast("BinaryIO", gzip.open(raw))
    return cast("BinaryIO", lzma.open(raw)) if magic == b"\xfd7" else raw


class _Forward:
    """What tarfile reads from: forward only, and no header of more bytes than ours have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _PIECE_BYTES:
            raise BadBackup("damaged: a header of impossible size")
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def seek(self, to: int, whence: int = 0) -> int:
        if whence != 0 or to < self._at:
            raise BadBackup("damaged: it leads backwards")
        while self._at < to:
            if not self.read(min(to - self._at, _PIECE_BYTES)):
                break
        return self._at


def _checked(info: tarfile.TarInfo) -> Member:
    """Raises BadBackup for whatever no backup of ours holds."""
    name = info.name
    layout.check_name(name)
    if info.type == tarfile.DIRTYPE:
        kind = "folder"
    elif info.type == tarfile.SYMTYPE:
        kind = "link"
        if not layout.link_inside(name, info.linkname):
            raise BadBackup(f"holds the link {name!r} to {info.linkname!r}, which would leave the folder of its cell")
    elif info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.sparse is None and info.size >= 0:
        kind = "file"
    else:
        raise BadBackup(f"holds {name!r}, which is no file, folder or link")
    if name == layout.QUEUE and kind != "file":
        raise BadBackup(f"holds {name!r}, which is no file")
    return Member(name, kind, info.mode & 0o777, float(info.mtime), info.size if kind == "file" else 0, info.linkname)


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    content, left = tar.extractfile(info), info.size
    while left > 0 and content is not None and (piece := content.read(min(left, _PIECE_BYTES))):
        left -= len(piece)
        yield piece
    if left:
        raise BadBackup(f"cut off in {info.name!r}")


def _small(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if not info.isreg() or info.sparse is not None or not 0 <= info.size <= layout.META_BYTES:
        raise BadBackup(f"damaged: {info.name!r} is not one of ours")
    return b"".join(_content(tar, info))


def _object(data: bytes, name: str) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise BadBackup(f"damaged: {name!r} is no JSON object")
    return value


def check_told(about: dict[str, Any], end: dict[str, Any]) -> None:
    """What is read of the first and the last member afterwards is there and of its kind. Raises BadBackup."""
    name = layout.ABOUT
    try:
        checked.whole(about["grids"])
        checked.text(about["made_at"])
        if not isinstance(about["cells"], dict) or type(about["models_included"]) is not bool:
            raise ValueError("cells, models_included")
        for count in about["cells"].values():
            checked.whole(count)
        _objects_with_names(about["models"])
        name = layout.END
        _texts(end.get("unread", []))
    except (KeyError, ValueError) as error:
        raise BadBackup(f"damaged: {name!r} does not say what it should ({error})") from None


def _objects_with_names(values: Any) -> None:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError("a list of objects is expected")
    _texts([value["name"] for value in values])


def _texts(values: Any) -> None:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("texts are expected")

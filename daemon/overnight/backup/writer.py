"""The bytes of an archive, piece by piece: nothing of it is in memory but one piece and a thousand sums."""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from overnight.backup import layout

_PIECE_BYTES = 1 << 20
_ZEROS = bytes(tarfile.BLOCKSIZE)


class Writer:
    """Each method gives the bytes of one member; they are to be written in the order of the calls."""

    def __init__(self) -> None:
        self.members = self.bytes = 0
        self._parts = 0
        self._sums: list[bytes] = []

    def folder(self, name: str, mode: int, mtime_s: float) -> Iterator[bytes]:
        yield _header(name, tarfile.DIRTYPE, mode=mode, mtime_s=mtime_s)
        yield from self._noted({"name": name, "folder": True})

    def link(self, name: str, target: str, mtime_s: float) -> Iterator[bytes]:
        yield _header(name, tarfile.SYMTYPE, target=target, mtime_s=mtime_s)
        yield from self._noted({"name": name, "link": target})

    def file(self, name: str, mode: int, mtime_s: float, size: int, content: Iterable[bytes]) -> Iterator[bytes]:
        """content: exactly `size` bytes."""
        digest, left = hashlib.sha256(), size
        yield _header(name, tarfile.REGTYPE, mode=mode, mtime_s=mtime_s, size=size)
        for piece in content:
            digest.update(piece)
            left -= len(piece)
            yield piece
        assert left == 0, name  # noqa: S101 - the header has promised them: the caller counts
        yield _padding(size)
        self.bytes += size
        yield from self._noted({"name": name, "bytes": size, "sha256": digest.hexdigest()})

    def json(self, name: str, value: Any, mtime_s: float) -> Iterator[bytes]:
        data = (json.dumps(value, indent=1) + "\n").encode()
        yield from self.file(name, 0o600, mtime_s, len(data), [data])

    def end(self, value: dict[str, Any], mtime_s: float) -> Iterator[bytes]:
        """The last sums, the last member, and the mark that tar ends with."""
        yield from self._write_sums()
        value = {"v": layout.VERSION, "members": self.members, "bytes": self.bytes, "sums": self._parts, **value}
        value["sha256"] = layout.end_sha256(value)
        data = (json.dumps(value, indent=1) + "\n").encode()
        yield _header(layout.END, tarfile.REGTYPE, mtime_s=mtime_s, size=len(data))
        yield data
        yield _padding(len(data))
        yield _ZEROS * 2

    def _noted(self, sums: dict[str, Any]) -> Iterator[bytes]:
        self.members += 1
        self._sums.append(json.dumps(sums).encode() + b"\n")  # ASCII: a name that is no UTF-8 survives it
        if len(self._sums) >= layout.SUMS_EVERY:
            yield from self._write_sums()

    def _write_sums(self) -> Iterator[bytes]:
        if self._sums:
            self._parts += 1
            data = b"".join(self._sums)
            self._sums.clear()
            yield _header(layout.sums_name(self._parts), tarfile.REGTYPE, size=len(data))
            yield data
            yield _padding(len(data))


def _header(
    name: str, kind: bytes, *, mode: int = 0o600, mtime_s: float = 0.0, size: int = 0, target: str = ""
) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime, member.size, member.linkname = kind, mode, mtime_s, size, target
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def packed(pieces: Iterable[bytes], suffix: str) -> Iterator[bytes]:
    """Compressed as the suffix says, in pieces of about a MiB."""
    return _gathered(_compressed(pieces, suffix))


def _compressed(pieces: Iterable[bytes], suffix: str) -> Iterator[bytes]:
    if suffix == ".tar":
        yield from pieces
        return
    # 31: with the header of gzip, whose time is 0. xz: its higher levels take five times as long for a tenth less.
    packer = lzma.LZMACompressor(preset=1) if suffix == ".tar.xz" else zlib.compressobj(6, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    yield b"".join(waiting)

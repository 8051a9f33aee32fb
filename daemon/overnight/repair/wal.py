"""SQLite's write-ahead log, frame by frame: what it holds that is committed, also behind a damaged frame.

SQLite itself stops at the first frame whose checksum is wrong, and drops all that follows, since that is what a power
cut leaves. A damaged byte looks the same, but then whole transactions follow: each was begun after the one before it
had been fsynced (synchronous = FULL), so the one with the damaged frame was once whole. Format:
sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES, FRAME_BYTES = 32, 24
_VERSION = 3007000
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
_MASK = 0xFFFFFFFF

Sum = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """offset: of the page's bytes in the log. pages: of the whole database after a commit, else 0."""

    page: int
    pages: int
    offset: int
    whole: bool


@dataclass(frozen=True)
class Log:
    """frames: up to the last commit that counts. damage: a sentence for each place, none after a mere power cut."""

    frames: tuple[Frame, ...]
    damage: tuple[str, ...]

    @property
    def pages(self) -> int | None:
        """Of the whole database after the last commit, None without one."""
        return next((frame.pages for frame in reversed(self.frames) if frame.pages), None)


def read(path: Path, page_bytes: int) -> Log:
    """Read a log through. Raises OSError."""
    with path.open("rb") as log:
        header = log.read(HEADER_BYTES)
        if not header.strip(b"\0"):
            return Log((), ())
        order, seed, salts, damage = _header(header, log, page_bytes)
        log.seek(HEADER_BYTES)
        return _committed(list(_frames(log, page_bytes, order, seed, salts)), damage)


def _header(header: bytes, log: BinaryIO, page_bytes: int) -> tuple[str, Sum, bytes, list[str]]:
    """(byte order of the checksums, the header's checksum, its salts, what was wrong with it)."""
    if len(header) == HEADER_BYTES:
        magic, version, size, _, _, _, first, second = struct.unpack(">8I", header)
        order = _MAGIC.get(magic)
        if order and (version, size) == (_VERSION, page_bytes) and add(header[:24], (0, 0), order) == (first, second):
            return order, (first, second), header[16:24], []
    head, page = log.read(FRAME_BYTES), log.read(page_bytes)
    damage = ["the log's header is damaged"]
    if len(page) < page_bytes:
        return "<", (0, 0), b"", damage
    for magic, order in _MAGIC.items():
        # The checksum is a sum that can be taken back: from the first frame's to the header's, and to its sequence
        # number, which is the one thing in it that stands nowhere else. Then all of it must add up again.
        (stored,) = struct.iter_unpack(">2I", head[16:24])
        seed = take(head[:8] + page, (stored[0], stored[1]), order)
        before = take(head[8:16], seed, order)
        start = add(struct.pack(">2I", magic, _VERSION), (0, 0), order)
        size = int.from_bytes(struct.pack(">I", page_bytes), "big" if order == ">" else "little")
        if before[0] == (start[0] + size + start[1]) & _MASK:
            return order, seed, head[8:16], damage
    return "<", (0, 0), head[8:16], damage


def _frames(log: BinaryIO, page_bytes: int, order: str, seed: Sum, salts: bytes) -> Iterator[Frame]:
    """Frames of this log, the damaged ones too; those of an earlier use of the file follow behind and end it."""
    strange, sure = 0, True
    while len(head := log.read(FRAME_BYTES)) == FRAME_BYTES and len(page := log.read(page_bytes)) == page_bytes:
        first, second = struct.unpack(">2I", head[16:24])
        whole = add(head[:8] + page, seed, order) == (first, second)
        # Its salts say so, or it follows from a frame that does: those of an earlier use follow from each other, too.
        ours = head[8:16] == salts or (whole and sure)
        strange = 0 if ours else strange + 1
        if strange > 1:
            return
        number, pages = struct.unpack(">2I", head[:8])
        yield Frame(number, pages if ours else 0, log.tell() - page_bytes, whole and ours)
        seed, sure = (first, second), whole and ours


def _committed(frames: list[Frame], damage: list[str]) -> Log:
    """Up to the last commit that counts: of the transactions from the first damaged frame on, all but the last,
    since that one may be what a power cut left."""
    commits = [at for at, frame in enumerate(frames) if frame.pages and frame.whole]
    bad = [at for at, frame in enumerate(frames) if not frame.whole]
    last = commits[-1] if commits else -1
    for at in reversed(bad):
        if at <= last and not any(frames[commit].pages for commit in range(at, last)):
            last = max((commit for commit in commits if commit < at), default=-1)
    kept = tuple(frames[: last + 1])
    told = [f"frame {at + 1} of the log is damaged, and whole transactions follow" for at in bad if at <= last]
    return Log(kept, (*damage, *told))


def fold(path: Path, log: Log, database: Path, page_bytes: int) -> None:
    """Write the pages of a log into a copy of its database. Raises OSError."""
    if (pages := log.pages) is None:
        return
    with path.open("rb") as source, database.open("r+b") as target:
        for frame in log.frames:
            if 1 <= frame.page <= pages:
                source.seek(frame.offset)
                target.seek((frame.page - 1) * page_bytes)
                target.write(source.read(page_bytes))
        target.truncate(pages * page_bytes)


def add(data: bytes, seed: Sum, order: str) -> Sum:
    """SQLite's checksum of `data`, a multiple of 8 bytes, on top of `seed`."""
    first, second = seed
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & _MASK
        second = (second + other + first) & _MASK
    return first, second


def take(data: bytes, total: Sum, order: str) -> Sum:
    """The seed that gave `total` with `data`."""
    first, second = total
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, other in zip(words[-2::-2], words[::-2], strict=True):
        second = (second - other - first) & _MASK
        first = (first - one - second) & _MASK
    return first, second

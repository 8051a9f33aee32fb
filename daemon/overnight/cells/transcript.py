"""A cell's transcript: a header line, then one line a turn, each hash-chained to the one before and fsynced.

A line is canonical JSON whose last field `h` is sha256(previous h + newline + the line without `h`), in hex; the
header's previous h is the empty string. So a torn, flipped, swapped or missing line is seen, by streaming, in bounded
memory. What varies from run to run (times, pids, host) is never in it: its bytes depend on the specification and the
conditions in the header alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from overnight import durable
from overnight.cells.locking import open_locked
from overnight.errors import TranscriptCorrupt

_SEAL = re.compile(rb',"h":"([0-9a-f]{64})"\}\n?$')
_ANY_SEAL = re.compile(rb',"h":"[0-9a-f]{64}"\}')
"""Inside a record's strings quotes are escaped, so this stands nowhere but at the end of a line."""

_SEAL_LENGTH = len(',"h":"') + 64 + len('"}')
MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longer than any turn can be; a file without newlines must not be read into memory whole."""


def seal(record: dict[str, Any], previous: str) -> tuple[bytes, str]:
    """One line, ready to be appended, and its hash. `previous` is the hash of the line before, '' for the header."""
    body = durable.canonical(record)
    digest = _digest(body.encode(), previous)
    return f'{body[:-1]},"h":"{digest}"}}\n'.encode(), digest


def unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str] | None:
    """The record of a line and its hash, or None when the line is not whole or does not follow `previous`."""
    match = _SEAL.search(line)
    if match is None or not line.endswith(b"\n"):
        return None
    body = line[: -_SEAL_LENGTH - 1] + b"}"
    digest = match.group(1).decode()
    if _digest(body, previous) != digest:
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return (record, digest) if isinstance(record, dict) else None


def _digest(body: bytes, previous: str) -> str:
    return hashlib.sha256(previous.encode() + b"\n" + body).hexdigest()


@dataclass(frozen=True)
class Fault:
    """Where reading stopped. `torn_tail`: nothing but a bad last line follows; else the middle is corrupt."""

    offset: int
    line_number: int
    torn_tail: bool
    what: str


class Reader:
    """Streams the whole lines of a transcript and says where, and how, the first bad one is.

    After the iteration: `good_bytes` (end of the last whole line), `last_bytes` (its length), `turns`, `head` (its
    hash), `sha256` (of the good bytes), `fault` (None when the file is whole).
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.good_bytes = self.last_bytes = 0
        self.turns = 0
        self.head = ""
        self.fault: Fault | None = None
        self._sha = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number = 0
        while line := self._stream.readline(MAX_LINE_BYTES):
            number += 1
            opened = unseal(line, self.head)
            what = "the line is torn or its hash does not follow from the line before" if opened is None else None
            if opened is not None:
                what = _out_of_order(opened[0], number, self.turns)
            if opened is None or what is not None:
                self.fault = Fault(self.good_bytes, number, opened is None and self._torn(line), what or "")
                return
            record, self.head = opened
            self.good_bytes += len(line)
            self.last_bytes = len(line)
            self._sha.update(line)
            if number > 1:
                self.turns += 1
            yield record

    def _torn(self, bad: bytes) -> bool:
        """True when nothing after the bad line could be a record: a power cut leaves a prefix, NULs or stale bytes.

        Two seals in one line are two records whose newline is damaged: that is no torn tail."""
        if len(_ANY_SEAL.findall(bad)) > 1:
            return False
        while line := self._stream.readline(MAX_LINE_BYTES):
            if _ANY_SEAL.search(line):
                return False
        return True


def _out_of_order(record: dict[str, Any], number: int, turns: int) -> str | None:
    if number == 1:
        return None if record.get("kind") == "header" and record.get("v") == 1 else "the first line is not a header"
    if record.get("kind") != "turn" or record.get("turn") != turns + 1:
        return f"turn {turns + 1} was expected"
    return None


class Transcript:
    """The one writer of a transcript, holding its lock. `records` is read once, then `append` once a turn."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._head = ""
        self._size = 0
        self._sha = hashlib.sha256()
        self.turns = 0
        self.has_header = False
        self.cut: tuple[Path, int] | None = None

    @classmethod
    def open(cls, path: Path, *, wait_s: float | None = None) -> Transcript:
        """Open or create for appending, under an exclusive lock. Raises Busy, or a CellError for the disk's faults."""
        try:
            return cls(path, open_locked(path, os.O_APPEND, wait_s=wait_s))
        except OSError as error:
            raise durable.as_cell_error(error, f"opening {path}") from error

    def last_conditions(self) -> dict[str, Any] | None:
        """The conditions under which the last finished turn was made, None without a header. Changes nothing."""
        found: dict[str, Any] | None = None
        with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 16) as stream:
            stream.seek(0)
            for record in Reader(stream):
                found = record.get("conditions", found)
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """Stream the header and the finished turns. A torn last line is cut off and kept beside; a corrupt middle
        raises `TranscriptCorrupt` and touches nothing."""
        with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 16) as stream:
            stream.seek(0)
            reader = Reader(stream)
            for record in reader:
                self.has_header = True
                yield record
        if reader.fault is not None and not reader.fault.torn_tail:
            raise TranscriptCorrupt(
                f"{self.path}: line {reader.fault.line_number}: {reader.fault.what}, and more lines follow; "
                "nothing was changed"
            )
        self._head, self._size, self.turns = reader.head, reader.good_bytes, reader.turns
        self._sha = reader._sha
        if reader.fault is not None:
            self._cut_tail()
        if reader.last_bytes:
            self._settle(reader.last_bytes)

    def _settle(self, last_bytes: int) -> None:
        """Write the last line once more, the same bytes in the same place, and sync it and the file's name.

        An earlier attempt's fsync of it may have failed, and so may have its truncation, or it was killed between the
        two: then every reader sees the line, in pages that the kernel calls clean, and the disk never gets it."""
        start = self._size - last_bytes
        try:
            fd = durable.calls.open(self.path, os.O_WRONLY)  # ours appends, wherever it is told to write
            try:
                os.lseek(fd, start, os.SEEK_SET)
                durable.write_all(fd, os.pread(self._fd, last_bytes, start))
                durable.sync(fd)
            finally:
                os.close(fd)
            durable.sync_folder(self.path.parent)
        except OSError as error:
            raise durable.as_cell_error(error, f"writing {self.path}") from error

    def _cut_tail(self) -> None:
        """Keep what stands behind the last whole line in a file of its own, then cut it off."""
        try:
            tail_bytes = os.fstat(self._fd).st_size - self._size
            number = 1
            while (beside := self.path.with_name(f"{self.path.name}.cut-{number}")).exists():
                number += 1
            durable.write_atomic(beside, _pieces(self._fd, self._size))
            durable.truncate(self._fd, self._size)
            durable.sync(self._fd)
        except OSError as error:
            raise durable.as_cell_error(error, f"cutting a torn line off {self.path}") from error
        self.cut = (beside, tail_bytes)

    def write_header(self, header: dict[str, Any]) -> None:
        """The first line. Its folder entry is made durable with it."""
        self._append({"kind": "header", "v": 1, **header})
        self.has_header = True
        try:
            durable.sync_folder(self.path.parent)
        except OSError as error:
            raise durable.as_cell_error(error, f"syncing {self.path.parent}") from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one finished turn and fsync it: only after this returns may the next turn begin."""
        self._append({"kind": "turn", "turn": self.turns + 1, **record})
        self.turns += 1

    def _append(self, record: dict[str, Any]) -> None:
        line, head = seal(record, self._head)
        try:
            durable.write_all(self._fd, line)
            durable.sync(self._fd)
        except OSError as error:
            # Half a line is never left behind by us; should even this fail, the next opening cuts it off.
            try:
                durable.truncate(self._fd, self._size)
            except OSError:
                pass
            raise durable.as_cell_error(error, f"writing {self.path}") from error
        self._head = head
        self._size += len(line)
        self._sha.update(line)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, kept while writing."""
        return self._sha.hexdigest()

    def close(self) -> None:
        os.close(self._fd)


def _pieces(fd: int, offset: int) -> Iterator[bytes]:
    """What a file holds from there on, never all of it at once: it may be of any length."""
    while piece := os.pread(fd, 1 << 20, offset):
        offset += len(piece)
        yield piece


@dataclass(frozen=True)
class Checked:
    """What `check` found: `fault` is None for a whole transcript."""

    turns: int
    sha256: str
    has_header: bool
    fault: Fault | None


def check(path: Path) -> Checked:
    """Read a transcript through, changing nothing. Raises OSError when it cannot be read."""
    with path.open("rb") as stream:
        reader = Reader(stream)
        lines = sum(1 for _ in reader)
    return Checked(reader.turns, reader.sha256, lines > 0, reader.fault)

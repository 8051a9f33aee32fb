"""var/run/verdicts.ring: why somebody was taken out, written before the signal is sent.

64 records of 1024 bytes, allocated when the watchdog starts, overwritten in turn: one pwrite, no new file, no rename,
so neither a full disk nor a lack of memory keeps a verdict from being written. Whoever finds a process ended looks here
for the newest record that names it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

from overnight_watchdog.journal import block, checksum

RECORDS = 64
RECORD_BYTES = 1024
_NAME_CHARACTERS = 200
_LAST = 2**53


class Ring(Protocol):
    """Where verdicts go."""

    def write(self, record: dict[str, Any]) -> bool: ...

    def encode(self, record: dict[str, Any]) -> bytes: ...


class VerdictRing:
    """Never raises because of a disk: a verdict that cannot be written stops no signal, and is told by False."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path, self._boot_id = path, boot_id
        self._fd = -1
        self.sequence = 0

    def open(self) -> bool:
        """Allocate the file and go on behind the newest record in it."""
        self.close()
        try:
            self._path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._fd, 0, RECORDS * RECORD_BYTES)
            if os.fstat(self._fd).st_size != RECORDS * RECORD_BYTES:
                os.ftruncate(self._fd, RECORDS * RECORD_BYTES)
            records = read_ring(os.pread(self._fd, RECORDS * RECORD_BYTES, 0))
        except OSError:
            self.close()
            return False
        self.sequence = max([self.sequence, *(record["sequence"] for record in records)])
        return True

    def encode(self, record: dict[str, Any]) -> bytes:
        """The block of the next record. Its two names are shortened until it fits."""
        full = {"v": 1, "boot_id": self._boot_id, "sequence": self.sequence + 1, **record}
        for most in (_NAME_CHARACTERS, 40, 0):
            full["cell"] = _clipped(record.get("cell", ""), most)
            full["limit_source"] = _clipped(record.get("limit_source", ""), most)
            try:
                return block(full, RECORD_BYTES)
            except ValueError:
                continue
        raise ValueError(f"a verdict does not fit into {RECORD_BYTES} bytes: {record}")

    def write(self, record: dict[str, Any]) -> bool:
        """One record in place of the oldest."""
        return self._write(record) or (self.open() and self._write(record))

    def _write(self, record: dict[str, Any]) -> bool:
        """False also when somebody cleared var/run, or the disk was full when the ring was to be opened."""
        try:
            if self._fd < 0 or not os.fstat(self._fd).st_nlink:
                return False
            written = os.pwrite(self._fd, self.encode(record), self.sequence % RECORDS * RECORD_BYTES)
        except (OSError, ValueError):
            return False
        self.sequence += 1
        return written == RECORD_BYTES

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass


def read_ring(data: bytes) -> list[dict[str, Any]]:
    """All whole records, in no order; damaged ones are passed over."""
    found = []
    for at in range(0, len(data), RECORD_BYTES):
        try:
            record = json.loads(data[at : at + RECORD_BYTES].strip(b" \n\0"))  # as the daemon reads it
            # Of a sequence that leaves the next one room in its place.
            known = type(record["sequence"]) is int and 0 <= record["sequence"] < _LAST
            if known and record["checksum"] == checksum(record):
                found.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _clipped(text: str, most: int) -> str:
    """The end of a long name says more than its beginning."""
    plain = text.encode("ascii", "replace").decode()
    return plain if len(plain) <= most else "..." + plain[len(plain) - most :]

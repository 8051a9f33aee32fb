"""What the watchdog says: the heartbeat var/run/pressure.json and the log var/log/watchdog.jsonl.

Nothing here raises because of a disk: a heartbeat or a line that cannot be written is dropped, tried again
the next time, and (for lines) counted. A watchdog that a full disk could stop would be no watchdog.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRESSURE_BYTES = 512
LOG_BYTES = 5 * 2**20
LOGS_KEPT = 3

_UNPRINTABLE = dict.fromkeys((*range(32), ord('"'), ord("\\"), 127), "?")
"""What JSON would spell with several characters, so that 48 stay 48."""
_SOURCE_CHARACTERS = 48
"""A cgroup's name may be longer than the whole heartbeat; its end says more than its beginning."""


def canonical(record: dict[str, Any]) -> str:
    """The one spelling of a JSON object, which checksums are taken of."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def checksum(record: dict[str, Any]) -> str:
    """crc32 of the canonical JSON without the field `checksum`, as 8 hex digits."""
    bare = {name: value for name, value in record.items() if name != "checksum"}
    return f"{zlib.crc32(canonical(bare).encode()):08x}"


def short_source(source: str) -> str:
    """A limit's source as the heartbeat holds it: plain ASCII, at most 48 characters, the end kept."""
    plain = source.encode("ascii", "replace").decode().translate(_UNPRINTABLE)
    return plain if len(plain) <= _SOURCE_CHARACTERS else "..." + plain[3 - _SOURCE_CHARACTERS :]


def block(record: dict[str, Any], size: int) -> bytes:
    """`record` with its checksum in exactly `size` bytes: JSON, blanks, a newline at the end.

    Raises ValueError when it does not fit.
    """
    data = canonical(record | {"checksum": checksum(record)}).encode()
    if len(data) >= size:
        raise ValueError(f"a record of {len(data)} bytes does not fit into {size}")
    return data.ljust(size - 1) + b"\n"


def pressure_block(record: dict[str, Any]) -> bytes:
    """The heartbeat as a block of 512 bytes. Raises ValueError when it does not fit."""
    return block(record, PRESSURE_BYTES)


def read_pressure(path: Path) -> dict[str, Any]:
    """The heartbeat at `path`, checked. Raises FileNotFoundError, or ValueError when it is torn or damaged.

    The caller judges its age: `boot_id` must be this boot's, and `monotonic_s` is on this boot's clock.
    """
    data = path.read_bytes()
    if len(data) != PRESSURE_BYTES or not data.endswith(b"\n"):
        raise ValueError(f"{path}: {len(data)} bytes instead of {PRESSURE_BYTES} with a newline at the end")
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("checksum") != checksum(record):
        raise ValueError(f"{path}: the checksum does not match")
    return record


class PressureFile:
    """var/run/pressure.json: preallocated once, then overwritten in place: a full disk cannot silence it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def write(self, record: dict[str, Any]) -> bool:
        """Overwrite the heartbeat with one pwrite. False when that failed; the next call tries afresh."""
        block = pressure_block(record)
        try:
            if self._fd < 0:
                self._fd = self._open()
            elif os.fstat(self._fd).st_nlink == 0:  # somebody cleared var/run: nobody would read this file again
                self.close()
                self._fd = self._open()
            if os.pwrite(self._fd, block, 0) == len(block):
                return True
        except OSError:
            pass
        self.close()
        return False

    def allocate(self) -> bool:
        """Have its room, before somebody else takes the last of it. False when there is none."""
        try:
            self._fd = self._open() if self._fd < 0 else self._fd
        except OSError:
            return False
        return True

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, PRESSURE_BYTES)
            if os.fstat(fd).st_size != PRESSURE_BYTES:
                os.ftruncate(fd, PRESSURE_BYTES)
        except OSError:
            _close(fd)
            raise
        return fd


class EventLog:
    """A file of JSON lines, rotated by size: `watchdog.jsonl`, then `.1` (newer) to `.3` (older)."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = LOG_BYTES,
        kept: int = LOGS_KEPT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._max_bytes, self._kept, self._clock = path, max_bytes, kept, clock
        self._fd = -1
        self._lost = 0

    def write(self, level: str, event: str, **fields: Any) -> bool:
        """Append one line: ts, level, event, then `fields`. False when it could not be written.

        Lines that were lost before are counted in the next one (`lines_lost`).
        """
        return self.write_at(self._clock(), level, event, fields)

    def write_at(self, now_s: float, level: str, event: str, fields: dict[str, Any]) -> bool:
        """The same, of something that happened at `now_s`."""
        record = {"ts": timestamp(now_s), "level": level, "event": event, **fields}
        if self._lost:
            record["lines_lost"] = self._lost
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._make_room(len(line))
            if os.write(self._fd, line) == len(line):
                self._lost = 0
                return True
        except OSError:
            pass
        # Opening again mends a line that was cut off in the middle, and finds a folder that came back.
        self.close()
        self._lost += 1
        return False

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    def _make_room(self, size: int) -> None:
        """Have the right file open, with less than `max_bytes` in it once `size` more are written."""
        if self._fd >= 0:
            state = os.fstat(self._fd)
            if state.st_nlink == 0:
                self.close()
            elif state.st_size + size > self._max_bytes:
                self.close()
                self._rotate()
        if self._fd < 0:
            self._fd = self._open()

    def _rotate(self) -> None:
        """Shift the older files. Where renaming is refused the file grows on: better long than lost."""
        try:
            for number in range(self._kept, 0, -1):
                older = self._numbered(number)
                newer = self._numbered(number - 1) if number > 1 else self._path
                if newer.exists():
                    newer.replace(older)
        except OSError:
            pass

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # a power cut or a full disk cut the last line off
                os.write(fd, b"\n")
        except OSError:
            _close(fd)
            raise
        return fd


def timestamp(now_s: float) -> str:
    """RFC 3339, UTC, milliseconds: 2025-01-31T23:59:59.123Z"""
    whole_ms = int(now_s * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_ms // 1000)) + f".{whole_ms % 1000:03d}Z"


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass

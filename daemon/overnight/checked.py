"""What somebody else wrote into a file or a packet, checked before it is believed: kinds, ranges, sizes, depth.

Everything here raises ValueError for what is not as it should be, so that a reader has one thing to catch.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST = 2**63 - 1
"""What the queue can hold, and more than any size, time or count here can be."""

SMALL_BYTES = 2**20

PATH_MOST = 4096
"""The kernel's PATH_MAX."""


def read_small(path: Path, most_bytes: int = SMALL_BYTES) -> bytes:
    """All of a small regular file. Raises OSError, for a larger one and for a pipe or a device too: what cannot be what
    we wrote must neither keep us waiting nor fill our memory."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            kind = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
            raise OSError(kind, "no regular file", os.fspath(path))
        data = b""
        while len(data) <= most_bytes and (piece := os.read(fd, most_bytes + 1 - len(data))):
            data += piece
    finally:
        os.close(fd)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", os.fspath(path))
    return data


def json_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object, whatever it holds."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004 - the one thing to catch
    return found


def whole(value: Any, least: int = 0, most: int = MOST) -> int:
    """A whole number, not one that only looks like it (true, 1.0, "1")."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a whole number from {least} to {most} is expected")
    return value


def number(value: Any) -> float:
    """A finite number that can be added to others."""
    if type(value) not in (int, float) or not abs(value) <= MOST or not math.isfinite(value):
        raise ValueError("a number is expected")
    return float(value)


def rounded(value: Any) -> int:
    """A number of which no part counts; a whole one is as it was, however large."""
    found = number(value)
    return value if type(value) is int else int(found)


def text(value: Any, most: int = 1000) -> str:
    """A printable text of one line."""
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise ValueError(f"a text of one line and at most {most} characters is expected")
    return value


def path(value: Any, most: int = PATH_MOST) -> str:
    """What a file or folder can be called: nearly everything, bytes that are no UTF-8 too (as `os.fsdecode` has them).
    So it is escaped wherever it is shown."""
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise ValueError(f"a path of at most {most} characters is expected")
    value.encode("utf-8", "surrogateescape")  # other halves of characters than those of `os.fsdecode` name no file
    return value

"""Records that daemon and watchdog overwrite in place for each other: a JSON object with a checksum, in a fixed size.

A reader may meet a writer half-way, a file of another boot, or damage: whatever is not whole counts as nothing.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from overnight import durable, procfs


def checksum(record: dict[str, Any]) -> str:
    """crc32 of the canonical JSON without the field `checksum`, as 8 hex digits."""
    bare = {name: value for name, value in record.items() if name != "checksum"}
    return f"{zlib.crc32(durable.canonical(bare).encode(errors=durable.ODD_NAMES)):08x}"


def sealed(record: dict[str, Any]) -> bytes:
    """`record` with its checksum, as JSON."""
    return durable.canonical(record | {"checksum": checksum(record)}).encode(errors=durable.ODD_NAMES)


def block(record: dict[str, Any], size_bytes: int) -> bytes:
    """`record` with its checksum as one block: JSON, blanks, a newline at the end. Raises ValueError when too long."""
    data = sealed(record)
    if len(data) >= size_bytes:
        raise ValueError(f"a record of {len(data)} bytes does not fit into {size_bytes}")
    return data.ljust(size_bytes - 1) + b"\n"


def whole(data: bytes) -> dict[str, Any] | None:
    """The record in `data` when it is whole, of version 1 and of this boot, else None."""
    try:
        record = json.loads(data)
        if record["v"] != 1 or record["boot_id"] != procfs.boot_id() or record["checksum"] != checksum(record):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    found: dict[str, Any] = record
    return found

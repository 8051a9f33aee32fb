"""Records with a checksum as daemon and watchdog write them for each other: made anew after an edit, as somebody would
who knows the format."""

from __future__ import annotations

import json
import zlib
from typing import Any

from fuzz import documents


def sealed(document: Any, size: int) -> bytes:
    """`document` with a checksum that fits what a reader of JSON understands it to be, where that can be told; padded
    to `size`."""
    text = documents.dump(document)
    try:
        record = json.loads(text)
        bare = {name: value for name, value in record.items() if name != "checksum"}
        canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        mark = f'"checksum":"{zlib.crc32(canonical.encode("utf-8", "surrogatepass")):08x}"'
        text = f"{text[:-1]}{',' if record else ''}{mark}}}"
    except (ValueError, RecursionError, AttributeError):
        pass  # no reader can take it for whole, whatever its checksum
    return text.encode("utf-8", "surrogatepass").ljust(size - 1) + b"\n"


def same(data: bytes, *records: dict[str, Any]) -> bool:
    """Does the text still say what one of these records says?"""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return any({**found, "checksum": None} == {**record, "checksum": None} for record in records)

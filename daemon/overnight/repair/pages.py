"""The first pages of a damaged queue's copy: the header and the schema, which every queue has alike.

Both follow from the migrations, so they are taken from a queue that is made afresh."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from pathlib import Path

from overnight.queue.migrate import APPLICATION_ID, LATEST, migrate
from overnight.repair.salvage_columns import COLUMNS
from overnight.repair.salvage_read import OLDEST

PAGE_BYTES = 4096
"""SQLite's default since 3.12, which a queue never changes."""

_HEADER_BYTES = 100
_INTERIOR = 0x05


def is_sound(path: Path) -> bool:
    """Can the schema of this file be read, and is it that of a queue?"""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    except sqlite3.Error:
        return False
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        for table, columns in OLDEST.items():
            wanted = ["id", *list(COLUMNS[table])[: columns - 1]]
            db.execute(f"SELECT {', '.join(wanted)} FROM {table} LIMIT 0")  # noqa: S608 - literals
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    finally:
        db.close()
    return {"grids", "warms", "specs", "cells", "attempts", "events", "grid_counts"} <= names


def mend(copy: Path, work: Path) -> bool:
    """Give a copy a header, and a schema if its own cannot be read. True when rows can be read then.

    work: a folder for what is made on the way. Raises OSError, sqlite3.Error."""
    size = copy.stat().st_size // PAGE_BYTES * PAGE_BYTES
    if size < PAGE_BYTES:
        return False
    with copy.open("r+b") as file:
        file.truncate(size)
        header = file.read(_HEADER_BYTES)
        version = struct.unpack_from(">I", header, 60)[0]
        file.seek(0)
        file.write(_header(header, size // PAGE_BYTES, version if 1 <= version <= LATEST else LATEST))
    if is_sound(copy):
        return True
    fresh = work / "fresh.db"
    fresh.unlink(missing_ok=True)
    db = sqlite3.connect(fresh, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        migrate(db, 0.0)
    finally:
        db.close()
    before = work / "before.db"
    shutil.copyfile(copy, before)
    data = fresh.read_bytes()
    with copy.open("r+b") as file:
        file.seek(_HEADER_BYTES)
        file.write(data[_HEADER_BYTES:PAGE_BYTES])
        for number in _children(data):
            file.seek((number - 1) * PAGE_BYTES)
            file.write(data[(number - 1) * PAGE_BYTES : number * PAGE_BYTES])
    fresh.unlink()
    sound = is_sound(copy)
    if not sound:
        before.replace(copy)
    before.unlink(missing_ok=True)
    return sound


def _header(old: bytes, pages: int, version: int) -> bytes:
    """A header that leads into the same trees: nothing but the counters is taken over."""
    head = bytearray(_HEADER_BYTES)
    head[0:16] = b"SQLite format 3\0"
    struct.pack_into(">H6B", head, 16, PAGE_BYTES, 1, 1, 0, 64, 32, 32)
    counter = old[24:28]
    head[24:28] = counter
    struct.pack_into(">I", head, 28, pages)
    head[40:44] = old[40:44]
    struct.pack_into(">I", head, 44, 4)  # schema format
    struct.pack_into(">I", head, 56, 1)  # UTF-8
    struct.pack_into(">I", head, 60, version)
    struct.pack_into(">I", head, 68, APPLICATION_ID)
    head[92:96] = counter
    head[96:100] = old[96:100]
    return bytes(head)


def _children(data: bytes) -> list[int]:
    """The pages of the schema's tree below its root, which is page 1; two levels are all that it has."""
    if data[_HEADER_BYTES] != _INTERIOR:
        return []
    (cells,) = struct.unpack_from(">H", data, _HEADER_BYTES + 3)
    (rightmost,) = struct.unpack_from(">I", data, _HEADER_BYTES + 8)
    pointers = struct.unpack_from(f">{cells}H", data, _HEADER_BYTES + 12)
    return [*(struct.unpack_from(">I", data, at)[0] for at in pointers), rightmost]

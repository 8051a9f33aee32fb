"""Rows as they lie in the pages of an SQLite file, whether a tree still leads to them or not.

Format: sqlite.org/fileformat2.html, sections 1.6 and 2.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_LEAF = 0x0D
_HEADER_BYTES = 8
_OTHER_PAGES = (0x02, 0x05, 0x0A)
_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
_LARGEST_PAYLOAD = 64 << 20

Value = int | float | str | bytes | None


def rows(
    path: Path, page_bytes: int, columns: set[int], known: Callable[[list[int]], bool] = lambda rowids: False
) -> Iterator[tuple[int, list[Value]]]:
    """(rowid, values) of every row with one of these numbers of columns, in the order of the pages.

    A row that is not whole is passed over; so is a page whose rowids are `known`, all of them. Raises OSError."""
    with path.open("rb") as file:
        number = 0
        while page := file.read(page_bytes):
            number += 1
            if len(page) == page_bytes and number > 1 and _may_be_leaf(page):
                cells = list(_cells(page, page_bytes))
                if cells and not known([rowid for rowid, *_ in cells]):
                    yield from _of_page(file, page, page_bytes, columns, cells)
                    file.seek(number * page_bytes)


def _may_be_leaf(page: bytes) -> bool:
    """A leaf of a table, or one whose kind has a flipped bit."""
    kind = page[0]
    return kind == _LEAF or (kind not in _OTHER_PAGES and (kind ^ _LEAF).bit_count() == 1)


def _cells(page: bytes, page_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(rowid, length of the record, where it begins) of each cell that can be one."""
    (cells,) = struct.unpack_from(">H", page, 3)
    most = (page_bytes - _HEADER_BYTES) // 2
    for index in range(min(cells, most)):
        (at,) = struct.unpack_from(">H", page, _HEADER_BYTES + 2 * index)
        try:
            length, at = _varint(page, at)
            rowid, at = _varint(page, at)
        except IndexError:
            continue
        if 0 < length <= _LARGEST_PAYLOAD and rowid > 0:
            yield rowid, length, at


def _of_page(
    file: BinaryIO, page: bytes, page_bytes: int, columns: set[int], cells: list[tuple[int, int, int]]
) -> Iterator[tuple[int, list[Value]]]:
    for rowid, length, at in cells:
        try:
            values = _record(_payload(file, page, at, length, page_bytes), columns)
        except (IndexError, struct.error, ValueError):
            continue
        if values is not None:
            yield rowid, values


def _payload(file: BinaryIO, page: bytes, at: int, length: int, page_bytes: int) -> bytes:
    largest, smallest = page_bytes - 35, (page_bytes - 12) * 32 // 255 - 23
    if length <= largest:
        local = length
    else:
        local = smallest + (length - smallest) % (page_bytes - 4)
        local = local if local <= largest else smallest
    data = bytearray(page[at : at + local])
    if len(data) < local:
        raise ValueError("cut off")
    if local == length:
        return bytes(data)
    (following,) = struct.unpack_from(">I", page, at + local)
    while len(data) < length:
        if following < 2:
            raise ValueError("its chain of pages ends early")
        file.seek((following - 1) * page_bytes)
        piece = file.read(page_bytes)
        if len(piece) < page_bytes:
            raise ValueError("its chain leads out of the file")
        (following,) = struct.unpack_from(">I", piece)
        data += piece[4 : 4 + length - len(data)]
    return bytes(data)


def _record(payload: bytes, columns: set[int]) -> list[Value] | None:
    end, at = _varint(payload, 0)
    types = []
    while at < end:
        kind, at = _varint(payload, at)
        types.append(kind)
        if len(types) > max(columns):
            return None
    if at != end or len(types) not in columns:
        return None
    values: list[Value] = []
    for kind in types:
        value, at = _value(payload, at, kind)
        values.append(value)
    return values if at == len(payload) else None


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in (10, 11):
        raise ValueError("no kind of value")
    if kind == 7:
        return struct.unpack_from(">d", payload, at)[0], at + 8
    length = _INTEGER_BYTES[kind] if kind < 7 else (kind - 12) // 2
    data = payload[at : at + length]
    if len(data) < length:
        raise ValueError("cut off")
    if kind < 7:
        return int.from_bytes(data, "big", signed=True), at + length
    if kind % 2 == 0:
        return data, at + length
    try:
        return data.decode(), at + length
    except UnicodeDecodeError:
        return data, at + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(9):
        byte = data[at + index]
        if index == 8:
            value = value << 8 | byte
            break
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value - (1 << 64) if value >= 1 << 63 else value, at + index + 1

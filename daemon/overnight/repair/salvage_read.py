"""All rows of a table of a damaged database: by its tree around the places that cannot be read, then page by page."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.repair import raw_rows
from overnight.repair.salvage_columns import COLUMNS

OLDEST = {"grids": 6, "specs": 5, "cells": 24, "attempts": 22, "events": 9}
"""Columns of the oldest rows of each table: columns that were added later are not stored in them."""

_LARGEST_ROWID = 1 << 62


@dataclass(frozen=True)
class Gap:
    """Rowids from `first` to `last` (None = to the end) that the tree does not lead to any more."""

    first: int
    last: int | None


Found = tuple[int, dict[str, Any]] | Gap
"""A rowid and the columns that could be read, or a gap."""


def connect(path: Path) -> sqlite3.Connection:
    """Read-only and forgiving: a page with one bad cell gives its other rows. Raises sqlite3.Error."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    db.execute("PRAGMA cell_size_check = OFF")
    db.execute("PRAGMA trusted_schema = OFF")
    db.text_factory = _text
    return db


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def by_tree(db: sqlite3.Connection, table: str, columns: Sequence[str]) -> Iterator[Found]:
    """In the order of rowids. Names of tables and columns are literals of this package."""
    at = 0
    wanted = ", ".join(columns)
    while True:
        rows: Iterator[Any] = iter(())
        try:
            rows = db.execute(
                f"SELECT rowid, {wanted} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid",  # noqa: S608
                (at,),
            )
        except sqlite3.Error:
            pass
        else:
            while True:
                try:
                    row = next(rows, None)
                except (sqlite3.Error, OverflowError):
                    break
                if row is None:
                    return
                if row[0] <= at:
                    break  # a page that leads back
                at = row[0]
                yield at, dict(zip(columns, row[1:], strict=True))
        # What follows `at` cannot be read. Is the next row still known by its number?
        following = _seek(db, table, at + 1)
        if following is None:
            return
        if isinstance(following, int) and following > at:
            found = _piecemeal(db, table, columns, following)
            yield (following, found) if found else Gap(following, following)
            at = following
            continue
        following = _behind(db, table, at + 1)
        yield Gap(at + 1, None if following is None else following - 1)
        if following is None:
            return
        at = following - 1


def _seek(db: sqlite3.Connection, table: str, rowid: int) -> int | bool | None:
    """The first rowid from there on, None when there is none, False when that cannot be read."""
    try:
        row = db.execute(
            f"SELECT rowid FROM {table} NOT INDEXED WHERE rowid >= ? ORDER BY rowid LIMIT 1",  # noqa: S608
            (rowid,),
        ).fetchone()
    except sqlite3.Error:
        return False
    if row is None:
        return None
    return int(row[0]) if row[0] >= rowid else False


def _behind(db: sqlite3.Connection, table: str, first: int) -> int | None:
    """The first rowid behind a place that cannot be read, None when nothing is there."""
    low, step = first, 1
    while (found := _seek(db, table, first + step)) is False:
        low, step = first + step, step * 2
        if first + step > _LARGEST_ROWID:
            return None
    high = first + step
    while low + 1 < high:
        middle = (low + high) // 2
        if (seen := _seek(db, table, middle)) is False:
            low = middle
        else:
            high, found = middle, seen
    return found if found is not False else None


def _piecemeal(db: sqlite3.Connection, table: str, columns: Sequence[str], rowid: int) -> dict[str, Any]:
    """The columns of one row that can be read by themselves."""
    found = {}
    for column in columns:
        try:
            row = db.execute(f"SELECT {column} FROM {table} NOT INDEXED WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608
        except (sqlite3.Error, OverflowError):
            continue
        if row is not None:
            found[column] = row[0]
    return found


def by_page(
    path: Path, page_bytes: int, columns: Sequence[str], oldest: int, known: Callable[[list[int]], bool]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows that look like those of a table, in no order. oldest: how many columns its oldest rows have; known: are all
    these rowids known already?

    The first column is the rowid itself, and stored as NULL."""
    for rowid, values in raw_rows.rows(path, page_bytes, set(range(oldest, len(columns) + 1)), known):
        if values[0] is None:
            yield rowid, dict(zip(columns[1:], values[1:], strict=False))


class Source:
    """A damaged database. `db`: what `connect` gives, None when not even its schema can be read."""

    def __init__(self, db: sqlite3.Connection | None, path: Path, page_bytes: int, *, torn: bool) -> None:
        """torn: its pages are damaged, so rows are looked for outside of its trees, too."""
        self._db, self._path, self._page_bytes, self._torn = db, path, page_bytes, torn

    def rows(self, table: str, known: Callable[[list[int]], bool]) -> Iterator[tuple[int, dict[str, Any], bool]]:
        """(rowid, columns, is it surely of this table?): by tree, then whatever lies in a page whose rows are not
        `known` by then. Raises OSError."""
        wanted = ["id", *COLUMNS[table]]
        if self._db is not None:
            try:
                there = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
                columns = [column for column in wanted[1:] if column in there]
                for found in by_tree(self._db, table, columns) if "id" in there else ():
                    if not isinstance(found, Gap):
                        yield (*found, True)
            except sqlite3.Error:
                pass
        if self._torn and table in OLDEST:
            for rowid, row in by_page(self._path, self._page_bytes, wanted, OLDEST[table], known):
                yield rowid, row, False

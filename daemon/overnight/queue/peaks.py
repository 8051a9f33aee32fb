"""Peaks: how much memory attempts took, by kind of cell. What later claims are learned from."""

from __future__ import annotations

import sqlite3

from overnight.queue.base import Base
from overnight.queue.rows import Peak, PeakRow

KEPT = 64
"""Peaks of one kind that are kept: more than a claim looks at. The table grows with the number of kinds, and each
combination of a command's axes but `seed` and `run` is one: a sweep of a million of them leaves a million rows or more,
which are looked up by index."""


class Peaks(Base):
    """What was learned of memory. Written by `finish`, in the transaction that ends the attempt."""

    def peaks(self, kind: str, most: int = 32) -> list[PeakRow]:
        """The newest peaks of cells of this kind, newest first."""
        with self._db.read() as db:
            query = "SELECT peak_bytes, whole, at FROM peaks WHERE kind = ? ORDER BY id DESC LIMIT ?"
            return [_row(*row) for row in db.execute(query, (kind, most))]

    def family_peaks(self, family: str, most: int = 32) -> list[PeakRow]:
        """The newest peaks of all kinds of a family, newest first."""
        with self._db.read() as db:
            query = "SELECT peak_bytes, whole, at FROM peaks WHERE family = ? ORDER BY id DESC LIMIT ?"
            return [_row(*row) for row in db.execute(query, (family, most))]


def learn(db: sqlite3.Connection, attempt_id: int, peak: Peak, now: float) -> None:
    """Add a peak, inside a transaction of the caller; the oldest of its kind go."""
    db.execute(
        "INSERT INTO peaks (kind, family, attempt_id, at, peak_bytes, whole) VALUES (?, ?, ?, ?, ?, ?)",
        (peak.kind, peak.family, attempt_id, now, peak.bytes, int(peak.whole)),
    )
    db.execute(
        "DELETE FROM peaks WHERE kind = ?"
        " AND id <= (SELECT id FROM peaks WHERE kind = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (peak.kind, peak.kind, KEPT),
    )


def _row(peak_bytes: int, whole: int, at: float) -> PeakRow:
    return PeakRow(peak_bytes, bool(whole), at)

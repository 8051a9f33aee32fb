"""Is what the queue of a backup says true of its files? The sums of the files are enough to tell."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from overnight.backup import layout
from overnight.paths import IMPORTED
from overnight.queue import specs

_COMMIT_EVERY = 10_000
_RECORDED = ("transcript.jsonl", "result.json", IMPORTED)
_OF_KIND = {"command": "result.json", specs.IMPORTED: IMPORTED}
"""What of a done cell's files has the hash that the queue recorded; of an idle loop its transcript."""


class Sums:
    """SHA-256 of what the queue recorded hashes of, by name, in a file of its own: there may be a million of them."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)
        self._db.execute("PRAGMA trusted_schema = OFF")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE sums (name BLOB PRIMARY KEY, sha256 TEXT) WITHOUT ROWID")
        self._waiting = 0

    def note(self, name: str, sha256: str) -> None:
        if name.endswith(tuple(f"/{each}" for each in _RECORDED)):
            self._change("INSERT OR REPLACE INTO sums VALUES (?, ?)", os.fsencode(name), sha256)

    def forget(self, folder: str) -> None:
        """What was in this folder is replaced."""
        for name in _RECORDED:
            self._change("DELETE FROM sums WHERE name = ?", os.fsencode(f"{folder}/{name}"))

    def of(self, name: str) -> str | None:
        row = self._db.execute("SELECT sha256 FROM sums WHERE name = ?", (os.fsencode(name),)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        self._db.close()

    def _change(self, query: str, *values: object) -> None:
        self._db.execute(query, values)
        self._waiting += 1
        if self._waiting >= _COMMIT_EVERY:
            self._db.commit()
            self._waiting = 0


def untrue(queue: Path, sums: Sums) -> Iterator[str]:
    """A sentence for each cell that is done in `queue` and whose files are not those that it was done with."""
    db = sqlite3.connect(f"{queue.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    kinds: dict[int, str] = {}
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        rows = db.execute(
            "SELECT g.name, c.key, c.spec_id, c.transcript_sha256 FROM cells AS c"
            " CROSS JOIN grids AS g ON g.id = c.grid_id WHERE c.status = 'done'"
        )
        for grid, key, spec_id, sha256 in rows:
            if spec_id not in kinds:
                (text,) = db.execute("SELECT json FROM specs WHERE id = ?", (spec_id,)).fetchone()
                kinds[spec_id] = str(json.loads(text).get("kind"))
            if sha256 is None and kinds[spec_id] == specs.IMPORTED:
                continue  # its conversation was not among the files
            name = _OF_KIND.get(kinds[spec_id], "transcript.jsonl")
            found = sums.of(f"{layout.RESULTS}/{grid}/{key}/{name}")
            if found is None:
                yield f"{grid}/{key}: done, but its {name} is missing"
            elif found != sha256:
                yield f"{grid}/{key}: done, but its {name} is not the one that was recorded"
    finally:
        db.close()

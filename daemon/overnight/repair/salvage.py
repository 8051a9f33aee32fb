"""A new queue out of a damaged one: every row that can be read, in a schema that is made afresh.

    grids -> specifications (with what their warm servers load) -> cells -> attempts -> events -> peaks
    -> what no longer fits together -> one event that says so

Ids stay what they were. Counters, indexes and warm specifications are not copied: they follow from the rows.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight.queue import gate, specs
from overnight.queue.migrate import migrate
from overnight.queue.states import Outcome, Status
from overnight.repair.check_queue import REPAIRED_ALL
from overnight.repair.salvage_columns import COLUMNS, POLICY, Unusable, cleaned
from overnight.repair.salvage_read import OLDEST, Source
from overnight.repair.salvage_settle import settle

_TOLD = 50
_MOST_REPLACED = 1
_NEAR = 2
"""A hash that differs from the right one in so few digits is damaged itself: no other text comes so close."""


STAGE = f"CREATE TABLE staged (id INTEGER PRIMARY KEY, {', '.join(COLUMNS['cells'])})"
"""Cells, before their grids and specifications are known to be there. Its pages go to the tables that follow."""


class _Later(Exception):
    """Another way is tried for this row, when all have been read."""


@dataclass
class Salvaged:
    """rows: how many of each table. losses: sentences, the first of each kind; lost: how many there are in all."""

    rows: dict[str, int] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    lost: int = 0

    def lose(self, what: str, count: int = 1) -> None:
        self.lost += count
        if len(self.losses) < _TOLD:
            self.losses.append(what)


def create(path: Path, now: float) -> sqlite3.Connection:
    """A new, empty queue at `path`, inside a transaction; nothing of it is durable yet. Raises sqlite3.Error."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA trusted_schema = OFF")
    migrate(db, now)
    db.execute("BEGIN")
    return db


class Salvage:
    """One run. `old`: what `salvage_read.connect` gives, None when not even its schema can be read."""

    def __init__(
        self,
        old: sqlite3.Connection | None,
        old_path: Path,
        page_bytes: int,
        new: sqlite3.Connection,
        *,
        now: float,
        torn: bool,
        headers: Callable[[str, str], dict[str, Any] | None],
        folders: Callable[[list[str]], str | None],
        evidence: Callable[[str, str], set[str]],
    ) -> None:
        """torn: its pages are damaged, so rows are looked for outside of its trees, too. headers: (grid, key) -> the
        specification in the header of that transcript. folders: keys -> the one folder of results that has them.
        evidence: (grid, key) -> the hashes of what the cell left."""
        self._old, self._new, self._now = old, new, now
        self._source = Source(old, old_path, page_bytes, torn=torn)
        self._headers, self._folders, self._evidence = headers, folders, evidence
        self.found = Salvaged()
        self._grids: set[int] = set()
        self._warm_of: dict[int, int] = {}
        self._same_spec: dict[int, int] = {}
        self._bad_specs: dict[int, tuple[str, int]] = {}
        """Their hash and what warm server they had."""

    def run(self) -> Salvaged:
        """Raises sqlite3.Error when the new file cannot be written, OSError when the old one cannot be read."""
        self._new.execute(STAGE)
        self._fill("cells", self._stage, into="staged")
        self._fill("grids", self._grid)
        self._nameless_grids()
        self._fill("specs", self._spec)
        self._bad_specifications()
        self._cells()
        self._new.execute("DROP TABLE staged")
        self._fill("attempts", self._attempt)
        self._fill("events", self._event)
        self._fill("peaks", self._peak)
        settle(self._new, self._now, self._evidence)
        gate.event(
            self._new,
            now=self._now,
            kind=REPAIRED_ALL,
            detail={"rows": self.found.rows, "lost": self.found.lost},
        )
        return self.found

    def _has(self, table: str, rowid: int) -> bool:
        return self._new.execute(f"SELECT 1 FROM {table} WHERE id = ?", (rowid,)).fetchone() is not None  # noqa: S608

    def _fill(self, table: str, take: Callable[[int, dict[str, Any]], None], into: str = "") -> None:
        """Every row of a table. into: where those that are taken can be looked up."""
        into = into or table
        refused: dict[int, str] = {}

        def known(rowids: list[int]) -> bool:
            query = f"SELECT count(*) FROM {into} WHERE id BETWEEN ? AND ?"  # noqa: S608 - a literal
            (there,) = self._new.execute(query, (min(rowids), max(rowids))).fetchone()
            return bool(there == len(rowids) == max(rowids) - min(rowids) + 1)

        for rowid, row, sure in self._source.rows(table, known):
            if self._has(into, rowid):
                continue
            try:
                values, replaced = cleaned(table, row, row.keys() | self._always(table))
                if len(replaced) > _MOST_REPLACED and row.keys() >= self._always(table):
                    raise Unusable("kind")  # a page of another table
                take(rowid, values)
            except (Unusable, sqlite3.IntegrityError) as why:
                if sure:
                    refused[rowid] = f"{table} #{rowid}: " + (
                        f"its {why} is damaged" if isinstance(why, Unusable) else f"does not fit ({why})"
                    )
                continue
            except _Later:
                continue
            refused.pop(rowid, None)
            self.found.rows[table] = self.found.rows.get(table, 0) + 1
            if replaced := [name for name in replaced if (table, name) != ("cells", "status")]:
                self.found.lose(f"{table} #{rowid}: its {', '.join(replaced)} could not be read", 0)
        for what in refused.values():
            self.found.lose(what)

    @staticmethod
    def _always(table: str) -> set[str]:
        return set(list(COLUMNS[table])[: OLDEST.get(table, 99) - 1])

    def _insert(self, table: str, rowid: int, values: dict[str, Any]) -> None:
        names = ", ".join(["id", *values])
        marks = ", ".join("?" * (len(values) + 1))
        self._new.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (rowid, *values.values()))  # noqa: S608

    # -- tables -----------------------------------------------------------------------------------------------

    def _grid(self, rowid: int, values: dict[str, Any]) -> None:
        self._insert("grids", rowid, values)
        self._grids.add(rowid)

    def _nameless_grids(self) -> None:
        """Grids that cells speak of and whose row is lost: named by the index of names, or by their results."""
        query = "SELECT DISTINCT grid_id FROM staged WHERE grid_id NOT IN (SELECT id FROM grids)"
        for (number,) in self._new.execute(query).fetchall():
            some = self._new.execute("SELECT key FROM staged WHERE grid_id = ? LIMIT ?", (number, _TOLD)).fetchall()
            name = self._indexed_name(number) or self._folders([key for (key,) in some])
            taken = name is None or self._new.execute("SELECT 1 FROM grids WHERE name = ?", (name,)).fetchone()
            if taken:
                self.found.lose(f"grid #{number}: its name is lost; `overnight submit FILE` adds its cells again")
                continue
            values = {"name": name, "spec": "{}", "policy": POLICY, "created_at": self._now}
            self._grid(number, {**values, "last_submitted_at": self._now})
            self.found.lose(f"grid {name}: its policy is lost; `overnight submit FILE` sets it again")

    def _indexed_name(self, number: int) -> str | None:
        if self._old is None:
            return None
        try:
            for rowid, name in self._old.execute("SELECT rowid, name FROM grids INDEXED BY sqlite_autoindex_grids_1"):
                if rowid == number and COLUMNS["grids"]["name"][0](name):
                    return str(name)
        except sqlite3.Error:
            pass
        return None

    def _spec(self, rowid: int, values: dict[str, Any]) -> None:
        if not _true_to_hash(values["json"], values["hash"]):
            self._bad_specs.setdefault(rowid, (values["hash"], values["warm_id"]))
            raise _Later
        self._bad_specs.pop(rowid, None)
        self._store(rowid, json.loads(values["json"]), values["warm_id"])

    def _store(self, rowid: int, template: dict[str, Any], warm_id: int) -> None:
        """A specification, with what its warm server loads: that follows from it."""
        stored = specs.stored(template)
        row = self._new.execute("SELECT id FROM warms WHERE key = ?", (stored.warm_key,)).fetchone()
        if row is None:
            free = warm_id > 0 and not self._has("warms", warm_id)
            warm = (warm_id if free else None, stored.warm_key, stored.warm_json)
            row = (self._new.execute("INSERT INTO warms (id, key, json) VALUES (?, ?, ?)", warm).lastrowid,)
        self._warm_of[rowid] = int(row[0])
        same = self._new.execute("SELECT id FROM specs WHERE hash = ?", (stored.hash,)).fetchone()
        if same is not None:
            self._same_spec[rowid] = int(same[0])  # the cell's reference to it is what is damaged
            return
        values = {"hash": stored.hash, "json": stored.json, "warm_id": row[0], "threads": stored.threads}
        self._insert("specs", rowid, values)

    def _bad_specifications(self) -> None:
        """A damaged one is restored from the header of a transcript: its hash proves that it is the same."""
        missing = dict(self._bad_specs)
        query = "SELECT DISTINCT spec_id FROM staged WHERE spec_id NOT IN (SELECT id FROM specs)"
        for (number,) in self._new.execute(query).fetchall():
            told, warm_id = missing.get(number, (None, 0))
            if (template := self._of_headers(number, told)) is not None:
                self._store(number, template, warm_id)
                self.found.rows["specs"] = self.found.rows.get("specs", 0) + 1
                missing.pop(number, None)
        for number in missing:
            self.found.lose(f"specification #{number}: damaged; `overnight submit FILE` adds its cells again")

    def _of_headers(self, number: int, told: str | None) -> dict[str, Any] | None:
        """A specification, from the first transcript that has it. told: its hash, as far as it can be read."""
        query = "SELECT g.name, c.key FROM staged AS c JOIN grids AS g ON g.id = c.grid_id WHERE c.spec_id = ?"
        for grid, key in self._new.execute(query, (number,)):
            if (spec := self._headers(grid, key)) is not None:
                template = {name: value for name, value in spec.items() if name not in ("key", "coords", "seed")}
                if told is None or _near(specs.stored(template).hash, told):
                    return template
        return None

    def _stage(self, rowid: int, values: dict[str, Any]) -> None:
        self._insert("staged", rowid, values)

    def _cells(self) -> None:
        """From the stage into their table, now that grids and specifications are there."""
        names = ("id", *COLUMNS["cells"])
        after, query = 0, f"SELECT {', '.join(names)} FROM staged WHERE id > ? ORDER BY id LIMIT 1000"  # noqa: S608
        while rows := self._new.execute(query, (after,)).fetchall():
            after = rows[-1][0]
            for row in rows:
                values = dict(zip(names, row, strict=True))
                number = values.pop("id")
                try:
                    self._cell(number, values)
                except (Unusable, sqlite3.IntegrityError) as why:
                    self.found.rows["cells"] -= 1
                    self.found.lose(f"cells #{number}: {values['key']}: cannot be kept ({why})")

    def _cell(self, rowid: int, values: dict[str, Any]) -> None:
        if values["grid_id"] not in self._grids:
            raise Unusable("its grid is lost")
        if (warm := self._warm_of.get(values["spec_id"])) is None:
            raise Unusable("its specification is lost")
        values["warm_id"] = warm
        values["spec_id"] = self._same_spec.get(values["spec_id"], values["spec_id"])
        if values["status"] is None:
            values["status"] = str(Status.PENDING)
            self.found.lose(f"cells #{rowid}: its status could not be read; it is pending", 0)
        if values["not_before"] > self._now + 86400:
            values["not_before"] = 0.0
        if values["status"] != str(Status.RUNNING):
            values["cancel_requested"] = 0
        self._insert("cells", rowid, values)

    def _attempt(self, rowid: int, values: dict[str, Any]) -> None:
        if not self._has("cells", values["cell_id"]):
            raise Unusable("cell_id")
        if values["outcome"] is None:
            status = self._new.execute("SELECT status FROM cells WHERE id = ?", (values["cell_id"],)).fetchone()[0]
            open_one = "SELECT 1 FROM attempts WHERE cell_id = ? AND outcome IS NULL"
            second = self._new.execute(open_one, (values["cell_id"],)).fetchone() is not None
            if second or status != str(Status.RUNNING) or values["ended_at"] is not None:
                values.update(outcome=str(Outcome.LOST), reason_code="daemon_died")
        if values["outcome"] is not None and values["ended_at"] is None:
            values["ended_at"] = self._now
        if values["outcome"] is None:
            values["ended_at"] = None
        self._insert("attempts", rowid, values)

    def _event(self, rowid: int, values: dict[str, Any]) -> None:
        if values["cell_id"] is not None and not self._has("cells", values["cell_id"]):
            raise Unusable("cell_id")
        if values["grid_id"] is not None and values["grid_id"] not in self._grids:
            raise Unusable("grid_id")
        if values["attempt_id"] is not None and not self._has("attempts", values["attempt_id"]):
            values["attempt_id"] = None
        if (values["old_status"] is None) != (values["new_status"] is None):
            raise Unusable("old_status")
        self._insert("events", rowid, values)

    def _peak(self, rowid: int, values: dict[str, Any]) -> None:
        if not self._has("attempts", values["attempt_id"]):
            raise Unusable("attempt_id")
        self._insert("peaks", rowid, values)


def _true_to_hash(text: str, told: str) -> bool:
    """Is this the text that the hash is of? A hash with a damaged digit or two still says so."""
    return _near(hashlib.sha256(text.encode()).hexdigest(), told)


def _near(one: str, other: str) -> bool:
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= _NEAR

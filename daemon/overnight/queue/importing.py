"""Taking in cells that another harness ran: a record of what its files say. Nothing runs them (see `head`).

Through the same gate as all: a cell that was begun gets one attempt, in which the files' times, figures and error
stand, and its status follows from how that ended. What the files do not say is named in the attempt's evidence
(`unknown`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.queue import gate, specs
from overnight.queue.base import Base, holds_imported
from overnight.queue.rows import CellRow
from overnight.queue.states import Outcome, Status

BATCH = 100
"""Cells taken in in one transaction: about 50 ms of write lock."""

_LONGEST_PAUSE_S = 0.05

BY = "import"
"""What stands in the place of a daemon's name in such attempts."""

_OUTCOMES = {Status.DONE: Outcome.COMPLETED, Status.FAILED: Outcome.FAILED, Status.CANCELLED: Outcome.CANCELLED}


@dataclass(frozen=True)
class ImportedCell:
    """One cell as the files tell of it. Its status is done, failed, cancelled or pending.

    began: there was an attempt at it; of a pending cell it was lost. times in unix seconds, None = not said. sha256: of
    its conversation's bytes, None = there is none. evidence: what else was said, kept with the attempt."""

    key: str
    coords: Mapping[str, Any]
    template: dict[str, Any]
    status: Status
    began: bool = False
    turns: int = 0
    tokens: int = 0
    reason: str = ""
    end_reason: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    sha256: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TakenIn:
    """Keys of the cells that are new, that the files say more of than before, and that were replaced; how many are as
    they were."""

    added: tuple[str, ...]
    updated: tuple[str, ...]
    replaced: tuple[str, ...]
    existing: int


class Importing(Base):
    """The importer's side of the queue."""

    def take_in(
        self,
        grid: str,
        cells: Sequence[ImportedCell],
        *,
        spec: Mapping[str, Any],
        replace: bool = False,
        aside: Callable[[Sequence[str]], None] | None = None,
    ) -> TakenIn:
        """Add imported cells to a grid of such; what is there already and the same stays untouched.

        A pending cell, and one without a conversation, may learn more. replace: what has ended otherwise than the files
        say now is replaced. aside: called with the keys of each batch whose conversation gives way to another one, to
        move their results away. Raises QueueError, and changes nothing, when something has to be replaced without
        `replace`, or when the grid holds cells of our own. In batches: whoever ends it between two has taken in those
        before, and the same call again takes in the rest.
        """
        with self._db.read() as db:  # without the lock: whatever is refused is refused before the first change
            _Work(db, self._clock(), grid, may_replace=replace).check(cells)
        done = TakenIn((), (), (), 0)
        for start in range(0, len(cells), BATCH):
            began_s = time.monotonic()
            with self._db.write() as db:
                work = _Work(db, self._clock(), grid, may_replace=replace)
                done = _both(done, work.run(cells[start : start + BATCH], spec, aside))
            if start + BATCH < len(cells):
                # As long as it was held: SQLite's waiters only look now and then, and the dispatcher would starve.
                time.sleep(min(_LONGEST_PAUSE_S, time.monotonic() - began_s))
        return done


class _Work:
    """One batch of `take_in`, inside its transaction."""

    def __init__(self, db: sqlite3.Connection, now: float, grid: str, *, may_replace: bool) -> None:
        self.db, self.now, self.grid, self.may_replace = db, now, grid, may_replace
        self.added: list[str] = []
        self.updated: list[str] = []
        self.replaced: list[str] = []
        self.superseded: list[str] = []
        self.existing = 0
        self._specs: dict[str, tuple[int, int]] = {}

    def check(self, cells: Sequence[ImportedCell]) -> None:
        """Raises QueueError for what `run` would refuse."""
        row = self.db.execute("SELECT id FROM grids WHERE name = ?", (self.grid,)).fetchone()
        if row is None:
            return
        if not holds_imported(self.db, self.grid):
            raise QueueError(
                f"grid {self.grid!r} holds cells of its own: imported ones do not go among them; nothing was imported: "
                "choose another name with --grid NAME"
            )
        for cell in cells:
            if (before := self._cell(row[0], cell.key)) is not None:
                self._list_for(before, cell)

    def run(
        self, cells: Sequence[ImportedCell], spec: Mapping[str, Any], aside: Callable[[Sequence[str]], None] | None
    ) -> TakenIn:
        self.check(())
        number = self._grid_id(spec)
        for cell in cells:
            before = self._cell(number, cell.key)
            if before is None:
                self._settle(self._add(number, cell), cell)
                self.added.append(cell.key)
            else:
                self._compare(before, cell)
        if self.added or self.updated or self.replaced:
            self._note(number, spec)
        if self.superseded and aside is not None:
            aside(self.superseded)
        return TakenIn(tuple(self.added), tuple(self.updated), tuple(self.replaced), self.existing)

    def _grid_id(self, spec: Mapping[str, Any]) -> int:
        self.db.execute(
            "INSERT INTO grids (name, spec, policy, created_at, last_submitted_at) VALUES (?, ?, '{}', ?, ?)"
            " ON CONFLICT (name) DO NOTHING",
            (self.grid, canonical(spec), self.now, self.now),
        )
        return int(self.db.execute("SELECT id FROM grids WHERE name = ?", (self.grid,)).fetchone()[0])

    def _note(self, number: int, spec: Mapping[str, Any]) -> None:
        self.db.execute(
            "UPDATE grids SET spec = ?, last_submitted_at = ? WHERE id = ?", (canonical(spec), self.now, number)
        )
        counts = {"added": len(self.added), "updated": len(self.updated), "replaced": len(self.replaced)}
        gate.event(self.db, now=self.now, kind="grid_imported", grid_id=number, detail=counts)

    def _cell(self, grid_id: int, key: str) -> CellRow | None:
        row = self.db.execute("SELECT id FROM cells WHERE grid_id = ? AND key = ?", (grid_id, key)).fetchone()
        return None if row is None else gate.existing(self.db, row[0])

    def _add(self, grid_id: int, cell: ImportedCell) -> CellRow:
        number = self.db.execute(
            "INSERT INTO cells (grid_id, spec_id, warm_id, key, coords, seed) VALUES (?, ?, ?, ?, ?, 0)",
            (grid_id, *self._spec(cell), cell.key, canonical(cell.coords)),
        ).lastrowid
        assert number is not None  # noqa: S101 - an INSERT has just given it
        return gate.existing(self.db, number)

    def _spec(self, cell: ImportedCell) -> tuple[int, int]:
        text = canonical(cell.template)  # many cells share one
        if text not in self._specs:
            self._specs[text] = specs.put(self.db, cell.template)
        return self._specs[text]

    def _list_for(self, before: CellRow, cell: ImportedCell) -> list[str] | None:
        """Which list a cell belongs to that is there already; None = nothing new is told of it."""
        has = before.transcript_sha256
        pending = before.status is Status.PENDING
        if _same(before, cell):
            return None
        if has is not None and cell.sha256 in (None, has) and not (pending and cell.status is not Status.PENDING):
            # Another file that tells of the same conversation, or only of the cell, tells no more than how it ended.
            return None
        if pending or (has is None and cell.sha256 is not None):
            return self.updated
        if self.may_replace:
            return self.replaced
        raise QueueError(
            f"{before.grid}/{before.key} was imported as {_told(before.status, has)}, and its "
            f"file says {_told(cell.status, cell.sha256)} now; nothing was imported: choose another grid name with "
            "--grid NAME, or take in what is said now with --replace (the old is moved aside)"
        )

    def _compare(self, before: CellRow, cell: ImportedCell) -> None:
        """Leave it, let it learn, or replace it."""
        changes = self._list_for(before, cell)
        if changes is None:
            self.existing += 1
            return
        changes.append(cell.key)
        if before.transcript_sha256 is not None:
            if cell.sha256 is None:
                cell = _with_conversation(before, cell)
            elif cell.sha256 != before.transcript_sha256:
                self.superseded.append(cell.key)
        spec_id, warm_id = self._spec(cell)
        columns = {"spec_id": spec_id, "warm_id": warm_id, "coords": canonical(cell.coords)}
        gate.move(self.db, before, Status.PENDING, now=self.now, kind="replaced", columns=columns, afresh=True)
        self._settle(gate.existing(self.db, before.id), cell)

    def _settle(self, row: CellRow, cell: ImportedCell) -> None:
        """Take a pending cell without attempts to where the files say that it is."""
        if not cell.began:
            if cell.status is Status.CANCELLED:
                columns = {"finished_at": self.now}
                gate.move(self.db, row, Status.CANCELLED, now=self.now, kind="cancelled", columns=columns)
            return
        outcome = _OUTCOMES.get(cell.status, Outcome.LOST)
        started = cell.started_at if cell.started_at is not None else cell.finished_at
        ended = cell.finished_at if cell.finished_at is not None else cell.started_at
        if outcome is Outcome.LOST:
            ended = self.now  # when it was found to be lost
        began_at, ended_at = (self.now if at is None else at for at in (started, ended))
        code = BY if cell.reason else ""
        ending = {
            "reason_code": code,
            "reason": cell.reason,
            "turns": cell.turns,
            "output_tokens": cell.tokens,
            "end_reason": cell.end_reason,
            "transcript_sha256": cell.sha256,
        }
        known = {"started_at": cell.started_at, "finished_at": cell.finished_at}
        unknown = [name for name, at in known.items() if at is None]
        evidence = {**cell.evidence, "unknown": unknown} if unknown else dict(cell.evidence)
        values = {"claimed_at": began_at, "ended_at": ended_at, "outcome": str(outcome), **ending}
        attempt = self.db.execute(
            "INSERT INTO attempts (cell_id, generation, number, boot_id, daemon, claimed_at, ended_at, outcome,"
            " reason_code, reason, turns, output_tokens, end_reason, transcript_sha256, evidence)"
            " VALUES (?, ?, 1, '', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.id, row.generation, BY, *values.values(), canonical(evidence)),
        ).lastrowid
        gate.move(
            self.db,
            row,
            Status.RUNNING,
            now=self.now,
            kind="claimed",
            attempt_id=attempt,
            columns={"attempts": 1, "started_at": cell.started_at},
        )
        both = cell.started_at is not None and cell.finished_at is not None
        taken_s = max(0.0, (cell.finished_at or 0.0) - (cell.started_at or 0.0)) if both else 0.0
        gate.move(
            self.db,
            replace(row, status=Status.RUNNING),
            cell.status,
            now=self.now,
            kind="finished",
            attempt_id=attempt,
            detail={"outcome": str(outcome), "reason_code": code, "imported": True},
            columns={
                **ending,
                "tries_used": int(outcome is Outcome.FAILED),
                "run_ms": round(taken_s * 1000),
                "finished_at": None if cell.status is Status.PENDING else ended_at,
            },
        )


def _both(one: TakenIn, other: TakenIn) -> TakenIn:
    return TakenIn(
        one.added + other.added,
        one.updated + other.updated,
        one.replaced + other.replaced,
        one.existing + other.existing,
    )


def _with_conversation(before: CellRow, cell: ImportedCell) -> ImportedCell:
    """What tells only how a cell ended takes nothing away of what its conversation told."""
    return replace(
        cell,
        began=True,
        turns=cell.turns or before.turns,
        tokens=cell.tokens or before.output_tokens,
        started_at=before.started_at if cell.started_at is None else cell.started_at,
        sha256=before.transcript_sha256,
    )


def _same(before: CellRow, cell: ImportedCell) -> bool:
    """Does the queue know all of this already?"""
    had = (before.status, before.turns, before.output_tokens, before.reason, before.end_reason)
    says = (cell.status, cell.turns, cell.tokens, cell.reason, cell.end_reason)
    known = (before.transcript_sha256, before.started_at, before.attempts > 0)
    return had == says and known == (cell.sha256, cell.started_at, cell.began) and before.coords == dict(cell.coords)


def _told(status: Status, sha256: str | None) -> str:
    return f"{status} {'without a conversation' if sha256 is None else f'with a conversation ({sha256[:12]})'}"

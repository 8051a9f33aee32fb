"""Attempts: a cell is claimed, its process noted, its end recorded; what a death left open is recovered."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from overnight.durable import canonical
from overnight.queue import gate, specs
from overnight.queue.base import Base
from overnight.queue.errors import StaleAttempt
from overnight.queue.head import find_head
from overnight.queue.rows import CellRow, Claimed, Ready, parsed
from overnight.queue.states import INTERRUPTED, USES_A_TRY, Outcome, Status, after

DEFAULT_TRIES = 3


class Attempts(Base):
    """The dispatcher's side of the queue."""

    def next_ready(self, exclude: Collection[str] = ()) -> Ready | None:
        """The cell that `claim` would give now, without changing anything; None when none is ready.

        exclude: warm keys whose cells are passed over."""
        with self._db.read() as db:
            head = find_head(db, exclude=exclude)
            if head is None or head.not_before > self._clock():
                return None
            row = db.execute(
                "SELECT g.name, c.key, w.key, w.id, w.json, s.threads FROM cells AS c"
                " CROSS JOIN grids AS g ON g.id = c.grid_id CROSS JOIN specs AS s ON s.id = c.spec_id"
                " CROSS JOIN warms AS w ON w.id = c.warm_id WHERE c.id = ?",
                (head.cell_id,),
            ).fetchone()
            grid, key, warm_key, warm_id, warm, threads = row
            return Ready(
                cell_id=head.cell_id,
                grid=grid,
                key=key,
                not_before=head.not_before,
                warm_key=warm_key,
                warm=parsed(warm, "warm specification", warm_id),
                threads=threads,
            )

    def next_ready_at(self, exclude: Collection[str] = ()) -> float | None:
        """When the first pending cell is ready, in unix seconds (0 = already); None when none is pending."""
        with self._db.read() as db:
            head = find_head(db, exclude=exclude)
        return None if head is None else head.not_before

    def claim(
        self, *, boot_id: str, daemon: str, warm_key: str | None = None, exclude: Collection[str] = ()
    ) -> Claimed | None:
        """Take the oldest ready cell (by `not_before`, then id): it is running, with an open attempt, when
        this returns. None when none is ready.

        warm_key: only cells of this warm server; exclude: none of these."""
        with self._db.write() as db:
            now = self._clock()
            head = find_head(db, only=warm_key, exclude=exclude)
            if head is None or head.not_before > now:
                return None
            before = _existing(db, head.cell_id)
            number = before.attempts + 1
            attempt_id = db.execute(
                "INSERT INTO attempts (cell_id, generation, number, boot_id, daemon, claimed_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (before.id, before.generation, number, boot_id, daemon, now),
            ).lastrowid
            assert attempt_id is not None  # noqa: S101 - an INSERT has just given it
            gate.move(
                db,
                before,
                Status.RUNNING,
                now=now,
                kind="claimed",
                attempt_id=attempt_id,
                columns={
                    "attempts": number,
                    "reason_code": "",
                    "reason": "",
                    "started_at": now if before.started_at is None else before.started_at,
                    "finished_at": None,
                },
            )
            return _claimed(db, _existing(db, before.id), attempt_id)

    def started(self, attempt_id: int, *, pid: int, start_ticks: int) -> None:
        """Note an attempt's process. Raises StaleAttempt when it has ended already."""
        with self._db.write() as db:
            row = db.execute(
                "UPDATE attempts SET pid = ?, start_ticks = ?, started_at = ?"
                " WHERE id = ? AND outcome IS NULL RETURNING id",
                (pid, start_ticks, self._clock(), attempt_id),
            ).fetchall()
            if not row:
                raise StaleAttempt(f"attempt {attempt_id} is not under way: its process {pid} cannot be noted")

    def finish(
        self,
        attempt_id: int,
        outcome: Outcome,
        *,
        reason_code: str = "",
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
        turns: int | None = None,
        output_tokens: int | None = None,
        end_reason: str | None = None,
        transcript_sha256: str | None = None,
        delay_s: float = 0.0,
        load_s: float | None = None,
        replay_s: float | None = None,
        max_rss_bytes: int | None = None,
        run_s: float | None = None,
    ) -> Status:
        """Record how an attempt ended; returns what its cell became.

        turns, output_tokens: all that the cell has on disk now, None = not known. delay_s: not before that
        many seconds, if the cell becomes pending; without a delay it keeps its place at the head of the
        queue. run_s: how long the attempt took by a monotonic clock, otherwise wall time since the claim is
        taken. Raises StaleAttempt when the attempt has an outcome already, or its cell is not running it.
        """
        values = {
            "reason_code": reason_code,
            "reason": reason,
            "evidence": canonical(evidence or {}),
            "turns": turns,
            "output_tokens": output_tokens,
            "end_reason": end_reason,
            "transcript_sha256": transcript_sha256,
            "load_s": load_s,
            "replay_s": replay_s,
            "max_rss_bytes": max_rss_bytes,
        }
        with self._db.write() as db:
            return _finish(db, attempt_id, outcome, values, now=self._clock(), delay_s=delay_s, run_s=run_s)

    def recover(
        self,
        *,
        outcome: Outcome = Outcome.LOST,
        reason: str = "its daemon died",
        reason_code: str = "daemon_died",
    ) -> list[int]:
        """End every open attempt and put its cell back, ready at once; returns the ids of the cells.

        For a daemon that holds the lock: nobody else may have anything running."""
        values = {"reason_code": reason_code, "reason": reason}
        with self._db.write() as db:
            now = self._clock()
            running = db.execute(
                "SELECT c.id, a.id FROM cells AS c INDEXED BY cells_running LEFT JOIN attempts AS a"
                " ON a.cell_id = c.id AND a.outcome IS NULL WHERE c.status = 'running' ORDER BY c.id"
            ).fetchall()
            for cell_id, attempt_id in running:
                if attempt_id is not None:
                    _finish(db, attempt_id, outcome, values, now=now)
                else:  # only in a database that somebody mended by hand
                    cell = _existing(db, cell_id)
                    gate.move(db, cell, Status.PENDING, now=now, kind="recovered", columns={"not_before": 0.0})
            return [cell_id for cell_id, _ in running]

    def cancel_requested(self) -> list[tuple[int, int]]:
        """(cell, attempt) of running cells whose cancellation was asked for."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT c.id, a.id FROM cells AS c INDEXED BY cells_to_cancel CROSS JOIN attempts AS a"
                " ON a.cell_id = c.id AND a.outcome IS NULL WHERE c.cancel_requested = 1 ORDER BY c.id"
            ).fetchall()
        return [(cell_id, attempt_id) for cell_id, attempt_id in rows]


def _existing(db: sqlite3.Connection, cell_id: int) -> CellRow:
    found = gate.cell(db, cell_id)
    assert found is not None  # noqa: S101 - its id was read in this very transaction
    return found


def _claimed(db: sqlite3.Connection, cell: CellRow, attempt_id: int) -> Claimed:
    spec_id, template, warm_key, warm_id, warm, policy = db.execute(
        "SELECT s.id, s.json, w.key, w.id, w.json, g.policy FROM cells AS c"
        " CROSS JOIN grids AS g ON g.id = c.grid_id CROSS JOIN specs AS s ON s.id = c.spec_id"
        " CROSS JOIN warms AS w ON w.id = c.warm_id WHERE c.id = ?",
        (cell.id,),
    ).fetchone()
    return Claimed(
        cell=cell,
        attempt_id=attempt_id,
        attempt_number=cell.attempts,
        spec=specs.full(parsed(template, "specification", spec_id), cell.key, cell.coords, cell.seed),
        policy=parsed(policy, "policy of grid", cell.grid_id),
        grid=cell.grid,
        warm_key=warm_key,
        warm=parsed(warm, "warm specification", warm_id),
    )


def _finish(
    db: sqlite3.Connection,
    attempt_id: int,
    outcome: Outcome,
    values: Mapping[str, Any],
    *,
    now: float,
    delay_s: float = 0.0,
    run_s: float | None = None,
) -> Status:
    found = db.execute("SELECT cell_id, claimed_at, outcome FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    if found is None:
        raise StaleAttempt(f"attempt {attempt_id} does not exist")
    cell_id, claimed_at, ended = found
    if ended is not None:
        raise StaleAttempt(f"attempt {attempt_id} has ended already ({ended})")
    before = _existing(db, cell_id)
    if before.status is not Status.RUNNING:
        raise StaleAttempt(f"attempt {attempt_id}: {before.grid}/{before.key} is {before.status}, not running")
    _end_attempt(db, attempt_id, outcome, values, now)
    tries_used = before.tries_used + (outcome in USES_A_TRY)
    status = after(outcome, tries_used, _tries(db, before.grid_id), cancel_requested=before.cancel_requested)
    turns, tokens = values.get("turns"), values.get("output_tokens")
    taken_s = now - claimed_at if run_s is None else run_s
    gate.move(
        db,
        before,
        status,
        now=now,
        kind="finished",
        attempt_id=attempt_id,
        detail={"outcome": str(outcome), "reason_code": values.get("reason_code", "")},
        columns={
            "not_before": now + delay_s if status is Status.PENDING and delay_s > 0 else 0.0,
            "tries_used": tries_used,
            "stalled": _stalled(before, outcome, turns),
            "turns": before.turns if turns is None else turns,
            "output_tokens": before.output_tokens if tokens is None else tokens,
            "run_ms": round(before.run_s * 1000) + max(0, round(taken_s * 1000)),
            "cancel_requested": 0,
            # A new turn has recorded the conditions that were accepted; the next change is asked about again.
            "accept_conditions": int(before.accept_conditions and not _progressed(before, turns)),
            "reason_code": values.get("reason_code", ""),
            "reason": values.get("reason", ""),
            "end_reason": values.get("end_reason"),
            "transcript_sha256": values.get("transcript_sha256"),
            "finished_at": None if status is Status.PENDING else now,
        },
    )
    return status


def _end_attempt(
    db: sqlite3.Connection, attempt_id: int, outcome: Outcome, values: Mapping[str, Any], now: float
) -> None:
    columns = {**values, "outcome": str(outcome), "ended_at": now}
    sets = ", ".join(f"{name} = ?" for name in columns)  # names are literals of this module, never input
    db.execute(
        f"UPDATE attempts SET {sets} WHERE id = ? AND outcome IS NULL",  # noqa: S608 - see above
        (*columns.values(), attempt_id),
    )


def _stalled(before: CellRow, outcome: Outcome, turns: int | None) -> int:
    """Interrupted attempts in a row without a new turn. A failed one neither counts nor ends the row."""
    return 0 if _progressed(before, turns) else before.stalled + (outcome in INTERRUPTED)


def _progressed(before: CellRow, turns: int | None) -> bool:
    return turns is not None and turns > before.turns


def _tries(db: sqlite3.Connection, grid_id: int) -> int:
    (policy,) = db.execute("SELECT policy FROM grids WHERE id = ?", (grid_id,)).fetchone()
    return int(parsed(policy, "policy of grid", grid_id).get("tries", DEFAULT_TRIES))

"""Attempts: a cell is claimed, its process noted, its end recorded; what a death left open is recovered."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from overnight.durable import canonical
from overnight.queue import ending, gate, specs
from overnight.queue.base import Base
from overnight.queue.errors import StaleAttempt
from overnight.queue.head import find_head, find_waiting, that_cell
from overnight.queue.ready import Shared
from overnight.queue.rows import CellRow, Claimed, Peak
from overnight.queue.states import Outcome, Status


class Attempts(Base):
    """The dispatcher's side of the queue."""

    def claim(
        self,
        *,
        boot_id: str,
        daemon: str,
        warm_key: str | None = None,
        exclude: Collection[str] = (),
        cell_id: int | None = None,
        claim_bytes: int | None = None,
        claim_source: str = "",
        cap_bytes: int | None = None,
    ) -> Claimed | None:
        """Take the next ready cell (one that has waited out a delay, else by id): it is running, with an open
        attempt, when this returns. None when none is ready.

        warm_key: only cells of this warm server; exclude: none of these. cell_id: this very cell or none.
        claim_bytes, claim_source, cap_bytes: what the attempt is admitted with, noted in its row."""
        with self._db.write() as db:
            now = self._clock()
            if cell_id is None:
                head = find_head(db, now, only=warm_key, exclude=exclude)
            else:
                head = that_cell(db, cell_id, only=warm_key, exclude=exclude)
            if head is None or head.not_before > now:
                return None
            before = gate.existing(db, head.cell_id)
            number = before.attempts + 1
            figures = (claim_bytes, claim_source, cap_bytes)
            attempt_id = db.execute(
                "INSERT INTO attempts (cell_id, generation, number, boot_id, daemon, claimed_at, claim_bytes,"
                " claim_source, cap_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (before.id, before.generation, number, boot_id, daemon, now, *figures),
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
            return _claimed(db, gate.existing(db, before.id), attempt_id, *figures)

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

    def extended(self, attempt_id: int, claim_bytes: int, cap_bytes: int | None) -> None:
        """Note what an attempt may take from now on. Raises StaleAttempt when it has ended already."""
        with self._db.write() as db:
            row = db.execute(
                "UPDATE attempts SET claim_bytes = ?, cap_bytes = ? WHERE id = ? AND outcome IS NULL RETURNING id",
                (claim_bytes, cap_bytes, attempt_id),
            ).fetchall()
            if not row:
                raise StaleAttempt(f"attempt {attempt_id} is not under way: its claim cannot be extended")

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
        process: tuple[int, int] | None = None,
        claim_bytes: int | None = None,
        cap_bytes: int | None = None,
        peak_bytes: int | None = None,
        raised_claim_bytes: int | None = None,
        alone: bool | None = None,
        quarantine: bool = False,
        learn: Peak | None = None,
    ) -> Status:
        """Record how an attempt ended; returns what its cell became.

        turns, output_tokens: all that the cell has on disk now, None = not known. delay_s: not before that
        many seconds, if the cell becomes pending; without a delay it keeps its place at the head of the
        queue. run_s: how long the attempt took by a monotonic clock, otherwise wall time since the claim is
        taken. process: its pid and start time, for one that ended before `started`; claim_bytes, cap_bytes:
        its last ones; None = as noted before. peak_bytes: memory it took at most. raised_claim_bytes: the
        cell's claim from now on, None = as before. alone: must the cell run alone from now on, None = as
        before until it makes a new turn. quarantine: the cell is quarantined, since it can never fit; only
        after `states.MEMORY`. learn: a peak to be kept for claims. Raises StaleAttempt when the attempt has
        an outcome already, or its cell is not running it.
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
            "peak_bytes": peak_bytes,
        }
        pid, start_ticks = process or (None, None)
        noted = {"pid": pid, "start_ticks": start_ticks, "claim_bytes": claim_bytes, "cap_bytes": cap_bytes}
        values |= {name: value for name, value in noted.items() if value is not None}
        follows = ending.Consequences(
            delay_s=delay_s,
            run_s=run_s,
            raised_claim_bytes=raised_claim_bytes,
            alone=alone,
            quarantine=quarantine,
            learn=learn,
        )
        with self._db.write() as db:
            return ending.end(db, attempt_id, outcome, values, now=self._clock(), follows=follows)

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
                    ending.end(db, attempt_id, outcome, values, now=now, follows=ending.Consequences())
                else:  # only in a database that somebody mended by hand
                    cell = gate.existing(db, cell_id)
                    gate.move(db, cell, Status.PENDING, now=now, kind="recovered", columns={"not_before": 0.0})
            return [cell_id for cell_id, _ in running]

    def shorten_waits(self) -> int:
        """Where the clock was set back since a cell was told to wait, it waits as long as it was told, from now on.
        Returns how many cells that were.

        When it was told is the time of its last event, which nothing follows while it waits."""
        with self._db.write() as db:
            now, shortened = self._clock(), 0
            for head in find_waiting(db, now):
                told = db.execute(
                    "SELECT at FROM events WHERE cell_id = ? ORDER BY id DESC LIMIT 1", (head.cell_id,)
                ).fetchone()
                if told is not None and told[0] > now:
                    columns = {"not_before": now + max(0.0, head.not_before - told[0])}
                    gate.amend(db, gate.existing(db, head.cell_id), now=now, kind="wait_shortened", columns=columns)
                    shortened += 1
            return shortened

    def cancel_requested(self) -> list[tuple[int, int]]:
        """(cell, attempt) of running cells whose cancellation was asked for."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT c.id, a.id FROM cells AS c INDEXED BY cells_to_cancel CROSS JOIN attempts AS a"
                " ON a.cell_id = c.id AND a.outcome IS NULL WHERE c.cancel_requested = 1 ORDER BY c.id"
            ).fetchall()
        return [(cell_id, attempt_id) for cell_id, attempt_id in rows]


def _claimed(
    db: sqlite3.Connection,
    cell: CellRow,
    attempt_id: int,
    claim_bytes: int | None,
    claim_source: str,
    cap_bytes: int | None,
) -> Claimed:
    spec_id, warm_id, warm_key = db.execute(
        "SELECT c.spec_id, w.id, w.key FROM cells AS c CROSS JOIN warms AS w ON w.id = c.warm_id WHERE c.id = ?",
        (cell.id,),
    ).fetchone()
    shared = Shared(db)
    return Claimed(
        cell=cell,
        attempt_id=attempt_id,
        attempt_number=cell.attempts,
        spec=specs.full(shared.template(spec_id), cell.key, cell.coords, cell.seed),
        policy=shared.policy(cell.grid_id),
        grid=cell.grid,
        warm_key=warm_key,
        warm=shared.warm(warm_id),
        claim_bytes=claim_bytes,
        claim_source=claim_source,
        cap_bytes=cap_bytes,
    )

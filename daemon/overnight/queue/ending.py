"""The end of an attempt: its outcome, what its cell becomes, and what is learned of its memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overnight.queue import follow, gate, peaks
from overnight.queue.errors import StaleAttempt
from overnight.queue.rows import CellRow, Peak, parsed
from overnight.queue.states import INTERRUPTED, USES_A_TRY, Outcome, Status, after

DEFAULT_TRIES = 3


@dataclass(frozen=True, slots=True)
class Consequences:
    """What an end means for the cell beyond its outcome; the arguments of `Attempts.finish`."""

    delay_s: float = 0.0
    run_s: float | None = None
    raised_claim_bytes: int | None = None
    alone: bool | None = None
    quarantine: bool = False
    learn: Peak | None = None


def end(
    db: sqlite3.Connection,
    attempt_id: int,
    outcome: Outcome,
    values: Mapping[str, Any],
    *,
    now: float,
    follows: Consequences,
) -> Status:
    """End an attempt, inside a transaction of the caller. values: columns of its row."""
    found = db.execute("SELECT cell_id, claimed_at, outcome FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    if found is None:
        raise StaleAttempt(f"attempt {attempt_id} does not exist")
    cell_id, claimed_at, ended = found
    if ended is not None:
        raise StaleAttempt(f"attempt {attempt_id} has ended already ({ended})")
    before = gate.existing(db, cell_id)
    if before.status is not Status.RUNNING:
        raise StaleAttempt(f"attempt {attempt_id}: {before.grid}/{before.key} is {before.status}, not running")
    _end_attempt(db, attempt_id, outcome, values, now)
    if follows.learn is not None:
        peaks.learn(db, attempt_id, follows.learn, now)
    tries_used = before.tries_used + (outcome in USES_A_TRY)
    policy = _policy(db, before.grid_id)
    status = after(
        outcome,
        tries_used,
        int(policy.get("tries", DEFAULT_TRIES)),
        cancel_requested=before.cancel_requested,
        quarantine=follows.quarantine,
    )
    turns, tokens = values.get("turns"), values.get("output_tokens")
    taken_s = now - claimed_at if follows.run_s is None else follows.run_s
    waits = status is Status.PENDING and follows.delay_s > 0
    gate.move(
        db,
        before,
        status,
        now=now,
        kind="finished",
        attempt_id=attempt_id,
        detail={"outcome": str(outcome), "reason_code": values.get("reason_code", "")},
        columns={
            "not_before": now + follows.delay_s if waits else 0.0,
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
            "claim_bytes": before.claim_bytes if follows.raised_claim_bytes is None else follows.raised_claim_bytes,
            "evictions": _evictions(before, outcome, turns),
            "alone": int(_alone(before, turns) if follows.alone is None else follows.alone),
        },
    )
    if status is Status.DONE:
        follow.add(db, before, policy, now=now)
    return status


def _end_attempt(
    db: sqlite3.Connection, attempt_id: int, outcome: Outcome, values: Mapping[str, Any], now: float
) -> None:
    columns = {**values, "outcome": str(outcome), "ended_at": now}
    sets = ", ".join(f"{name} = ?" for name in columns)  # names are literals of this package, never input
    db.execute(
        f"UPDATE attempts SET {sets} WHERE id = ? AND outcome IS NULL",  # noqa: S608 - see above
        (*columns.values(), attempt_id),
    )


def _stalled(before: CellRow, outcome: Outcome, turns: int | None) -> int:
    """Interrupted attempts in a row without a new turn. A failed one neither counts nor ends the row."""
    return 0 if _progressed(before, turns) else before.stalled + (outcome in INTERRUPTED)


def _evictions(before: CellRow, outcome: Outcome, turns: int | None) -> int:
    """Evictions at the turn where the cell stands now. Other ends neither count nor end the row, but for a completed
    one."""
    earlier = 0 if outcome is Outcome.COMPLETED or _progressed(before, turns) else before.evictions
    return earlier + (outcome is Outcome.EVICTED)


def _alone(before: CellRow, turns: int | None) -> bool:
    """It has to run alone until it made a new turn."""
    return before.alone and not _progressed(before, turns)


def _progressed(before: CellRow, turns: int | None) -> bool:
    return turns is not None and turns > before.turns


def _policy(db: sqlite3.Connection, grid_id: int) -> dict[str, Any]:
    (policy,) = db.execute("SELECT policy FROM grids WHERE id = ?", (grid_id,)).fetchone()
    return parsed(policy, "policy of grid", grid_id)

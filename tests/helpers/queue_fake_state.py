"""What the queue in memory holds, and what happens to one cell. Plain values; each rule written once more from the
design, so that the queue on disk can be compared with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.queue.errors import QueueUnavailable, StaleAttempt
from overnight.queue.rows import AttemptRow, CellRow, EventRow, GridRow, PeakRow
from overnight.queue.states import Outcome, Status

KEPT_PEAKS = 64
DEFAULT_TRIES = 3

_BACK = {Outcome.EVICTED, Outcome.YIELDED, Outcome.LOST, Outcome.OVER_CAP, Outcome.OOM_KILLED}
_FAULT = {Outcome.FAILED, Outcome.TIMED_OUT}
_MEMORY = {Outcome.EVICTED, Outcome.OVER_CAP, Outcome.OOM_KILLED}
_END = {Outcome.COMPLETED: Status.DONE, Outcome.CANCELLED: Status.CANCELLED}


def as_json(value: Any) -> Any:
    """A copy of what a database would give back."""
    return json.loads(canonical(value))


@dataclass(frozen=True)
class Template:
    """What the cells of one warm server share."""

    spec: dict[str, Any]
    warm_key: str
    warm: dict[str, Any]
    threads: int


@dataclass
class State:
    """All of a queue at one moment. grids hold no counts; peaks are (kind, family, peak), oldest first."""

    grids: dict[int, GridRow] = field(default_factory=dict)
    cells: dict[int, CellRow] = field(default_factory=dict)
    templates: dict[int, Template] = field(default_factory=dict)
    attempts: dict[int, AttemptRow] = field(default_factory=dict)
    events: list[EventRow] = field(default_factory=list)
    peaks: list[tuple[str, str, PeakRow]] = field(default_factory=list)

    def copy(self) -> State:
        """Rows are frozen and never changed in place."""
        return State(*({**rows} if isinstance(rows, dict) else [*rows] for rows in self.__dict__.values()))  # type: ignore[arg-type]

    def event(self, kind: str, now: float, cell: CellRow | None = None, **fields: Any) -> None:
        of = {} if cell is None else {"grid_id": cell.grid_id, "cell_id": cell.id}
        nothing = dict.fromkeys(("grid_id", "cell_id", "attempt_id", "old", "new"))
        given = {**nothing, "detail": {}, **of, **fields}
        self.events.append(EventRow(id=len(self.events) + 1, at=now, kind=kind, **given))

    def move(
        self,
        cell: CellRow,
        new: Status,
        kind: str,
        now: float,
        *,
        attempt_id: int | None = None,
        detail: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> CellRow:
        """A cell's status changes."""
        self.event(kind, now, cell, old=cell.status, new=new, attempt_id=attempt_id, detail=dict(detail or {}))
        changed = self.cells[cell.id] = replace(cell, status=new, **columns)
        return changed

    def amend(self, cell: CellRow, kind: str, now: float, **columns: Any) -> None:
        self.event(kind, now, cell)
        self.cells[cell.id] = replace(cell, **columns)

    def afresh(self, cell: CellRow, kind: str, now: float, **columns: Any) -> None:
        """As if it had never run."""
        old = {"old": cell.status, "new": Status.PENDING}
        self.event(kind, now, cell, **old)
        new = new_cell(cell.id, cell.grid_id, cell.grid, cell.key, cell.coords, cell.seed)
        self.cells[cell.id] = replace(new, generation=cell.generation + 1, **columns)

    def open_attempt(self, cell_id: int) -> AttemptRow | None:
        ours = (row for row in self.attempts.values() if row.cell_id == cell_id and row.outcome is None)
        return next(ours, None)

    def under_way(self, attempt_id: int, what: str) -> AttemptRow:
        row = self.attempts.get(attempt_id)
        if row is None or row.outcome is not None:
            raise StaleAttempt(f"attempt {attempt_id} is not under way: {what}")
        return row

    def end(self, attempt_id: int, outcome: Outcome, values: Mapping[str, Any], end: End, now: float) -> Status:
        """An attempt ends. values: fields of its row."""
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            raise StaleAttempt(f"attempt {attempt_id} does not exist")
        if attempt.outcome is not None:
            raise StaleAttempt(f"attempt {attempt_id} has ended already ({attempt.outcome})")
        cell = self.cells[attempt.cell_id]
        self.attempts[attempt_id] = replace(attempt, outcome=outcome, ended_at=now, **values)
        turns, tokens = values.get("turns"), values.get("output_tokens")
        new_turn = turns is not None and turns > cell.turns
        tries = cell.tries_used + (outcome in _FAULT)
        status = self._becomes(cell, outcome, tries, end)
        evictions = 0 if new_turn or outcome is Outcome.COMPLETED else cell.evictions
        stalled = 0 if new_turn else cell.stalled + (outcome in _BACK)
        taken_s = now - attempt.claimed_at if end.run_s is None else end.run_s
        self.move(
            cell,
            status,
            "finished",
            now,
            attempt_id=attempt_id,
            detail={"outcome": str(outcome), "reason_code": values.get("reason_code", "")},
            not_before=now + end.delay_s if status is Status.PENDING and end.delay_s > 0 else 0.0,
            tries_used=tries,
            stalled=stalled,
            turns=cell.turns if turns is None else turns,
            output_tokens=cell.output_tokens if tokens is None else tokens,
            run_s=(round(cell.run_s * 1000) + max(0, round(taken_s * 1000))) / 1000,
            cancel_requested=False,
            accept_conditions=cell.accept_conditions and not new_turn,
            reason_code=values.get("reason_code", ""),
            reason=values.get("reason", ""),
            end_reason=values.get("end_reason"),
            transcript_sha256=values.get("transcript_sha256"),
            finished_at=None if status is Status.PENDING else now,
            claim_bytes=cell.claim_bytes if end.raised is None else end.raised,
            evictions=evictions + (outcome is Outcome.EVICTED),
            alone=(cell.alone and not new_turn) if end.alone is None else end.alone,
        )
        return status

    def _becomes(self, cell: CellRow, outcome: Outcome, tries: int, end: End) -> Status:
        if end.quarantine:
            if outcome not in _MEMORY:
                raise ValueError(f"an attempt that ended as {outcome} says nothing of memory")
            return Status.QUARANTINED
        allowed = int(self.grids[cell.grid_id].policy.get("tries", DEFAULT_TRIES))
        if outcome in _BACK or (outcome in _FAULT and tries < allowed):
            return Status.CANCELLED if cell.cancel_requested else Status.PENDING
        if outcome in _FAULT:
            return Status.FAILED
        return _END.get(outcome, Status.QUARANTINED)

    def learn(self, kind: str, family: str, peak: PeakRow) -> None:
        self.peaks.append((kind, family, peak))
        ours = [known for known in self.peaks if known[0] == kind]
        for old in ours[: max(0, len(ours) - KEPT_PEAKS)]:
            self.peaks.remove(old)


@dataclass(frozen=True)
class End:
    """What `finish` is told beyond the outcome and the attempt's own figures."""

    delay_s: float = 0.0
    run_s: float | None = None
    raised: int | None = None
    alone: bool | None = None
    quarantine: bool = False


def new_cell(number: int, grid_id: int, grid: str, key: str, coords: Mapping[str, Any], seed: int) -> CellRow:
    return CellRow(
        id=number,
        grid_id=grid_id,
        grid=grid,
        key=key,
        coords=as_json(coords),
        seed=seed,
        status=Status.PENDING,
        not_before=0.0,
        generation=0,
        attempts=0,
        tries_used=0,
        stalled=0,
        turns=0,
        output_tokens=0,
        run_s=0.0,
        cancel_requested=False,
        accept_conditions=False,
        reason_code="",
        reason="",
        end_reason=None,
        transcript_sha256=None,
        started_at=None,
        finished_at=None,
        claim_bytes=None,
        evictions=0,
        alone=False,
    )


class FakeStore:
    """What the fakes of several processes have in common: the file, so to speak."""

    def __init__(self) -> None:
        self.state = State()
        self.commits = 0
        self.writing = False

    @contextmanager
    def write(self) -> Iterator[State]:
        """One transaction: all of it, or nothing. Others see what was there before until it is over."""
        if self.writing:
            raise QueueUnavailable("in memory: another process has held it locked for too long; try again")
        self.writing = True
        try:
            state = self.state.copy()
            yield state
            self.state = state
            self.commits += 1
        finally:
            self.writing = False


def not_there(cell_id: int) -> QueueError:
    return QueueError(f"cell #{cell_id} is not in the queue")

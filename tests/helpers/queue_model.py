"""The queue as people think of it: plain objects, no database, every rule written once more from the design."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from overnight.queue.states import Outcome, Status

_BACK = {Outcome.EVICTED, Outcome.YIELDED, Outcome.LOST, Outcome.OVER_CAP, Outcome.OOM_KILLED}
_FAULT = {Outcome.FAILED, Outcome.TIMED_OUT}
_MEMORY = {Outcome.EVICTED, Outcome.OVER_CAP, Outcome.OOM_KILLED}
_END = {Outcome.COMPLETED: Status.DONE, Outcome.CANCELLED: Status.CANCELLED}


@dataclass
class ModelCell:
    grid: str
    key: str
    model: str
    seed: int
    status: Status = Status.PENDING
    not_before: float = 0.0
    generation: int = 0
    attempts: int = 0
    tries_used: int = 0
    stalled: int = 0
    turns: int = 0
    cancel_requested: bool = False
    accept_conditions: bool = False
    claim_bytes: int | None = None
    evictions: int = 0
    alone: bool = False

    def afresh(self) -> None:
        new = ModelCell(self.grid, self.key, self.model, self.seed, generation=self.generation + 1)
        self.__dict__.update(new.__dict__)


@dataclass(frozen=True)
class ModelEnd:
    """What `finish` is told beyond the outcome."""

    turns: int | None = None
    delay_s: float = 0.0
    raised: int | None = None
    alone: bool | None = None
    quarantine: bool = False

    def possible(self, outcome: Outcome) -> bool:
        return not self.quarantine or outcome in _MEMORY


@dataclass
class ModelQueue:
    """Cells by id. A running cell's open attempt is known by the id that the queue gave it. peaks: (kind, family,
    bytes), oldest first, of each kind the newest `kept`."""

    tries: int
    kept: int
    cells: dict[int, ModelCell] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    peaks: list[tuple[str, str, int]] = field(default_factory=list)

    def of(self, grid: str) -> dict[str, int]:
        return {cell.key: number for number, cell in self.cells.items() if cell.grid == grid}

    def head(self, now: float, *, only: str | None = None, exclude: Collection[str] = ()) -> int | None:
        """The cell that has to be claimed next."""
        return next(iter(self.heads(now, only=only, exclude=exclude)), None)

    def heads(self, now: float, *, only: str | None = None, exclude: Collection[str] = ()) -> list[int]:
        """All cells that may be claimed, in that order."""
        ready = [
            (cell.not_before == 0, cell.not_before, number)
            for number, cell in self.cells.items()
            if cell.status is Status.PENDING
            and cell.not_before <= now
            and cell.model not in exclude
            and only in (None, cell.model)
        ]
        return [number for _, _, number in sorted(ready)]

    def claim(self, number: int, attempt: int) -> None:
        cell = self.cells[number]
        cell.status, cell.attempts = Status.RUNNING, cell.attempts + 1
        self.open[attempt] = number

    def finish(self, attempt: int, outcome: Outcome, end: ModelEnd, now: float) -> Status:
        cell = self.cells[self.open.pop(attempt)]
        if end.turns is not None and end.turns > cell.turns:
            cell.stalled, cell.accept_conditions, cell.evictions, cell.alone = 0, False, 0, False
        elif outcome in _BACK:
            cell.stalled += 1
        cell.evictions += outcome is Outcome.EVICTED
        if outcome is Outcome.COMPLETED:
            cell.evictions = 0
        if end.turns is not None:
            cell.turns = end.turns
        if end.raised is not None:
            cell.claim_bytes = end.raised
        if end.alone is not None:
            cell.alone = end.alone
        if outcome in _FAULT:
            cell.tries_used += 1
        if end.quarantine:
            cell.status = Status.QUARANTINED
        elif outcome in _BACK or (outcome in _FAULT and cell.tries_used < self.tries):
            cell.status = Status.CANCELLED if cell.cancel_requested else Status.PENDING
        elif outcome in _FAULT:
            cell.status = Status.FAILED
        else:
            cell.status = _END.get(outcome, Status.QUARANTINED)
        cell.not_before = now + end.delay_s if cell.status is Status.PENDING and end.delay_s else 0.0
        cell.cancel_requested = False
        return cell.status

    def learn(self, kind: str, family: str, peak_bytes: int) -> None:
        self.peaks.append((kind, family, peak_bytes))
        while sum(known == kind for known, _, _ in self.peaks) > self.kept:
            self.peaks.remove(next(peak for peak in self.peaks if peak[0] == kind))

    def recover(self, now: float) -> list[int]:
        back = sorted(self.open.values())
        for attempt in list(self.open):
            self.finish(attempt, Outcome.LOST, ModelEnd(), now)
        return back

    def cancel(self, numbers: Iterable[int]) -> tuple[int, int]:
        cancelled = marked = 0
        for number in numbers:
            cell = self.cells[number]
            if cell.status is Status.PENDING:
                cell.status, cell.not_before = Status.CANCELLED, 0.0
                cancelled += 1
            elif cell.status is Status.RUNNING and not cell.cancel_requested:
                cell.cancel_requested = True
                marked += 1
        return cancelled, marked

    def retry(self, numbers: Iterable[int], now: float, accept: bool) -> int:
        changed = 0
        for number in numbers:
            cell = self.cells[number]
            if cell.status in (Status.FAILED, Status.QUARANTINED, Status.CANCELLED):
                cell.status, cell.tries_used, cell.stalled = Status.PENDING, 0, 0
                cell.evictions, cell.alone = 0, False
                cell.not_before, cell.accept_conditions = 0.0, accept
                changed += 1
            elif cell.status is Status.PENDING and (cell.not_before > now or (accept and not cell.accept_conditions)):
                cell.not_before = 0.0
                cell.accept_conditions = cell.accept_conditions or accept
                changed += 1
        return changed

    def reset(self, grid: str) -> int | None:
        """None = refused."""
        cells = [cell for cell in self.cells.values() if cell.grid == grid]
        if any(cell.status is Status.RUNNING for cell in cells):
            return None
        touched = [
            cell for cell in cells if cell.status is not Status.PENDING or cell.attempts or cell.accept_conditions
        ]
        for cell in touched:
            cell.afresh()
        return len(touched)

"""The looks at the queue in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from helpers.queue_fake_state import State, not_there
from overnight.errors import QueueError
from overnight.queue import specs
from overnight.queue.base import hint
from overnight.queue.rows import AttemptRow, CellRow, EventRow, GridRow, Pace, PeakRow, Ready
from overnight.queue.states import Status


class FakeViews:
    """Everything that changes nothing."""

    _clock: Callable[[], float]

    def _look(self) -> State:
        raise NotImplementedError

    @staticmethod
    def _grid_id(state: State, name: str) -> int:
        for row in state.grids.values():
            if row.name == name:
                return row.id
        raise QueueError(f"grid {name!r} is not in the queue{hint(name, sorted(g.name for g in state.grids.values()))}")

    @staticmethod
    def _ready_rows(state: State, now: float, exclude: Collection[str]) -> Iterator[CellRow]:
        """What may be claimed, in that order: who has waited out a delay, longest first, then by id."""
        waiting = (row for row in state.cells.values() if row.status is Status.PENDING and row.not_before <= now)
        passed = {*exclude, specs.IMPORTED_WARM_KEY}
        chosen = (row for row in waiting if state.templates[row.id].warm_key not in passed)
        return iter(sorted(chosen, key=lambda row: (row.not_before == 0, row.not_before, row.id)))

    def next_ready(self, exclude: Collection[str] = ()) -> Ready | None:
        return next(iter(self.next_ready_many(1, exclude)), None)

    def next_ready_many(self, limit: int, exclude: Collection[str] = ()) -> list[Ready]:
        state = self._look()
        rows = list(self._ready_rows(state, self._clock(), exclude))[: max(0, limit)]
        return [_ready(state, row) for row in rows]

    def next_ready_at(self, exclude: Collection[str] = ()) -> float | None:
        state = self._look()
        passed = {*exclude, specs.IMPORTED_WARM_KEY}
        return min(
            (
                row.not_before
                for row in state.cells.values()
                if row.status is Status.PENDING and state.templates[row.id].warm_key not in passed
            ),
            default=None,
        )

    def cancel_requested(self) -> list[tuple[int, int]]:
        state = self._look()
        marked = sorted(row.id for row in state.cells.values() if row.cancel_requested)
        return [(number, attempt.id) for number in marked if (attempt := state.open_attempt(number)) is not None]

    def peaks(self, kind: str, most: int = 32) -> list[PeakRow]:
        return [peak for known, _, peak in reversed(self._look().peaks) if known == kind][:most]

    def family_peaks(self, family: str, most: int = 32) -> list[PeakRow]:
        return [peak for _, known, peak in reversed(self._look().peaks) if known == family][:most]

    def grids(self) -> list[GridRow]:
        state = self._look()
        return [_counted(state, row) for row in state.grids.values()]

    def grid(self, name: str) -> GridRow:
        state = self._look()
        return _counted(state, state.grids[self._grid_id(state, name)])

    def counts(self) -> dict[Status, int]:
        return _counts(self._look().cells.values())

    def pace(self, grid: int) -> Pace:
        ours = [row for row in self._look().cells.values() if row.grid_id == grid]
        done = [row for row in ours if row.status is Status.DONE]
        seconds = sum(round(row.run_s * 1000) for row in done) / 1000
        left = sum(row.status in (Status.PENDING, Status.RUNNING) for row in ours)
        return Pace(len(done), seconds, seconds / len(done) if done else None, left)

    def cell_ids(self, grid: str, statuses: Collection[Status | str] = tuple(Status)) -> Iterator[int]:
        number = self._grid_id(self._look(), grid)
        return self._ids(number, [Status(status) for status in statuses])

    def _ids(self, grid: int, statuses: list[Status]) -> Iterator[int]:
        for status in statuses:
            rows = [row.id for row in self._look().cells.values() if row.grid_id == grid and row.status is status]
            yield from rows

    def cells(
        self,
        grid: str | None = None,
        status: Status | str | None = None,
        *,
        after_id: int = 0,
        limit: int = 1000,
    ) -> list[CellRow]:
        state = self._look()
        number = None if grid is None else self._grid_id(state, grid)
        wanted = None if status is None else Status(status)
        found = [
            row
            for row in state.cells.values()
            if row.id > after_id and number in (None, row.grid_id) and wanted in (None, row.status)
        ]
        return found[:limit]

    def cell(self, cell_id: int) -> CellRow:
        if (found := self._look().cells.get(cell_id)) is None:
            raise not_there(cell_id)
        return found

    def find_cell(self, text: str, grid: str | None = None) -> list[CellRow]:
        if text.startswith("#") and text[1:].isascii() and text[1:].isdigit():
            return [self.cell(int(text[1:]))]
        state, key = self._look(), text
        if grid is None and "/" in text:
            grid, key = text.split("/", 1)
        number = None if grid is None else self._grid_id(state, grid)
        ours = [row for row in state.cells.values() if number in (None, row.grid_id)]
        if found := sorted((row for row in ours if row.key == key), key=lambda row: row.grid_id):
            return found
        where = f"grid {grid!r}" if grid is not None else "any grid"
        raise QueueError(f"cell {key!r} is not in {where}{hint(key, sorted({row.key for row in ours}))}")

    def cell_spec(self, cell_id: int) -> dict[str, Any]:
        state = self._look()
        if (row := state.cells.get(cell_id)) is None:
            raise not_there(cell_id)
        return specs.full(state.templates[cell_id].spec, row.key, row.coords, row.seed)

    def attempts(self, cell_id: int) -> list[AttemptRow]:
        return [row for row in self._look().attempts.values() if row.cell_id == cell_id]

    def events(self, cell_id: int | None = None, *, limit: int = 1000) -> list[EventRow]:
        ours = [event for event in self._look().events if cell_id in (None, event.cell_id)]
        return ours[-limit:] if limit else []

    def contradictions(self) -> list[str]:
        """There is no file that could be damaged."""
        return []


def _counts(rows: Any) -> dict[Status, int]:
    statuses = [row.status for row in rows]
    return {status: statuses.count(status) for status in Status}


def _counted(state: State, grid: GridRow) -> GridRow:
    return replace(grid, counts=_counts(row for row in state.cells.values() if row.grid_id == grid.id))


def _ready(state: State, row: CellRow) -> Ready:
    template = state.templates[row.id]
    return Ready(
        cell_id=row.id,
        grid=row.grid,
        key=row.key,
        not_before=row.not_before,
        warm_key=template.warm_key,
        warm=template.warm,
        threads=template.threads,
        spec=specs.full(template.spec, row.key, row.coords, row.seed),
        policy=state.grids[row.grid_id].policy,
        claim_bytes=row.claim_bytes,
        evictions=row.evictions,
        alone=row.alone,
        attempts=row.attempts,
    )

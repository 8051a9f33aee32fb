"""Imported cells of the queue in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from helpers.queue_fake_state import State, Template, as_json, new_cell
from helpers.queue_fake_views import FakeViews
from overnight.errors import QueueError
from overnight.queue import specs
from overnight.queue.importing import ImportedCell, TakenIn
from overnight.queue.rows import AttemptRow, CellRow, GridRow
from overnight.queue.states import Outcome, Status

_ENDS = {Status.DONE: Outcome.COMPLETED, Status.FAILED: Outcome.FAILED, Status.CANCELLED: Outcome.CANCELLED}


def is_imported(state: State, row: CellRow) -> bool:
    return state.templates[row.id].spec.get("kind") == specs.IMPORTED


def own(state: State, numbers: Iterable[int]) -> Iterator[CellRow]:
    """Those of these cells that commands may change."""
    for number in numbers:
        if (row := state.cells.get(number)) is not None and not is_imported(state, row):
            yield row


def refuse_imported(state: State, grid: str) -> None:
    if any(row.grid == grid and is_imported(state, row) for row in state.cells.values()):
        raise QueueError(f"grid {grid!r} was imported: its cells record what another harness did")


class FakeImports(FakeViews):
    """Taking in what another harness ran."""

    def _write(self) -> AbstractContextManager[State]:
        raise NotImplementedError

    def never_run(self) -> int:
        state = self._look()
        return sum(row.status is Status.PENDING and is_imported(state, row) for row in state.cells.values())

    def take_in(
        self,
        grid: str,
        cells: Sequence[ImportedCell],
        *,
        spec: Mapping[str, Any],
        replace: bool = False,
        aside: Callable[[Sequence[str]], None] | None = None,
    ) -> TakenIn:
        with self._write() as state:
            return _take_in(state, self._clock(), grid, cells, spec, replace, aside)


def _take_in(
    state: State,
    now: float,
    name: str,
    cells: Sequence[ImportedCell],
    spec: Mapping[str, Any],
    may_replace: bool,
    aside: Callable[[Sequence[str]], None] | None,
) -> TakenIn:
    grid = next((row for row in state.grids.values() if row.name == name), None)
    if grid is not None and not any(row.grid == name and is_imported(state, row) for row in state.cells.values()):
        raise QueueError(f"grid {name!r} holds cells of its own: imported ones do not go among them")
    number = len(state.grids) + 1 if grid is None else grid.id
    if cells and grid is None:
        state.grids[number] = GridRow(number, name, as_json(spec), {}, now, now, {})
    added, updated, replaced, moved, existing = list[str](), list[str](), list[str](), list[str](), 0
    for told in cells:
        cell = told
        row = next((r for r in state.cells.values() if (r.grid, r.key) == (name, cell.key)), None)
        if row is None:
            row = new_cell(len(state.cells) + 1, number, name, cell.key, cell.coords, 0)
            state.cells[row.id] = row
            added.append(cell.key)
        elif _tells_nothing_new(row, cell):
            existing += 1
            continue
        else:
            learns = row.status is Status.PENDING or (row.transcript_sha256 is None and cell.sha256 is not None)
            if not (learns or may_replace):
                raise QueueError(f"{name}/{cell.key} was imported as {row.status}: ... --replace")
            (updated if learns else replaced).append(cell.key)
            if row.transcript_sha256 is not None and cell.sha256 is None:
                cell = _keeping(row, cell)
            elif row.transcript_sha256 not in (None, cell.sha256):
                moved.append(cell.key)
            state.afresh(row, "replaced", now, coords=as_json(cell.coords))
        warm = specs.warm_specification(cell.template)
        state.templates[row.id] = Template(as_json(cell.template), specs.warm_key(warm), warm, 1)
        _settle(state, state.cells[row.id], cell, now)
    if added or updated or replaced:
        state.grids[number] = replace(state.grids[number], spec=as_json(spec), last_submitted_at=now)
        counts = {"added": len(added), "updated": len(updated), "replaced": len(replaced)}
        state.event("grid_imported", now, grid_id=number, detail=counts)
    if moved and aside is not None:
        aside(moved)
    return TakenIn(tuple(added), tuple(updated), tuple(replaced), existing)


def _keeping(row: CellRow, cell: ImportedCell) -> ImportedCell:
    turns, tokens = cell.turns or row.turns, cell.tokens or row.output_tokens
    at = row.started_at if cell.started_at is None else cell.started_at
    return replace(cell, began=True, turns=turns, tokens=tokens, started_at=at, sha256=row.transcript_sha256)


def _tells_nothing_new(row: CellRow, cell: ImportedCell) -> bool:
    ends = row.status is Status.PENDING and cell.status is not Status.PENDING
    if row.transcript_sha256 is not None and cell.sha256 in (None, row.transcript_sha256) and not ends:
        return True
    knows = (row.status, row.turns, row.output_tokens, row.reason, row.end_reason, row.transcript_sha256)
    says = (cell.status, cell.turns, cell.tokens, cell.reason, cell.end_reason, cell.sha256)
    began = (row.started_at, row.attempts > 0, row.coords) == (cell.started_at, cell.began, as_json(cell.coords))
    return knows == says and began


def _settle(state: State, row: CellRow, cell: ImportedCell, now: float) -> None:
    if not cell.began:
        if cell.status is Status.CANCELLED:
            state.move(row, Status.CANCELLED, "cancelled", now, finished_at=now)
        return
    outcome = _ENDS.get(cell.status, Outcome.LOST)
    told = [at for at in (cell.started_at, cell.finished_at) if at is not None] or [now]
    ended = now if outcome is Outcome.LOST else told[-1]
    code = "import" if cell.reason else ""
    ending: dict[str, Any] = {"reason_code": code, "reason": cell.reason, "turns": cell.turns}
    ending |= {"output_tokens": cell.tokens, "end_reason": cell.end_reason, "transcript_sha256": cell.sha256}
    times = {"started_at": cell.started_at, "finished_at": cell.finished_at}
    unknown = [name for name, at in times.items() if at is None]
    number = len(state.attempts) + 1
    given: dict[str, Any] = {"id": number, "cell_id": row.id, "generation": row.generation, "number": 1, "boot_id": ""}
    given |= {"daemon": "import", "claimed_at": told[0], "ended_at": ended, "outcome": outcome, "claim_source": ""}
    given["evidence"] = as_json({**cell.evidence, **({"unknown": unknown} if unknown else {})})
    state.attempts[number] = AttemptRow(**{**dict.fromkeys(AttemptRow.__slots__), **given, **ending})
    running = state.move(row, Status.RUNNING, "claimed", now, attempt_id=number, attempts=1, started_at=cell.started_at)
    run_s = max(0.0, told[-1] - told[0]) if not unknown else 0.0
    state.move(
        running,
        cell.status,
        "finished",
        now,
        attempt_id=number,
        detail={"outcome": str(outcome), "reason_code": code, "imported": True},
        tries_used=int(outcome is Outcome.FAILED),
        run_s=round(run_s * 1000) / 1000,
        finished_at=None if cell.status is Status.PENDING else ended,
        **ending,
    )

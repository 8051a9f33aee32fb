"""The queue in memory: what `overnight.queue.store.Queue` promises, in plain Python, without a database.

For unit tests of what uses a queue; `tests/contract` runs the same tests on both, and any sequence of calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from helpers.queue_fake_imports import FakeImports, own, refuse_imported
from helpers.queue_fake_state import End, FakeStore, State, Template, as_json, new_cell
from overnight.errors import QueueError
from overnight.queue import specs
from overnight.queue.rows import AttemptRow, CellRow, Claimed, Enqueued, GridRow, Peak, PeakRow
from overnight.queue.specs import Planned
from overnight.queue.states import Outcome, Status

_ENDED = (Status.CANCELLED, Status.DONE, Status.FAILED, Status.QUARANTINED)


class FakeQueue(FakeImports):
    """One process's view of a store."""

    def __init__(self, store: FakeStore | None = None, clock: Callable[[], float] = time.time) -> None:
        self._store = FakeStore() if store is None else store
        self._clock = clock
        self._seen: int | None = None
        self._own_commits = 0
        self._inside = False
        self._closed = False

    @property
    def path(self) -> Path:
        return Path("in memory")

    def changed(self) -> bool:
        others = self._store.commits - self._own_commits
        before, self._seen = self._seen, others
        return before != others

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> FakeQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _write(self) -> Iterator[State]:
        self._look()
        self._inside = True
        try:
            with self._store.write() as state:
                yield state
            self._own_commits += 1
        finally:
            self._inside = False

    def _look(self) -> State:
        if self._inside:
            raise RuntimeError("a transaction of this queue is open: it cannot be used inside one")
        return self._store.state

    # -- the submitter's side ---------------------------------------------------------------------------------

    def enqueue(
        self,
        name: str,
        *,
        cells: Iterable[Planned],
        spec: Mapping[str, Any],
        policy: Mapping[str, Any],
        replace: bool = False,
        aside: Callable[[Sequence[str]], None] | None = None,
    ) -> Enqueued:
        with self._write() as state:
            now = self._clock()
            refuse_imported(state, name)
            grid = _submitted(state, name, spec, policy, now)
            known = {row.key: row.id for row in state.cells.values() if row.grid_id == grid.id}
            added = existing = changed = 0
            first, replaced = "", []
            for cell in cells:
                template = _template(cell.template)
                number = known.get(cell.key)
                if number is None:
                    number = known[cell.key] = len(state.cells) + 1
                    state.cells[number] = new_cell(number, grid.id, name, cell.key, cell.coords, cell.seed)
                    state.templates[number] = template
                    added += 1
                    continue
                row = state.cells[number]
                old = specs.full(state.templates[number].spec, row.key, row.coords, row.seed)
                new = specs.full(template.spec, cell.key, as_json(cell.coords), cell.seed)
                if not (difference := specs.first_difference(old, new)):
                    existing += 1
                    continue
                changed += 1
                first = first or f"{cell.key}: {difference}"
                if replace:
                    if row.status is Status.RUNNING:
                        raise QueueError(f"{name}/{row.key} is running and its specification changed")
                    state.afresh(row, "replaced", now, coords=new["coords"], seed=cell.seed)
                    state.templates[number] = template
                    replaced.append(row.key)
            if changed and not replace:
                others = f" (and {changed - 1} more cells differ)" if changed > 1 else ""
                raise QueueError(
                    f"grid {name!r}: the specification of an existing cell changed: {first}{others};"
                    " nothing was added: choose another grid name, or start these cells afresh with --replace"
                )
            detail = {"added": added, "existing": existing, "replaced": len(replaced)}
            state.event("grid_enqueued", now, grid_id=grid.id, detail=detail)
            if replaced and aside is not None:
                aside(replaced)
            return Enqueued(added, existing, len(replaced), tuple(replaced))

    # -- the dispatcher's side --------------------------------------------------------------------------------

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
        with self._write() as state:
            now = self._clock()
            ready = (
                row
                for row in self._ready_rows(state, now, exclude)
                if warm_key in (None, state.templates[row.id].warm_key) and cell_id in (None, row.id)
            )
            if (cell := next(ready, None)) is None:
                return None
            number = len(state.attempts) + 1
            figures = {"claim_bytes": claim_bytes, "claim_source": claim_source, "cap_bytes": cap_bytes}
            state.attempts[number] = _attempt(number, cell, boot_id, daemon, now, figures)
            cell = state.move(
                cell,
                Status.RUNNING,
                "claimed",
                now,
                attempt_id=number,
                attempts=cell.attempts + 1,
                reason_code="",
                reason="",
                started_at=now if cell.started_at is None else cell.started_at,
                finished_at=None,
            )
            template = state.templates[cell.id]
            return Claimed(
                cell=cell,
                attempt_id=number,
                attempt_number=cell.attempts,
                spec=specs.full(template.spec, cell.key, cell.coords, cell.seed),
                policy=state.grids[cell.grid_id].policy,
                grid=cell.grid,
                warm_key=template.warm_key,
                warm=template.warm,
                claim_bytes=claim_bytes,
                claim_source=claim_source,
                cap_bytes=cap_bytes,
            )

    def started(self, attempt_id: int, *, pid: int, start_ticks: int) -> None:
        with self._write() as state:
            row = state.under_way(attempt_id, f"its process {pid} cannot be noted")
            state.attempts[attempt_id] = replace(row, pid=pid, start_ticks=start_ticks, started_at=self._clock())

    def extended(self, attempt_id: int, claim_bytes: int, cap_bytes: int | None) -> None:
        with self._write() as state:
            row = state.under_way(attempt_id, "its claim cannot be extended")
            state.attempts[attempt_id] = replace(row, claim_bytes=claim_bytes, cap_bytes=cap_bytes)

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
        values: dict[str, Any] = {
            "reason_code": reason_code,
            "reason": reason,
            "evidence": as_json(evidence or {}),
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
        end = End(delay_s=delay_s, run_s=run_s, raised=raised_claim_bytes, alone=alone, quarantine=quarantine)
        with self._write() as state:
            now = self._clock()
            status = state.end(attempt_id, Outcome(outcome), values, end, now)
            if learn is not None:
                state.learn(learn.kind, learn.family, PeakRow(learn.bytes, learn.whole, now))
            return status

    def recover(
        self,
        *,
        outcome: Outcome = Outcome.LOST,
        reason: str = "its daemon died",
        reason_code: str = "daemon_died",
    ) -> list[int]:
        with self._write() as state:
            now = self._clock()
            running = sorted(row.id for row in state.cells.values() if row.status is Status.RUNNING)
            for number in running:
                attempt = state.open_attempt(number)
                assert attempt is not None
                state.end(attempt.id, outcome, {"reason_code": reason_code, "reason": reason}, End(), now)
            return running

    def shorten_waits(self) -> int:
        with self._write() as state:
            now, shortened = self._clock(), 0
            for cell in list(state.cells.values()):
                if cell.status is not Status.PENDING or cell.not_before <= now:
                    continue
                told = [event.at for event in state.events if event.cell_id == cell.id]
                if told and told[-1] > now:
                    not_before = now + max(0.0, cell.not_before - told[-1])
                    state.amend(cell, "wait_shortened", now, not_before=not_before)
                    shortened += 1
            return shortened

    # -- what people ask for ----------------------------------------------------------------------------------

    def cancel(self, cells: Iterable[int]) -> tuple[int, int]:
        cancelled = marked = 0
        chosen = list(cells)
        with self._write() as state:
            now = self._clock()
            for cell in own(state, chosen):
                if cell.status is Status.PENDING:
                    nothing: dict[str, Any] = {"not_before": 0.0, "reason_code": "", "reason": ""}
                    state.move(cell, Status.CANCELLED, "cancelled", now, finished_at=now, **nothing)
                    cancelled += 1
                elif cell.status is Status.RUNNING and not cell.cancel_requested:
                    state.amend(cell, "cancel_requested", now, cancel_requested=True)
                    marked += 1
        return cancelled, marked

    def retry(self, cells: Iterable[int], *, accept_conditions: bool = False) -> int:
        changed = 0
        chosen = list(cells)
        with self._write() as state:
            now = self._clock()
            for cell in own(state, chosen):
                if cell.status in (Status.FAILED, Status.QUARANTINED, Status.CANCELLED):
                    forgotten: dict[str, Any] = {"tries_used": 0, "stalled": 0, "evictions": 0, "alone": False}
                    forgotten |= {"reason_code": "", "reason": "", "end_reason": None, "finished_at": None}
                    forgotten |= {"not_before": 0.0, "accept_conditions": accept_conditions}
                    state.move(cell, Status.PENDING, "retried", now, **forgotten)
                elif cell.status is Status.PENDING and (
                    cell.not_before > now or (accept_conditions and not cell.accept_conditions)
                ):
                    accepted = accept_conditions or cell.accept_conditions
                    state.amend(cell, "retried", now, not_before=0.0, accept_conditions=accepted)
                else:
                    continue
                changed += 1
        return changed

    def reset(self, grid: str, *, aside: Callable[[Sequence[str]], None] | None = None) -> int:
        changed = 0
        for first in (True, False):
            with self._write() as state:
                number = self._grid_id(state, grid)
                refuse_imported(state, grid)
                ours = [row for row in state.cells.values() if row.grid_id == number]
                running = sum(row.status is Status.RUNNING for row in ours)
                if first and running:
                    what = "1 cell is" if running == 1 else f"{running} cells are"
                    raise QueueError(f"grid {grid!r}: {what} running: cancel them or wait, then reset it again")
                touched = [row for row in ours if (_has_begun(row) if first else row.status in _ENDED)]
                for row in touched:
                    state.afresh(row, "reset", self._clock())
                if touched and aside is not None:
                    aside([row.key for row in touched])
                changed += len(touched)
        return changed


def _has_begun(row: CellRow) -> bool:
    return row.status is Status.PENDING and bool(row.attempts or row.accept_conditions)


def _submitted(state: State, name: str, spec: Mapping[str, Any], policy: Mapping[str, Any], now: float) -> GridRow:
    old = next((row for row in state.grids.values() if row.name == name), None)
    number = len(state.grids) + 1 if old is None else old.id
    created = now if old is None else old.created_at
    state.grids[number] = GridRow(number, name, as_json(spec), as_json(policy), created, now, {})
    return state.grids[number]


def _template(template: Mapping[str, Any]) -> Template:
    warm = as_json(specs.warm_specification(template))
    return Template(as_json(template), specs.warm_key(warm), warm, int(template.get("threads", 1)))


def _attempt(
    number: int, cell: CellRow, boot_id: str, daemon: str, now: float, figures: Mapping[str, Any]
) -> AttemptRow:
    unknown: dict[str, Any] = dict.fromkeys(AttemptRow.__slots__)
    given = {"id": number, "cell_id": cell.id, "generation": cell.generation, "number": cell.attempts + 1}
    given |= {"boot_id": boot_id, "daemon": daemon, "claimed_at": now}  # type: ignore[dict-item]
    texts = {"reason_code": "", "reason": "", "evidence": {}}
    return AttemptRow(**{**unknown, **given, **texts, **figures})

"""Any sequence of calls, against the queue as people think of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers.queue_cells import Cell, Clock, template
from helpers.queue_checks import assert_sound
from helpers.queue_model import ModelCell, ModelEnd, ModelQueue
from overnight.errors import QueueError
from overnight.queue import peaks
from overnight.queue.specs import warm_key, warm_specification
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Claimed, Peak, Queue, StaleAttempt

GRIDS = ("night", "day")
MODELS = ("135m", "360m")
TEMPLATES = {model: template(model) for model in MODELS}
WARM = {model: warm_key(warm_specification(TEMPLATES[model])) for model in MODELS}
TRIES = 2
KEPT = 2
KINDS = {"a": "f", "b": "f", "c": "g"}
"""Kind -> family."""

COMPARED = (
    *("grid", "key", "seed", "status", "not_before", "generation", "attempts", "tries_used", "stalled", "turns"),
    *("cancel_requested", "accept_conditions", "claim_bytes", "evictions", "alone"),
)
SHOWN = ("grid", "key", "not_before", "claim_bytes", "evictions", "alone", "attempts")
"""Of what is ready."""

numbers = st.lists(st.integers(1, 12), max_size=5)
some_models = st.sets(st.sampled_from(MODELS))
figures = st.none() | st.integers(1, 9)
ends = st.builds(
    ModelEnd,
    turns=st.none() | st.integers(0, 3),
    delay_s=st.sampled_from((0.0, 5.0, 50.0)),
    raised=figures,
    alone=st.none() | st.booleans(),
    quarantine=st.integers(0, 3).map(lambda one: one == 3),
)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="overnight-queue-"))
        self.clock = Clock()
        self.queue = self.opened()
        self.model = ModelQueue(TRIES, KEPT)
        self.over: list[int] = []
        self.claims: dict[int, tuple[int | None, str, int | None]] = {}
        self.kept, peaks.KEPT = peaks.KEPT, KEPT

    def opened(self) -> Queue:
        return Queue.open(self.folder / "queue.db", clock=self.clock)

    def teardown(self) -> None:
        self.queue.close()
        peaks.KEPT = self.kept
        assert_sound(self.folder / "queue.db")
        shutil.rmtree(self.folder)

    @rule(
        grid=st.sampled_from(GRIDS),
        runs=st.sets(st.integers(1, 6), min_size=1),
        seed=st.integers(0, 1),
        replace=st.booleans(),
    )
    def enqueue(self, grid: str, runs: set[int], seed: int, replace: bool) -> None:
        cells = []
        for run in sorted(runs):
            model = MODELS[run % 2]
            cells.append(Cell(f"{model}_run{run}", {"run": run}, TEMPLATES[model], 10 * seed + run))
        known = self.model.of(grid)
        changed = [cell for cell in cells if cell.key in known and self.model.cells[known[cell.key]].seed != cell.seed]
        running = [cell for cell in changed if self.model.cells[known[cell.key]].status is Status.RUNNING]

        def submit() -> Any:
            return self.queue.enqueue(grid, cells=cells, spec={}, policy={"tries": TRIES}, replace=replace)

        if changed and (running or not replace):
            with pytest.raises(QueueError):
                submit()
            return
        done = submit()
        for cell in changed:
            old = self.model.cells[known[cell.key]]
            old.seed = cell.seed
            old.afresh()
        added = [cell for cell in cells if cell.key not in known]
        for cell in added:
            number = len(self.model.cells) + 1
            self.model.cells[number] = ModelCell(grid, cell.key, cell.template["model"]["name"], cell.seed)
        assert (done.added, done.replaced) == (len(added), len(changed))
        assert done.existing == len(cells) - len(added) - len(changed)
        assert set(done.replaced_keys) == {cell.key for cell in changed}

    @rule(only=st.none() | st.sampled_from(MODELS), exclude=some_models)
    def claim(self, only: str | None, exclude: set[str]) -> None:
        expected = self.model.head(self.clock.now, only=only, exclude=exclude)
        claimed = self.queue.claim(
            boot_id="boot",
            daemon="d1",
            warm_key=None if only is None else WARM[only],
            exclude=[WARM[model] for model in exclude],
        )
        self.claimed(claimed, expected)

    def claimed(self, claimed: Claimed | None, expected: int | None) -> None:
        assert (claimed.cell.id if claimed else None) == expected
        if claimed is not None:
            self.model.claim(claimed.cell.id, claimed.attempt_id)
            cell = self.model.cells[claimed.cell.id]
            assert claimed.spec == {
                **TEMPLATES[cell.model],
                "key": cell.key,
                "coords": claimed.cell.coords,
                "seed": cell.seed,
            }
            assert (claimed.warm_key, claimed.attempt_number) == (WARM[cell.model], cell.attempts)
            self.claims[claimed.attempt_id] = (claimed.claim_bytes, claimed.claim_source, claimed.cap_bytes)

    @rule()
    def claim_the_next(self) -> None:
        self.claim(None, set())

    @rule(number=st.integers(1, 12), claim_bytes=figures, cap_bytes=figures)
    def claim_this_very_one(self, number: int, claim_bytes: int | None, cap_bytes: int | None) -> None:
        expected = number if number in self.model.heads(self.clock.now) else None
        given: dict[str, Any] = {"claim_bytes": claim_bytes, "claim_source": "hint", "cap_bytes": cap_bytes}
        self.claimed(self.queue.claim(boot_id="boot", daemon="d1", cell_id=number, **given), expected)

    @precondition(lambda self: self.model.open)
    @rule(data=st.data(), claim_bytes=st.integers(1, 9), cap_bytes=figures)
    def extend(self, data: st.DataObject, claim_bytes: int, cap_bytes: int | None) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.model.open)))
        self.queue.extended(attempt, claim_bytes, cap_bytes)
        self.claims[attempt] = (claim_bytes, self.claims[attempt][1], cap_bytes)

    @precondition(lambda self: self.model.open)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(list(Outcome)),
        end=ends,
        kind=st.none() | st.sampled_from(sorted(KINDS)),
        peak_bytes=figures,
    )
    def finish(
        self, data: st.DataObject, outcome: Outcome, end: ModelEnd, kind: str | None, peak_bytes: int | None
    ) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.model.open)))

        def finish() -> Status:
            return self.queue.finish(
                attempt,
                outcome,
                turns=end.turns,
                delay_s=end.delay_s,
                peak_bytes=peak_bytes,
                raised_claim_bytes=end.raised,
                alone=end.alone,
                quarantine=end.quarantine,
                learn=None if kind is None else Peak(kind, KINDS[kind], attempt, whole=True),
            )

        if not end.possible(outcome):
            with pytest.raises(ValueError, match="says nothing of memory"):
                finish()
            return
        cell = self.model.open[attempt]
        assert finish() is self.model.finish(attempt, outcome, end, self.clock.now)
        if kind is not None:
            self.model.learn(kind, KINDS[kind], attempt)
        row = next(row for row in self.queue.attempts(cell) if row.id == attempt)
        assert (row.claim_bytes, row.claim_source, row.cap_bytes) == self.claims[attempt]
        assert (row.outcome, row.peak_bytes) == (outcome, peak_bytes)
        self.over.append(attempt)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def finish_again(self, data: st.DataObject) -> None:
        with pytest.raises(StaleAttempt):
            self.queue.finish(data.draw(st.sampled_from(self.over)), Outcome.COMPLETED)
        with pytest.raises(StaleAttempt):
            self.queue.extended(data.draw(st.sampled_from(self.over)), 1, 1)

    @rule()
    def recover(self) -> None:
        self.over += list(self.model.open)
        assert self.queue.recover() == self.model.recover(self.clock.now)

    @rule(chosen=numbers)
    def cancel(self, chosen: list[int]) -> None:
        known = [number for number in chosen if number in self.model.cells]
        assert self.queue.cancel(chosen) == self.model.cancel(known)

    @rule(chosen=numbers, accept=st.booleans())
    def retry(self, chosen: list[int], accept: bool) -> None:
        known = [number for number in chosen if number in self.model.cells]
        expected = self.model.retry(known, self.clock.now, accept)
        assert self.queue.retry(chosen, accept_conditions=accept) == expected

    @precondition(lambda self: self.model.cells)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        grid = data.draw(st.sampled_from(sorted({cell.grid for cell in self.model.cells.values()})))
        expected = self.model.reset(grid)
        if expected is None:
            with pytest.raises(QueueError, match="running"):
                self.queue.reset(grid)
        else:
            assert self.queue.reset(grid) == expected

    @rule(seconds=st.sampled_from((1.0, 10.0, 100.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule()
    def another_process_opens_it(self) -> None:
        self.queue.close()
        self.queue = self.opened()

    @invariant()
    def they_agree(self) -> None:
        rows = self.queue.cells()
        assert [row.id for row in rows] == sorted(self.model.cells)
        for row in rows:
            cell = self.model.cells[row.id]
            assert {name: getattr(row, name) for name in COMPARED} == {name: getattr(cell, name) for name in COMPARED}
        statuses = [cell.status for cell in self.model.cells.values()]
        assert self.queue.counts() == {status: statuses.count(status) for status in Status}
        asked = [
            (number, attempt)
            for attempt, number in self.model.open.items()
            if self.model.cells[number].cancel_requested
        ]
        assert self.queue.cancel_requested() == sorted(asked)
        ready = self.queue.next_ready()
        assert (ready.cell_id if ready else None) == self.model.head(self.clock.now)
        many = self.queue.next_ready_many(4)
        assert [one.cell_id for one in many] == self.model.heads(self.clock.now)[:4]
        for one in many:
            assert {name: getattr(one, name) for name in SHOWN} == {
                name: getattr(self.model.cells[one.cell_id], name) for name in SHOWN
            }
        newest = self.model.peaks[::-1]
        for kind, family in KINDS.items():
            assert [row.peak_bytes for row in self.queue.peaks(kind)] == [peak for of, _, peak in newest if of == kind]
            assert [row.peak_bytes for row in self.queue.family_peaks(family, 3)] == [
                peak for _, of, peak in newest if of == family
            ][:3]
        pending = [cell.not_before for cell in self.model.cells.values() if cell.status is Status.PENDING]
        assert self.queue.next_ready_at() == min(pending, default=None)


QueueMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestQueue = QueueMachine.TestCase

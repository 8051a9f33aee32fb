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
from helpers.queue_model import ModelCell, ModelQueue
from overnight.errors import QueueError
from overnight.queue.specs import warm_key, warm_specification
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Queue, StaleAttempt

GRIDS = ("night", "day")
MODELS = ("135m", "360m")
TEMPLATES = {model: template(model) for model in MODELS}
WARM = {model: warm_key(warm_specification(TEMPLATES[model])) for model in MODELS}
TRIES = 2
COMPARED = (
    *("grid", "key", "seed", "status", "not_before", "generation", "attempts", "tries_used", "stalled", "turns"),
    *("cancel_requested", "accept_conditions"),
)

numbers = st.lists(st.integers(1, 12), max_size=5)
some_models = st.sets(st.sampled_from(MODELS))


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="overnight-queue-"))
        self.clock = Clock()
        self.queue = self.opened()
        self.model = ModelQueue(TRIES)
        self.over: list[int] = []

    def opened(self) -> Queue:
        return Queue.open(self.folder / "queue.db", clock=self.clock)

    def teardown(self) -> None:
        self.queue.close()
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
        assert (claimed.cell.id if claimed else None) == expected
        if claimed is not None:
            assert claimed.cell.id == expected
            self.model.claim(claimed.cell.id, claimed.attempt_id)
            cell = self.model.cells[claimed.cell.id]
            assert claimed.spec == {
                **TEMPLATES[cell.model],
                "key": cell.key,
                "coords": claimed.cell.coords,
                "seed": cell.seed,
            }
            assert (claimed.warm_key, claimed.attempt_number) == (WARM[cell.model], cell.attempts)

    @rule()
    def claim_the_next(self) -> None:
        self.claim(None, set())

    @precondition(lambda self: self.model.open)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(list(Outcome)),
        turns=st.none() | st.integers(0, 3),
        delay_s=st.sampled_from((0.0, 5.0, 50.0)),
    )
    def finish(self, data: st.DataObject, outcome: Outcome, turns: int | None, delay_s: float) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.model.open)))
        status = self.queue.finish(attempt, outcome, turns=turns, delay_s=delay_s)
        assert status is self.model.finish(attempt, outcome, turns, self.clock.now, delay_s)
        self.over.append(attempt)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def finish_again(self, data: st.DataObject) -> None:
        with pytest.raises(StaleAttempt):
            self.queue.finish(data.draw(st.sampled_from(self.over)), Outcome.COMPLETED)

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
        pending = [cell.not_before for cell in self.model.cells.values() if cell.status is Status.PENDING]
        assert self.queue.next_ready_at() == min(pending, default=None)


QueueMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestQueue = QueueMachine.TestCase

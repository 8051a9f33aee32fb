"""Any sequence of calls, on the queue on disk and on the one in memory: the same answers, rows and events."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers import queue_fake_state
from helpers.queue_cells import Cell, Clock, template
from helpers.queue_checks import assert_sound
from helpers.queue_fake import FakeQueue, FakeStore
from overnight.errors import QueueError
from overnight.queue import peaks
from overnight.queue.specs import warm_key, warm_specification
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Claimed, Peak, Queue

GRIDS = ("night", "day")
MODELS = ("135m", "360m")
TEMPLATES = {model: template(model) for model in MODELS}
WARM = {model: warm_key(warm_specification(TEMPLATES[model])) for model in MODELS}
TRIES = 2
KEPT = 2
KINDS = {"a": "f", "b": "f", "c": "g"}
"""Kind -> family."""

numbers = st.lists(st.integers(1, 12), max_size=5)
some_models = st.sets(st.sampled_from(MODELS))
figures = st.none() | st.integers(1, 9)
ends = st.fixed_dictionaries(
    {
        "turns": st.none() | st.integers(0, 3),
        "delay_s": st.sampled_from((0.0, 5.0, 50.0)),
        "raised_claim_bytes": figures,
        "alone": st.none() | st.booleans(),
        "quarantine": st.integers(0, 3).map(lambda one: one == 3),
        "peak_bytes": figures,
        "run_s": st.none() | st.sampled_from((0.0, 1.2345)),
        "reason": st.sampled_from(("", "it was so")),
    }
)


def signatures(of: type) -> dict[str, str]:
    public = inspect.getmembers(of, callable)
    return {name: str(inspect.signature(call)) for name, call in public if not name.startswith("_") and name != "open"}


def test_both_are_called_alike() -> None:
    """Every public call, with the same arguments, defaults and types; only how they are opened differs."""
    assert signatures(FakeQueue) == signatures(Queue)
    assert len(signatures(Queue)) > 25
    assert isinstance(inspect.getattr_static(FakeQueue, "path"), property)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="overnight-queue-"))
        self.clock, self.store = Clock(), FakeStore()
        self.queue, self.fake = self.opened()
        self.open: list[int] = []
        self.over: list[int] = []
        self.kept, peaks.KEPT = peaks.KEPT, KEPT
        self.fake_kept, queue_fake_state.KEPT_PEAKS = queue_fake_state.KEPT_PEAKS, KEPT

    def opened(self) -> tuple[Queue, FakeQueue]:
        return Queue.open(self.folder / "queue.db", clock=self.clock), FakeQueue(self.store, self.clock)

    def teardown(self) -> None:
        self.queue.close()
        peaks.KEPT, queue_fake_state.KEPT_PEAKS = self.kept, self.fake_kept
        assert_sound(self.folder / "queue.db")
        shutil.rmtree(self.folder)

    def both(self, call: Callable[[Any], Any]) -> Any:
        """Call the two; they answer, or refuse, alike. None for a refusal."""
        answers: list[Any] = []
        for queue in (self.queue, self.fake):
            try:
                answers.append(call(queue))
            except (QueueError, ValueError) as error:
                answers.append(type(error))
        assert answers[0] == answers[1]
        return None if isinstance(answers[0], type) else answers[0]

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
        aside: list[list[str]] = []

        def submit(queue: Any) -> Any:
            given = {"spec": {"seed": seed}, "policy": {"tries": TRIES}, "replace": replace}
            aside.append([])
            return queue.enqueue(grid, cells=cells, aside=aside[-1].extend, **given)

        self.both(submit)
        assert aside[0] == aside[1]

    @rule(only=st.none() | st.sampled_from(MODELS), exclude=some_models)
    def claim(self, only: str | None, exclude: set[str]) -> None:
        chosen = {"warm_key": None if only is None else WARM[only], "exclude": [WARM[model] for model in exclude]}
        self.claimed(self.both(lambda queue: queue.claim(boot_id="boot", daemon="d1", **chosen)))

    @rule()
    def claim_the_next(self) -> None:
        self.claim(None, set())

    @rule(number=st.integers(1, 12), claim_bytes=figures, cap_bytes=figures)
    def claim_this_very_one(self, number: int, claim_bytes: int | None, cap_bytes: int | None) -> None:
        given: dict[str, Any] = {"claim_bytes": claim_bytes, "claim_source": "hint", "cap_bytes": cap_bytes}
        self.claimed(self.both(lambda queue: queue.claim(boot_id="boot", daemon="d1", cell_id=number, **given)))

    def claimed(self, claimed: Claimed | None) -> None:
        if claimed is not None:
            self.open.append(claimed.attempt_id)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), ticks=st.integers(1, 9))
    def start(self, data: st.DataObject, ticks: int) -> None:
        attempt = data.draw(st.sampled_from(self.open))
        self.both(lambda queue: queue.started(attempt, pid=attempt, start_ticks=ticks))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), claim_bytes=st.integers(1, 9), cap_bytes=figures)
    def extend(self, data: st.DataObject, claim_bytes: int, cap_bytes: int | None) -> None:
        attempt = data.draw(st.sampled_from(self.open))
        self.both(lambda queue: queue.extended(attempt, claim_bytes, cap_bytes))

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(list(Outcome)),
        end=ends,
        kind=st.none() | st.sampled_from(sorted(KINDS)),
    )
    def finish(self, data: st.DataObject, outcome: Outcome, end: dict[str, Any], kind: str | None) -> None:
        attempt = data.draw(st.sampled_from(self.open))
        learn = None if kind is None else Peak(kind, KINDS[kind], attempt, whole=outcome is Outcome.COMPLETED)
        status = self.both(lambda queue: queue.finish(attempt, outcome, learn=learn, **end))
        if status is not None:
            self.open.remove(attempt)
            self.over.append(attempt)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def touch_again_what_is_over(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from([*self.over, 999]))
        for call in (
            lambda queue: queue.finish(attempt, Outcome.COMPLETED),
            lambda queue: queue.extended(attempt, 1, 1),
            lambda queue: queue.started(attempt, pid=1, start_ticks=1),
        ):
            assert self.both(call) is None

    @rule()
    def recover(self) -> None:
        self.both(lambda queue: queue.recover())
        self.over, self.open = self.over + self.open, []

    @rule()
    def shorten_waits(self) -> None:
        self.both(lambda queue: queue.shorten_waits())

    @rule(chosen=numbers)
    def cancel(self, chosen: list[int]) -> None:
        self.both(lambda queue: queue.cancel(chosen))

    @rule(grid=st.sampled_from(GRIDS), status=st.sampled_from(list(Status)))
    def cancel_a_grid(self, grid: str, status: Status) -> None:
        self.both(lambda queue: queue.cancel(queue.cell_ids(grid, [status])))

    @rule(chosen=numbers, accept=st.booleans())
    def retry(self, chosen: list[int], accept: bool) -> None:
        self.both(lambda queue: queue.retry(chosen, accept_conditions=accept))

    @rule(grid=st.sampled_from(GRIDS))
    def reset(self, grid: str) -> None:
        aside: list[list[str]] = []

        def reset(queue: Any) -> Any:
            aside.append([])
            return queue.reset(grid, aside=aside[-1].extend)

        self.both(reset)
        assert sorted(aside[0]) == sorted(aside[1])

    @rule(seconds=st.sampled_from((-30.0, 1.0, 10.0, 100.0)))
    def time_passes(self, seconds: float) -> None:
        """Or somebody sets the clock."""
        self.clock.step(seconds)

    @rule()
    def another_process_opens_it(self) -> None:
        self.queue.close()
        self.queue, self.fake = self.opened()

    @rule(
        text=st.sampled_from(("#1", "#99", "135m_run2", "night/360m_run1", "nihgt/x", "x")),
        grid=st.none() | st.sampled_from(GRIDS),
    )
    def look_for_a_cell(self, text: str, grid: str | None) -> None:
        self.both(lambda queue: queue.find_cell(text, grid))
        self.both(lambda queue: queue.cells(grid, "pending", after_id=1, limit=3))

    @invariant()
    def they_agree(self) -> None:
        rows = self.both(lambda queue: queue.cells())
        self.both(lambda queue: queue.grids())
        self.both(lambda queue: queue.counts())
        self.both(lambda queue: queue.cancel_requested())
        self.both(lambda queue: queue.next_ready(exclude=[WARM["135m"]]))
        self.both(lambda queue: queue.next_ready_many(4))
        self.both(lambda queue: queue.next_ready_at())
        for kind, family in KINDS.items():
            self.both(lambda queue, kind=kind: queue.peaks(kind))
            self.both(lambda queue, family=family: queue.family_peaks(family, 3))
        for row in rows[:3]:
            self.both(lambda queue, row=row: queue.attempts(row.id))
            self.both(lambda queue, row=row: queue.cell_spec(row.id))

    @invariant()
    def they_remember_alike(self) -> None:
        """Events too. Within one call (a reset, say) their order is nobody's business."""

        def events(queue: Any) -> Any:
            return sorted(
                (e.at, e.kind, e.cell_id or 0, e.attempt_id or 0, e.old or "", e.new or "", str(e.detail))
                for e in queue.events()
            )

        self.both(events)
        self.both(lambda queue: [queue.pace(number) for number in (1, 2)])


QueueMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestQueue = QueueMachine.TestCase

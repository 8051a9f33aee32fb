"""Every grid ends: simulated cells with any memory curve, killed and evicted at any time, on a machine whose other
memory comes and goes, under the real admission, claims and retries."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.small_world import ENDED, MIB, Cell, World
from overnight.dispatch.admission import BACKFILL_MOST
from overnight.queue.states import Outcome, Status

LIMIT, RESERVE, BASE = 1000 * MIB, 200 * MIB, 50 * MIB
MODELS = {"": 24, "small": 100, "large": 400}

STRUCK = [Outcome.LOST, *(Outcome.EVICTED,) * 3, Outcome.OOM_KILLED, Outcome.YIELDED, Outcome.TIMED_OUT]
curves = st.lists(st.integers(1, 1100), min_size=1, max_size=4).map(tuple)
plans = st.fixed_dictionaries(
    {
        "key": st.sampled_from(list(MODELS)),
        "curve": curves,
        "threads": st.sampled_from([1, 1, 1, 2, 5]),
        "durable": st.booleans(),
        "capped": st.sampled_from([True, True, True, False]),
        "fails": st.sampled_from([0, 0, 0, 1, 9]),
        "kind": st.sampled_from("ab"),
        "hint": st.none() | st.integers(1, 2000),
    }
)


class AnyNight(RuleBasedStateMachine):
    @initialize(
        cells=st.lists(plans, min_size=1, max_size=8),
        slots=st.integers(1, 4),
        servers=st.integers(1, 3),
        real=st.sampled_from([0.8, 1.0, 1.3]),
    )
    def begin(self, cells: list[dict[str, Any]], slots: int, servers: int, real: float) -> None:
        models = {key: (size * MIB, int(size * real) * MIB) for key, size in MODELS.items()}
        self.world = World(LIMIT, RESERVE, models, base=BASE, slots=slots, max_servers=servers)
        self.real = real
        self.submit(cells)

    @rule(cells=st.lists(plans, min_size=1, max_size=3))
    def submit(self, cells: list[dict[str, Any]]) -> None:
        for plan in cells:
            self.world.cells.append(Cell(len(self.world.cells), **plan))

    @rule(ticks=st.integers(1, 12))
    def pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self.world.tick()

    @rule(mib=st.sampled_from([0, 0, 100, 300, 600, 900, 1500]))
    def others_take(self, mib: int) -> None:
        self.world.foreign = mib * MIB

    @precondition(lambda self: self.world.running)
    @rule(
        which=st.integers(0, 3),
        outcome=st.sampled_from(
            [Outcome.LOST, Outcome.EVICTED, Outcome.OOM_KILLED, Outcome.YIELDED, Outcome.TIMED_OUT]
        ),
    )
    def strike(self, which: int, outcome: Outcome) -> None:
        self.world.end(self.world.running[which % len(self.world.running)], outcome)

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        cell = self.world.cells[which % len(self.world.cells)]
        if cell.status is Status.PENDING:
            cell.status = Status.CANCELLED
        cell.cancel = cell.cancel or cell.status is Status.RUNNING

    @invariant()
    def done_means_completed_once(self) -> None:
        for cell in self.world.cells if hasattr(self, "world") else ():
            assert cell.completed == (cell.status is Status.DONE)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.foreign = 0
        self.world.settle(100 + sum(60 + 4 * len(cell.curve) for cell in self.world.cells))
        self.done_means_completed_once()
        for cell in self.world.cells:
            self.fair(cell)

    def fair(self, cell: Cell) -> None:
        """What fits is not quarantined, what fails is not done."""
        sizes = [MODELS[cell.key], int(MODELS[cell.key] * self.real)]  # as predicted, as it turned out
        rooms = [(LIMIT - RESERVE - BASE) // MIB - size for size in sizes]
        assert cell.status in ENDED
        if cell.status is Status.QUARANTINED:
            assert max(cell.curve) > 0.95 * min(rooms) - 8, f"quarantined, although it fits into {rooms} MiB: {cell}"
            assert "needs at least" in cell.reason
        if cell.status is Status.DONE and cell.capped and not cell.durable:
            assert max(cell.curve) <= max(rooms)
        if cell.fails >= 3:
            assert cell.status is not Status.DONE


TestAnyNight = AnyNight.TestCase
TestAnyNight.settings = settings(
    max_examples=80, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def world(**fields: Any) -> World:
    models = {key: (size * MIB, size * MIB) for key, size in MODELS.items()}
    return World(LIMIT, RESERVE, models, base=BASE, **fields)


def test_a_hog_resumes_where_it_was_and_completes_by_escalation() -> None:
    night = world()
    night.prior = 10 * MIB
    night.cells = [Cell(0, "", (8, 200, 400, 600, 700))]
    night.settle(60)
    hog = night.cells[0]
    assert (hog.status, hog.turns) == (Status.DONE, 5)
    assert hog.attempts <= 12


def test_a_hog_that_cannot_fit_is_quarantined_with_its_figure_and_its_neighbours_finish() -> None:
    night = world()
    night.cells = [Cell(0, "", (50, 900)), *(Cell(number, "", (50, 60)) for number in range(1, 9))]
    night.settle(120)
    hog, *neighbours = night.cells
    assert {each.status for each in neighbours} == {Status.DONE}
    assert hog.status is Status.QUARANTINED
    assert hog.reason.startswith("needs at least 751 MiB with its warm server of 24 MiB, the limit is 750 MiB")


def test_a_big_cell_is_not_starved_by_small_ones() -> None:
    """Of a thousand small cells that are always ready no more than the bound pass it."""
    night = world(slots=4)
    night.cells = [Cell(0, "", (60,) * 30, hint=60), Cell(1, "", (60,), hint=700, kind="big")]
    night.cells += [Cell(number, "", (60,) * (1 + number % 3), hint=60) for number in range(2, 400)]
    while 1 not in night.admitted:
        night.tick()
        assert night.ticks < 400
    assert night.admitted.index(1) <= 1 + BACKFILL_MOST


def test_models_are_not_loaded_back_and_forth() -> None:
    """Two grids, cell by cell of another model, one model at a time: loaded about once each bound of passing."""
    night = world(slots=2, window=64)
    night.cells = [Cell(number, ("small", "large")[number % 2], (50,)) for number in range(100)]
    loads, before = 0, set[str]()
    while not night.over():
        night.tick()
        loads += len(set(night.servers) - before)
        before = set(night.servers)
    assert loads <= 2 * (1 + 50 // BACKFILL_MOST)


def test_a_cell_that_others_push_out_runs_alone_and_waits() -> None:
    night = world()
    night.cells = [Cell(0, "", (200,), durable=False)]
    night.tick()
    for _ in range(3):
        night.foreign = 900 * MIB
        for _ in range(100):
            night.tick()
    assert night.cells[0].status is Status.PENDING
    assert night.cells[0].alone or not night.cells[0].evictions
    night.foreign = 0
    night.settle(100)
    assert night.cells[0].status is Status.DONE


def test_the_second_cell_of_a_kind_claims_what_the_first_one_took() -> None:
    night = world(slots=1)
    night.cells = [Cell(number, "", (30, 300)) for number in range(3)]
    night.settle(60)
    assert [cell.attempts for cell in night.cells[1:]] == [1, 1]

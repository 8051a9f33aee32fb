"""What the planner gathers for admission: the bounds, the level, whom it looks at, and when it believes `too_large`."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from helpers.queue_cells import Cell
from helpers.queue_fake import FakeQueue
from overnight.config import Config
from overnight.dispatch import planner as module
from overnight.dispatch.planner import Planner
from overnight.paths import Paths
from overnight.queue.store import Queue, Ready

MIB = 2**20
GIB = 2**30


class Asked(FakeQueue):
    """Remembers how many cells were looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def next_ready_many(self, limit: int, exclude: Collection[str] = ()) -> list[Ready]:
        self.asked.append(limit)
        return super().next_ready_many(limit, exclude)


class World:
    """A planner over a queue of ready cells, with a clock that is stepped."""

    def __init__(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, **memory: Any) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)
        self.queue = Asked()
        self.crew: Any = SimpleNamespace(attempts={}, pool=[])
        self.guardian: Any = SimpleNamespace(pressure=None)
        self.tell()
        config = Config.model_validate({"daemon": {"slots": 4}, "memory": memory})
        self.planner = Planner(Paths.of(tmp_path), config, cast("Queue", self.queue), self.crew, self.guardian)
        self.planner._base_bytes = lambda: 0  # type: ignore[method-assign]

    def tell(self, **changes: Any) -> None:
        usual = {"level": "ok", "limit_bytes": GIB, "headroom_bytes": GIB, "hold_bytes": 200 * MIB, "age_s": 0.1}
        self.guardian.pressure = SimpleNamespace(**{**usual, "foreseen": False, "pid": None, **changes})

    @property
    def asked(self) -> list[int]:
        """How many cells it wanted to look at, each time."""
        return self.queue.asked

    def cell(self, number: int, memory_mib: int) -> None:
        """A command that is ready, in a grid of its own."""
        template = {"kind": "command", "command": ["x"], "shell": False, "env": {}, "cwd": "/", "threads": 1}
        planned = Cell(str(number), {"n": number}, template, 1)
        policy = {"memory_bytes": memory_mib * MIB}
        self.queue.enqueue(f"g{number}", cells=[planned], spec={}, policy=policy)

    def clear(self) -> None:
        """Nothing is ready any more."""
        self.queue.cancel([row.id for row in self.queue.cells(status="pending")])

    def runs(self, claim_mib: int, held_mib: int) -> None:
        grant = SimpleNamespace(claim_bytes=claim_mib * MIB, alone=False)
        attempt = SimpleNamespace(grant=grant, bytes=held_mib * MIB, server=SimpleNamespace(key=""), threads=1)
        self.crew.attempts[len(self.crew.attempts)] = attempt


@pytest.fixture
def world(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_the_head_alone_is_looked_at_until_it_has_to_wait(world: World) -> None:
    world.cell(1, 100)
    world.cell(2, 100)
    choice = world.planner.choose(delay_left_s=0.0)
    assert choice is not None
    assert choice.ready is not None
    assert (choice.decision.kind, choice.ready.cell_id, world.asked) == ("admit", 1, [1])


def test_a_smaller_one_passes_a_head_that_does_not_fit(world: World) -> None:
    world.runs(500, 400)
    world.cell(1, 700)
    world.cell(2, 100)
    choice = world.planner.choose(delay_left_s=0.0)
    assert choice is not None
    assert choice.ready is not None
    assert choice.grant is not None
    assert (choice.ready.cell_id, world.asked) == (2, [1, module.WINDOW])
    assert (choice.grant.claim_bytes, choice.grant.cap_bytes) == (100 * MIB, 164 * MIB)


def test_nobody_is_looked_for_when_no_slot_is_free(world: World) -> None:
    for _ in range(4):
        world.runs(10, 10)
    world.cell(1, 100)
    world.cell(2, 100)
    choice = world.planner.choose(delay_left_s=0.0)
    assert choice is not None
    assert (choice.decision.why, world.asked) == ("slots", [1])


@pytest.mark.parametrize(
    ("level", "foreseen", "caps", "waits"),
    [
        ("hold", False, "auto", False),
        ("hold", True, "auto", False),
        ("hold", False, "none", True),
        ("shrink", True, "auto", False),
        ("shrink", False, "auto", True),
        ("shrink", True, "none", True),
        ("freeze", True, "auto", True),
    ],
)
def test_a_level_that_admission_sees_to_itself_keeps_nobody_waiting(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, level: str, foreseen: bool, caps: str, waits: bool
) -> None:
    world = World(tmp_path, monkeypatch, caps=caps)
    world.tell(level=level, foreseen=foreseen)
    world.cell(1, 100)
    choice = world.planner.choose(delay_left_s=0.0)
    assert choice is not None
    assert choice.decision.why == (f"pressure_{level}" if waits else "")


def test_what_an_ended_cell_held_is_free_before_the_watchdog_says_so(world: World) -> None:
    world.tell(headroom_bytes=300 * MIB, age_s=0.2)
    assert world.planner.bounds().headroom_bytes == 300 * MIB
    world.planner.freed(250 * MIB)
    assert world.planner.bounds().headroom_bytes == 550 * MIB
    world.now_s += 1.0  # the next word is younger than that end
    world.tell(headroom_bytes=540 * MIB, age_s=0.2)
    assert world.planner.bounds().headroom_bytes == 540 * MIB


def test_the_reserve_is_never_less_than_where_hold_begins(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert World(tmp_path, monkeypatch, reserve="100MiB").planner.bounds().reserve_bytes == 200 * MIB
    assert World(tmp_path, monkeypatch, reserve="300MiB").planner.bounds().reserve_bytes == 300 * MIB


def test_too_large_has_to_last_before_it_is_believed(world: World) -> None:
    world.cell(1, 100)
    world.planner._servers[""] = 2 * GIB  # predicted
    kinds = []
    for seconds in (0, 30, 29, 2):
        world.now_s += seconds
        choice = world.planner.choose(delay_left_s=0.0)
        assert choice is not None
        kinds.append((choice.decision.kind, choice.decision.why))
    assert kinds == [("wait", "too_large")] * 3 + [("too_large", "server")]


def test_that_the_reserve_leaves_nothing_is_no_cells_fault(world: World) -> None:
    world.cell(1, 100)
    world.tell(hold_bytes=GIB)
    for _ in range(3):
        choice = world.planner.choose(delay_left_s=0.0)
        assert choice is not None
        assert (choice.decision.kind, choice.decision.why) == ("wait", "too_large")
        world.now_s += 100.0


def test_a_sweep_of_ever_new_kinds_is_not_remembered_whole(world: World) -> None:
    most = 0
    for number in range(4 * module.WINDOW + 100):
        world.clear()
        world.cell(number, 100)
        world.planner.choose(delay_left_s=0.0)
        most = max(most, len(world.planner._learned), len(world.planner._predicted))
    assert module.WINDOW < most <= 4 * module.WINDOW

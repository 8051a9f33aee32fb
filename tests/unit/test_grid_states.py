"""When grid_state.json of which grid is written, and what is remembered of that."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import small_home
from helpers.queue_cells import Cell
from overnight.analysis import exports
from overnight.dispatch import grid_state
from overnight.dispatch.grid_state import GridStates
from overnight.paths import Paths
from overnight.queue.store import Queue


class World:
    """States of grids that are written nowhere, with a clock that is stepped."""

    def __init__(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.written: list[str] = []
        monkeypatch.setattr(grid_state.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(
            grid_state, "write_grid_state", lambda paths, queue, grid, live: self.written.append(grid.name)
        )
        queue: Any = SimpleNamespace(grid=lambda name: SimpleNamespace(name=name, counts={"done": 1}))
        self.states = GridStates(Paths.of(tmp_path), queue, log=None)

    def touch(self, name: str, at_s: float) -> None:
        self.now_s = at_s
        self.states.touch(name)
        self.states.write({})


@pytest.fixture
def world(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_grid_is_written_every_two_seconds_at_most(world: World) -> None:
    for at_s in (0.0, 1.0, 1.9, 2.1, 3.0):
        world.touch("night", at_s)
    assert world.written == ["night", "night"]
    world.states.write({}, at_once=True)
    assert world.written == ["night"] * 3


def test_grids_that_are_over_are_forgotten(world: World) -> None:
    for number in range(1000):
        world.touch(f"grid{number}", float(number))
    assert len(world.written) == 1000
    assert len(world.states._next_s) <= 3


def test_a_number_of_two_scaffolds_names_the_cells_of_one(tmp_path: Any) -> None:
    """In the file that is kept up to date, and in an export."""
    paths = Paths.of(tmp_path / "h").ensure()
    given = [("aa", 1), ("bb", 1), ("cc", 2), ("dd", None)]
    with Queue.open(paths.queue) as queue:
        for name, number in given:  # one after another: what has a name keeps it
            template = {"v": 1, "kind": "idle_loop", "model": {"name": "m"}, "scaffold": {"id": number, "name": name}}
            cells = [
                Cell(f"{name}_m_run{run}", {"scaffold": name, "model": "m", "run": run}, template, run)
                for run in (1, 2)
            ]
            queue.enqueue("night", cells=cells, spec={"name": "night"}, policy=small_home.POLICY)
        grid_state.write_grid_state(paths, queue, queue.grid("night"), {})
        exports.write(paths, queue, "night", tmp_path / "out")
    expected = ["1_m_1", "1_m_2", "bb_m_run1", "bb_m_run2", "2_m_1", "2_m_2", "dd_m_run1", "dd_m_run2"]
    for path in (paths.grid_state("night"), tmp_path / "out" / "grid_state.json"):
        pairs = json.loads(path.read_bytes(), object_pairs_hook=list)
        found = [(name, dict(entry)) for name, entry in dict(pairs)["cells"]]
        assert [name for name, _ in found] == expected
        assert [entry["scaffold_id"] for _, entry in found] == [1, 1, 1, 1, 2, 2, None, None]

"""When grid_state.json of which grid is written, and what is remembered of that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from overnight.dispatch import grid_state
from overnight.dispatch.grid_state import GridStates
from overnight.paths import Paths


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

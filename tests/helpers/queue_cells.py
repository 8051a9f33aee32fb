"""Planned cells, a clock that only tests move, and a queue that was used a little."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.queue.states import Outcome
from overnight.queue.store import Claimed, Queue


@dataclass(frozen=True)
class Cell:
    """What `grid.expand` plans, as far as the queue looks at it."""

    key: str
    coords: dict[str, Any]
    template: dict[str, Any]
    seed: int


class Clock:
    """Unix seconds that stand still."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += seconds


def template(model: str = "135m", **changes: Any) -> dict[str, Any]:
    """The part of a specification that many cells share."""
    return {
        "v": 1,
        "kind": "idle_loop",
        "engine": "scripted",
        "model": {"name": model, "source": model, "dtype": "float32", "device": "cpu", "options": {}},
        "sampling": {"temperature": 0.8, "top_p": 1.0, "top_k": 0},
        "system": "You have nothing to do.",
        "threads": 1,
        **changes,
    }


def planned(
    count: int, *, model: str = "135m", first: int = 1, seed: int = 0, shared: dict[str, Any] | None = None
) -> Iterator[Cell]:
    """Cells run1, run2, ... of one model."""
    common = template(model) if shared is None else shared
    for run in range(first, first + count):
        coords = {"scaffold": "baseline", "model": model, "run": run}
        yield Cell(f"baseline_{model}_run{run}", coords, common, seed * 1_000_000 + run)


def submit(queue: Queue, name: str = "night", count: int = 3, **options: Any) -> None:
    queue.enqueue(name, cells=planned(count, **options), spec={"name": name}, policy={"tries": 3})


def take(queue: Queue, **options: Any) -> Claimed:
    """Claim a cell that must be there."""
    claimed = queue.claim(boot_id="boot", daemon="d1", **options)
    assert claimed is not None
    return claimed


def run_one(queue: Queue, outcome: Outcome = Outcome.COMPLETED, **options: Any) -> Claimed:
    claimed = take(queue)
    queue.finish(claimed.attempt_id, outcome, **options)
    return claimed


def used_queue(path: Path, cells: int = 40) -> None:
    """A closed queue that holds a bit of everything."""
    with Queue.open(path) as queue:
        submit(queue, "night", cells)
        submit(queue, "day", 3, model="360m")
        outcomes = random.Random(3)
        for _ in range(cells // 2):
            run_one(queue, outcomes.choice(list(Outcome)), reason="it was so", turns=2)
        take(queue)

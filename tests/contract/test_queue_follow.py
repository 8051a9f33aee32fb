"""What follows a cell: added in the transaction that says that it is done, once each time, and in nobody's way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.queue_cells import Clock, planned, take
from helpers.queue_checks import assert_sound
from overnight.errors import QueueError
from overnight.queue import follow
from overnight.queue.states import Outcome, Status
from overnight.queue.store import CellRow, Queue

TEMPLATE = {
    "v": 1, "kind": "command", "command": "true", "shell": True, "env": {}, "cwd": "scratch", "keep": [], "threads": 1,
}  # fmt: skip
THEN = {"grid": "night.analysis", "policy": {"tries": 2, "grace_s": 1.0}, "template": TEMPLATE}
POLICY: dict[str, Any] = {"tries": 1, "then": THEN}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(path: Path, clock: Clock) -> Iterator[Queue]:
    with Queue.open(path, clock=clock) as opened:
        submit(opened)
        yield opened
    assert_sound(path)


def submit(queue: Queue, name: str = "night", count: int = 3, policy: dict[str, Any] = POLICY, **options: Any) -> None:
    replace = options.pop("replace", False)
    queue.enqueue(name, cells=planned(count, **options), spec={"name": name}, policy=policy, replace=replace)


def end(queue: Queue, outcome: Outcome = Outcome.COMPLETED, key: str | None = None) -> Status:
    cell = None if key is None else queue.find_cell(f"night/{key}")[0].id
    claimed = take(queue, cell_id=cell)
    return queue.finish(claimed.attempt_id, outcome, turns=2)


def followers(queue: Queue) -> list[CellRow]:
    return queue.cells("night.analysis")


def test_a_cell_that_is_done_is_followed_by_one_that_is_ready_at_once(queue: Queue, clock: Clock) -> None:
    end(queue)
    (row,) = followers(queue)
    assert (row.key, row.status, row.not_before) == ("baseline_135m_run1.1", Status.PENDING, clock.now)
    assert row.coords == {"scaffold": "baseline", "model": "135m", "run": 1}
    claimed = take(queue)
    assert (claimed.grid, claimed.cell.id, claimed.policy) == ("night.analysis", row.id, THEN["policy"])
    assert {name: claimed.spec[name] for name in TEMPLATE} == TEMPLATE
    assert queue.events(row.id)[0].detail == {"cell": queue.find_cell("night/baseline_135m_run1")[0].id}


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.COMPLETED])
def test_no_other_end_is_followed(queue: Queue, outcome: Outcome) -> None:
    end(queue, outcome)
    assert followers(queue) == []


def test_nothing_follows_where_nobody_asked(queue: Queue) -> None:
    submit(queue, "day", policy={"tries": 1}, model="360m")
    queue.cancel(queue.cell_ids("night"))
    claimed = take(queue)
    queue.finish(claimed.attempt_id, Outcome.COMPLETED)
    assert claimed.grid == "day"
    assert [grid.name for grid in queue.grids()] == ["night", "night.analysis", "day"]
    assert followers(queue) == []


def test_a_cell_of_a_follower_is_not_followed_itself(queue: Queue) -> None:
    end(queue)
    end(queue)
    assert [row.status for row in followers(queue)] == [Status.DONE]


def test_an_end_that_is_not_recorded_is_not_followed(queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction: whoever is killed before it is committed leaves neither."""
    claimed = take(queue)

    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(follow.specs, "put", full)
    with pytest.raises(QueueError):
        queue.finish(claimed.attempt_id, Outcome.COMPLETED)
    monkeypatch.undo()
    assert queue.cell(claimed.cell.id).status is Status.RUNNING
    assert followers(queue) == []
    queue.finish(claimed.attempt_id, Outcome.COMPLETED)
    assert len(followers(queue)) == 1


def test_started_afresh_and_done_again_it_is_followed_again(queue: Queue) -> None:
    end(queue)
    end(queue)
    queue.reset("night")
    end(queue, key="baseline_135m_run1")
    queue.reset("night")  # while one that follows is pending still
    end(queue, key="baseline_135m_run1")
    found = [(row.key, row.status) for row in followers(queue)]
    assert found == [
        ("baseline_135m_run1.1", Status.DONE),
        ("baseline_135m_run1.2", Status.PENDING),
        ("baseline_135m_run1.3", Status.PENDING),
    ]


def test_a_changed_policy_reaches_what_follows(queue: Queue) -> None:
    end(queue)
    submit(queue, policy={"tries": 1, "then": {**THEN, "policy": {"tries": 7}}})
    assert queue.grid("night.analysis").policy == {"tries": 7}
    submit(queue, policy={"tries": 1})  # not any more
    end(queue, key="baseline_135m_run2")
    assert len(followers(queue)) == 1


def test_a_key_names_one_cell_only(queue: Queue) -> None:
    end(queue)
    assert [row.grid for row in queue.find_cell("baseline_135m_run1")] == ["night"]


def test_grids_that_belong_to_others_cannot_be_submitted(queue: Queue, path: Path) -> None:
    with pytest.raises(QueueError, match=r"'night\.analysis' belongs to grid 'night'"):
        submit(queue, "night.analysis", policy={"tries": 1})
    submit(queue, "day.analysis", policy={"tries": 1}, model="360m")
    with pytest.raises(QueueError, match=r"'day' needs a grid 'day\.analysis'"):
        submit(queue, "day", policy={"tries": 1, "then": {**THEN, "grid": "day.analysis"}})
    assert "day" not in {grid.name for grid in queue.grids()}


def test_those_who_look_are_shown_the_grids_of_people(queue: Queue) -> None:
    end(queue)
    own, after = follow.apart(queue.grids())
    assert [grid.name for grid in own] == ["night"]
    assert {of: grid.name for of, grid in after.items()} == {"night": "night.analysis"}
    orphans, none = follow.apart([grid for grid in queue.grids() if grid.name != "night"])
    assert ([grid.name for grid in orphans], none) == (["night.analysis"], {})


@pytest.mark.parametrize(
    "then", ["x", 7, [], {}, {"grid": "a"}, {**THEN, "grid": 3}, {**THEN, "policy": None}, {**THEN, "template": "t"}]
)
def test_a_damaged_policy_keeps_no_end_out_of_the_queue(queue: Queue, then: Any) -> None:
    submit(queue, policy={"tries": 1, "then": then})
    assert end(queue) is Status.DONE
    assert followers(queue) == []


def test_lost_rows_are_made_up_for(queue: Queue, path: Path) -> None:
    """A repair may have saved some rows of the grid that follows, or none."""
    end(queue)
    queue.reset("night")
    end(queue, key="baseline_135m_run1")
    with sqlite3.connect(path) as db:
        (number,) = db.execute("SELECT id FROM cells WHERE key = 'baseline_135m_run1.1'").fetchone()
        for table, column in (("events", "cell_id"), ("cells", "id")):
            db.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))
    queue.reset("night")
    end(queue, key="baseline_135m_run1")
    assert [row.key for row in followers(queue)] == ["baseline_135m_run1.2", "baseline_135m_run1.3"]

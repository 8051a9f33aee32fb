"""Imported cells in the queue: a record beside the cells that are run, which nothing runs and nothing but an import
changes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from helpers.queue_cells import Clock
from helpers.queue_fake import FakeQueue
from helpers.small_home import POLICY, cells
from overnight.errors import QueueError
from overnight.queue.importing import ImportedCell
from overnight.queue.specs import IMPORTED_WARM_KEY
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Queue

SPEC = {"kind": "imported", "name": "old"}
ALL: dict[str, str] = {"boot_id": "b", "daemon": "d"}


def cell(run: int = 1, status: Status = Status.DONE, **changes: Any) -> ImportedCell:
    done = status is Status.DONE
    given = {
        "key": f"baseline_old_run{run}",
        "coords": {"scaffold": "baseline", "model": "old", "run": run},
        "template": {"v": 1, "kind": "imported", "model": {"name": "old"}, "scaffold": {"id": 1, "name": "baseline"}},
        "status": status,
        "began": status is not Status.PENDING,
        "turns": 30 if done else 0,
        "tokens": 900 if done else 0,
        "started_at": 100.0 if status is not Status.PENDING else None,
        "finished_at": 160.0 if done else None,
        "sha256": f"{run:064x}" if done else None,
    }
    return ImportedCell(**{**given, **changes})


def seen(queue: Queue) -> object:
    """All that a queue holds."""
    if isinstance(queue, FakeQueue):
        return queue._store.state.copy()
    with closing(sqlite3.connect(queue.path)) as db:
        return list(db.iterdump())


def night() -> list[ImportedCell]:
    return [
        cell(1),
        cell(2, sha256=None),
        cell(3, Status.FAILED, turns=27, tokens=154_939, reason="peer closed", finished_at=150.0),
        cell(4, Status.PENDING, began=True, started_at=120.0, reason="left running"),
        cell(5, Status.PENDING),
        cell(6, Status.CANCELLED),
        cell(7, Status.CANCELLED, began=False, started_at=None),
        cell(8, started_at=None, finished_at=None),
        cell(9, Status.PENDING, began=True, turns=2, tokens=9, sha256="9" * 64),
    ]


def test_every_cell_is_as_its_files_say(queue: Queue) -> None:
    taken = queue.take_in("old", night(), spec=SPEC)
    assert (len(taken.added), taken.existing) == (9, 0)
    rows = {row.coords["run"]: row for row in queue.cells("old")}
    assert [str(rows[run].status) for run in range(1, 10)] == [
        *("done", "done", "failed", "pending", "pending", "cancelled", "cancelled", "done", "pending")
    ]
    assert (rows[3].turns, rows[3].output_tokens, rows[3].reason) == (27, 154_939, "peer closed")
    assert (rows[1].run_s, rows[1].started_at, rows[1].finished_at) == (60.0, 100.0, 160.0)
    (attempt,) = queue.attempts(rows[4].id)
    assert (attempt.outcome, attempt.daemon, rows[4].reason) == (Outcome.LOST, "import", "left running")
    assert queue.attempts(rows[5].id) == []
    (attempt,) = queue.attempts(rows[8].id)
    assert attempt.evidence["unknown"] == ["started_at", "finished_at"]
    assert (rows[8].started_at, rows[8].run_s) == (None, 0.0)
    assert rows[9].transcript_sha256 == "9" * 64
    assert queue.never_run() == 3


def test_nothing_ever_runs_one(queue: Queue, clock: Clock) -> None:
    queue.take_in("old", night(), spec=SPEC)
    pending = list(queue.cell_ids("old", [Status.PENDING]))
    for seconds in (0, 10**6):
        clock.now += seconds
        assert queue.next_ready() is None
        assert queue.next_ready_many(10) == []
        assert queue.next_ready_at() is None
        assert queue.claim(**ALL) is None
        assert queue.claim(**ALL, warm_key=IMPORTED_WARM_KEY) is None
        assert queue.claim(**ALL, warm_key="") is None
        for number in pending:
            assert queue.claim(**ALL, cell_id=number) is None
    assert queue.recover() == []


def test_cells_of_our_own_are_run_beside_them(queue: Queue) -> None:
    queue.take_in("old", night(), spec=SPEC)
    queue.enqueue("night", cells=cells(2), spec={"name": "night"}, policy=POLICY)
    assert [ready.grid for ready in queue.next_ready_many(10)] == ["night", "night"]
    first, second = queue.claim(**ALL), queue.claim(**ALL)
    assert first is not None
    assert second is not None
    assert {first.grid, second.grid} == {"night"}
    assert queue.claim(**ALL) is None


def test_commands_leave_them_as_they_are(queue: Queue) -> None:
    queue.take_in("old", night(), spec=SPEC)
    before = seen(queue)
    everything = list(queue.cell_ids("old"))
    assert queue.retry(everything) == 0
    assert queue.retry(everything, accept_conditions=True) == 0
    assert queue.cancel(everything) == (0, 0)
    with pytest.raises(QueueError, match="'old' was imported"):
        queue.reset("old", aside=lambda keys: pytest.fail(f"moved {keys}"))
    with pytest.raises(QueueError, match="'old' was imported"):
        queue.enqueue("old", cells=cells(1), spec={}, policy=POLICY, replace=True)
    assert seen(queue) == before


def test_none_goes_among_cells_of_our_own(queue: Queue) -> None:
    queue.enqueue("old", cells=cells(1), spec={}, policy=POLICY)
    before = seen(queue)
    with pytest.raises(QueueError, match="holds cells of its own"):
        queue.take_in("old", night(), spec=SPEC)
    assert seen(queue) == before


def test_a_second_import_changes_nothing(queue: Queue, clock: Clock) -> None:
    queue.take_in("old", night(), spec=SPEC)
    before = seen(queue)
    clock.now += 100
    taken = queue.take_in("old", night(), spec=SPEC, replace=True, aside=lambda keys: pytest.fail(f"moved {keys}"))
    assert (taken.added, taken.updated, taken.replaced, taken.existing) == ((), (), (), 9)
    assert seen(queue) == before


def test_a_cell_may_learn_more(queue: Queue) -> None:
    queue.take_in("old", night(), spec=SPEC)
    moved: list[str] = []
    now = [cell(2), cell(4), cell(5, Status.FAILED, turns=1, finished_at=130.0), cell(9), cell(10)]
    taken = queue.take_in("old", now, spec=SPEC, aside=moved.extend)
    assert taken.added == ("baseline_old_run10",)
    assert taken.updated == tuple(f"baseline_old_run{run}" for run in (2, 4, 5, 9))
    assert moved == ["baseline_old_run9"]  # it had another, unfinished conversation
    rows = {row.coords["run"]: row for row in queue.cells("old")}
    assert [str(rows[run].status) for run in (2, 4, 5, 9)] == ["done", "done", "failed", "done"]
    assert rows[4].reason == ""
    # What tells less than is known takes nothing away.
    assert queue.take_in("old", [cell(2, sha256=None), cell(9, Status.PENDING)], spec=SPEC).existing == 2


@pytest.mark.parametrize("sha256", ["9" * 64, None])
def test_a_pending_one_learns_how_it_ended(queue: Queue, sha256: str | None) -> None:
    """Its conversation is the same, or only a grid_state.json tells of the end: nothing gives way."""
    queue.take_in("old", night(), spec=SPEC)
    ended = cell(9, Status.FAILED, began=sha256 is not None, reason="peer closed", finished_at=150.0, sha256=sha256)
    taken = queue.take_in("old", [ended], spec=SPEC, aside=lambda keys: pytest.fail(f"moved {keys}"))
    assert (taken.updated, taken.replaced) == ((ended.key,), ())
    (row,) = queue.find_cell(ended.key, "old")
    assert (row.status, row.reason, row.transcript_sha256) == (Status.FAILED, "peer closed", "9" * 64)
    if sha256 is None:
        assert (row.turns, row.output_tokens) == (2, 9)  # as its conversation told
    assert queue.take_in("old", [ended, night()[8]], spec=SPEC).existing == 2


def test_one_that_is_refused_at_the_end_keeps_all_out(queue: Queue) -> None:
    queue.take_in("old", [cell(1)], spec=SPEC)
    before = seen(queue)
    with pytest.raises(QueueError, match="--replace"):
        queue.take_in("old", [*(cell(run) for run in range(2, 300)), cell(1, sha256="f" * 64)], spec=SPEC)
    assert seen(queue) == before


@pytest.mark.parametrize("changed", [cell(1, sha256="f" * 64), cell(3), cell(2, Status.FAILED, finished_at=160.0)])
def test_what_has_ended_otherwise_is_replaced_only_when_asked(queue: Queue, changed: ImportedCell) -> None:
    queue.take_in("old", night(), spec=SPEC)
    before = seen(queue)
    if not (changed.key.endswith("run3") and changed.sha256):  # a failed cell that had no conversation learns of one
        with pytest.raises(QueueError, match="--replace"):
            queue.take_in("old", [cell(20), changed], spec=SPEC)
        assert seen(queue) == before
    moved: list[str] = []
    taken = queue.take_in("old", [changed], spec=SPEC, replace=True, aside=moved.extend)
    assert (*taken.updated, *taken.replaced) == (changed.key,)
    assert moved == ([changed.key] if changed.key.endswith("run1") else [])
    (row,) = queue.find_cell(changed.key, "old")
    assert (row.status, row.transcript_sha256) == (changed.status, changed.sha256)

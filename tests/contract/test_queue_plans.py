"""Claims and status go by index: shown by SQLite's own plans, and by counting the steps of its virtual machine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.queue_cells import Clock, planned, run_one, submit, take
from overnight.queue.peaks import KEPT
from overnight.queue.states import Outcome
from overnight.queue.store import Peak, Queue

CELLS = 20_000

_SCAN = re.compile(
    r"SCAN (c|cells|a|attempts|s|specs|w|warms|peaks)\b"
    r"(?! USING (COVERING )?INDEX cells_(running|to_cancel)\b)"
)
"""The two partial indexes hold only running cells and those to cancel: to read them whole is the point of them."""


def connection(queue: Queue) -> Any:
    with queue._db.read() as db:
        return db


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """Two grids of two models, with cells in every status."""
    with Queue.open(tmp_path / "queue.db", clock=Clock()) as found:
        submit(found, "night", 30)
        submit(found, "day", 30, model="360m")
        for outcome in Outcome:
            run_one(found, outcome)
        take(found)
        yield found


def dispatch(queue: Queue) -> None:
    """All that the dispatcher asks."""
    claimed = take(queue)
    queue.started(claimed.attempt_id, pid=1, start_ticks=1)
    queue.cancel([claimed.cell.id])
    assert queue.cancel_requested() == [(claimed.cell.id, claimed.attempt_id)]
    queue.extended(claimed.attempt_id, 2, 2)
    queue.finish(claimed.attempt_id, Outcome.EVICTED, learn=Peak("kind", "family", 1, False))
    queue.peaks("kind")
    queue.family_peaks("family")
    assert queue.claim(boot_id="boot", daemon="d1", cell_id=claimed.cell.id) is None
    take(queue, cell_id=queue.next_ready_many(64)[-1].cell_id)
    take(queue, warm_key=claimed.warm_key)
    take(queue, exclude=[claimed.warm_key])
    queue.next_ready()
    queue.next_ready(exclude=[claimed.warm_key])
    queue.next_ready_many(64, exclude=[claimed.warm_key])
    queue.next_ready_at()
    queue.recover()


def look(queue: Queue) -> None:
    """All that status commands ask."""
    queue.counts()
    queue.pace(queue.grids()[0].id)
    for grid in (None, "night"):
        for status in (None, "done"):
            queue.cells(grid, status, limit=10)
    queue.find_cell("baseline_135m_run1")
    queue.find_cell("day/baseline_360m_run1")
    queue.find_cell("#1")
    with pytest.raises(Exception, match="did you mean"):
        queue.find_cell("baseline_135m_runn1")
    queue.cell_spec(1)
    queue.attempts(1)
    queue.events(1)


def change(queue: Queue) -> None:
    """All that people ask to be changed."""
    queue.recover()
    queue.retry(queue.cell_ids("night"))
    queue.cancel(queue.cell_ids("night", ["pending"]))
    queue.reset("night")
    submit(queue, "night", 40)
    queue.enqueue("night", cells=planned(40, seed=1), spec={}, policy={}, replace=True)


@pytest.mark.parametrize("work", [dispatch, look, change])
def test_no_statement_scans_cells_or_sorts(queue: Queue, work: Callable[[Queue], None]) -> None:
    statements: set[str] = set()
    db = connection(queue)
    db.set_trace_callback(lambda sql: statements.add(sql))
    work(queue)
    db.set_trace_callback(None)
    asked = {sql for sql in statements if re.match(r"(SELECT|UPDATE|INSERT|DELETE)\b", sql)}
    assert any(" cells" in sql for sql in asked)
    for sql in sorted(asked):
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert not [step for step in plan if _SCAN.search(step) or "TEMP B-TREE" in step], (sql, plan)


def test_the_pattern_knows_a_scan_when_it_sees_one(queue: Queue) -> None:
    db = connection(queue)
    for sql in ("SELECT * FROM cells WHERE turns = 3", "SELECT count(*) FROM attempts", "SELECT seed FROM cells AS c"):
        assert any(_SCAN.search(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")), sql


def steps(queue: Queue, work: Callable[[], object]) -> int:
    """How many virtual machine instructions SQLite executes for `work`, triggers included."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    db = connection(queue)
    db.set_progress_handler(step, 1)
    work()
    db.set_progress_handler(None, 1)
    return count


def finish_most(queue: Queue, cells: int) -> None:
    """Nine of ten cells of each model are done, with the attempts and events that this takes."""
    with queue._db.write() as db:
        chosen = "FROM cells WHERE status = 'pending' AND seed % 10 <> 0"
        db.execute(
            "INSERT INTO attempts (cell_id, generation, number, boot_id, daemon, claimed_at, ended_at, outcome)"
            f" SELECT id, 0, 1, 'boot', 'd1', 1, 2, 'completed' {chosen}"
        )
        db.execute(f"INSERT INTO events (at, kind, grid_id, cell_id) SELECT 1, 'claimed', grid_id, id {chosen}")
        db.execute(f"INSERT INTO events (at, kind, grid_id, cell_id) SELECT 2, 'finished', grid_id, id {chosen}")
        changed = db.execute(
            f"UPDATE cells SET status = 'done', attempts = 1 WHERE id IN (SELECT id {chosen})"
        ).rowcount
    assert changed == pytest.approx(cells * 0.9, abs=20)


def test_the_cost_of_a_call_does_not_depend_on_how_much_is_done(tmp_path: Path) -> None:
    with Queue.open(tmp_path / "queue.db", clock=Clock()) as queue:
        submit(queue, "night", CELLS // 2)
        submit(queue, "day", CELLS // 2, model="360m")
        small, large = queue.cells(limit=1)[0], queue.cells("day", limit=1)[0]
        assert small.seed == large.seed
        first = queue.next_ready()
        assert first is not None

        def claim_and_finish() -> None:
            queue.finish(take(queue).attempt_id, Outcome.COMPLETED, turns=1)

        asked: dict[str, Callable[[], object]] = {
            "claim and finish": claim_and_finish,
            "claim of the other model": lambda: queue.finish(
                take(queue, exclude=[first.warm_key]).attempt_id, Outcome.COMPLETED
            ),
            "claim of this very cell": lambda: queue.finish(
                take(queue, cell_id=queue.next_ready_many(2)[1].cell_id).attempt_id, Outcome.COMPLETED
            ),
            "next_ready": queue.next_ready,
            "next_ready_many": lambda: queue.next_ready_many(16),
            "next_ready_at": queue.next_ready_at,
            "status": lambda: (queue.grids(), queue.counts(), queue.pace(1)),
            "recover": queue.recover,
            "cancel_requested": queue.cancel_requested,
            "a page of cells": lambda: queue.cells("night", after_id=5000, limit=10),
            "a page of pending cells": lambda: queue.cells("day", "pending", limit=10),
            "the newest events": lambda: queue.events(limit=4),
        }
        before = {name: steps(queue, work) for name, work in asked.items()}
        finish_most(queue, CELLS)
        after = {name: steps(queue, work) for name, work in asked.items()}
        scan = steps(queue, lambda: connection(queue).execute("SELECT count(*) FROM cells WHERE turns = 9").fetchall())
    assert scan > CELLS  # the counter counts
    for name, count in after.items():
        assert count <= before[name] * 1.25 + 20, (name, before[name], count)
        assert count < 3_000, (name, count)


def test_many_cells_in_backoff_cost_nothing(tmp_path: Path) -> None:
    clock = Clock()
    with Queue.open(tmp_path / "queue.db", clock=clock) as queue:
        submit(queue, "night", CELLS)
        few, many = steps(queue, queue.next_ready), steps(queue, lambda: queue.next_ready_many(1))
        with queue._db.write() as db:
            db.execute("UPDATE cells SET not_before = ? + id WHERE id > 1", (clock.now,))
        take(queue)
        assert steps(queue, queue.next_ready) <= few
        assert steps(queue, lambda: queue.next_ready_many(64)) <= many
        assert queue.next_ready() is None
        clock.step(2)
        assert take(queue).cell.id == 2


def test_many_peaks_cost_nothing(tmp_path: Path) -> None:
    """Of one kind no more are kept than are looked at; other kinds, even of the family, are passed over."""
    with Queue.open(tmp_path / "queue.db", clock=Clock()) as queue:
        submit(queue, count=1)

        def learn(kind: str = "kind") -> None:
            run_one(queue, Outcome.EVICTED, learn=Peak(kind, "family", 1, True))

        asked: dict[str, Callable[[], object]] = {
            "finish": learn,
            "peaks": lambda: queue.peaks("kind"),
            "family_peaks": lambda: queue.family_peaks("family"),
        }
        for _ in range(KEPT):
            learn()
        before = {name: steps(queue, work) for name, work in asked.items()}
        with queue._db.write() as db:
            db.executemany(
                "INSERT INTO peaks (kind, family, attempt_id, at, peak_bytes, whole) VALUES (?, 'family', 1, 0, 1, 1)",
                [(f"kind{number}",) for number in range(CELLS)],
            )
        after = {name: steps(queue, work) for name, work in asked.items()}
        for name, count in after.items():
            assert count <= before[name] * 1.25 + 20, (name, before[name], count)
            assert count < 3_000, (name, count)


_ENQUEUE = """
import resource, sys
from pathlib import Path
from helpers.queue_cells import planned
from overnight.queue.store import Queue

with Queue.open(Path(sys.argv[1])) as queue:
    for count in (10_000, 100_000):
        queue.enqueue(f"g{count}", cells=planned(count), spec={}, policy={})
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_enqueue_streams(tmp_path: Path) -> None:
    """Ten times as many cells, the same memory but for SQLite's bounded page cache (32 MiB)."""
    done = subprocess.run(
        [sys.executable, "-c", _ENQUEUE, str(tmp_path / "queue.db")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    small_kib, large_kib = map(int, done.stdout.split())
    assert large_kib - small_kib < 40 * 1024

"""What the queue promises those who call it, call by call: the one on disk, and the one in memory (`conftest`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from helpers.queue_cells import Cell, Clock, planned, run_one, submit, take, template
from overnight.errors import QueueError
from overnight.queue.states import INTERRUPTED, Outcome, Status
from overnight.queue.store import Queue, StaleAttempt


def statuses(queue: Queue) -> list[Status]:
    return [row.status for row in queue.cells()]


def test_a_transaction_inside_a_transaction_is_refused(queue: Queue) -> None:
    def cells() -> Iterator[Cell]:
        queue.counts()
        yield from planned(1)

    with pytest.raises(RuntimeError, match="inside one"):
        queue.enqueue("night", cells=cells(), spec={}, policy={})
    submit(queue)
    assert queue.counts()[Status.PENDING] == 3


# -- enqueue -------------------------------------------------------------------------------------------------


def test_enqueue_adds_only_what_is_missing(queue: Queue, clock: Clock) -> None:
    first = queue.enqueue("night", cells=planned(3), spec={"n": 1}, policy={"tries": 2})
    run_one(queue)
    clock.step(10)
    second = queue.enqueue("night", cells=planned(5), spec={"n": 2}, policy={"tries": 5})
    assert (first.added, first.existing) == (3, 0)
    assert (second.added, second.existing, second.replaced, second.replaced_keys) == (2, 3, 0, ())
    grid = queue.grid("night")
    assert (grid.spec, grid.policy) == ({"n": 2}, {"tries": 5})
    assert grid.last_submitted_at - grid.created_at == 10
    assert grid.counts[Status.DONE] == 1
    assert grid.counts[Status.PENDING] == 4
    assert [event.kind for event in queue.events()].count("grid_enqueued") == 2


def test_cells_come_back_as_they_were_planned(queue: Queue) -> None:
    submit(queue)
    row = queue.cells()[1]
    assert (row.id, row.grid, row.key, row.seed) == (2, "night", "baseline_135m_run2", 2)
    assert row.coords == {"scaffold": "baseline", "model": "135m", "run": 2}
    expected = {**template(), "key": row.key, "coords": row.coords, "seed": 2}
    assert queue.cell_spec(2) == expected
    claimed = take(queue)
    assert claimed.spec == {**expected, "key": "baseline_135m_run1", "coords": {**row.coords, "run": 1}, "seed": 1}


def test_templates_that_are_no_longer_alive_are_not_mixed_up(queue: Queue) -> None:
    """Each cell brings a template of its own, whose memory the next one may get."""
    cells = (Cell(f"c{n}", {"n": n}, template(system=f"prompt {n}"), n) for n in range(3000))
    queue.enqueue("night", cells=cells, spec={}, policy={})
    rows = queue.cells(limit=3000)
    assert len(rows) == 3000
    assert all(queue.cell_spec(row.id)["system"] == f"prompt {row.seed}" for row in rows)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shared": template(threads=2)}, "baseline_135m_run1: threads 1 -> 2 (and 2 more cells differ)"),
        ({"seed": 1}, "baseline_135m_run1: seed 1 -> 1000001 (and 2 more cells differ)"),
    ],
)
def test_a_changed_specification_is_refused(queue: Queue, changed: dict[str, object], said: str) -> None:
    submit(queue)
    with pytest.raises(QueueError) as refused:
        queue.enqueue("night", cells=planned(9, **changed), spec={"new": 1}, policy={})  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert "--replace" in str(refused.value)
    assert queue.counts()[Status.PENDING] == 3
    assert queue.grid("night").spec == {"name": "night"}


def test_changed_coordinates_are_a_changed_specification(queue: Queue) -> None:
    submit(queue)
    cells = [Cell("baseline_135m_run1", {"scaffold": "baseline", "model": "135m", "run": 7}, template(), 1)]
    with pytest.raises(QueueError, match=r"coords\.run 1 -> 7;"):
        queue.enqueue("night", cells=cells, spec={}, policy={})


def test_replace_starts_changed_cells_afresh(queue: Queue) -> None:
    submit(queue)
    run_one(queue, turns=8, output_tokens=99, end_reason="max_iterations", transcript_sha256="ab")
    cells = [*planned(1, seed=1), *planned(2, first=2)]
    aside: list[str] = []
    done = queue.enqueue("night", cells=cells, spec={}, policy={}, replace=True, aside=aside.extend)
    assert (done.added, done.existing, done.replaced) == (0, 2, 1)
    assert done.replaced_keys == ("baseline_135m_run1",) == tuple(aside)
    row = queue.cell(1)
    assert (row.status, row.generation, row.attempts, row.turns, row.seed) == (Status.PENDING, 1, 0, 0, 1_000_001)
    assert (row.transcript_sha256, row.end_reason, row.run_s) == (None, None, 0)
    assert take(queue).attempt_number == 1
    assert [(attempt.generation, attempt.number) for attempt in queue.attempts(1)] == [(0, 1), (1, 1)]


def test_replace_refuses_a_running_cell_and_changes_nothing(queue: Queue) -> None:
    submit(queue)
    take(queue)
    with pytest.raises(QueueError, match=r"night/baseline_135m_run1 is running and its specification changed"):
        queue.enqueue("night", cells=planned(3, seed=1), spec={}, policy={}, replace=True)
    assert [row.generation for row in queue.cells()] == [0, 0, 0]


def test_a_plan_that_breaks_off_adds_nothing(queue: Queue) -> None:
    def cells() -> Iterator[Cell]:
        yield from planned(12_000)
        raise ValueError("the plan is broken")

    with pytest.raises(ValueError, match="the plan is broken"):
        queue.enqueue("night", cells=cells(), spec={}, policy={})
    assert queue.grids() == []
    assert queue.cells() == []


# -- claim and finish ----------------------------------------------------------------------------------------


def test_who_has_waited_out_a_delay_is_claimed_before_fresh_ones(queue: Queue, clock: Clock) -> None:
    submit(queue, count=4)
    run_one(queue, Outcome.FAILED, delay_s=20)
    run_one(queue, Outcome.FAILED, delay_s=10)
    clock.step(30)
    assert [take(queue).cell.id for _ in range(4)] == [2, 1, 3, 4]
    assert queue.claim(boot_id="boot", daemon="d1") is None


def test_an_interrupted_cell_keeps_its_place(queue: Queue) -> None:
    submit(queue)
    run_one(queue, Outcome.EVICTED, turns=2)
    again = take(queue)
    assert (again.cell.id, again.attempt_number, again.cell.turns) == (1, 2, 2)


def test_a_cell_in_backoff_is_not_claimed(queue: Queue, clock: Clock) -> None:
    submit(queue, count=1)
    run_one(queue, Outcome.FAILED, delay_s=10)
    assert queue.claim(boot_id="boot", daemon="d1") is None
    assert queue.next_ready() is None
    assert queue.next_ready_at() == clock.now + 10
    clock.step(9.999)
    assert queue.claim(boot_id="boot", daemon="d1") is None
    clock.step(0.001)
    ready = queue.next_ready()
    assert ready is not None
    assert ready.cell_id == take(queue).cell.id
    assert queue.next_ready_at() is None


def test_claim_by_warm_server(queue: Queue) -> None:
    submit(queue, count=2)
    submit(queue, "day", 2, model="360m")
    small, large = take(queue).warm_key, take(queue, exclude=[take(queue).warm_key]).warm_key
    assert small != large
    assert queue.claim(boot_id="boot", daemon="d1", warm_key=small) is None
    assert queue.claim(boot_id="boot", daemon="d1", exclude=[large]) is None
    assert queue.claim(boot_id="boot", daemon="d1", warm_key=large, exclude=[large]) is None
    assert queue.claim(boot_id="boot", daemon="d1", warm_key="no such") is None
    ready = queue.next_ready(exclude=[small])
    assert ready is not None
    assert (ready.grid, ready.warm_key, ready.warm["source"], ready.threads) == ("day", large, "360m", 1)
    assert queue.next_ready(exclude=[small, large]) is None
    assert take(queue, warm_key=large).grid == "day"


def test_an_attempt_from_claim_to_end(queue: Queue, clock: Clock) -> None:
    submit(queue)
    claimed = take(queue)
    assert (claimed.grid, claimed.policy, claimed.attempt_number) == ("night", {"tries": 3}, 1)
    assert (claimed.cell.status, claimed.cell.started_at) == (Status.RUNNING, clock.now)
    assert claimed.warm["source"] == "135m"
    clock.step(1)
    queue.started(claimed.attempt_id, pid=4711, start_ticks=99)
    clock.step(4)
    status = queue.finish(
        claimed.attempt_id,
        Outcome.COMPLETED,
        evidence={"exit": 0},
        turns=8,
        output_tokens=321,
        end_reason="target",
        transcript_sha256="feed",
        load_s=1.5,
        replay_s=0.5,
        max_rss_bytes=1 << 30,
    )
    assert status is Status.DONE
    (attempt,) = queue.attempts(claimed.cell.id)
    assert (attempt.pid, attempt.start_ticks, attempt.boot_id, attempt.daemon) == (4711, 99, "boot", "d1")
    assert (attempt.claimed_at, attempt.started_at, attempt.ended_at) == (clock.now - 5, clock.now - 4, clock.now)
    assert (attempt.outcome, attempt.evidence, attempt.turns) == (Outcome.COMPLETED, {"exit": 0}, 8)
    assert (attempt.load_s, attempt.replay_s, attempt.max_rss_bytes) == (1.5, 0.5, 1 << 30)
    row = queue.cell(claimed.cell.id)
    assert (row.turns, row.output_tokens, row.end_reason, row.transcript_sha256) == (8, 321, "target", "feed")
    assert (row.finished_at, row.run_s, row.status) == (clock.now, 5, Status.DONE)
    kinds = [(event.kind, event.old, event.new) for event in queue.events(row.id)]
    assert kinds == [("claimed", "pending", "running"), ("finished", "running", "done")]


def test_an_attempt_ends_once(queue: Queue) -> None:
    submit(queue)
    claimed = run_one(queue, Outcome.EVICTED)
    with pytest.raises(StaleAttempt, match="has ended already"):
        queue.finish(claimed.attempt_id, Outcome.COMPLETED)
    take(queue)
    with pytest.raises(StaleAttempt, match="has ended already"):
        queue.finish(claimed.attempt_id, Outcome.COMPLETED)
    with pytest.raises(StaleAttempt):
        queue.started(claimed.attempt_id, pid=1, start_ticks=1)
    with pytest.raises(StaleAttempt, match="does not exist"):
        queue.finish(99, Outcome.COMPLETED)
    assert queue.cell(1).status is Status.RUNNING


def test_failures_use_tries_and_interruptions_do_not(queue: Queue) -> None:
    submit(queue, count=1)
    for outcome in INTERRUPTED:
        run_one(queue, outcome)
    assert queue.cell(1).tries_used == 0
    became = [queue.finish(take(queue).attempt_id, Outcome.FAILED, reason="broke") for _ in range(3)]
    assert became == [Status.PENDING, Status.PENDING, Status.FAILED]
    row = queue.cell(1)
    assert (row.tries_used, row.attempts, row.reason) == (3, 3 + len(INTERRUPTED), "broke")


def test_stalled_counts_interruptions_without_a_new_turn(queue: Queue) -> None:
    submit(queue, count=1)
    seen = []
    for outcome, turns in (
        (Outcome.EVICTED, 2),
        (Outcome.EVICTED, 2),
        (Outcome.LOST, None),
        (Outcome.FAILED, 2),
        (Outcome.YIELDED, 3),
        (Outcome.OVER_CAP, 3),
    ):
        run_one(queue, outcome, turns=turns)
        seen.append(queue.cell(1).stalled)
    assert seen == [0, 1, 2, 2, 0, 1]
    assert queue.cell(1).turns == 3


def test_a_reason_belongs_to_the_present_status(queue: Queue) -> None:
    submit(queue, count=1)
    run_one(queue, Outcome.EVICTED, reason_code="evicted", reason="memory was short")
    assert queue.cell(1).reason == "memory was short"
    assert take(queue).cell.reason == ""


def test_run_time_is_kept_by_monotonic_seconds_where_they_are_given(queue: Queue, clock: Clock) -> None:
    submit(queue)
    claimed = take(queue)
    clock.step(-3600)  # somebody set the clock
    queue.finish(claimed.attempt_id, Outcome.COMPLETED, run_s=2.5)
    claimed = take(queue)
    clock.step(-3600)
    queue.finish(claimed.attempt_id, Outcome.COMPLETED)
    assert [row.run_s for row in queue.cells()] == [2.5, 0, 0]


def test_pace(queue: Queue, clock: Clock) -> None:
    submit(queue)
    grid = queue.grid("night").id
    assert (queue.pace(grid).mean_seconds, queue.pace(grid).left_cells) == (None, 3)
    for outcome, seconds in ((Outcome.EVICTED, 4), (Outcome.COMPLETED, 2), (Outcome.COMPLETED, 1)):
        claimed = take(queue)
        clock.step(seconds)
        queue.finish(claimed.attempt_id, outcome)
    pace = queue.pace(grid)
    assert (pace.done_cells, pace.done_seconds, pace.mean_seconds, pace.left_cells) == (2, 7, 3.5, 1)
    queue.reset("night")
    assert queue.pace(grid).done_seconds == 0


# -- recover, cancel, retry, reset ---------------------------------------------------------------------------


def test_recover_takes_running_cells_back_at_once(queue: Queue, clock: Clock) -> None:
    submit(queue, count=3)
    run_one(queue, Outcome.FAILED, delay_s=5)
    clock.step(10)
    taken = [take(queue), take(queue), take(queue)]
    clock.step(-3600)
    assert queue.recover(reason="it died") == [1, 2, 3]
    assert [row.status for row in queue.cells()] == [Status.PENDING] * 3
    assert [attempt.outcome for attempt in queue.attempts(1)] == [Outcome.FAILED, Outcome.LOST]
    assert queue.cell(1).reason == "it died"
    assert queue.recover() == []
    assert take(queue).cell.id == 1
    with pytest.raises(StaleAttempt):
        queue.finish(taken[0].attempt_id, Outcome.COMPLETED)


def test_cancel(queue: Queue) -> None:
    submit(queue)
    claimed = take(queue)
    assert queue.cancel([1, 2, 2, 99]) == (1, 1)
    assert statuses(queue) == [Status.RUNNING, Status.CANCELLED, Status.PENDING]
    assert queue.cancel_requested() == [(1, claimed.attempt_id)]
    assert queue.cancel([1, 2]) == (0, 0)
    assert queue.finish(claimed.attempt_id, Outcome.EVICTED) is Status.CANCELLED
    assert queue.cancel_requested() == []
    assert not queue.cell(1).cancel_requested


def test_a_cancelled_running_cell_is_not_recovered_to_run_again(queue: Queue) -> None:
    submit(queue)
    take(queue)
    queue.cancel([1])
    assert queue.recover() == [1]
    assert queue.cell(1).status is Status.CANCELLED


def test_retry(queue: Queue, clock: Clock) -> None:
    submit(queue, count=6)
    for outcome in (Outcome.CORRUPT, Outcome.CANCELLED, Outcome.COMPLETED):
        run_one(queue, outcome, reason_code="r", reason="why", turns=4)
    run_one(queue, Outcome.FAILED, delay_s=3600)
    take(queue)
    assert queue.retry(queue.cell_ids("night"), accept_conditions=True) == 4
    assert statuses(queue) == [
        Status.PENDING,
        Status.PENDING,
        Status.DONE,
        Status.PENDING,
        Status.RUNNING,
        Status.PENDING,
    ]
    row = queue.cell(1)
    assert (row.turns, row.reason_code, row.reason, row.finished_at) == (4, "", "", None)
    assert (row.accept_conditions, row.tries_used) == (True, 0)
    assert queue.cell(4).not_before == 0
    assert queue.retry([1, 2, 3, 4, 5, 6]) == 0


def test_retry_leaves_alone_what_is_ready(queue: Queue, clock: Clock) -> None:
    submit(queue, count=1)
    run_one(queue, Outcome.FAILED, delay_s=10)
    clock.step(10)
    assert queue.retry([1]) == 0
    assert queue.cell(1).not_before == clock.now


def test_retry_gives_all_tries_back(queue: Queue) -> None:
    submit(queue, count=1)
    for _ in range(3):
        run_one(queue, Outcome.FAILED)
    assert queue.cell(1).status is Status.FAILED
    assert queue.retry([1]) == 1
    assert queue.finish(take(queue).attempt_id, Outcome.FAILED) is Status.PENDING
    assert take(queue).attempt_number == 5


def test_reset(queue: Queue) -> None:
    submit(queue, count=4)
    submit(queue, "day", 1, model="360m")
    run_one(queue, Outcome.COMPLETED, turns=5)
    run_one(queue, Outcome.CORRUPT, reason="bad")
    run_one(queue, Outcome.FAILED, delay_s=3600)
    aside: list[str] = []
    assert queue.reset("night", aside=aside.extend) == 3
    assert sorted(aside) == ["baseline_135m_run1", "baseline_135m_run2", "baseline_135m_run3"]
    rows = queue.cells("night")
    assert {row.status for row in rows} == {Status.PENDING}
    assert [(row.generation, row.attempts, row.turns, row.reason) for row in rows] == [
        (1, 0, 0, ""),
        (1, 0, 0, ""),
        (1, 0, 0, ""),
        (0, 0, 0, ""),
    ]
    assert queue.reset("night") == 0
    assert len(queue.attempts(1)) == 1


def test_reset_refuses_a_running_grid(queue: Queue) -> None:
    submit(queue)
    run_one(queue)
    take(queue)
    with pytest.raises(QueueError, match=r"grid 'night': 1 cell is running"):
        queue.reset("night")
    assert queue.cell(1).status is Status.DONE


def test_whole_grids_go_in_batches(queue: Queue) -> None:
    submit(queue, count=1201)
    assert queue.cancel(queue.cell_ids("night", ["pending"])) == (1201, 0)
    assert queue.retry(queue.cell_ids("night", ["cancelled"])) == 1201
    assert queue.cancel(queue.cell_ids("night", ["pending"])) == (1201, 0)
    assert queue.reset("night") == 1201
    assert queue.counts()[Status.PENDING] == 1201


# -- views ---------------------------------------------------------------------------------------------------


def test_cells_are_paged_in_order(queue: Queue) -> None:
    submit(queue, "night", 5)
    submit(queue, "day", 5, model="360m")
    queue.enqueue("night", cells=planned(3, first=6), spec={}, policy={})
    for _ in range(3):
        run_one(queue)
    queue.cancel([7, 12])

    def every(limit: int, **where: str) -> list[int]:
        found: list[int] = []
        while page := queue.cells(**where, after_id=found[-1] if found else 0, limit=limit):
            assert len(page) <= limit
            found += [row.id for row in page]
        return found

    for limit in (1, 2, 1000):
        assert every(limit) == list(range(1, 14))
        assert every(limit, grid="night") == [1, 2, 3, 4, 5, 11, 12, 13]
        assert every(limit, status="cancelled") == [7, 12]
        assert every(limit, grid="night", status="pending") == [4, 5, 11, 13]
        assert every(limit, grid="day", status="done") == []


def test_find_cell(queue: Queue) -> None:
    submit(queue)
    submit(queue, "day", 1)
    assert [row.id for row in queue.find_cell("baseline_135m_run1")] == [1, 4]
    assert [row.id for row in queue.find_cell("day/baseline_135m_run1")] == [4]
    assert [row.id for row in queue.find_cell("baseline_135m_run1", "night")] == [1]
    assert [row.id for row in queue.find_cell("#3")] == [3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#99", "cell #99 is not in the queue"),
        ("#99999999999999999999999", "is not in the queue"),
        ("baseline_135m_rum1", "cell 'baseline_135m_rum1' is not in any grid; did you mean 'baseline_135m_run1'?"),
        ("xaseline_135m_run2", "did you mean 'baseline_135m_run2'?"),
        ("night/values", "cell 'values' is not in grid 'night'; there is baseline_135m_run1, "),
        ("nigth/baseline_135m_run1", "grid 'nigth' is not in the queue; did you mean 'night'?"),
        ("#x", "cell '#x' is not in any grid"),
    ],
)
def test_what_does_not_exist_is_named_with_what_is_near(queue: Queue, text: str, said: str) -> None:
    submit(queue)
    with pytest.raises(QueueError) as refused:
        queue.find_cell(text)
    assert said in str(refused.value)


def test_an_empty_queue_says_so(queue: Queue) -> None:
    with pytest.raises(QueueError, match="grid 'night' is not in the queue; it holds none"):
        queue.grid("night")
    with pytest.raises(QueueError, match="cell #1 is not in the queue"):
        queue.cell_spec(1)
    assert queue.claim(boot_id="boot", daemon="d1") is None
    assert (queue.next_ready(), queue.next_ready_at()) == (None, None)
    assert set(queue.counts().values()) == {0}


def test_events_are_the_newest_in_order(queue: Queue) -> None:
    submit(queue)
    run_one(queue)
    run_one(queue)
    kinds = [event.kind for event in queue.events()]
    assert kinds == ["grid_enqueued", "claimed", "finished", "claimed", "finished"]
    assert [event.id for event in queue.events(limit=2)] == [4, 5]
    assert [event.cell_id for event in queue.events(2, limit=1)] == [2]
    assert queue.events()[2].detail == {"outcome": "completed", "reason_code": ""}


def test_changed_sees_other_processes_only(queue: Queue, opened: Callable[[], Queue]) -> None:
    """Another connection stands for another process: SQLite does not tell them apart here."""
    assert queue.changed()
    submit(queue)
    assert not queue.changed()
    with opened() as other:
        other.cancel([1])
        assert queue.changed()
        assert not queue.changed()
        assert queue.cells()[0].status is Status.CANCELLED

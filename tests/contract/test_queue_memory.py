"""What the queue promises about memory: claims, caps, peaks, evictions, and the cells that run alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from helpers.queue_cells import Clock, planned, run_one, submit, take, template
from overnight.queue.peaks import KEPT
from overnight.queue.specs import warm_key, warm_specification
from overnight.queue.states import MEMORY, Outcome, Status
from overnight.queue.store import Peak, PeakRow, Queue, StaleAttempt

MIB = 1 << 20


def figures(queue: Queue, cell_id: int = 1) -> tuple[int | None, int, bool]:
    row = queue.cell(cell_id)
    return row.claim_bytes, row.evictions, row.alone


# -- what comes next -----------------------------------------------------------------------------------------


def interleaved(queue: Queue) -> None:
    """Cells 1 to 9 of three models in turn."""
    for run in range(1, 10):
        submit(queue, "night", 1, model=("135m", "360m", "1.7b")[run % 3], first=run)


def test_what_comes_next_is_what_claim_gives(queue: Queue, clock: Clock) -> None:
    interleaved(queue)
    run_one(queue, Outcome.FAILED, delay_s=20)
    run_one(queue, Outcome.FAILED, delay_s=10)
    run_one(queue, Outcome.FAILED, delay_s=99)
    clock.step(30)
    ready = queue.next_ready_many(64)
    assert [one.cell_id for one in ready] == [2, 1, 4, 5, 6, 7, 8, 9]
    assert [one.not_before == 0 for one in ready] == [False] * 2 + [True] * 6
    assert queue.next_ready() == ready[0]
    for limit in (0, -1, 1, 3, 8):
        assert queue.next_ready_many(limit) == ready[: max(0, limit)]
    assert [take(queue).cell.id for _ in ready] == [one.cell_id for one in ready]
    assert queue.next_ready_many(64) == []


def test_what_comes_next_passes_over_warm_servers(queue: Queue) -> None:
    interleaved(queue)
    keys = [one.warm_key for one in queue.next_ready_many(3)]
    assert len(set(keys)) == 3
    assert [one.cell_id for one in queue.next_ready_many(9, exclude=keys[:1])] == [2, 3, 5, 6, 8, 9]
    assert [one.cell_id for one in queue.next_ready_many(9, exclude=[*keys[:2], "no such"])] == [3, 6, 9]
    assert queue.next_ready_many(9, exclude=keys) == []


def test_what_comes_next_says_all_that_admission_asks(queue: Queue) -> None:
    submit(queue, count=2)
    run_one(queue, Outcome.EVICTED, raised_claim_bytes=70 * MIB, alone=True)
    command = {"v": 1, "kind": "command", "command": ["true"], "threads": 2}
    queue.enqueue("day", cells=planned(1, shared=command), spec={}, policy={"memory_bytes": MIB})
    first, second, third = queue.next_ready_many(3)
    assert (first.claim_bytes, first.evictions, first.alone, first.attempts) == (70 * MIB, 1, True, 1)
    assert (second.claim_bytes, second.evictions, second.alone, second.attempts) == (None, 0, False, 0)
    assert (first.spec, third.spec) == (queue.cell_spec(1), queue.cell_spec(3))
    assert (first.policy, third.policy) == ({"tries": 3}, {"memory_bytes": MIB})
    assert (first.grid, first.key, first.threads) == ("night", "baseline_135m_run1", 1)
    assert (third.grid, third.warm_key, third.warm, third.threads) == ("day", "", {}, 2)
    assert first.warm == warm_specification(template())
    assert first.warm_key == warm_key(first.warm)
    claimed = take(queue, cell_id=3)
    assert (claimed.spec, claimed.policy, claimed.warm_key) == (third.spec, third.policy, "")


# -- claims --------------------------------------------------------------------------------------------------


def test_claim_of_this_very_cell(queue: Queue, clock: Clock) -> None:
    submit(queue, count=4)
    run_one(queue, Outcome.FAILED, delay_s=10)

    def claimed(cell_id: int, **options: Any) -> int | None:
        found = queue.claim(boot_id="boot", daemon="d1", cell_id=cell_id, **options)
        return None if found is None else found.cell.id

    assert claimed(3) == 3
    assert claimed(3) is None  # it is running
    assert claimed(1) is None  # it waits
    assert claimed(99) is None
    key = take(queue, cell_id=2).warm_key
    assert claimed(4, exclude=[key]) is None
    assert claimed(4, warm_key="another") is None
    assert claimed(4, warm_key=key) == 4
    clock.step(10)
    assert claimed(1) == 1
    assert [len(queue.attempts(cell)) for cell in (1, 2, 3, 4)] == [2, 1, 1, 1]


def test_an_attempt_carries_its_claim(queue: Queue) -> None:
    submit(queue)
    claimed = take(queue, claim_bytes=60 * MIB, claim_source="learned", cap_bytes=61 * MIB)
    assert (claimed.claim_bytes, claimed.claim_source, claimed.cap_bytes) == (60 * MIB, "learned", 61 * MIB)
    queue.extended(claimed.attempt_id, 90 * MIB, None)
    (attempt,) = queue.attempts(1)
    assert (attempt.claim_bytes, attempt.claim_source, attempt.cap_bytes) == (90 * MIB, "learned", None)
    assert attempt.peak_bytes is None
    queue.finish(claimed.attempt_id, Outcome.COMPLETED, peak_bytes=80 * MIB)
    (attempt,) = queue.attempts(1)
    assert (attempt.claim_bytes, attempt.peak_bytes) == (90 * MIB, 80 * MIB)
    with pytest.raises(StaleAttempt, match="is not under way: its claim cannot be extended"):
        queue.extended(claimed.attempt_id, 1, 1)
    with pytest.raises(StaleAttempt):
        queue.extended(99, 1, 1)
    assert figures(queue) == (None, 0, False)  # the cell's own claim is raised by an end alone
    other = take(queue)
    assert (other.claim_bytes, other.claim_source, other.cap_bytes) == (None, "", None)


def test_a_raised_claim_stays(queue: Queue) -> None:
    submit(queue, count=1)
    run_one(queue, Outcome.OVER_CAP, raised_claim_bytes=50)
    assert figures(queue) == (50, 0, False)
    run_one(queue, Outcome.OOM_KILLED, raised_claim_bytes=75, turns=3)
    run_one(queue, Outcome.LOST)
    assert figures(queue) == (75, 0, False)
    run_one(queue, Outcome.CANCELLED)
    queue.retry([1])
    assert figures(queue) == (75, 0, False)
    assert take(queue).cell.claim_bytes == 75


def test_evictions_count_those_at_the_turn_where_the_cell_stands(queue: Queue) -> None:
    submit(queue, count=1)
    seen = []
    for outcome, turns in (
        (Outcome.EVICTED, None),
        (Outcome.EVICTED, 0),
        (Outcome.LOST, 0),
        (Outcome.OVER_CAP, None),
        (Outcome.EVICTED, 2),
        (Outcome.EVICTED, 2),
        (Outcome.YIELDED, 3),
        (Outcome.EVICTED, 3),
        (Outcome.COMPLETED, None),
    ):
        run_one(queue, outcome, turns=turns)
        seen.append(queue.cell(1).evictions)
    assert seen == [1, 2, 2, 2, 1, 2, 0, 1, 0]


def test_a_cell_runs_alone_until_it_makes_a_turn(queue: Queue) -> None:
    submit(queue, count=1)
    seen = []
    for outcome, turns, alone in (
        (Outcome.EVICTED, 2, None),
        (Outcome.EVICTED, 2, True),
        (Outcome.LOST, None, None),
        (Outcome.FAILED, 2, None),
        (Outcome.EVICTED, 3, None),
        (Outcome.EVICTED, 4, True),
        (Outcome.EVICTED, 4, False),
    ):
        run_one(queue, outcome, turns=turns, alone=alone)
        seen.append(queue.cell(1).alone)
    assert seen == [False, True, True, True, False, True, False]


@pytest.mark.parametrize("outcome", sorted(MEMORY))
def test_a_cell_that_can_never_fit_is_quarantined(queue: Queue, outcome: Outcome) -> None:
    submit(queue, count=1)
    claimed = take(queue)
    queue.cancel([1])
    reason = "needs at least 9 GiB, the limit is 4 GiB"
    status = queue.finish(
        claimed.attempt_id, outcome, turns=2, delay_s=60, reason_code="too_large", reason=reason, quarantine=True
    )
    row = queue.cell(1)
    assert status is row.status is Status.QUARANTINED
    assert (row.reason_code, row.reason, row.not_before, row.tries_used) == ("too_large", reason, 0, 0)
    assert row.finished_at is not None
    assert queue.attempts(1)[0].outcome is outcome


def test_no_other_end_makes_a_cell_too_large(queue: Queue) -> None:
    submit(queue, count=1)
    claimed = take(queue)
    peak = Peak("kind", "family", 1, True)
    with pytest.raises(ValueError, match="says nothing of memory"):
        queue.finish(claimed.attempt_id, Outcome.FAILED, quarantine=True, learn=peak)
    assert queue.cell(1).status is Status.RUNNING
    assert queue.peaks("kind") == []  # all of it, or nothing


def test_retry_forgets_evictions_and_reset_the_claim_too(queue: Queue) -> None:
    submit(queue, count=3)
    for _ in range(2):
        end = {"raised_claim_bytes": 99, "alone": True}
        run_one(queue, Outcome.EVICTED, **end)
        run_one(queue, Outcome.EVICTED, quarantine=True, **end)
    run_one(queue, Outcome.EVICTED, **end)
    assert [figures(queue, number) for number in (1, 2, 3)] == [(99, 2, True), (99, 2, True), (99, 1, True)]
    assert queue.retry([1]) == 1
    assert figures(queue, 1) == (99, 0, False)
    queue.enqueue("night", cells=planned(1, first=2, seed=1), spec={}, policy={}, replace=True)
    assert figures(queue, 2) == (None, 0, False)
    assert queue.reset("night") == 2
    assert [figures(queue, number) for number in (1, 2, 3)] == [(None, 0, False)] * 3
    assert [attempt.outcome for attempt in queue.attempts(2)] == [Outcome.EVICTED] * 2


# -- peaks ---------------------------------------------------------------------------------------------------


def test_peaks_are_the_newest_first(queue: Queue, clock: Clock) -> None:
    submit(queue, count=4)
    for number, (kind, family) in enumerate((("a", "f"), ("b", "f"), ("a", "f"), ("c", "g")), 1):
        clock.step(1)
        run_one(queue, peak_bytes=number * MIB, learn=Peak(kind, family, number * MIB, whole=number != 2))
    began = clock.now - 4
    one, two, three, four = (PeakRow(number * MIB, number != 2, began + number) for number in range(1, 5))
    assert queue.peaks("a") == [three, one]
    assert queue.peaks("a", most=1) == [three]
    assert queue.family_peaks("f") == [three, two, one]
    assert queue.family_peaks("f", most=2) == [three, two]
    assert queue.family_peaks("g") == queue.peaks("c") == [four]
    assert queue.peaks("no such") == queue.family_peaks("a") == []


def test_only_the_newest_peaks_of_a_kind_are_kept(queue: Queue) -> None:
    submit(queue, count=1)
    for number in range(KEPT + 5):
        run_one(queue, Outcome.EVICTED, learn=Peak("much", "f", number, True))
        if number < 3:
            run_one(queue, Outcome.EVICTED, learn=Peak("little", "f", 1000 + number, False))
    assert [row.peak_bytes for row in queue.peaks("much", most=1000)] == list(range(KEPT + 4, 4, -1))
    assert [row.peak_bytes for row in queue.peaks("little", most=1000)] == [1002, 1001, 1000]
    assert len(queue.family_peaks("f", most=1000)) == KEPT + 3
    assert len(queue.peaks("much")) == 32


def test_an_attempt_that_has_ended_teaches_nothing(queue: Queue) -> None:
    submit(queue, count=1)
    claimed = run_one(queue, learn=Peak("kind", "family", 1, True))
    with pytest.raises(StaleAttempt):
        queue.finish(claimed.attempt_id, Outcome.COMPLETED, learn=Peak("kind", "family", 2, True))
    assert [row.peak_bytes for row in queue.peaks("kind")] == [1]


def test_a_reset_forgets_no_peak(queue: Queue) -> None:
    """What a kind of cell takes stays true when its cells start afresh."""
    submit(queue, count=1)
    run_one(queue, learn=Peak("kind", "family", 1, True))
    queue.reset("night")
    assert [row.peak_bytes for row in queue.peaks("kind")] == [1]


def test_a_look_leaves_no_transaction_behind(queue: Queue, opened: Callable[[], Queue]) -> None:
    """An open cursor would keep this connection in the past: its next write would be refused."""
    submit(queue, count=20)
    queue.next_ready_many(3)
    with opened() as other:
        assert take(other).cell.id == 1
    assert [one.cell_id for one in queue.next_ready_many(2)] == [2, 3]
    assert take(queue).cell.id == 2

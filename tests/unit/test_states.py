"""The states as tables: what may follow what, and what an outcome makes of a cell."""

from __future__ import annotations

import re

import pytest

from overnight.queue import migrate
from overnight.queue.states import (
    AFTER,
    ENDED,
    INTERRUPTED,
    MEMORY,
    RESETTABLE,
    RETRYABLE,
    TRANSITIONS,
    USES_A_TRY,
    Outcome,
    Status,
    after,
    allowed,
)

P, R, D, F, Q, C = Status


@pytest.mark.parametrize(
    ("old", "news"),
    [(P, {R, C}), (R, {P, D, F, Q, C}), (D, set()), (F, {P}), (Q, {P}), (C, {P})],
)
def test_transitions(old: Status, news: set[Status]) -> None:
    assert {new for new in Status if allowed(old, new)} == news == TRANSITIONS[old]


@pytest.mark.parametrize("old", list(Status))
def test_afresh_leads_to_pending_from_everywhere_but_running(old: Status) -> None:
    assert [new for new in Status if allowed(old, new, afresh=True)] == ([] if old is R else [P])


def test_named_sets() -> None:
    assert {D, F, Q, C} == ENDED
    assert {F, Q, C} == RETRYABLE
    assert {P, D, F, Q, C} == RESETTABLE
    assert not INTERRUPTED & USES_A_TRY
    assert {Outcome.EVICTED, Outcome.OVER_CAP, Outcome.OOM_KILLED} == MEMORY < INTERRUPTED
    assert all(AFTER[outcome] is P for outcome in INTERRUPTED | USES_A_TRY)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.COMPLETED, D),
        (Outcome.EVICTED, P),
        (Outcome.YIELDED, P),
        (Outcome.LOST, P),
        (Outcome.OVER_CAP, P),
        (Outcome.OOM_KILLED, P),
        (Outcome.FAILED, F),
        (Outcome.TIMED_OUT, F),
        (Outcome.CORRUPT, Q),
        (Outcome.DIVERGED, Q),
        (Outcome.CONDITIONS_CHANGED, Q),
        (Outcome.CANCELLED, C),
    ],
)
def test_after_the_last_try(outcome: Outcome, status: Status) -> None:
    assert after(outcome, 3, 3) is status


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_leads_where_a_running_cell_may_go(outcome: Outcome) -> None:
    for used in range(5):
        for cancel_requested in (False, True):
            status = after(outcome, used, 3, cancel_requested=cancel_requested)
            assert status in TRANSITIONS[R]
            assert not (cancel_requested and status is P)


@pytest.mark.parametrize(("used", "tries", "status"), [(1, 3, P), (2, 3, P), (3, 3, F), (1, 1, F), (4, 3, F)])
def test_tries(used: int, tries: int, status: Status) -> None:
    assert after(Outcome.FAILED, used, tries) is status
    assert after(Outcome.TIMED_OUT, used, tries) is status


def test_an_interruption_is_no_failure_however_often() -> None:
    assert all(after(outcome, 99, 1) is P for outcome in INTERRUPTED)


def test_cancellation_while_it_ran_keeps_a_cell_from_going_back() -> None:
    assert after(Outcome.EVICTED, 0, 3, cancel_requested=True) is C
    assert after(Outcome.FAILED, 1, 3, cancel_requested=True) is C
    assert after(Outcome.FAILED, 3, 3, cancel_requested=True) is F
    assert after(Outcome.COMPLETED, 0, 3, cancel_requested=True) is D


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_what_memory_ended_can_be_too_large(outcome: Outcome) -> None:
    for cancel_requested in (False, True):
        if outcome in MEMORY:
            assert after(outcome, 0, 3, cancel_requested=cancel_requested, quarantine=True) is Q
        else:
            with pytest.raises(ValueError, match=f"ended as {outcome} says nothing of memory"):
                after(outcome, 0, 3, cancel_requested=cancel_requested, quarantine=True)


def test_the_database_knows_the_same_words() -> None:
    """The CHECK constraints are written by hand in SQL: they must name exactly the enums' strings."""
    script = "".join(migrate.scripts().values())
    found = [set(re.findall(r"'(\w+)'", words)) for words in re.findall(r" IN \(([^)]*)\)", script) if "'" in words]
    assert found == [set(Status), set(Outcome)]

"""What follows from the end of an attempt, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from overnight.dispatch.retries import Attempted, Consequence, consequence

MIB = 2**20
HAD = Attempted(claim_bytes=100 * MIB, server_bytes=200 * MIB, most_bytes=900 * MIB, peak_bytes=100 * MIB)
ALL = replace(HAD, claim_bytes=700 * MIB, cap_bytes=700 * MIB, peak_bytes=700 * MIB)
ALONE = replace(HAD, alone=True)


def judge(outcome: str, attempted: Attempted = HAD, **fields: Any) -> Consequence:
    usual: dict[str, Any] = {"evictions": 0, "tries_used": 0, "interrupted": 1, "retry_delay_s": 5.0}
    return consequence(outcome, attempted=attempted, no_space_delay_s=30.0, **{**usual, **fields})


@pytest.mark.parametrize(
    ("outcome", "fields", "delay_s"),
    [
        ("completed", {}, 0.0),
        ("cancelled", {}, 0.0),
        ("corrupt", {}, 0.0),
        ("failed", {}, 5.0),
        ("failed", {"tries_used": 3}, 40.0),
        ("timed_out", {"tries_used": 1}, 10.0),
        ("failed", {"tries_used": 3, "chance": 0.0}, 30.0),
        ("failed", {"tries_used": 3, "chance": 1.0}, 50.0),
        ("failed", {"tries_used": 99}, 3600.0),
        ("failed", {"tries_used": 10**6}, 3600.0),
        ("yielded", {"interrupted": 9}, 0.0),
        ("yielded", {"reason_code": "no_space"}, 30.0),
        ("yielded", {"reason_code": "disk_error"}, 30.0),
        ("yielded", {"reason_code": "transcript_locked"}, 1.0),
        ("yielded", {"reason_code": "put_back"}, 0.0),
        ("yielded", {"reason_code": "put_back", "interrupted": 5}, 4.0),
        ("lost", {"interrupted": 2}, 0.0),
        ("lost", {"interrupted": 3}, 1.0),
        ("lost", {"interrupted": 5}, 4.0),
        ("lost", {"interrupted": 10**6}, 60.0),
    ],
)
def test_delays(outcome: str, fields: dict[str, Any], delay_s: float) -> None:
    assert judge(outcome, **fields) == Consequence(delay_s)


@pytest.mark.parametrize(
    ("outcome", "attempted", "fields", "expected"),
    [
        # A larger claim, at once.
        ("over_cap", HAD, {}, Consequence(0.0, 150 * MIB)),
        ("over_cap", HAD, {"interrupted": 9}, Consequence(0.0, 150 * MIB)),
        ("over_cap", replace(HAD, peak_bytes=300 * MIB), {}, Consequence(0.0, 330 * MIB)),
        ("over_cap", replace(HAD, peak_bytes=None), {}, Consequence(0.0, 150 * MIB)),
        ("over_cap", replace(HAD, claim_bytes=600 * MIB), {}, Consequence(0.0, 700 * MIB)),
        ("oom_killed", HAD, {}, Consequence(0.0, 150 * MIB)),
        ("oom_killed", HAD, {"interrupted": 4}, Consequence(2.0, 150 * MIB)),
        # With all that there is, and a turn finished all the same: the next attempt begins with fresh memory.
        ("over_cap", ALL, {"interrupted": 0}, Consequence(0.0, 700 * MIB)),
        # Called by others' memory: its own fits.
        ("oom_killed", ALL, {"interrupted": 4}, Consequence(2.0, 700 * MIB)),
        # Evicted: again; twice at the same turn: alone; alone, by others' memory: it waits.
        ("evicted", HAD, {"evictions": 1}, Consequence()),
        ("evicted", HAD, {"evictions": 2, "interrupted": 2}, Consequence(alone=True)),
        ("evicted", HAD, {"evictions": 3, "interrupted": 4}, Consequence(2.0, alone=True)),
        ("evicted", ALONE, {"evictions": 3, "interrupted": 3}, Consequence(1.0, alone=True)),
        ("evicted", ALONE, {"evictions": 3, "interrupted": 5}, Consequence(4.0, alone=True)),
        (
            "evicted",
            replace(ALONE, peak_bytes=None),
            {"evictions": 99, "interrupted": 99},
            Consequence(60.0, alone=True),
        ),
        ("evicted", replace(ALONE, peak_bytes=800 * MIB), {"interrupted": 0}, Consequence()),
        ("evicted", replace(HAD, peak_bytes=800 * MIB), {"evictions": 1}, Consequence()),  # others were there
    ],
)
def test_memory(outcome: str, attempted: Attempted, fields: dict[str, Any], expected: Consequence) -> None:
    assert judge(outcome, attempted, **fields) == expected


@pytest.mark.parametrize(
    ("outcome", "attempted", "figures"),
    [
        ("over_cap", ALL, ("901 MiB", "900 MiB")),
        ("over_cap", replace(ALL, peak_bytes=None), ("901 MiB", "900 MiB")),
        ("over_cap", replace(ALL, claim_bytes=695 * MIB), ("901 MiB", "900 MiB")),  # as good as all
        ("oom_killed", replace(ALL, peak_bytes=750 * MIB), ("950 MiB", "900 MiB")),
        ("evicted", replace(ALONE, peak_bytes=800 * MIB), ("1000 MiB", "900 MiB")),
    ],
)
def test_what_cannot_fit_is_quarantined_with_its_figures(
    outcome: str, attempted: Attempted, figures: tuple[str, str]
) -> None:
    found = judge(outcome, attempted, evictions=1)
    assert (found.quarantine, found.reason_code) == (True, "too_large")
    needs, limit = figures
    assert found.reason is not None
    assert found.reason.startswith(f"needs at least {needs} with its warm server of 200 MiB, the limit is {limit} (")


def test_a_model_that_does_not_load_is_given_up_after_a_while() -> None:
    for interrupted in range(1, 5):
        found = judge("over_cap", interrupted=interrupted, reason_code="model_memory")
        assert found.raised_claim_bytes is None, "no larger claim of the cell's would help"
        assert not found.quarantine
    last = judge("over_cap", interrupted=5, reason_code="model_memory")
    assert (last.quarantine, last.reason_code) == (True, "too_large")
    assert last.reason is not None
    assert "the limit is 900.0 MiB" in last.reason


def test_a_cap_that_was_larger_than_the_claim_counts_as_what_it_had() -> None:
    capped = replace(HAD, claim_bytes=480 * MIB, cap_bytes=700 * MIB, peak_bytes=700 * MIB)
    assert judge("over_cap", capped).quarantine
    assert not judge("over_cap", replace(capped, cap_bytes=600 * MIB)).quarantine


def test_a_command_that_somebody_always_kills_fails_in_the_end() -> None:
    """`timeout -s KILL`: its runner lives and says so; a cell whose server died has no such witness."""
    for interrupted in range(1, 5):
        assert not judge("lost", interrupted=interrupted, reason_code="killed", told=True).failed
    last = judge("lost", interrupted=5, reason_code="killed", told=True)
    assert (last.failed, last.reason_code, last.delay_s) == (True, "killed_repeated", 5.0)
    assert not judge("lost", interrupted=99, reason_code="killed").failed
    assert not judge("lost", interrupted=99, reason_code="terminated", told=True).failed

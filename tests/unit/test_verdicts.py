"""Verdicts and delays as tables."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from overnight.dispatch.evictions import Eviction
from overnight.dispatch.verdicts import STALLED_MOST, Ending, Verdict, bounded, delay_s, judge

TAKEN = Eviction("evict", "headroom", "evict", 2 << 30, "budget", 190_000_000, None, None, 310 << 20, 320 << 20, 1.2)
THRASHED = replace(TAKEN, trigger="thrash", warm=True)
DONE = {"outcome": "completed", "reason_code": "", "reason": ""}


@pytest.mark.parametrize(
    ("ending", "outcome", "code"),
    [
        (Ending(report=DONE, status=0), "completed", ""),
        (
            Ending(report=DONE, status=signal.SIGKILL),
            "completed",
            "",
        ),  # the result was on disk before the kill
        (
            Ending(intent="cancelled", report=DONE, status=0),
            "completed",
            "",
        ),  # it was quicker than the request
        (Ending(intent="cancelled", status=signal.SIGTERM), "cancelled", "asked"),
        (Ending(intent="timed_out", status=signal.SIGKILL, timeout_s=90), "timed_out", "timeout"),
        (Ending(intent="yielded", status=signal.SIGTERM), "yielded", "daemon_stopped"),
        (Ending(), "lost", "warm_server_died"),
        (Ending(status=signal.SIGKILL), "lost", "killed"),
        (Ending(status=signal.SIGTERM), "lost", "killed"),
        (Ending(status=signal.SIGSEGV), "failed", "crashed"),
        (Ending(status=signal.SIGABRT | 0x80), "failed", "crashed"),
        (Ending(status=3 << 8), "failed", "exit_status"),
        (Ending(status=0), "failed", "exit_status"),  # left in peace, but without a result
        (Ending(status=signal.SIGTERM, eviction=TAKEN), "evicted", "memory_pressure"),
        (Ending(status=signal.SIGKILL, eviction=TAKEN), "evicted", "memory_pressure"),
        (Ending(eviction=THRASHED), "evicted", "thrashing"),  # its warm server went, and nobody saw its status
        (Ending(report=DONE, status=signal.SIGKILL, eviction=TAKEN), "completed", ""),
        (Ending(status=signal.SIGSEGV, eviction=TAKEN), "failed", "crashed"),  # by itself, before the signal came
        (Ending(status=3 << 8, eviction=TAKEN), "failed", "exit_status"),
        (Ending(intent="cancelled", status=signal.SIGTERM, eviction=TAKEN), "cancelled", "asked"),
        (Ending(intent="yielded", status=signal.SIGTERM, eviction=TAKEN), "yielded", "daemon_stopped"),
    ],
)
def test_judge(ending: Ending, outcome: str, code: str) -> None:
    verdict = judge(ending)
    assert (verdict.outcome, verdict.reason_code) == (outcome, code)
    assert "\n" not in verdict.reason
    assert verdict.reason or outcome == "completed"


@pytest.mark.parametrize(
    ("verdict", "tries_used", "interrupted", "seconds"),
    [
        (Verdict("failed"), 0, 0, 5.0),
        (Verdict("failed"), 2, 0, 20.0),
        (Verdict("timed_out"), 30, 0, 3600.0),
        (Verdict("yielded", "no_space"), 0, 1, 30.0),
        (Verdict("yielded", "daemon_stopped"), 0, 1, 0.0),
        (Verdict("lost", "killed"), 0, 2, 0.0),
        (Verdict("lost", "killed"), 0, 3, 1.0),
        (Verdict("lost", "killed"), 0, 500, 60.0),
        (Verdict("evicted", "memory_pressure"), 0, 2, 0.0),
        (Verdict("evicted", "memory_pressure"), 0, 4, 2.0),
        (Verdict("completed"), 0, 0, 0.0),
    ],
)
def test_delay(verdict: Verdict, tries_used: int, interrupted: int, seconds: float) -> None:
    found = delay_s(verdict, tries_used=tries_used, interrupted=interrupted, retry_delay_s=5.0, no_space_delay_s=30.0)
    assert found == seconds


def test_a_cap_that_is_met_for_ever_becomes_a_failure() -> None:
    met = Verdict("over_cap", "memory_error", "the cell met its memory cap (MemoryError)")
    for stalled in range(STALLED_MOST - 1):
        assert bounded(met, stalled=stalled) == met
    last = bounded(met, stalled=STALLED_MOST - 1)
    assert (last.outcome, last.reason_code) == ("failed", "over_cap_repeated")
    assert bounded(Verdict("lost", "killed"), stalled=99).outcome == "lost"


def test_an_eviction_leaves_its_figures_as_evidence() -> None:
    verdict = judge(Ending(status=signal.SIGTERM, eviction=TAKEN))
    assert verdict.reason == TAKEN.sentence()
    assert verdict.evidence["exit_code"] == -signal.SIGTERM
    assert (verdict.evidence["own_bytes"], verdict.evidence["trigger"]) == (310 << 20, "headroom")

"""Verdicts and delays as tables."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from overnight.dispatch.evictions import Eviction
from overnight.dispatch.slot import CgroupEvidence
from overnight.dispatch.verdicts import Ending, judge, taken

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


def test_an_eviction_leaves_its_figures_as_evidence() -> None:
    verdict = judge(Ending(status=signal.SIGTERM, eviction=TAKEN))
    assert verdict.reason == TAKEN.sentence()
    assert verdict.evidence["exit_code"] == -signal.SIGTERM
    assert (verdict.evidence["own_bytes"], verdict.evidence["trigger"]) == (310 << 20, "headroom")


# -- the kernel's counters ------------------------------------------------------------------------------------

MIB = 2**20
KILLED, TERMED, SEGV = int(signal.SIGKILL), int(signal.SIGTERM), int(signal.SIGSEGV)
QUIET = CgroupEvidence(0, 0, 10 * MIB, 40 * MIB, 64 * MIB)
AT_CAP = CgroupEvidence(1, 7, 2 * MIB, 64 * MIB, 64 * MIB)
BELOW_CAP = CgroupEvidence(1, 0, 2 * MIB, 40 * MIB, 64 * MIB)
UNCAPPED = CgroupEvidence(1, 0, 2 * MIB, 40 * MIB, None)
FULL_OF_FILES = CgroupEvidence(1, 7, 60 * MIB, 64 * MIB, 64 * MIB, file_bytes=50 * MIB)
V2_AT_CAP = CgroupEvidence(3, 9, 0, 0, 64 * MIB, oom_calls=1)
V2_FROM_ABOVE = CgroupEvidence(3, 9, 0, 64 * MIB, 64 * MIB, oom_calls=0)
SILENT = CgroupEvidence(None, 3, 10 * MIB, 64 * MIB, 64 * MIB)
BY_FORCE = replace(TAKEN, step="kill", trigger="grace_over")


def said(outcome: str, code: str = "", reason: str = "the command said so", **evidence: Any) -> dict[str, Any]:
    return {"outcome": outcome, "reason_code": code, "reason": reason, "evidence": evidence}


COMMAND_KILLED = said("lost", "killed", "the command was killed by SIGKILL", signal=KILLED)
COMMAND_TERMED = said("lost", "killed", "the command was killed by SIGTERM", signal=TERMED)
LEFT_WHEN_ASKED = said("terminated", "terminated", "the command was asked to leave (SIGTERM)", exit_code=1)
SHELL_137 = said("failed", "exit_status", exit_code=137)
SHELL_143 = said("failed", "exit_status", exit_code=143)
EXIT_1 = said("failed", "exit_status", exit_code=1)

TABLE = [
    # a cell by itself, with a cgroup of its own
    (Ending(status=KILLED, cgroup=AT_CAP), "over_cap", "cgroup_cap", "certain"),
    (Ending(status=KILLED, cgroup=V2_AT_CAP), "over_cap", "cgroup_cap", "certain"),
    (Ending(status=KILLED, cgroup=AT_CAP, oom_above=True), "over_cap", "cgroup_cap", "certain"),
    (Ending(status=KILLED, cgroup=BELOW_CAP), "oom_killed", "kernel_oom", "certain"),
    (Ending(status=KILLED, cgroup=UNCAPPED), "oom_killed", "kernel_oom", "certain"),
    (Ending(status=KILLED, cgroup=V2_FROM_ABOVE), "oom_killed", "kernel_oom", "certain"),
    (Ending(status=KILLED, cgroup=FULL_OF_FILES), "oom_killed", "kernel_oom", "certain"),
    (Ending(status=KILLED, cgroup=QUIET), "lost", "killed", "certain"),
    (Ending(status=KILLED, cgroup=QUIET, oom_above=True), "lost", "killed", "certain"),  # somebody else's
    (Ending(status=KILLED, cgroup=SILENT), "lost", "killed", "inferred"),
    (Ending(status=KILLED, cgroup=SILENT, oom_above=True), "oom_killed", "kernel_oom", "inferred"),
    (Ending(status=TERMED, cgroup=QUIET), "lost", "killed", "certain"),
    (Ending(status=SEGV, cgroup=QUIET), "failed", "crashed", "certain"),
    (Ending(status=1 << 8, cgroup=QUIET), "failed", "exit_status", "certain"),
    (Ending(status=1 << 8, cgroup=AT_CAP), "over_cap", "cgroup_cap", "inferred"),
    # without one
    (Ending(status=KILLED, oom_above=True), "oom_killed", "kernel_oom", "inferred"),
    (Ending(status=KILLED), "lost", "killed", "inferred"),
    (Ending(status=TERMED, oom_above=True), "lost", "killed", "certain"),  # the OOM killer sends nothing but SIGKILL
    (Ending(status=SEGV, oom_above=True), "failed", "crashed", "certain"),
    # its warm server went
    (Ending(cgroup=QUIET), "lost", "warm_server_died", "certain"),
    (Ending(cgroup=QUIET, oom_above=True), "oom_killed", "warm_server_oom_killed", "inferred"),
    (Ending(oom_above=True), "oom_killed", "warm_server_oom_killed", "inferred"),
    (Ending(cgroup=AT_CAP), "over_cap", "cgroup_cap", "certain"),
    (Ending(eviction=THRASHED, oom_above=True), "evicted", "thrashing", "certain"),
    # what was asked for, and what the watchdog did
    (Ending(intent="cancelled", status=KILLED, cgroup=AT_CAP), "cancelled", "asked", "certain"),
    (Ending(status=TERMED, eviction=TAKEN, cgroup=QUIET), "evicted", "memory_pressure", "certain"),
    (Ending(status=KILLED, eviction=BY_FORCE, cgroup=AT_CAP), "evicted", "memory_pressure", "certain"),
    (Ending(status=KILLED, eviction=TAKEN, cgroup=AT_CAP), "over_cap", "cgroup_cap", "certain"),  # before it left
    (Ending(status=KILLED, eviction=TAKEN, cgroup=QUIET), "evicted", "memory_pressure", "certain"),
    # what a command's runner says
    (Ending(report=said("completed"), status=0, cgroup=AT_CAP), "over_cap", "cgroup_cap", "inferred"),
    (Ending(report=said("completed"), status=0, cgroup=QUIET, oom_above=True), "completed", "", "certain"),
    (Ending(report=said("yielded", "put_back"), cgroup=AT_CAP), "yielded", "put_back", "certain"),
    (Ending(report=said("over_cap", "memory_error"), cgroup=QUIET), "over_cap", "memory_error", "certain"),
    (Ending(report=EXIT_1, cgroup=QUIET), "failed", "exit_status", "certain"),
    (Ending(report=EXIT_1, eviction=TAKEN), "failed", "exit_status", "certain"),
    (Ending(report=EXIT_1, cgroup=AT_CAP), "over_cap", "cgroup_cap", "inferred"),  # a worker of it was killed
    (Ending(report=said("failed", "crashed", signal=SEGV), cgroup=QUIET), "failed", "crashed", "certain"),
    (Ending(report=COMMAND_KILLED, cgroup=AT_CAP), "over_cap", "cgroup_cap", "certain"),
    (Ending(report=COMMAND_KILLED, cgroup=BELOW_CAP), "oom_killed", "kernel_oom", "certain"),
    (Ending(report=COMMAND_KILLED, cgroup=QUIET), "lost", "killed", "certain"),
    (Ending(report=COMMAND_KILLED, oom_above=True), "oom_killed", "kernel_oom", "inferred"),
    (Ending(report=COMMAND_KILLED), "lost", "killed", "inferred"),
    (Ending(report=COMMAND_KILLED, eviction=BY_FORCE), "evicted", "memory_pressure", "certain"),
    (Ending(report=COMMAND_TERMED, eviction=TAKEN), "evicted", "memory_pressure", "certain"),
    (Ending(report=COMMAND_TERMED, cgroup=QUIET), "lost", "killed", "certain"),
    (Ending(report=COMMAND_TERMED, intent="timed_out"), "timed_out", "timeout", "certain"),
    (Ending(report=SHELL_137, cgroup=AT_CAP), "over_cap", "cgroup_cap", "certain"),
    (Ending(report=SHELL_137, cgroup=QUIET), "failed", "exit_status", "certain"),
    (Ending(report=SHELL_143, eviction=TAKEN), "evicted", "memory_pressure", "certain"),
    (Ending(report=SHELL_143), "failed", "exit_status", "certain"),
    (Ending(report=LEFT_WHEN_ASKED, intent="yielded"), "yielded", "daemon_stopped", "certain"),
    (Ending(report=LEFT_WHEN_ASKED, intent="cancelled", eviction=TAKEN), "cancelled", "asked", "certain"),
    (Ending(report=LEFT_WHEN_ASKED, eviction=TAKEN, cgroup=QUIET), "evicted", "memory_pressure", "certain"),
    (Ending(report=LEFT_WHEN_ASKED, cgroup=QUIET), "lost", "terminated", "certain"),
    (Ending(report=said("timed_out", "timeout")), "timed_out", "timeout", "certain"),
]


@pytest.mark.parametrize(("ending", "outcome", "code", "confidence"), TABLE)
def test_judge_with_the_kernels_counters(ending: Ending, outcome: str, code: str, confidence: str) -> None:
    verdict = judge(ending)
    assert (verdict.outcome, verdict.reason_code, verdict.confidence) == (outcome, code, confidence)
    assert "\n" not in verdict.reason
    assert verdict.reason or outcome == "completed"
    assert not any(word in verdict.reason for word in ("unknown", "-9", "None"))


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        (
            Ending(status=KILLED, cgroup=AT_CAP),
            "the kernel's OOM killer ended it at its own cap: it held 64.0 MiB of 64.0 MiB",
        ),
        (
            Ending(status=KILLED, cgroup=BELOW_CAP),
            "the kernel's OOM killer ended it for want of memory around it: it held 40.0 MiB, and its cap was 64.0 MiB",
        ),
        (
            Ending(
                report=said("failed", "exit_status", "the command left with exit status 1", exit_code=1), cgroup=AT_CAP
            ),
            "the kernel's OOM killer ended a process of it at its own cap: it held 64.0 MiB of 64.0 MiB; "
            "the command left with exit status 1",
        ),
        (
            Ending(status=KILLED, oom_above=True, memory_bytes=30 * MIB),
            "it was killed by SIGKILL while the kernel's OOM killer struck; it held 30.0 MiB",
        ),
        (
            Ending(status=KILLED, cgroup=QUIET),
            "the cell's process was killed by SIGKILL, not by the kernel's OOM killer: no counter moved",
        ),
        (
            Ending(status=KILLED),
            "the cell's process was killed by SIGKILL; no counter of OOM kills moved",
        ),
        (
            Ending(report=LEFT_WHEN_ASKED),
            "the command was asked to leave (SIGTERM); neither the daemon nor the watchdog asked",
        ),
    ],
)
def test_what_is_said_of_it(ending: Ending, sentence: str) -> None:
    assert judge(ending).reason == sentence


def test_the_figures_are_evidence() -> None:
    ending = Ending(
        status=KILLED,
        cgroup=AT_CAP,
        oom_above=True,
        memory_bytes=60 * MIB,
        cap_bytes=64 * MIB,
        capped_by="cgroup",
    )
    assert judge(ending).evidence == {
        "exit_code": -9,
        "held_bytes": 60 * MIB,
        "cap_bytes": 64 * MIB,
        "capped_by": "cgroup",
        "oom_kills": 1,
        "cap_hits": 7,
        "cgroup_peak_bytes": 64 * MIB,
        "cgroup_cap_bytes": 64 * MIB,
        "oom_killer_struck": True,
    }
    # The runner's own status says nothing of the command's.
    told = judge(Ending(report=said("failed", "exit_status", exit_code=3, leftovers=2), status=70 << 8))
    assert told.evidence == {"exit_code": 3, "leftovers": 2}


@pytest.mark.parametrize(
    ("report", "status", "asks"),
    [
        (None, None, True),
        (None, KILLED, True),
        (None, SEGV, False),
        (None, 1 << 8, False),
        (said("completed"), 0, False),
        (EXIT_1, 70 << 8, False),
        (SHELL_143, 70 << 8, True),
        (COMMAND_KILLED, 70 << 8, True),
        (LEFT_WHEN_ASKED, 70 << 8, True),
        (said("lost", "fork_failed"), None, False),
    ],
)
def test_whose_end_is_worth_asking_about(report: dict[str, Any] | None, status: int | None, asks: bool) -> None:
    assert taken(report, status) == asks

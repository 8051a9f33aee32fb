"""Pure: from what was seen of an attempt's end to its outcome, a reason code and a sentence."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any

from overnight.dispatch.evictions import Eviction

INTERRUPTING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A cell never sends these to itself: somebody else ended it. Any other signal is its own crash."""


@dataclass(frozen=True)
class Ending:
    """What the dispatcher knows when an attempt's process is gone.

    intent: what the dispatcher itself had asked for: cancelled, timed_out, yielded, or "".
    report: the `ended` message of the child, or None when it left without a word.
    status: the wait status as the warm server saw it, or None when the server was gone before it could tell.
    eviction: what the watchdog wrote down about this process or its warm server, or None.
    """

    intent: str = ""
    report: dict[str, Any] | None = None
    status: int | None = None
    timeout_s: float | None = None
    eviction: Eviction | None = None


@dataclass(frozen=True)
class Verdict:
    """Why an attempt ended. `evidence` holds what the sentence is drawn from."""

    outcome: str
    reason_code: str = ""
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


def judge(end: Ending) -> Verdict:
    """What the child said counts most, then what we asked for, then what the watchdog wrote down, then how its process
    left. A process that crashed by itself is no eviction, even when the watchdog was about to take it out."""
    evidence = _evidence(end)
    if end.report is not None:
        report = end.report
        return Verdict(report["outcome"], report["reason_code"], report["reason"], evidence)
    match end.intent:
        case "cancelled":
            return Verdict("cancelled", "asked", "cancelled on request", evidence)
        case "timed_out":
            limit = f" of {end.timeout_s:g} s" if end.timeout_s is not None else ""
            return Verdict("timed_out", "timeout", f"the attempt took longer than its time limit{limit}", evidence)
        case "yielded":
            return Verdict("yielded", "daemon_stopped", "the daemon was stopped in good order", evidence)
    if end.eviction is not None and interrupted(end.status):
        taken = end.eviction
        return Verdict("evicted", taken.reason_code, taken.sentence(), evidence | taken.evidence())
    if end.status is None:
        return Verdict("lost", "warm_server_died", "its warm server died, and the cell with it", evidence)
    if os.WIFSIGNALED(end.status):
        number = os.WTERMSIG(end.status)
        name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        if number in INTERRUPTING:
            return Verdict("lost", "killed", f"the cell's process was killed by {name}", evidence)
        return Verdict("failed", "crashed", f"the cell's process crashed with {name}", evidence)
    code = os.waitstatus_to_exitcode(end.status)
    return Verdict("failed", "exit_status", f"the cell's process left with exit status {code} and no result", evidence)


def interrupted(status: int | None) -> bool:
    """Was it ended from outside, as far as its wait status tells? One that nobody saw is taken for that."""
    return status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in INTERRUPTING)


STALLED_MOST = 5
"""A cell that met its cap so often in a row without finishing a turn will not finish it the next time either."""


def bounded(verdict: Verdict, *, stalled: int) -> Verdict:
    """`over_cap` uses no try, so it must not go on for ever: at the same turn again and again it is a failure.

    stalled: interrupted attempts in a row, before this one, that finished no turn."""
    if verdict.outcome != "over_cap" or stalled + 1 < STALLED_MOST:
        return verdict
    sentence = f"{verdict.reason}; {stalled + 1} attempts in a row did not finish a turn"
    return Verdict("failed", "over_cap_repeated", sentence, verdict.evidence)


def _evidence(end: Ending) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if end.status is not None:
        found["exit_code"] = os.waitstatus_to_exitcode(end.status)
    if end.intent:
        found["asked"] = end.intent
    return found


def delay_s(
    verdict: Verdict, *, tries_used: int, interrupted: int, retry_delay_s: float, no_space_delay_s: float
) -> float:
    """Seconds before the next attempt.

    Failures back off exponentially, a full disk is given time, and a cell that is killed or evicted again and again
    before it finishes a turn is slowed down, so that it cannot keep the machine busy with nothing else.
    """
    if verdict.outcome in ("failed", "timed_out"):
        return min(3600.0, retry_delay_s * 2.0 ** max(0, tries_used))
    if verdict.outcome == "yielded" and verdict.reason_code in ("no_space", "disk_error"):
        return no_space_delay_s
    if verdict.outcome == "yielded" and verdict.reason_code == "transcript_locked":
        return 1.0
    if verdict.outcome in ("lost", "evicted", "over_cap") and interrupted >= 3:
        return min(60.0, 2.0 ** min(interrupted - 3, 6))
    return 0.0

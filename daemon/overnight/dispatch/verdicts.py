"""Pure: from what was seen of an attempt's end to its outcome, a reason code, a sentence, and how sure that is.

| what was seen, the first row that fits | outcome, reason code | confidence |
|---|---|---|
| the child's own report, but for one that tells of a signal from outside, or of exit 75 | as it says | certain |
| exit 75, and nobody below had asked for it | yielded, put_back | certain |
| ... `failed` or `completed`, and an OOM kill in its own cgroup: of a part of it | as below | inferred |
| the dispatcher had asked for it | cancelled, timed_out, yielded | certain |
| the watchdog wrote down that it took it (or its warm server) out, and it was ended from outside | evicted | certain |
| an OOM kill in its own cgroup, whose cap had been met | over_cap, cgroup_cap | certain by SIGKILL |
| an OOM kill in its own cgroup, whose cap had not been met | oom_killed, kernel_oom | certain by SIGKILL |
| no cgroup of its own, SIGKILL, and a counter of OOM kills rose meanwhile | oom_killed, kernel_oom | inferred |
| its warm server went, and a counter of OOM kills rose meanwhile | oom_killed, warm_server_oom_killed | inferred |
| its warm server went | lost, warm_server_died | certain |
| SIGKILL, an own cgroup, and no OOM kill in it | lost, killed | certain |
| SIGKILL without an own cgroup | lost, killed | inferred |
| SIGTERM, SIGINT, SIGHUP of somebody else | lost, killed or terminated | certain |
| any other signal | failed, crashed | certain |
| any other exit status, and an OOM kill in its own cgroup | as above | inferred |
| any other exit status | failed, exit_status | certain |

An eviction that had only come to SIGTERM when the OOM killer sent SIGKILL was no eviction: it met its cap first.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from overnight import figures
from overnight.cells.command_ending import INTERRUPTING
from overnight.dispatch.evictions import Eviction
from overnight.dispatch.slot import CgroupEvidence

Confidence = Literal["certain", "inferred"]


@dataclass(frozen=True)
class Ending:
    """What the dispatcher knows when an attempt's process is gone.

    intent: what the dispatcher itself had asked for: cancelled, timed_out, yielded, or "".
    report: the `ended` message of the child, or None when it left without a word.
    status: the wait status as the warm server saw it, or None when the server was gone before it could tell.
    eviction: what the watchdog wrote down about this process or its warm server, or None.
    cgroup: what its own cgroup counted, None when it had none. oom_above: a counter of OOM kills where it, or its warm
        server, lived rose between the last look before its death and its end.
    memory_bytes, peak_bytes: what it held beyond its warm server, at the last sample and at the most.
    cap_bytes, capped_by: its cap, and who enforced it: `cgroup`, `rlimit` or "".
    """

    intent: str = ""
    report: dict[str, Any] | None = None
    status: int | None = None
    timeout_s: float | None = None
    eviction: Eviction | None = None
    cgroup: CgroupEvidence | None = None
    oom_above: bool = False
    memory_bytes: int | None = None
    peak_bytes: int | None = None
    cap_bytes: int | None = None
    capped_by: str = ""


@dataclass(frozen=True)
class Verdict:
    """Why an attempt ended. `evidence` holds what the sentence is drawn from."""

    outcome: str
    reason_code: str = ""
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    confidence: Confidence = "certain"


def judge(end: Ending) -> Verdict:
    """By the table above. The child's own word counts most, then what we asked for, then what the watchdog wrote down,
    then the kernel's counters, then how its process left."""
    evidence, number = _evidence(end), _signal(end)
    if end.report is not None and not taken(end.report, end.status):
        return _told(end, end.report, number, evidence)
    if (asked := _asked(end, evidence)) is not None:
        return asked
    if end.eviction is not None and taken(end.report, end.status) and not _kernel_was_first(end, end.eviction, number):
        found = end.eviction
        return Verdict("evicted", found.reason_code, found.sentence(), evidence | found.evidence())
    put_back = end.report is not None and end.report["outcome"] == "yielded"
    if not put_back and (killed := _oom_killed(end, number, evidence)) is not None:
        return killed
    if end.report is not None:
        return _ended_from_outside(end, end.report, number, evidence)
    if end.status is None:
        return Verdict("lost", "warm_server_died", "its warm server died, and the cell with it", evidence)
    if number in INTERRUPTING:
        return _lost(end, f"the cell's process was killed by {_name(number)}", number, evidence)
    if number is not None:
        return Verdict("failed", "crashed", f"the cell's process crashed with {_name(number)}", evidence)
    code = os.waitstatus_to_exitcode(end.status)
    return Verdict("failed", "exit_status", f"the cell's process left with exit status {code} and no result", evidence)


def interrupted(status: int | None) -> bool:
    """Was it ended from outside, as far as its wait status tells? One that nobody saw is taken for that."""
    return status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in INTERRUPTING)


def taken(report: dict[str, Any] | None, status: int | None) -> bool:
    """May the watchdog, the kernel or a stranger have ended it, as far as its report and wait status tell? Then it is
    worth asking which. A shell tells of its child's end by 128 + the signal's number."""
    if report is None:
        return interrupted(status)
    match report["outcome"], report["reason_code"]:
        case ("terminated", _) | ("lost", "killed") | ("yielded", "put_back"):
            return True
        case ("failed", "exit_status"):
            return _shells_signal(report) is not None
    return False


def _told(end: Ending, report: dict[str, Any], number: int | None, evidence: dict[str, Any]) -> Verdict:
    """A program of which the OOM killer took a part fails by its own exit status, or does not even notice (a pipeline,
    a pool of workers): then what it calls its result is not one."""
    verdict = Verdict(report["outcome"], report["reason_code"], report["reason"], evidence)
    own = end.cgroup is not None and end.cgroup.oom_kills
    if verdict.outcome == "completed" and not own:
        return verdict
    if verdict.outcome not in ("failed", "completed") or (killed := _oom_killed(end, number, evidence)) is None:
        return verdict
    then = verdict.reason or "it ended all the same, as if nothing had happened"
    return replace(killed, reason=f"{killed.reason}; {then}", confidence="inferred")


def _asked(end: Ending, evidence: dict[str, Any]) -> Verdict | None:
    match end.intent:
        case "cancelled":
            return Verdict("cancelled", "asked", "cancelled on request", evidence)
        case "timed_out":
            limit = f" of {end.timeout_s:g} s" if end.timeout_s is not None else ""
            return Verdict("timed_out", "timeout", f"the attempt took longer than its time limit{limit}", evidence)
        case "yielded":
            return Verdict("yielded", "daemon_stopped", "the daemon was stopped in good order", evidence)
    return None


def _kernel_was_first(end: Ending, eviction: Eviction, number: int | None) -> bool:
    """It was only asked to leave, and what ended it was the OOM killer's SIGKILL."""
    kills = end.cgroup.oom_kills if end.cgroup is not None else None
    return eviction.step == "evict" and not eviction.warm and number == signal.SIGKILL and bool(kills)


def _oom_killed(end: Ending, number: int | None, evidence: dict[str, Any]) -> Verdict | None:
    """None when no counter tells of the OOM killer."""
    own = end.cgroup
    if own is not None and own.oom_kills:
        sure: Confidence = "certain" if number == signal.SIGKILL else "inferred"
        whom = "it" if number == signal.SIGKILL else "a process of it"
        held = figures.size(own.high_water_bytes)
        if own.at_cap:
            cap = figures.size(own.cap_bytes)
            sentence = f"the kernel's OOM killer ended {whom} at its own cap: it held {held} of {cap}"
            return Verdict("over_cap", "cgroup_cap", sentence, evidence, sure)
        below = "it had no cap" if own.cap_bytes is None else f"its cap was {figures.size(own.cap_bytes)}"
        sentence = f"the kernel's OOM killer ended {whom} for want of memory around it: it held {held}, and {below}"
        return Verdict("oom_killed", "kernel_oom", sentence, evidence, sure)
    if not end.oom_above:
        return None
    held = f"; it held {figures.size(end.memory_bytes)}" if end.memory_bytes is not None else ""
    if end.status is None and end.report is None:
        sentence = f"its warm server died while the kernel's OOM killer struck, and the cell with it{held}"
        return Verdict("oom_killed", "warm_server_oom_killed", sentence, evidence, "inferred")
    if number == signal.SIGKILL and (own is None or own.oom_kills is None):
        sentence = f"it was killed by SIGKILL while the kernel's OOM killer struck{held}"
        return Verdict("oom_killed", "kernel_oom", sentence, evidence, "inferred")
    return None


def _ended_from_outside(end: Ending, report: dict[str, Any], number: int | None, evidence: dict[str, Any]) -> Verdict:
    if report["outcome"] in ("failed", "yielded"):
        return Verdict(report["outcome"], report["reason_code"], report["reason"], evidence)
    if report["outcome"] == "terminated":
        return Verdict("lost", "terminated", f"{report['reason']}; neither the daemon nor the watchdog asked", evidence)
    return _lost(end, report["reason"], number, evidence)


def _lost(end: Ending, sentence: str, number: int | None, evidence: dict[str, Any]) -> Verdict:
    """The OOM killer sends nothing but SIGKILL, and is only ruled out by a counter of the cell's own."""
    if number != signal.SIGKILL:
        return Verdict("lost", "killed", sentence, evidence)
    if end.cgroup is not None and end.cgroup.oom_kills == 0:
        return Verdict("lost", "killed", f"{sentence}, not by the kernel's OOM killer: no counter moved", evidence)
    told = "no counter of OOM kills moved" if end.cgroup is None else "its cgroup does not count OOM kills"
    return Verdict("lost", "killed", f"{sentence}; {told}", evidence, "inferred")


def _signal(end: Ending) -> int | None:
    """The signal that ended the cell, None for none: of a command, which its runner saw, else of the process itself."""
    if end.report is not None:
        told = (end.report.get("evidence") or {}).get("signal")
        return told if isinstance(told, int) else _shells_signal(end.report)
    if end.status is not None and os.WIFSIGNALED(end.status):
        return os.WTERMSIG(end.status)
    # Its server went before it could tell: the kernel sends the orphan SIGKILL, and so may its OOM killer.
    return int(signal.SIGKILL) if end.status is None else None


def _shells_signal(report: dict[str, Any]) -> int | None:
    code = (report.get("evidence") or {}).get("exit_code")
    return code - 128 if isinstance(code, int) and code - 128 in INTERRUPTING else None


def _name(number: int | None) -> str:
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


def _evidence(end: Ending) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if end.status is not None:
        found["exit_code"] = os.waitstatus_to_exitcode(end.status)
    if end.intent:
        found["asked"] = end.intent
    if end.report is not None:
        found |= end.report.get("evidence") or {}
    if end.memory_bytes is not None:
        found["held_bytes"] = end.memory_bytes
    if end.cap_bytes is not None:
        found |= {"cap_bytes": end.cap_bytes, "capped_by": end.capped_by}
    if end.cgroup is not None:
        found |= end.cgroup.figures()
    if end.oom_above:
        found["oom_killer_struck"] = True
    return found

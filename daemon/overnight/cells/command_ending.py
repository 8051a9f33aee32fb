"""Pure: from how a command left to how its attempt ended.

| what was seen | outcome, reason code |
|---|---|
| exit 0; when it had been asked to leave, only with a result | completed |
| exit 75 | yielded, put_back |
| anything else after it had been asked to leave | terminated (the dispatcher knows by whom) |
| under a limit of its own: words of a refused allocation at the end of stderr | over_cap, memory_error |
| SIGKILL, SIGTERM, SIGINT, SIGHUP from somebody else | lost, killed (the dispatcher looks for an OOM kill first) |
| any other signal | failed, crashed |
| any other exit status | failed, exit_status |
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any

EX_PUT_BACK = 75
"""EX_TEMPFAIL of sysexits.h: "put me back, I go on from my checkpoint"."""

INTERRUPTING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A cell never sends these to itself: somebody else ended it. Any other signal is its own crash."""

_END_CHARACTERS = 2048
_REFUSED = (
    *("memoryerror", "bad_alloc", "cannot allocate memory", "can't allocate memory", "can't start new thread"),
    *("memory exhausted", "memory allocation of", "memory allocation failed", "failed to map segment"),
    *("cannot allocate vector", "(errno=12)", "array buffer allocation failed", "out of memory!"),
)
"""How Python and Java (its OutOfMemoryError), C++, libc, torch, the GNU tools, Rust, the dynamic linker, R, the Java
machine, Node's buffers and Perl say that they were refused memory. In small letters, looked for in the last 2048
characters: an error that was survived earlier explains nothing."""

_LAST_WORDS = ("heap out of memory", "out of memory: cannot allocate", "native memory allocation (")
"""Node, Go and the Java machine die of it, and print a trace of any length behind these."""

_VAGUE = (
    *("out of memory", "not enough memory", "insufficient memory", "enomem", "allocation failed"),
    *("failed to allocate", "unable to allocate", "could not allocate"),
)
"""Enough when it crashed: many a library logs a refusal, goes on, and meets a null pointer."""

_DEVICE = (
    *("cuda out of memory", "cuda error: out of memory", "cuda_error_out_of_memory", "cudaerrormemoryallocation"),
    *("hip out of memory", "hip error: out of memory", "xpu out of memory", "mps backend out of memory"),
)
"""The memory of a graphics card, which no cap of ours is about."""

_LINE_CHARACTERS = 200


@dataclass(frozen=True)
class Ending:
    """How an attempt at a command ended. end_reason, result_sha256 (of result.json): of a completed one."""

    outcome: str
    reason_code: str = ""
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    end_reason: str | None = None
    result_sha256: str | None = None


@dataclass(frozen=True)
class Left:
    """What was seen of the command's end.

    status: its wait status, None when it would not even die of SIGKILL. asked: it had been asked to leave (SIGTERM);
    grace_over: and did not, within `grace_s`. result: it left a result. limited: a limit of its own on its data or
    its address space was in force. stderr: the end of what it wrote there (some 16 KiB, for the long traces).
    """

    status: int | None
    asked: bool = False
    grace_over: bool = False
    grace_s: float = 0.0
    result: bool = False
    limited: bool = False
    stderr: str = ""


def judge(left: Left) -> Ending:
    """Outcome, reason code and sentence, by the table above, the first row that fits."""
    code = exit_code(left.status)
    if code == 0 and (left.result or not left.asked):
        return Ending("completed", end_reason="exited")
    if code == EX_PUT_BACK:
        return Ending("yielded", "put_back", f"the command asked to be put back (exit status {EX_PUT_BACK})")
    if left.asked:
        return Ending("terminated", "terminated", _terminated(left, code))
    if code is None:
        return Ending("lost", "killed", "the command would not die, not even of SIGKILL")
    said = _with(last_line(left.stderr))
    if left.limited and _was_refused(left.stderr.lower(), crashed=code < 0 and -code not in INTERRUPTING):
        return Ending("over_cap", "memory_error", f"the command met its memory cap, and {left_with(code)}{said}")
    if code >= 0:
        return Ending("failed", "exit_status", f"the command {left_with(code)}{said}")
    if -code in INTERRUPTING:
        return Ending("lost", "killed", f"the command was killed by {_name(-code)}")
    return Ending("failed", "crashed", f"the command crashed with {_name(-code)}{said}")


def exit_code(status: int | None) -> int | None:
    """Of a wait status: the exit status, or the negative number of the signal that ended it."""
    return None if status is None else os.waitstatus_to_exitcode(status)


def how(status: int | None) -> dict[str, int]:
    """The same as evidence: {"exit_code": n} or {"signal": n}, nothing when it did not end."""
    code = exit_code(status)
    if code is None:
        return {}
    return {"exit_code": code} if code >= 0 else {"signal": -code}


def left_with(code: int) -> str:
    return f"left with exit status {code}" if code >= 0 else f"was ended by {_name(-code)}"


def last_line(text: str) -> str:
    """The last line that is not blank, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if len(line) <= _LINE_CHARACTERS else f"{line[:_LINE_CHARACTERS]}..."


def _was_refused(said: str, *, crashed: bool) -> bool:
    """said: in small letters. A crash without a word about memory is a crash, whatever limit was in force: most are."""
    end = said[-_END_CHARACTERS:]
    if any(words in end for words in _DEVICE):
        return False
    if any(words in said for words in _LAST_WORDS):
        return True
    return any(words in end for words in ((*_REFUSED, *_VAGUE) if crashed else _REFUSED))


def _terminated(left: Left, code: int | None) -> str:
    if left.grace_over or code is None:
        return f"the command was asked to leave (SIGTERM), did not within {left.grace_s:g} s, and was killed"
    without = " and no result" if code == 0 else ""
    return f"the command was asked to leave (SIGTERM), and {left_with(code)}{without}"


def _with(line: str) -> str:
    return f": {line}" if line else ""


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"

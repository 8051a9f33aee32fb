"""From how a command left to how its attempt ended: the table, row by row."""

from __future__ import annotations

import signal

import pytest

from overnight.cells.command_ending import Left, how, judge, last_line


def exited(code: int) -> int:
    return code << 8


ROWS = [
    (Left(exited(0)), "completed", ""),
    (Left(exited(0), result=True, asked=True), "completed", ""),
    (Left(exited(0), asked=True), "terminated", "terminated"),
    (Left(exited(75)), "yielded", "put_back"),
    (Left(exited(75), asked=True), "yielded", "put_back"),
    (Left(exited(1), asked=True, stderr="MemoryError", limited=True), "terminated", "terminated"),
    (Left(signal.SIGTERM, asked=True), "terminated", "terminated"),
    (Left(signal.SIGSEGV, asked=True), "terminated", "terminated"),
    (Left(None, asked=True, grace_over=True), "terminated", "terminated"),
    (Left(None), "lost", "killed"),
    (Left(exited(1), stderr="Traceback\nMemoryError", limited=True), "over_cap", "memory_error"),
    (Left(exited(1), stderr="Traceback\nMemoryError"), "failed", "exit_status"),
    (Left(signal.SIGABRT, stderr="what():  std::bad_alloc", limited=True), "over_cap", "memory_error"),
    (Left(exited(2), stderr="fatal error: runtime: Cannot allocate memory", limited=True), "over_cap", "memory_error"),
    (Left(exited(1), stderr="RuntimeError: can't start new thread", limited=True), "over_cap", "memory_error"),
    (Left(exited(0), stderr="MemoryError was survived", limited=True), "completed", ""),
    (Left(exited(3)), "failed", "exit_status"),
    (Left(signal.SIGKILL), "lost", "killed"),
    (Left(signal.SIGTERM), "lost", "killed"),
    (Left(signal.SIGINT), "lost", "killed"),
    (Left(signal.SIGHUP), "lost", "killed"),
    (Left(signal.SIGSEGV), "failed", "crashed"),
    (Left(signal.SIGRTMIN + 3), "failed", "crashed"),
]


@pytest.mark.parametrize(("left", "outcome", "code"), ROWS)
def test_the_table(left: Left, outcome: str, code: str) -> None:
    ending = judge(left)
    assert (ending.outcome, ending.reason_code) == (outcome, code)
    assert bool(ending.reason) == (outcome != "completed")
    assert "\n" not in ending.reason


def test_sentences() -> None:
    failed = judge(Left(exited(2), stderr="usage: x\nerror: no such option\n\n"))
    assert failed.reason == "the command left with exit status 2: error: no such option"
    assert judge(Left(signal.SIGSEGV)).reason == "the command crashed with SIGSEGV"
    assert "SIGKILL" in judge(Left(signal.SIGKILL)).reason
    assert judge(Left(signal.SIGRTMIN + 3)).reason == f"the command crashed with signal {signal.SIGRTMIN + 3}"
    assert len(last_line("x" * 1000)) < 250


def test_evidence_of_a_status() -> None:
    assert (how(exited(3)), how(int(signal.SIGKILL)), how(None)) == ({"exit_code": 3}, {"signal": 9}, {})

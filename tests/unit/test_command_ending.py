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


REFUSALS = [
    'Exception in thread "main" java.lang.OutOfMemoryError: Java heap space\n\tat M.main(M.java:1)',
    "# Native memory allocation (mmap) failed to map 16384 bytes. Error detail: committing reserved memory.",
    "OpenJDK warning: INFO: os::commit_memory(0x7f, 6225920, 0) failed; error='Not enough space' (errno=12)",
    "runtime: out of memory: cannot allocate 4194304-byte block (66781184 in use)\nfatal error: out of memory",
    "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory",
    "RangeError: Array buffer allocation failed\n    at createUnsafeBuffer (node:internal/buffer:1063:25)",
    "Error: cannot allocate vector of size 7.5 Gb\nExecution halted",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "bash: fork: Cannot allocate memory",
    "memory allocation of 16777216 bytes failed",
    "Out of memory!",
]


@pytest.mark.parametrize("said", REFUSALS)
@pytest.mark.parametrize("status", [exited(1), int(signal.SIGABRT)])
def test_how_programs_say_that_they_met_a_limit(said: str, status: int) -> None:
    """Without a limit in force it was not ours that they met."""
    ending = judge(Left(status, stderr=said, limited=True))
    assert (ending.outcome, ending.reason_code) == ("over_cap", "memory_error")
    assert judge(Left(status, stderr=said)).outcome == "failed"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
@pytest.mark.parametrize(
    ("said", "outcome", "code"),
    [
        ("", "failed", "crashed"),
        ("free(): double free detected in tcache 2", "failed", "crashed"),
        ("pointer being freed was not allocated", "failed", "crashed"),
        ("load: failed to allocate 3 GB for the index", "over_cap", "memory_error"),
        ("tool: out of memory", "over_cap", "memory_error"),
    ],
)
def test_a_crash_under_a_limit_is_one_unless_memory_is_named(
    number: signal.Signals, said: str, outcome: str, code: str
) -> None:
    ending = judge(Left(number, stderr=said, limited=True))
    assert (ending.outcome, ending.reason_code) == (outcome, code)
    assert judge(Left(number, stderr=said)).reason_code == "crashed"


def test_vague_words_do_not_explain_an_exit_status() -> None:
    assert judge(Left(exited(1), stderr="retrying: failed to allocate a port", limited=True)).outcome == "failed"


@pytest.mark.parametrize(
    "said",
    [
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB",
        "throwing an instance of 'c10::OutOfMemoryError'\n  what():  CUDA out of memory. Tried to allocate 2 GiB",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: HIP out of memory.",
    ],
)
def test_a_graphics_cards_memory_is_no_cap_of_ours(said: str) -> None:
    assert judge(Left(exited(1), stderr=said, limited=True)).reason_code == "exit_status"
    assert judge(Left(signal.SIGABRT, stderr=said, limited=True)).reason_code == "crashed"


def test_a_long_trace_may_follow_last_words_but_not_what_was_survived() -> None:
    trace = "\ngoroutine 1 [running]:" * 300
    assert judge(Left(exited(2), stderr=REFUSALS[3] + trace, limited=True)).outcome == "over_cap"
    assert judge(Left(exited(2), stderr="MemoryError: halved the batch" + trace, limited=True)).outcome == "failed"

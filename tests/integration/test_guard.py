"""`overnight-watchdog guard -- COMMAND...` on real processes: its status, its signals, its memory, its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from helpers.arena import environment
from helpers.memory_cgroup import MemoryCgroup
from helpers.waiting import until

DEADLINE_S = 30.0
MIB = 2**20
PYTHON = (sys.executable, "-S", "-E", "-c")

GROWS = """
import sys, time
until_mib, step, held = float(sys.argv[1]), int(float(sys.argv[2]) * 0.02 * 2**20), []
while True:
    if sum(map(len, held)) < until_mib * 2**20:
        held.append(bytearray(b"x" * step))
    print(sum(map(len, held)) // 2**20, flush=True)
    time.sleep(0.02)
"""
"""Grows to so many MiB at so many MiB/s, and says at each step how far it is. A pause is not made up for."""

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: growing.clear())
growing, held = [1], []
while True:
    if growing:
        held.append(bytearray(b"x" * 2**20))
    time.sleep(0.02)
"""


class Guard:
    """A guard in a session of its own, with the command's output in a file."""

    def __init__(self, folder: Path, *arguments: str, within: Callable[..., list[str]] | None = None) -> None:
        self.out_path, self.err_path = folder / "out", folder / "err"
        command = [sys.executable, "-m", "overnight_watchdog", *arguments]
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                command if within is None else within(*command),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def lines(self) -> list[str]:
        """What the guard itself said, without its name in front."""
        lines = self.err_path.read_text().splitlines()
        assert all(line.startswith("overnight-watchdog: ") for line in lines), lines
        return [line.removeprefix("overnight-watchdog: ") for line in lines]

    def child(self) -> psutil.Process:
        """The command, once it is there."""

        def found() -> psutil.Process | None:
            children = psutil.Process(self.process.pid).children()
            return children[0] if children and "overnight_watchdog" not in children[0].cmdline() else None

        child = until(found, DEADLINE_S, "the command")
        assert child is not None
        return child

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        """Nothing of its session is left."""
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid:
                    process.kill()
            except (psutil.Error, ProcessLookupError):
                continue
        self.process.wait()


Start = Callable[..., Guard]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(*arguments: str, within: Callable[..., list[str]] | None = None) -> Guard:
            guard = Guard(tmp_path, *arguments, within=within)
            stack.callback(guard.end)
            return guard

        yield started


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


# -- its status -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["true"], 0, []),
        (["sh", "-c", "exit 3"], 3, []),
        (["sh", "-c", "exit 255"], 255, []),
        (["sh", "-c", "kill -TERM $$"], 143, []),
        (["sh", "-c", "kill -KILL $$"], 137, []),
        (["sh", "-c", "kill -SEGV $$"], 139, []),
        (["no-such-command"], 127, ["no-such-command: No such file or directory"]),
        (["/"], 126, ["/: Permission denied"]),
    ],
)
def test_its_status_is_the_commands(start: Start, command: list[str], status: int, said: list[str]) -> None:
    guard = start("guard", "--", *command)
    assert guard.wait() == status
    assert guard.lines == said


def test_a_file_that_is_no_program(start: Start, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no program")
    (tmp_path / "notes").chmod(0o755)
    guard = start("guard", "--", str(tmp_path / "notes"))
    assert guard.wait() == 126
    assert guard.lines == [f"{tmp_path}/notes: Exec format error"]


def test_the_commands_words_are_its_own(start: Start) -> None:
    """Options behind the command belong to it, `--` and `--once` too."""
    guard = start("--budget", "1TiB", "guard", "--", "printf", "%s|", "--once", "--", "--budget", "a b", "")
    assert guard.wait() == 0
    assert guard.out == "--once|--|--budget|a b||"


@pytest.mark.parametrize("arguments", [["guard"], ["guard", "--"], ["--budget", "lots", "guard", "--", "true"]])
def test_bad_input_is_one_line(start: Start, arguments: list[str]) -> None:
    guard = start(*arguments)
    assert guard.wait() == 2
    assert len(guard.lines) == 1


def test_the_command_is_run_as_by_a_shell(start: Start) -> None:
    """No signal is ignored or blocked that would not be without the guard; no descriptor of ours is open in it."""
    program = "grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd | wc -l"
    plain = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    guard = start("guard", "--", "sh", "-c", program)
    assert guard.wait() == 0
    assert guard.out == plain.stdout


def test_a_status_is_had_even_when_nobody_waited_for_children_before(start: Start) -> None:
    """Whoever starts it may ignore SIGCHLD, and that is inherited."""
    within = (
        "import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nos.execv(sys.argv[1], sys.argv[1:])",
    )
    guard = start(
        "guard", "--", "sh", "-c", "exit 5", within=lambda *command: [sys.executable, "-c", *within, *command]
    )
    assert guard.wait() == 5
    assert guard.lines == []


# -- signals ----------------------------------------------------------------------------------------------------

TRAPS = "trap 'echo hup' HUP; trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["acting", "dry run"])
def test_a_signal_to_it_is_handed_on(start: Start, options: list[str]) -> None:
    guard = start(*options, "guard", "--", "sh", "-c", TRAPS)
    until(lambda: guard.out == "ready\n", DEADLINE_S)
    guard.process.send_signal(signal.SIGHUP)
    until(lambda: guard.out == "ready\nhup\n", DEADLINE_S)
    guard.process.send_signal(signal.SIGHUP)  # each of them, and not only the first
    until(lambda: guard.out == "ready\nhup\nhup\n", DEADLINE_S)
    guard.process.send_signal(signal.SIGTERM)
    assert guard.wait() == 7
    assert guard.out.endswith("term\n") and guard.lines == []


def test_an_idle_guard_sleeps_also_after_a_signal(start: Start) -> None:
    guard = start("guard", "--", "sh", "-c", TRAPS)
    until(lambda: guard.out == "ready\n", DEADLINE_S)
    guard.process.send_signal(signal.SIGHUP)
    until(lambda: "hup" in guard.out, DEADLINE_S)
    process = psutil.Process(guard.process.pid)
    before, began = process.cpu_times(), time.monotonic()
    until(lambda: time.monotonic() - began > 1.0, DEADLINE_S)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.3


def test_ctrl_c_is_the_terminals_business(start: Start) -> None:
    """It reaches the command by itself: the guard neither dies of it nor sends it a second time."""
    guard = start("guard", "--", "sh", "-c", "trap 'echo int' INT; echo ready; sleep 1; sleep 1; exit 4")
    until(lambda: guard.out == "ready\n", DEADLINE_S)
    os.killpg(guard.process.pid, signal.SIGINT)
    assert guard.wait() == 4
    assert guard.out == "ready\nint\n"


# -- memory -----------------------------------------------------------------------------------------------------


def test_a_command_that_stays_below_its_budget_is_left_alone(start: Start) -> None:
    guard = start("--budget", "400MiB", "guard", "--", "sleep", "0.5")
    assert guard.wait() == 0
    assert guard.lines == []


def test_a_level_of_shrink_kills_nobody_who_does_not_know_of_it(start: Start) -> None:
    """86 % of its budget, and SIGUSR1's default action, which is to die: it sits there as long as it likes."""
    guard = start("--budget", "150MiB", "guard", "--", *PYTHON, GROWS, "124", "60")
    until(lambda: guard.out.endswith(("124\n", "125\n")), DEADLINE_S)
    child = guard.child()
    used = child.memory_info().rss - child.memory_info().shared
    assert 0.85 < used / (150 * MIB) < 0.88, "the test itself aims at the level between shrink and freeze"
    began = time.monotonic()
    until(lambda: gone(child) or time.monotonic() - began > 1.5, DEADLINE_S)
    assert not gone(child) and guard.process.poll() is None
    assert guard.lines == []


@pytest.mark.root
@pytest.mark.parametrize("rate", ["60", "300"])
def test_a_leak_ends_with_a_clear_line(start: Start, cgroup: MemoryCgroup, rate: str) -> None:
    guard = start("--budget", "150MiB", "guard", "--", *PYTHON, GROWS, "100000", rate, within=cgroup.join)
    assert guard.wait() in (143, 137)
    last = guard.lines[-1]
    assert last.startswith(("asked it to leave (SIGTERM): ", "killed it (SIGKILL): "))
    # How fast it goes is known after two looks; a leak that fills the budget between them is taken out all the same.
    assert re.search(r"MiB of 150\.0 MiB are left \(budget\)(, going at \d+\.\d MiB/s)?; it held ", last), last
    assert "[forecast]" not in last or "going at" in last
    assert sum("SIG" in line for line in guard.lines) == 1, guard.lines
    assert cgroup.oom_kills() == 0


@pytest.mark.root
def test_grandchildren_go_with_it(start: Start, cgroup: MemoryCgroup) -> None:
    """The command is a shell that holds nothing; what leaks is its child, beside one that is idle."""
    leak = f"{sys.executable} -S -E -c '{GROWS}' 100000 60"
    guard = start("--budget", "150MiB", "guard", "--", "sh", "-c", f"sleep 600 & {leak} & wait", within=cgroup.join)
    child = guard.child()
    family = until(lambda: len(found := child.children(recursive=True)) == 2 and found, DEADLINE_S)
    assert isinstance(family, list)
    assert guard.wait() in (143, 137)
    until(lambda: all(gone(each) for each in family), DEADLINE_S, "the end of the grandchildren")
    assert cgroup.oom_kills() == 0
    assert not [line for line in guard.lines if "stopped it" in line], "of a tree nobody is frozen (see below)"


SHORT_GRACE = """
import os, sys
from overnight_watchdog import __main__ as program, decide, loop
policy = decide.Policy(command_grace_s=0.5)
loop.Policy = lambda: policy
sys.exit(program.main(sys.argv[1:]))
"""


@pytest.mark.root
def test_a_grandchild_that_will_not_leave_does_not_outlive_the_guard(start: Start, cgroup: MemoryCgroup) -> None:
    """The shell leaves when it is asked; its child, an orphan then, is killed after the grace."""
    stubborn = f"{sys.executable} -S -E -c '{STUBBORN}'"

    def within(python: str, *command: str) -> list[str]:
        return cgroup.join(python, "-c", SHORT_GRACE, *command[2:])

    guard = start("--budget", "150MiB", "guard", "--", "sh", "-c", f"{stubborn} & wait", within=within)
    child = guard.child()
    (orphan,) = until(lambda: child.children(), DEADLINE_S)
    assert guard.wait() == 143
    assert gone(orphan)
    assert [line.split(":")[0] for line in guard.lines] == ["asked it to leave (SIGTERM)", "killed it (SIGKILL)"]


def test_a_dry_run_touches_nobody(start: Start) -> None:
    guard = start("--dry-run", "--budget", "60MiB", "guard", "--", *PYTHON, GROWS, "70", "50")
    until(lambda: guard.out.endswith(("70\n", "71\n")), DEADLINE_S)
    child = guard.child()
    until(lambda: any("would kill it" in line for line in guard.lines), DEADLINE_S)
    assert not gone(child) and not stopped(child)
    assert all(line.startswith("dry run, would ") for line in guard.lines)
    guard.process.terminate()
    assert guard.wait() == 143


# -- the guard's own end ----------------------------------------------------------------------------------------


def frozen_command(start: Start) -> tuple[Guard, psutil.Process]:
    """A guard whose command stands still: it grows through 88 % of the budget, and no further than 97 %."""
    guard = start("--budget", "100MiB", "guard", "--", *PYTHON, GROWS, "91", "40")
    child = guard.child()
    until(lambda: stopped(child), DEADLINE_S, "a freeze")
    return guard, child


def test_a_freeze_is_short_and_told(start: Start) -> None:
    guard, child = frozen_command(start)
    began = time.monotonic()
    until(lambda: gone(child) or not stopped(child), DEADLINE_S)
    assert time.monotonic() - began < 4.0
    assert guard.lines[0].startswith("stopped it for a moment: ")


def test_a_guard_that_is_killed_leaves_nobody_frozen(start: Start) -> None:
    guard, child = frozen_command(start)
    seen = guard.out
    guard.process.kill()
    guard.process.wait(DEADLINE_S)
    until(lambda: not stopped(child), 1.0, "the command goes on")
    until(lambda: guard.out != seen, DEADLINE_S, "and works")
    assert not gone(child)


def test_a_guard_that_is_stopped_and_continued_goes_on(start: Start) -> None:
    guard = start("guard", "--", "sh", "-c", "sleep 0.5; exit 6")
    guard.child()
    guard.process.send_signal(signal.SIGSTOP)
    until(lambda: stopped(psutil.Process(guard.process.pid)), DEADLINE_S)
    guard.process.send_signal(signal.SIGCONT)
    assert guard.wait() == 6


def test_it_needs_no_home_and_leaves_none(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path / "nowhere"))
    assert start("--budget", "400MiB", "guard", "--", "true").wait() == 0
    assert list(empty.iterdir()) == [] and not (tmp_path / "nowhere").exists()


def test_a_terminal_that_takes_nothing_does_not_hold_it_up(cgroup: MemoryCgroup) -> None:
    """stderr is a full pipe that nobody reads: a pager, or Ctrl-S. The leak is ended all the same, and so is it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(write, True)
    command = [sys.executable, "-m", "overnight_watchdog", "--budget", "150MiB", "guard", "--", *PYTHON, GROWS]
    process = subprocess.Popen(
        cgroup.join(*command, "1000", "60"),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=write,
        start_new_session=True,
    )
    try:
        assert process.wait(DEADLINE_S) in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)

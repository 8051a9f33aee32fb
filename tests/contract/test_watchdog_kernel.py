"""What the watchdog asks of the kernel about processes: the real one and the simulated one do the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from helpers.fake_kernel import FakeKernel
from helpers.waiting import until
from overnight_watchdog.act import LinuxKernel
from overnight_watchdog.kernel import Kernel
from overnight_watchdog.tree import start_ticks

HANDLER = (
    "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: None); print('ready', flush=True); sys.stdin.read()"
)
REUSE_DEADLINE_S = 20.0


class World(Protocol):
    """A kernel, and processes to try it on."""

    @property
    def kernel(self) -> Kernel: ...

    def start(self, *, handles_usr1: bool = False) -> tuple[int, int]:
        """(pid, start time) of a new process, which lives until it gets a signal."""
        ...

    def reap(self, pid: int) -> None:
        """Wait for the end of one that was told to."""
        ...


class Simulated:
    def __init__(self, folder: Path) -> None:
        self.kernel = self._machine = FakeKernel(folder)
        self._pid = 100

    def start(self, *, handles_usr1: bool = False) -> tuple[int, int]:
        self._pid += 1
        made = self._machine.start(self._pid, catches=[signal.SIGUSR1] if handles_usr1 else [])
        return made.pid, made.ticks

    def reap(self, pid: int) -> None:
        assert pid not in [each.pid for each in self._machine.processes()]


class Real:
    def __init__(self) -> None:
        self.kernel = LinuxKernel()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *, handles_usr1: bool = False) -> tuple[int, int]:
        command = [sys.executable, "-c", HANDLER] if handles_usr1 else ["sleep", "600"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if handles_usr1:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        self._processes[process.pid] = process
        return process.pid, start_ticks(process.pid)

    def reap(self, pid: int) -> None:
        self._processes[pid].communicate(timeout=15)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()


@pytest.fixture(params=["simulated", "real"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "simulated":
        yield Simulated(tmp_path / "proc")
        return
    real = Real()
    yield real
    real.end()


def opened(world: World, pid: int, ticks: int) -> int:
    pidfd = world.kernel.open(pid, ticks)
    assert pidfd is not None
    return pidfd


def test_pid_and_start_time_together_name_a_process(world: World) -> None:
    pid, ticks = world.start()
    assert world.kernel.open(pid, ticks + 1) is None
    assert world.kernel.open(pid, ticks - 1) is None
    pidfd = opened(world, pid, ticks)
    assert world.kernel.send(pidfd, 0)
    assert not world.kernel.ended(pidfd)
    world.kernel.close(pidfd)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_who_has_ended_is_told_apart_and_never_signalled(world: World, how: signal.Signals) -> None:
    pid, ticks = world.start()
    pidfd = opened(world, pid, ticks)
    assert world.kernel.send(pidfd, how)
    until(lambda: world.kernel.ended(pidfd), 15)
    world.reap(pid)
    assert not world.kernel.send(pidfd, 0)
    assert not world.kernel.send(pidfd, signal.SIGKILL)
    assert world.kernel.open(pid, ticks) is None
    assert not world.kernel.catches(pid, signal.SIGUSR1)
    assert not world.kernel.stopped(pid)
    world.kernel.release(pidfd)
    world.kernel.close(pidfd)


@pytest.mark.parametrize("absurd", [0, -1, 2**22 + 1, 2**31, 2**70])
def test_no_number_upsets_it(world: World, absurd: int) -> None:
    assert world.kernel.open(absurd, 1) is None


def test_whose_handler_is_there_is_seen(world: World) -> None:
    handles, does_not = world.start(handles_usr1=True)[0], world.start()[0]
    assert world.kernel.catches(handles, signal.SIGUSR1)
    assert not world.kernel.catches(handles, signal.SIGUSR2)
    assert not world.kernel.catches(does_not, signal.SIGUSR1)


def test_a_stopped_one_gets_its_sigterm_when_it_is_continued(world: World) -> None:
    pid, ticks = world.start()
    pidfd = opened(world, pid, ticks)
    assert world.kernel.send(pidfd, signal.SIGSTOP)
    until(lambda: world.kernel.stopped(pid), 15)
    assert world.kernel.send(pidfd, signal.SIGTERM)
    assert world.kernel.stopped(pid)
    assert not world.kernel.ended(pidfd)
    assert world.kernel.send(pidfd, signal.SIGCONT)
    until(lambda: world.kernel.ended(pidfd), 15)
    world.kernel.close(pidfd)


def test_a_stopped_one_dies_of_sigkill_at_once(world: World) -> None:
    pid, ticks = world.start()
    pidfd = opened(world, pid, ticks)
    assert world.kernel.send(pidfd, signal.SIGSTOP)
    until(lambda: world.kernel.stopped(pid), 15)
    assert world.kernel.send(pidfd, signal.SIGKILL)
    until(lambda: world.kernel.ended(pidfd), 15)
    world.kernel.close(pidfd)


def test_a_continued_one_goes_on(world: World) -> None:
    pid, ticks = world.start()
    pidfd = opened(world, pid, ticks)
    assert world.kernel.send(pidfd, signal.SIGSTOP)
    until(lambda: world.kernel.stopped(pid), 15)
    assert world.kernel.send(pidfd, signal.SIGCONT)
    until(lambda: not world.kernel.stopped(pid), 15)
    assert not world.kernel.ended(pidfd)
    world.kernel.close(pidfd)


def test_a_zombie_is_nobody_any_more() -> None:
    """Killed, not reaped: its pid is taken, and there is nothing to be signalled."""
    kernel = LinuxKernel()
    process = subprocess.Popen(["sleep", "600"])
    ticks = start_ticks(process.pid)
    process.kill()
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z", 15)
    assert kernel.open(process.pid, ticks) is None
    process.wait()


@pytest.mark.root
def test_a_real_pid_that_is_used_again_is_not_hit() -> None:
    """The kernel is made to give the pid of an ended process to another one; the old pidfd and the old start time
    reach nobody."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not last.exists():
        pytest.skip("this kernel has no ns_last_pid (CONFIG_CHECKPOINT_RESTORE)")
    kernel = LinuxKernel()
    first = subprocess.Popen(["sleep", "600"])
    ticks = start_ticks(first.pid)
    pidfd = kernel.open(first.pid, ticks)
    assert pidfd is not None
    first.kill()
    first.wait()
    deadline = time.monotonic() + REUSE_DEADLINE_S
    while start_ticks(first.pid) <= ticks:  # others fork too: until it works
        if time.monotonic() > deadline:
            pytest.skip("somebody else always got the pid")
        try:
            last.write_text(str(first.pid - 1))
        except OSError as error:
            pytest.skip(f"ns_last_pid cannot be set here: {error}")
        second = subprocess.Popen(["sleep", "600"])
        if second.pid == first.pid and start_ticks(second.pid) > ticks:
            break
        second.kill()
        second.wait()
    try:
        assert second.pid == first.pid
        assert kernel.open(first.pid, ticks) is None
        assert kernel.ended(pidfd)
        assert not kernel.send(pidfd, signal.SIGKILL)
        assert second.poll() is None
        os.kill(second.pid, 0)
    finally:
        second.kill()
        second.wait()
        kernel.close(pidfd)

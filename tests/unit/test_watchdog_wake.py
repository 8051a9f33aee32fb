"""Sleeping, and what ends it: signals, registrations, descriptors, the kernel's word. Nobody here sleeps a second.

A sleep that should end at once is given an hour; the test's own deadline would tell. One that should not is given none.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from helpers.memory_cgroup import MemoryCgroup
from overnight_watchdog.wake import Waker, open_psi_trigger

AN_HOUR_S = 3600.0
SOURCES = str(Path(__file__).resolve().parents[2] / "watchdog")


@pytest.fixture
def waker() -> Iterator[Waker]:
    made = Waker()
    yield made
    made.close()


@pytest.fixture
def handlers() -> Iterator[None]:
    """What `install` changes of this process is put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A sleep that is never ended fails instead of lasting an hour."""

    def too_long(*_: object) -> None:
        raise AssertionError("the sleep was not ended")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def silent(waker: Waker) -> bool:
    """Nothing is pending: a sleep would last."""
    return not waker._poll.poll(0)


# -- signals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_comes_before_the_sleep_ends_it(waker: Waker, handlers: None, number: signal.Signals) -> None:
    """Between the last look at `stop` and the poll there is no gap: the signal lies in a socket already."""
    waker.install()
    os.kill(os.getpid(), number)
    waker.stop, asked = None, waker.stop
    assert asked == number.name
    waker.wait(AN_HOUR_S)
    assert silent(waker)


def test_who_was_asked_to_stop_does_not_sleep_any_more(waker: Waker) -> None:
    waker.stop = "SIGTERM"
    waker.wait(AN_HOUR_S)


SLEEPER = """
import sys
from overnight_watchdog.wake import Waker
waker = Waker()
waker.install()
print("ready", flush=True)
while waker.stop is None:
    waker.wait(3600.0)
print(waker.stop, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_sleeping_process_is_woken_by_a_signal(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], env=os.environ | {"PYTHONPATH": SOURCES}, stdout=subprocess.PIPE, text=True
    ) as sleeper:
        assert sleeper.stdout is not None and sleeper.stdout.readline() == "ready\n"
        sleeper.send_signal(number)
        assert sleeper.stdout.readline() == f"{number.name}\n"
        assert sleeper.wait(10) == 0


def test_what_nohup_has_ignored_stays_ignored(waker: Waker, handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    waker.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert waker.stop is None
    assert silent(waker)


def test_a_hundred_signals_are_one_waking(waker: Waker, handlers: None) -> None:
    waker.install()
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGTERM)
    waker.stop = None
    waker.wait(AN_HOUR_S)
    assert silent(waker)


# -- registrations --------------------------------------------------------------------------------------------


def register(folder: Path, name: str = "77.json") -> None:
    """As the daemon does it: a new file beside it, then one rename."""
    new = folder / f".{name}"
    new.write_text("{}")
    new.rename(folder / name)


def test_a_registration_ends_a_sleep(waker: Waker, tmp_path: Path) -> None:
    assert waker.watch_folder(tmp_path)
    assert silent(waker)
    register(tmp_path)
    waker.wait(AN_HOUR_S)
    assert silent(waker)
    (tmp_path / "77.json").write_text("{...}")
    waker.wait(AN_HOUR_S)
    assert silent(waker)


def test_a_folder_that_is_removed_and_made_again_is_watched_again(waker: Waker, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    assert waker.watch_folder(folder)
    for _ in range(3):
        folder.rmdir()
        waker.wait(AN_HOUR_S)  # its removal is news as well
        assert not waker.watch_folder(folder)
        assert silent(waker)
        folder.mkdir()
        assert waker.watch_folder(folder)
        register(folder)
        waker.wait(AN_HOUR_S)
        (folder / "77.json").unlink()
        waker.wait(AN_HOUR_S)  # one that is taken back is news, too
    assert silent(waker)


def test_a_folder_that_was_moved_away_is_not_the_folder_any_more(waker: Waker, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    waker.watch_folder(folder)
    folder.rename(tmp_path / "aside")
    waker.wait(AN_HOUR_S)
    folder.mkdir()
    assert waker.watch_folder(folder)
    register(folder)
    waker.wait(AN_HOUR_S)
    assert silent(waker)


def test_a_folder_that_comes_later(waker: Waker, tmp_path: Path) -> None:
    assert not waker.watch_folder(tmp_path / "cells")
    (tmp_path / "cells").mkdir()
    assert waker.watch_folder(tmp_path / "cells")
    register(tmp_path / "cells")
    waker.wait(AN_HOUR_S)


def test_many_registrations_at_once_are_one_waking(waker: Waker, tmp_path: Path) -> None:
    waker.watch_folder(tmp_path)
    for number in range(200):
        register(tmp_path, f"{number}.json")
    waker.wait(AN_HOUR_S)
    assert silent(waker)


# -- the kernel's word ----------------------------------------------------------------------------------------


def test_a_kernel_without_psi(waker: Waker, tmp_path: Path) -> None:
    assert not waker.watch_pressure(tmp_path / "pressure" / "memory")
    assert silent(waker)


def test_a_trigger_that_is_refused_leaves_no_descriptor(waker: Waker, tmp_path: Path) -> None:
    """As in a container that may read PSI and no more: the file can be opened, and the write fails."""
    before = psutil.Process().num_fds()
    for refusing in ("/dev/full", str(tmp_path)):
        assert not waker.watch_pressure(Path(refusing))
        with pytest.raises(OSError):
            open_psi_trigger(Path(refusing))
    assert psutil.Process().num_fds() == before


def test_a_trigger_whose_cgroup_is_gone_is_let_go(waker: Waker, tmp_path: Path) -> None:
    """The kernel reports an error on it for ever; a sleep would never last again. A pipe without a reader does too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert waker.watch_pressure(fifo)
    (fd,) = waker._psi
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, fd)
    os.close(writing)
    waker.wait(AN_HOUR_S)
    assert waker._psi == set()
    with pytest.raises(OSError):
        os.fstat(fd)
    assert silent(waker)


def test_the_real_psi_wakes_nobody_while_nothing_stalls(waker: Waker) -> None:
    if not waker.watch_pressure(Path("/proc/pressure/memory")):
        pytest.skip("no PSI here, or no right to a trigger")
    (fd,) = waker._psi
    events = {event for found, event in waker._poll.poll(0) if found == fd}
    assert not any(event & (select.POLLERR | select.POLLNVAL) for event in events)


# -- other descriptors ----------------------------------------------------------------------------------------


def test_the_end_of_a_process_ends_a_sleep(waker: Waker) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    waker.add(pidfd)
    assert silent(waker)
    child.communicate(b"\n")
    waker.wait(AN_HOUR_S)
    waker.remove(pidfd)
    waker.remove(pidfd)
    assert silent(waker)
    os.close(pidfd)


def test_a_descriptor_that_was_closed_does_not_keep_it_awake(waker: Waker) -> None:
    reading, writing = os.pipe()
    waker.add(reading)
    os.close(reading)
    waker.wait(AN_HOUR_S)
    assert silent(waker)
    os.close(writing)


def test_no_time_at_all(waker: Waker) -> None:
    for seconds in (0.0, -1.0):
        waker.wait(seconds)


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    made = Waker()
    made.watch_folder(tmp_path)
    made.watch_pressure(Path("/proc/pressure/memory"))
    made.close()
    assert psutil.Process().num_fds() == before


@pytest.mark.root
def test_a_v1_cgroup_wakes_when_it_fills_up_but_keeps_nobody_awake(cgroup: MemoryCgroup, waker: Waker) -> None:
    if not (cgroup.folder / "cgroup.event_control").exists():
        pytest.skip("no cgroup v1 with notifications here")
    waker.watch_cgroup("cgroup1", cgroup.folder, cgroup.limit_bytes)
    program = f"import sys; held = bytearray({int(0.85 * cgroup.limit_bytes)}); sys.stdin.read()"
    eater = subprocess.Popen(cgroup.join(sys.executable, "-c", program), stdin=subprocess.PIPE, text=True)
    waker.wait(AN_HOUR_S)
    eater.communicate("")  # and it crosses the threshold again, on its way down
    began_s = time.monotonic()
    waker.wait(0.1)
    assert time.monotonic() - began_s >= 0.1
    waker.watch_cgroup("cgroup1", cgroup.folder / "gone", cgroup.limit_bytes)
    waker.wait(0.0)

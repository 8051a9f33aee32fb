"""What our own processes hold, inherited pages counted once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight_watchdog.tree import Process, held_bytes, read_tree, start_ticks

MIB = 2**20


def process(pid: int, parent: int, anonymous: int, *, forked: bool = False, shmem: int = 0) -> Process:
    return Process(pid, parent, forked, anonymous * MIB, shmem * MIB)


SUPERVISORD = process(1, 0, 20)


@pytest.mark.parametrize(
    ("processes", "mib"),
    [
        ([], 0),
        ([SUPERVISORD], 20),
        ([SUPERVISORD, process(2, 1, 30)], 50),
        # a warm server of 600 MiB and two cells that show its pages as theirs
        ([process(2, 1, 600), process(3, 2, 640, forked=True), process(4, 2, 605, forked=True)], 645),
        # a cell that let go of inherited pages gives nothing back
        ([process(2, 1, 600), process(3, 2, 100, forked=True)], 600),
        # a command cell: a child that has called exec owns everything it shows
        ([process(2, 1, 600), process(3, 2, 640)], 1240),
        # its parent is gone: whatever it shows is held by nobody else
        ([process(3, 2, 640, forked=True)], 640),
        ([process(2, 1, 100, shmem=50), process(3, 2, 100, forked=True, shmem=70)], 170),
    ],
)
def test_inherited_pages_count_once(processes: list[Process], mib: int) -> None:
    assert held_bytes(processes) == mib * MIB
    assert held_bytes(reversed(processes)) == mib * MIB


@pytest.fixture
def forked_child() -> Iterator[int]:
    """A child without exec that waits for its pipe to be closed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    yield pid
    os.close(write_end)
    os.waitpid(pid, 0)


def test_a_real_fork_is_seen_as_one(forked_child: int) -> None:
    tree = {process.pid: process for process in read_tree(os.getpid())}
    me, child = tree[os.getpid()], tree[forked_child]
    assert child.forked and child.parent == me.pid
    assert 0.5 < child.anonymous_bytes / me.anonymous_bytes < 1.5  # it shows our pages ...
    assert held_bytes([me, child]) - held_bytes([me]) < 0.5 * me.anonymous_bytes  # ... and they count once


def test_a_process_that_is_gone_holds_nothing(forked_child: int) -> None:
    gone = 2**22 + forked_child  # above the kernel's largest pid
    assert read_tree(gone) == []
    assert start_ticks(gone) == 0


def test_start_ticks_survive_any_command_name(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    behind = " ".join(["S", *(str(number) for number in range(4, 60))])
    (tmp_path / "7" / "stat").write_text(f"7 (a) S 1 (b) {behind}\n")
    assert start_ticks(7, tmp_path) == 22
    (tmp_path / "7" / "stat").write_text("7 (a")
    assert start_ticks(7, tmp_path) == 0


def test_start_ticks_of_this_process() -> None:
    stat = Path("/proc/self/stat").read_text()
    assert start_ticks(os.getpid()) == int(stat.rsplit(")", 1)[1].split()[19])

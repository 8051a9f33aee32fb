"""Whoever tries to get away from the runner of a command cell: daemons, bombs, other users, orphans of a killed one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.command_cell import Run, python, runs
from helpers.memory_cgroup import MemoryCgroup
from helpers.waiting import until
from overnight import procfs
from overnight.cells import command
from overnight.cells.command_tree import descendants, member_of
from overnight.dispatch import leftovers

MIB = 2**20


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with runs(tmp_path) as start:
        yield start


def gone(pid: int) -> bool:
    return member_of(pid) is None


DAEMONISES = """
import os, sys, time
if os.fork():
    os._exit(0) if len(sys.argv) == 1 else time.sleep(100)
os.setsid()
if os.fork():
    os._exit(0)
program = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(100)"
os.execve("/usr/bin/env", ["env", "-i", sys.executable, "-S", "-E", "-c", program], {})
"""


def test_a_daemon_without_environment_ends_with_its_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Double fork, setsid, env -i, and it ignores SIGTERM and keeps the pipes open."""
    monkeypatch.setattr(command, "LEFTOVER_GRACE_S", 0.2)
    waits = "while [ ! -s ../stdout.log ]; do sleep 0.01; done"
    cell = run(["sh", "-c", '"$@"; ' + waits, "sh", *python(DAEMONISES)])
    ending = cell.ended()
    assert (ending.outcome, ending.evidence["leftovers"]) == ("completed", 1)
    assert gone(int(cell.said()))


def test_a_daemon_of_a_terminated_command_is_killed_after_the_grace(run: Run) -> None:
    cell = run(python(DAEMONISES, "stay"), policy={"grace_s": 0.3})
    daemon = int(until(cell.said))
    cell.signal(signal.SIGTERM)
    assert cell.ended().outcome == "terminated"
    assert gone(daemon)


BOMB = """
import os, resource, signal, sys, time
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
    os.setuid(int(sys.argv[1]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
generation = 0
while True:
    try:
        if os.fork() == 0:
            generation += 1
            if generation % 3 == 0:
                os.setsid()
    except OSError:
        time.sleep(0.001)
"""


@pytest.mark.root
def test_a_fork_bomb_ends(run: Run) -> None:
    """Bounded by a limit on processes, below which it grows again as soon as one is killed."""
    cell = run(python(BOMB, "65533"), policy={"grace_s": 0.1})
    until(lambda: len(cell.tree()) > 150)
    cell.signal(signal.SIGTERM)
    ending = cell.ended()
    assert (ending.outcome, ending.evidence) == ("terminated", {"signal": signal.SIGKILL})
    assert not cell.tree()


@pytest.mark.root
@pytest.mark.slow
def test_a_fork_bomb_in_a_full_cgroup_ends(run: Run) -> None:
    """The kernel kills in it all the time, so the command may be gone before it is asked to leave."""
    with MemoryCgroup.made(48 * MIB) as cgroup:
        cell = run(python(BOMB), policy={"grace_s": 0.1}, cgroup=str(cgroup.folder))
        until(lambda: cgroup.oom_kills() > 3)
        cell.signal(signal.SIGTERM)
        ending = cell.ended()
        assert (ending.outcome, ending.evidence["signal"]) in (("terminated", 9), ("lost", 9))
        assert not cell.tree()


def test_200_children_that_the_command_leaves_end(run: Run) -> None:
    cell = run(python("import os, time\nfor _ in range(200):\n    if os.fork() == 0:\n        time.sleep(100)"))
    assert cell.ended().evidence["leftovers"] == 200
    assert not cell.tree()


def test_who_sits_in_the_cgroup_ends_too(run: Run, cgroup: MemoryCgroup) -> None:
    with subprocess.Popen(cgroup.join("sleep", "100")) as stranger:
        until(lambda: stranger.pid in cgroup.pids())
        cell = run(["true"], cgroup=str(cgroup.folder))
        assert cell.ended().evidence["leftovers"] == 1
        assert stranger.wait(10) == -signal.SIGTERM


@pytest.mark.root
def test_another_user_is_found_when_the_runner_was_killed(run: Run) -> None:
    """Changing the user takes the death signal away, as sudo does: the command itself outlives its runner."""
    token = "0123abcd:77"
    cell = run(["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo $$; sleep 100"], token=token, cwd="/")
    leader = int(until(cell.said))
    cell.signal(signal.SIGKILL)
    cell.reap()
    found = [pid for pid, _ in leftovers.find(token)]
    assert leader in found
    assert [pid for pid, _ in leftovers.find("0123abcd") if pid in found] == found
    assert leftovers.find("0123abcd:7") == []
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def test_what_a_killed_runner_leaves_is_found(run: Run) -> None:
    token = "0123abcd:78"
    cell = run("setsid sh -c 'echo $$; exec sleep 100' & wait", token=token)
    orphan = int(until(cell.said))
    leader = next(member.pid for member in descendants(cell.pid))
    cell.signal(signal.SIGKILL)
    cell.reap()
    until(lambda: gone(leader), what="the command has its death signal")
    found = leftovers.find(token)
    assert found == [(orphan, procfs.start_ticks(orphan))]
    os.kill(orphan, signal.SIGKILL)

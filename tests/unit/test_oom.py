"""Which counters of OOM kills are believed, and the cap of a cell without a cgroup."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.fake_machine import V1_MOUNT, FakeMachine
from overnight.dispatch import rlimits
from overnight.dispatch.oom import OomCounts, OomWatch

MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    machine = FakeMachine(tmp_path)
    machine.write("proc/vmstat", "nr_free_pages 5\noom_kill 41\nzswpin 0\n")
    return machine


@pytest.mark.parametrize(
    ("before", "now", "rose"),
    [
        (OomCounts(None, (3,)), OomCounts(None, (3,)), False),
        (OomCounts(None, (3,)), OomCounts(None, (4,)), True),
        (OomCounts(None, (3, 7)), OomCounts(None, (3, 9)), True),
        (OomCounts(1, (3,)), OomCounts(9, (3,)), False),  # somebody else's, elsewhere on the machine
        (OomCounts(1, (None,)), OomCounts(2, (None,)), True),
        (OomCounts(1, (None, 3)), OomCounts(2, (None, 3)), False),
        (OomCounts(1), OomCounts(2), True),
        (OomCounts(2), OomCounts(2), False),
        (OomCounts(None), OomCounts(2), False),
        (OomCounts(None, (3,)), OomCounts(5, (None,)), False),  # the cgroup has gone meanwhile
    ],
)
def test_what_counts_as_a_strike(before: OomCounts, now: OomCounts, rose: bool) -> None:
    assert now.rose_since(before) == rose


def test_the_cgroups_own_counter_is_asked_and_the_machines_where_there_is_none(machine: FakeMachine) -> None:
    v1 = machine.v1("a", limit="max", oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3")
    v2 = machine.v2("b", limit="max", events="max 5\noom 9\noom_kill 8\n", events__local="max 1\noom 2\noom_kill 2\n")
    bare = machine.v2("c", limit="max")
    assert OomWatch([v1, v2, bare], proc_root=machine.proc).look() == OomCounts(None, (3, 2, None))
    assert OomWatch([bare], proc_root=machine.proc).look() == OomCounts(41, (None,))
    assert OomWatch([], proc_root=machine.folder).look() == OomCounts(None, ())


def test_our_own_cgroup_is_found(machine: FakeMachine) -> None:
    folder = machine.v1("x/y", limit="max", oom_control="oom_kill 6")
    (folder / "cgroup.procs").write_text("")
    machine.write("proc/self/cgroup", "4:memory:/x/y\n")
    machine.write("proc/self/mountinfo", V1_MOUNT.format(root="/"))
    assert OomWatch.of_own(proc_root=machine.proc, sys_root=machine.sys).look() == OomCounts(None, (6,))
    machine.write("proc/self/mountinfo", "")
    assert OomWatch.of_own(proc_root=machine.proc, sys_root=machine.sys).look() == OomCounts(41, ())


def test_a_death_that_is_heard_of_late_is_not_missed(machine: FakeMachine) -> None:
    watch = OomWatch([], proc_root=machine.proc)
    assert not watch.struck()  # nothing to compare with
    watch.remember(100.0)
    assert not watch.struck()
    machine.write("proc/vmstat", "oom_kill 42\n")
    for now_s in (101.0, 102.0):
        watch.remember(now_s)  # between the kill and the word of it
        assert watch.struck()
        assert watch.struck()  # of the next cell of the same server, too
    for now_s in (103.0, 104.0, 105.0):
        watch.remember(now_s)
    assert not watch.struck()


# -- RLIMIT_DATA ----------------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> str:
    """What `work` gives, or raises, in a child."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(write, str(work()).encode())
        except MemoryError:
            os.write(write, b"MemoryError")
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    os.waitpid(pid, 0)
    return said


def test_the_cap_is_what_it_may_add_to_what_it_inherited() -> None:
    inherited = bytearray(100 * MIB)

    def hog(mib: int) -> int:
        rlimits.cap_data(64 * MIB)
        return len(bytearray(mib * MIB)) // MIB

    assert forked(lambda: hog(32)) == "32"
    assert forked(lambda: hog(80)) == "MemoryError"
    assert len(inherited) == 100 * MIB


def test_it_is_raised_from_outside() -> None:
    def hog() -> int:
        soft = rlimits.cap_data(32 * MIB)
        raised = rlimits.extend(os.getpid(), 64 * MIB)
        assert raised == soft + 64 * MIB == resource.getrlimit(resource.RLIMIT_DATA)[0]
        return len(bytearray(80 * MIB)) // MIB

    assert forked(hog) == "80"


def test_who_has_no_cap_or_is_gone_is_left_alone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert rlimits.extend(pid, MIB) is None
    assert rlimits.vm_data(pid) is None
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    assert rlimits.extend(os.getpid(), MIB) is None
    held = rlimits.vm_data()
    assert held is not None
    assert held > MIB


def test_a_hard_limit_bounds_it() -> None:
    def cap() -> bool:
        hard = (rlimits.vm_data() or 0) + 48 * MIB
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        return rlimits.cap_data(64 * MIB) == hard and rlimits.extend(os.getpid(), MIB) == hard

    assert forked(cap) == "True"

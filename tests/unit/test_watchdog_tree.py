"""What a process tree holds, inherited pages counted once: on a fake /proc and with real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fake_machine import FakeMachine
from overnight_watchdog.tree import MEMBERS_S, Stat, Tree, descendants, shmem_bytes, start_ticks, stat_of

MIB = 2**20
ROOT = 10


class World(FakeMachine):
    def tree(self, pid: int = ROOT, *, own_root: bool = False, alone: bool = False, cgroup: str = "") -> Tree:
        return Tree(pid, own_root=own_root, alone=alone, cgroup=cgroup, proc_root=self.proc)

    def mib(self, tree: Tree, now_s: float = 0.0) -> int:
        size, rest = divmod(tree.measure(now_s), MIB)
        assert rest == 0
        return size


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


Row = tuple[int, int, int, bool, int]
"""pid, parent, anonymous MiB, forked without an exec, shared MiB"""


@pytest.mark.parametrize(
    ("rows", "mib"),
    [
        ([], 0),
        ([(ROOT, 1, 20, False, 0)], 20),
        ([(ROOT, 1, 20, True, 0)], 20),  # the root's pages are its own, wherever it comes from
        ([(ROOT, 1, 20, False, 0), (12, ROOT, 30, False, 0)], 50),
        # a warm server of 600 MiB and two cells that show its pages as theirs
        ([(ROOT, 1, 600, False, 0), (13, ROOT, 640, True, 0), (14, ROOT, 605, True, 0)], 645),
        # the same two generations down, all of them seen for the first time: supervisord, daemon, warm server, cells
        (
            [
                *((ROOT, 1, 20, False, 0), (11, ROOT, 30, False, 0), (12, 11, 600, False, 0)),
                *((13, 12, 640, True, 0), (14, 12, 605, True, 0)),
            ],
            695,
        ),
        # a chain of forks
        ([(ROOT, 1, 600, False, 0), (12, ROOT, 620, True, 0), (13, 12, 650, True, 0)], 650),
        # a cell that let go of inherited pages gives nothing back
        ([(ROOT, 1, 600, False, 0), (13, ROOT, 100, True, 0)], 600),
        # a command cell: a child that has called exec owns everything it shows
        ([(ROOT, 1, 600, False, 0), (13, ROOT, 640, False, 0)], 1240),
        ([(ROOT, 1, 100, False, 50), (13, ROOT, 100, True, 70)], 220),
        # strangers are nobody's
        ([(ROOT, 1, 20, False, 0), (12, 1, 500, False, 0)], 20),
    ],
)
def test_inherited_pages_count_once(world: World, rows: list[Row], mib: int) -> None:
    for pid, parent, anonymous, forked, shmem in rows:
        world.process(pid, parent, anonymous * MIB, forked=forked, shmem_bytes=shmem * MIB)
    assert world.mib(world.tree()) == mib


def test_a_forked_cells_own_memory_is_what_it_did_not_inherit(world: World) -> None:
    world.process(5, 1, 600 * MIB)
    world.process(ROOT, 5, 640 * MIB, forked=True)
    world.process(11, ROOT, 650 * MIB, forked=True)
    assert world.mib(world.tree(own_root=True)) == 50
    assert world.mib(world.tree(own_root=True, alone=True)) == 40
    assert world.mib(world.tree(alone=True)) == 640


def test_what_it_grows_by_later_is_all_its_own(world: World) -> None:
    """Also when its parent has grown since: what it shares with it was settled at the fork."""
    world.process(5, 1, 600 * MIB)
    world.process(ROOT, 5, 600 * MIB, forked=True)
    tree = world.tree(own_root=True)
    assert world.mib(tree) == 0
    world.holds(ROOT, 700 * MIB)
    world.holds(5, 900 * MIB)
    assert world.mib(tree) == 100
    world.holds(ROOT, 500 * MIB)
    assert world.mib(tree, MEMBERS_S) == 0


def test_first_seen_between_fork_and_exec(world: World) -> None:
    """At first it shows its parent's pages; once it has become another program everything is its own."""
    world.process(ROOT, 1, 500 * MIB)
    world.process(11, ROOT, 500 * MIB, forked=True)
    tree = world.tree()
    assert world.mib(tree) == 500
    world.process(11, ROOT, 400 * MIB)
    assert world.mib(tree, MEMBERS_S) == 900


def test_when_its_parent_is_gone_the_pages_are_its_own(world: World, tmp_path: Path) -> None:
    """A command that daemonised itself: in its cgroup still, below nobody."""
    procs = world.write("cg/cgroup.procs", f"{ROOT}\n11\n12\n")
    world.process(ROOT, 1, 10 * MIB)
    world.process(11, ROOT, 500 * MIB)
    world.process(12, 11, 510 * MIB, forked=True)
    tree = world.tree(cgroup=str(tmp_path / "cg"))
    assert world.mib(tree) == 520
    world.ends(11)
    procs.write_text(f"{ROOT}\n12\n")
    world.process(12, 1, 510 * MIB, forked=True)
    assert world.mib(tree, MEMBERS_S) == 520
    assert [pid for pid, _ in tree.members()] == [ROOT, 12]


def test_shared_memory_is_looked_up_with_the_members_anonymous_memory_at_each_look(world: World) -> None:
    world.process(ROOT, 1, 10 * MIB)
    tree = world.tree()
    assert world.mib(tree) == 10
    world.holds(ROOT, 12 * MIB, shmem_bytes=5 * MIB)
    world.process(11, ROOT, 30 * MIB)
    assert world.mib(tree, MEMBERS_S / 2) == 12
    assert world.mib(tree, MEMBERS_S) == 47


def test_members_come_and_go(world: World) -> None:
    world.process(ROOT, 1, 10 * MIB)
    world.process(11, ROOT, 20 * MIB)
    tree = world.tree()
    assert world.mib(tree) == 30
    assert tree.members() == [(ROOT, 1000 + ROOT), (11, 1011)]
    world.ends(11)
    assert world.mib(tree) == 10  # its open statm says nothing any more
    world.process(12, ROOT, 5 * MIB)
    assert world.mib(tree, MEMBERS_S) == 15
    assert tree.members() == [(ROOT, 1000 + ROOT), (12, 1012)]
    world.ends(12)
    world.ends(ROOT)
    assert world.mib(tree, 2 * MEMBERS_S) == 0
    assert tree.members() == []


def test_a_pid_that_is_used_again_is_another_process(world: World) -> None:
    world.process(ROOT, 1, 100 * MIB)
    world.process(11, ROOT, 100 * MIB, forked=True, start_ticks=1)
    tree = world.tree()
    assert world.mib(tree) == 100
    world.ends(11)
    world.process(11, ROOT, 70 * MIB, start_ticks=2)
    assert world.mib(tree, MEMBERS_S) == 170
    assert (11, 2) in tree.members()


@pytest.mark.parametrize("state", ["Z", "X"])
def test_the_dead_hold_nothing(world: World, state: str) -> None:
    world.process(ROOT, 1, 10 * MIB)
    world.process(11, ROOT, 20 * MIB, state=state)
    assert world.mib(world.tree()) == 10
    assert [pid for pid, _ in world.tree().members()] == []


def test_whoever_is_in_its_cgroup_belongs_to_it(world: World, tmp_path: Path) -> None:
    world.write("cg/cgroup.procs", f"{ROOT}\n77\n0\nx\n78")  # 78 is the beginning of a number that was cut off
    world.process(ROOT, 1, 10 * MIB)
    world.process(77, 1, 20 * MIB)
    world.process(78, 1, 40 * MIB)
    tree = world.tree(cgroup=str(tmp_path / "cg"))
    assert world.mib(tree) == 30
    assert [pid for pid, _ in tree.members()] == [ROOT, 77]
    tree.close()
    assert tree.members() == []


STATS = {
    1: "cache 90\nrss 1\ntotal_cache {file}\ntotal_rss {anon}\ntotal_shmem {shmem}\ntotal_dirty {file}\n",
    2: "anon {anon}\nfile {file}\nkernel {kernel}\nslab_reclaimable 0\nshmem {shmem}\nfile_dirty {file}\n",
}


class Charged:
    """A cgroup of either version around the tree of ROOT; sizes in MiB."""

    def __init__(self, world: World, version: int) -> None:
        self._world, self._version = world, version
        world.process(ROOT, 1, 10 * MIB)
        world.process(11, ROOT, 20 * MIB, shmem_bytes=5 * MIB)
        self.holds()
        self.tree = world.tree(cgroup=str(world.folder / "cg"))

    def holds(self, *, anon: int = 30, shmem: int = 5, kernel: int = 0, file: int = 0) -> None:
        sizes = {"anon": anon, "shmem": shmem, "kernel": kernel, "file": file + shmem}
        sizes = {name: mib * MIB for name, mib in sizes.items()}
        self._world.write("cg/memory.stat", STATS[self._version].format(**sizes))
        self._world.write("cg/memory.kmem.usage_in_bytes", f"{sizes['kernel']}\n")
        self._world.write("cg/cgroup.procs", f"{ROOT}\n11\n")


@pytest.fixture(params=[1, 2])
def charged(world: World, request: pytest.FixtureRequest) -> Charged:
    return Charged(world, request.param)


def test_what_no_process_shows_counts_in_a_cgroup_of_its_own(world: World, charged: Charged) -> None:
    """Files in /dev/shm that nobody has mapped; page tables; but not the files on a disk, clean or not."""
    assert world.mib(charged.tree) == 35
    charged.holds(shmem=1800)
    assert world.mib(charged.tree) == 1830, "at each look, as anonymous memory"
    charged.holds(shmem=1800, kernel=12, file=4000)
    assert world.mib(charged.tree) == 1842
    charged.holds(anon=3, shmem=0)
    assert world.mib(charged.tree) == 35, "what its processes show is the least"


def test_what_the_dead_have_left_in_a_cgroup_is_nobodys_to_give_back(world: World, charged: Charged) -> None:
    charged.holds(shmem=1800)
    for pid in (11, ROOT):
        world.ends(pid)
    world.write("cg/cgroup.procs", "")
    assert world.mib(charged.tree, MEMBERS_S) == 0


def test_without_a_cgroup_or_once_it_is_gone_its_processes_tell(world: World, charged: Charged) -> None:
    charged.holds(shmem=1800)
    assert world.mib(world.tree()) == 35
    for text in ("", "anon", "junk 7\n", f"total_rss {'9' * 50}\n"):
        world.write("cg/memory.stat", text)
        assert world.mib(charged.tree) == 35
    charged.tree.close()
    charged.tree.close()


def test_a_v1_walk_over_very_many_files_is_no_memory_that_a_death_frees(world: World) -> None:
    """As in a limit's own counters: no more kernel memory than the whole machine has pinned."""
    charged = Charged(world, 1)
    world.meminfo(SUnreclaim=50 * MIB, PageTables=10 * MIB)
    charged.holds(anon=30, shmem=5, kernel=700)
    assert world.mib(charged.tree) == 95
    charged.holds(anon=30, shmem=5, kernel=12)
    assert world.mib(charged.tree) == 47


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_read_again_at_its_own_cap(world: World, version: int) -> None:
    stat, limit, usage = {
        1: ("total_rss 1\ntotal_cache 9\ntotal_workingset_refault_file {}\n", "limit_in_bytes", "usage_in_bytes"),
        2: ("anon 1\nfile 9\nworkingset_refault_file {}\n", "max", "current"),
    }[version]

    def found(pages: int, charged: int, cap: int | str) -> int:
        world.write("cg/memory.stat", stat.format(pages))
        world.write(f"cg/memory.{usage}", f"{charged}\n")
        world.write(f"cg/memory.{limit}", f"{cap}\n")
        return tree.refaulted_at_cap()

    tree = world.tree(cgroup=str(world.folder / "cg"))
    assert found(7000, 100, 100) == 0, "another cell's"
    assert found(7010, 100, 100) == 10
    assert found(7015, 95, 200) == 5, "its cap was raised meanwhile"
    assert found(7025, 100, 200) == 0, "there is room under its cap: somebody else throws out its pages"
    assert found(7030, 190, 200) == 5
    assert found(20, 190, 200) == 0, "another counter"
    assert found(30, 30, "max") == 10
    assert found(40, 30, "max") == 0
    world.write("cg/memory.stat", "")
    assert tree.refaulted_at_cap() == 0
    assert world.tree().refaulted_at_cap() == 0
    tree.close()


@pytest.mark.parametrize("cgroup", ["/nowhere", "/\0", "/\ud800", "x" * 5000])
def test_a_cgroup_that_is_none(world: World, cgroup: str) -> None:
    world.process(ROOT, 1, 10 * MIB)
    assert world.mib(world.tree(cgroup=cgroup)) == 10


def test_descendants_are_found_once_parents_first_and_in_circles_too(world: World) -> None:
    world.process(ROOT, 1, MIB)
    for pid, parent in ((11, ROOT), (12, ROOT), (13, 11), (14, 13)):
        world.process(pid, parent, MIB)
    world.write("proc/14/task/14/children", f"{ROOT} 11 junk -3 {'9' * 5000} ")
    world.write(f"proc/{ROOT}/task/99/children", "15 11 ")  # a child of another of its threads
    found = list(descendants(ROOT, world.proc))
    assert sorted(found) == [11, 12, 13, 14, 15]
    assert found.index(11) < found.index(13) < found.index(14)
    assert list(descendants(4711, world.proc)) == []


# -- /proc/PID/stat -------------------------------------------------------------------------------------------


def test_stat(world: World) -> None:
    world.process(7, 3, MIB, forked=True, state="T", start_ticks=222, name="a) S 1 (b")
    assert stat_of(7, world.proc) == Stat("T", 3, forked=True, major_faults=7, start_ticks=222)
    assert start_ticks(7, world.proc) == 222


@pytest.mark.parametrize(
    "text",
    ["", "7 (a", "7 (a) S", "7 (a) S " + "1 " * 10, "7 (a) S " + "x " * 30, "7 (a) S " + "9" * 5000 + " 1" * 30],
)
def test_a_damaged_stat_is_no_process(world: World, text: str) -> None:
    world.write("proc/7/stat", text)
    assert stat_of(7, world.proc) is None
    assert start_ticks(7, world.proc) == 0


@pytest.mark.parametrize(
    "text", ["", "\nRssShmem:", "\nRssShmem:\t kB", "\nRssShmem:\tx kB", "\nRssShmem: " + "9" * 99]
)
def test_a_damaged_status_has_no_shared_memory(world: World, text: str) -> None:
    world.write("proc/7/status", text)
    assert shmem_bytes(7, world.proc) == 0


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["stat", "statm", "status", "task/11/children"]), st.binary(max_size=80), st.integers(0, 80))
def test_damaged_files_of_a_process_never_raise(world: World, name: str, junk: bytes, place: int) -> None:
    world.process(ROOT, 1, 10 * MIB)
    world.process(11, ROOT, 20 * MIB)
    path = world.proc / "11" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + junk + whole[place:])
    tree = world.tree()
    assert tree.measure(0.0) >= 10 * MIB
    tree.close()


# -- real processes -------------------------------------------------------------------------------------------


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
    mine, ours, its = Tree(os.getpid(), alone=True), Tree(os.getpid()), Tree(forked_child, alone=True)
    held = mine.measure(0.0)
    child = stat_of(forked_child)
    assert child is not None and child.forked and child.parent == os.getpid()
    assert 0.5 < its.measure(0.0) / held < 1.5  # it shows our pages ...
    assert ours.measure(0.0) - held < 0.5 * held  # ... and they count once
    assert (forked_child, start_ticks(forked_child)) in ours.members()
    assert Tree(forked_child, own_root=True).measure(0.0) < 0.5 * held


def test_what_a_real_process_shows_is_what_psutil_sees(forked_child: int) -> None:
    """anonymous + shmem, against the kernel's own sums for the same process."""
    memory = psutil.Process(forked_child).memory_info()
    expected = memory.rss - memory.shared + shmem_bytes(forked_child)
    assert abs(Tree(forked_child, alone=True).measure(0.0) - expected) < MIB


def test_a_process_that_is_gone_holds_nothing(forked_child: int) -> None:
    gone = 2**22 + forked_child  # above the kernel's largest pid
    assert Tree(gone).measure(0.0) == 0
    assert start_ticks(gone) == 0
    assert list(descendants(gone)) == []


def test_start_ticks_of_this_process() -> None:
    stat = Path("/proc/self/stat").read_text()
    assert start_ticks(os.getpid()) == int(stat.rsplit(")", 1)[1].split()[19])


def test_the_two_ways_to_find_descendants_agree(forked_child: int) -> None:
    """With /proc/PID/task/TID/children, and by everybody's parent as psutil does it."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("a kernel without CONFIG_PROC_CHILDREN")
    both = psutil.Process().children(recursive=True)
    assert forked_child in {each.pid for each in both}
    assert {each.pid for each in both} == set(descendants(os.getpid()))

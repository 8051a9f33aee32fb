"""The eye on fake machines of all kinds: v1, v2, nested, hybrid, contained, with swap, resized, damaged, gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from helpers.fake_machine import FREE, Watched
from overnight_watchdog.gauges import FOLDERS_S, LIMITS_S, CgroupGauge, Eye, StallGauge, total_us
from overnight_watchdog.sample import SampleError, Usage
from overnight_watchdog.tree import MEMBERS_S

MIB = 2**20
GIB = 2**30


@pytest.fixture
def world(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


# -- kinds of machines ----------------------------------------------------------------------------------------


def test_nothing_but_a_machine(world: Watched) -> None:
    sample = world.eye().look()
    assert (sample.limit_source, sample.limit_bytes, sample.monotonic_s) == ("machine", 16 * GIB, 100.0)
    assert (sample.usage_bytes, sample.headroom_bytes) == (4 * GIB, 12 * GIB)


def test_a_v2_cgroup(world: Watched) -> None:
    world.lives_in(v2="/a")
    world.v2("a", limit=3 * GIB, charged=3 * GIB, stat={"anon": GIB, "file": 2 * GIB, "file_dirty": 512 * MIB})
    sample = world.eye().look()
    assert (sample.limit_source, sample.usage_bytes) == (world.source("a"), GIB + 512 * MIB)
    assert (sample.headroom_bytes, sample.firm_headroom_bytes) == (GIB + 512 * MIB, 2 * GIB)
    assert sample.slow_bytes == 512 * MIB


def test_a_v1_cgroup(world: Watched) -> None:
    world.lives_in(v1="/a")
    stat: dict[str, int] = {"rss": 1, "total_cache": 2 * GIB, "total_rss": GIB, "total_workingset_refault_file": 9}
    world.v1("a", limit=4 * GIB, charged=3 * GIB, kmem__usage_in_bytes=64 * MIB, stat=stat)
    sample = world.eye().look()
    assert (sample.limit_source, sample.usage_bytes) == (world.source("memory/a"), GIB + 64 * MIB)
    assert (sample.headroom_bytes, sample.refaulted_pages) == (3 * GIB - 64 * MIB, 9)


def test_nested_cgroups_and_the_tightest_of_them(world: Watched) -> None:
    world.lives_in(v2="/p/leaf")
    world.v2("p", limit=8 * GIB, charged=8 * GIB, stat={"anon": 8 * GIB - MIB, "file": 0})
    world.v2("p/leaf", limit=4 * GIB, charged=GIB, stat={"anon": GIB, "file": 0})
    sample = world.eye().look()
    assert (sample.limit_bytes, sample.usage_bytes) == (4 * GIB, GIB)
    assert (sample.headroom_bytes, sample.headroom_source) == (MIB, world.source("p"))


def test_a_hybrid_machine_counts_with_v1(world: Watched) -> None:
    world.lives_in(v1="/job", v2="/job", hybrid=True)
    world.write("sys/fs/cgroup/unified/job/cgroup.controllers", "hugetlb\n")
    world.v1("job", limit=2 * GIB, charged=GIB, stat={"total_rss": GIB, "total_cache": 0})
    eye = world.eye()
    assert eye.look().limit_source == world.source("memory/job")
    assert [bound.source for bound in eye.bounds()] == [world.source("memory/job"), "machine"]


@pytest.mark.parametrize("membership", ["/docker/abc", "/", "/../elsewhere"])
def test_a_container_whose_mount_begins_at_its_own_cgroup(world: Watched, membership: str) -> None:
    world.lives_in(v2=membership, root="/docker/abc" if "abc" in membership else "/")
    world.v2("", limit=2 * GIB, charged=GIB, stat={"anon": GIB, "file": 0})
    assert world.eye().look().limit_source == world.source("")


def test_a_container_on_v1(world: Watched) -> None:
    world.lives_in(v1="/docker/abc", root="/docker/abc")
    world.v1("", limit=2 * GIB, charged=GIB, stat={"total_rss": GIB, "total_cache": 0})
    assert world.eye().look().limit_source == world.source("memory")


def test_a_container_that_hides_proc_still_has_its_cgroup(world: Watched) -> None:
    """Such a limit means something only if it is below what is installed, which the kernel tells without /proc."""
    world.write("proc/meminfo", "")
    world.lives_in(v2="/a")
    world.v2("a", limit=64 * MIB, charged=MIB, stat={"anon": MIB, "file": 0})
    assert world.eye().look().headroom_bytes == 63 * MIB


def test_a_machine_and_its_cgroups_that_cannot_be_seen(world: Watched) -> None:
    world.write("proc/meminfo", "")
    with pytest.raises(SampleError, match="meminfo"):
        world.eye().look()


# -- swap -----------------------------------------------------------------------------------------------------


def test_swap_of_the_machine(world: Watched) -> None:
    world.meminfo(**{**FREE, "MemAvailable": GIB, "SwapTotal": 4 * GIB, "SwapFree": 3 * GIB})
    assert world.eye().look().headroom_bytes == 4 * GIB


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, 3 * GIB),  # swap is not accounted for: what the machine has
        ({"swap__max": "max", "swap__current": 0}, 3 * GIB),
        ({"swap__max": GIB, "swap__current": 0}, GIB),
        ({"swap__max": GIB, "swap__current": GIB - MIB}, MIB),
        ({"swap__max": GIB, "swap__current": 2 * GIB}, 0),  # lowered under what is out already
        ({"swap__max": 0, "swap__current": 0}, 0),
        ({"swap__max": 8 * GIB, "swap__current": 0}, 3 * GIB),
        ({"swap__max": "garbage", "swap__current": "garbage"}, 3 * GIB),
    ],
)
def test_swap_of_a_v2_cgroup(world: Watched, files: dict[str, int | str], room: int) -> None:
    world.meminfo(**FREE, SwapTotal=4 * GIB, SwapFree=3 * GIB)
    folder = world.v2("a", limit=8 * GIB, charged=6 * GIB, stat={"anon": 6 * GIB, "file": 0}, **files)
    gauge = CgroupGauge("cgroup2", folder, lambda: 3 * GIB)
    assert gauge.measure() == Usage(6 * GIB, 0, swap_room_bytes=room)
    gauge.close()
    assert CgroupGauge("cgroup2", folder).measure() == Usage(6 * GIB, 0)  # a machine without swap


@pytest.mark.parametrize(
    ("memsw", "swappiness", "room"),
    [
        ((None, None), 60, 3 * GIB),  # swapaccount=0
        ((2**63 - 4096, 6 * GIB), 60, 3 * GIB),
        ((8 * GIB, 6 * GIB), 60, 0),  # memory and swap together are limited to what memory alone may have
        ((10 * GIB, 6 * GIB), 60, 2 * GIB),
        ((10 * GIB, 7 * GIB), 60, GIB),
        ((10 * GIB, 10 * GIB), 60, 0),
        ((64 * GIB, 6 * GIB), 0, 0),  # this cgroup does not swap
        ((64 * GIB, 6 * GIB), 60, 3 * GIB),
    ],
)
def test_swap_of_a_v1_cgroup(world: Watched, memsw: tuple[int | None, int | None], swappiness: int, room: int) -> None:
    folder = world.v1(
        "a", limit=8 * GIB, charged=6 * GIB, stat={"total_rss": 6 * GIB, "total_cache": 0}, swappiness=swappiness
    )
    for name, value in zip(("limit", "usage"), memsw, strict=True):
        if value is not None:
            (folder / f"memory.memsw.{name}_in_bytes").write_text(f"{value}\n")
    gauge = CgroupGauge("cgroup1", folder, lambda: 3 * GIB)
    assert gauge.measure() == Usage(6 * GIB, 0, swap_room_bytes=room)
    gauge.close()


def test_a_cgroup_on_a_machine_with_swap(world: Watched) -> None:
    """The eye hands the machine's free swap on to its cgroups, afresh at each look."""
    world.meminfo(**FREE, SwapTotal=4 * GIB, SwapFree=GIB)
    world.lives_in(v2="/a")
    world.v2("a", limit=4 * GIB, charged=4 * GIB, stat={"anon": 4 * GIB, "file": 0}, swap__max="max", swap__current=0)
    eye = world.eye()
    assert eye.look().headroom_bytes == GIB
    world.meminfo(**FREE, SwapTotal=4 * GIB, SwapFree=0)
    assert eye.look().headroom_bytes == 0


# -- what changes while it runs -------------------------------------------------------------------------------


def test_usage_is_read_at_each_look_limits_once_a_second_cgroups_once_a_minute(world: Watched) -> None:
    world.lives_in(v2="/a")
    world.v2("a", limit=2 * GIB, charged=MIB, stat={"anon": MIB, "file": 0})
    world.v2("b", limit=GIB, charged=0, stat={"anon": 0, "file": 0})
    eye = world.eye()
    assert (eye.look().limit_bytes, eye.look().usage_bytes) == (2 * GIB, MIB)

    world.v2("a", limit=3 * GIB, charged=5 * MIB, stat={"anon": 5 * MIB, "file": 0})
    world.lives_in(v2="/b")
    assert (eye.look().limit_bytes, eye.look().usage_bytes) == (2 * GIB, 5 * MIB)
    world.now_s += LIMITS_S
    assert (eye.look().limit_bytes, eye.look().limit_source) == (3 * GIB, world.source("a"))
    world.now_s = 100.0 + FOLDERS_S
    assert (eye.look().limit_bytes, eye.look().limit_source) == (GIB, world.source("b"))


def test_a_limit_that_is_taken_away_and_given_back(world: Watched) -> None:
    world.lives_in(v2="/a")
    world.v2("a", limit=2 * GIB, charged=MIB, stat={"anon": MIB, "file": 0})
    eye = world.eye()
    seen = []
    for limit in (2 * GIB, "max", GIB, "max"):
        world.v2("a", limit=limit, charged=MIB)
        world.now_s += LIMITS_S
        seen.append(eye.look().limit_bytes)
    assert seen == [2 * GIB, 16 * GIB, GIB, 16 * GIB]


def test_a_cgroup_that_vanishes_between_two_looks_leaves_the_machine(world: Watched) -> None:
    world.lives_in(v2="/a")
    folder = world.v2("a", limit=GIB, charged=GIB, stat={"anon": GIB, "file": 0})
    eye = world.eye()
    assert eye.look().headroom_bytes == 0
    for file in folder.iterdir():
        os.truncate(file, 0)  # an open file of a removed cgroup says nothing any more
        file.unlink()
    folder.rmdir()
    assert (eye.look().limit_source, eye.look().headroom_bytes) == ("machine", 12 * GIB)


def test_a_memory_stat_that_is_damaged_leaves_the_charge(world: Watched) -> None:
    world.lives_in(v2="/a")
    world.v2("a", limit=3 * GIB, charged=GIB, stat={"garbage": 1})
    assert world.eye().look().usage_bytes == GIB


def test_many_looks_open_no_more_files(world: Watched) -> None:
    """Whatever comes and goes: bounds, a budget's folder that is one of those we live in, members of a tree."""
    world.lives_in(v2="/p/leaf")
    world.v2("p", limit=8 * GIB, charged=GIB, stat={"anon": GIB, "file": 0})
    leaf = world.v2("p/leaf", limit=4 * GIB, charged=GIB, stat={"anon": GIB, "file": 0})
    world.process(7, 1, 100 * MIB)
    world.root = 7
    eye = world.eye(budget_bytes=2 * GIB)

    def round_trip() -> int:
        for folder in (str(leaf), "", str(leaf)):
            eye.budget_folder = folder
            for limit in (4 * GIB, "max"):
                world.v2("p", limit=limit, charged=GIB)
                world.now_s += LIMITS_S
                eye.look()
        return psutil.Process().num_fds()

    first = round_trip()
    assert [round_trip() for _ in range(5)] == [first] * 5


# -- the budget -----------------------------------------------------------------------------------------------


def test_a_budget_counts_the_tree_only(world: Watched) -> None:
    world.process(7, 1, 100 * MIB)
    world.process(8, 7, 50 * MIB, shmem_bytes=20 * MIB)
    world.process(9, 1, 900 * MIB)
    world.root = 7
    sample = world.eye(budget_bytes=GIB).look()
    assert (sample.limit_bytes, sample.limit_source, sample.usage_bytes) == (GIB, "budget", 170 * MIB)
    assert (sample.headroom_bytes, sample.firm_headroom_bytes) == (GIB - 170 * MIB, GIB - 170 * MIB)


def test_a_budget_follows_its_root(world: Watched) -> None:
    """supervisord is not there yet, then it is, then it is another one."""
    world.process(7, 1, 100 * MIB)
    world.process(8, 1, 300 * MIB)
    eye = world.eye(budget_bytes=GIB)
    assert eye.look().usage_bytes == 0
    world.root = 7
    assert eye.look().usage_bytes == 100 * MIB
    world.root = 8
    assert eye.look().usage_bytes == 300 * MIB
    world.root = None
    assert eye.look().usage_bytes == 0


def test_a_budget_larger_than_a_cgroup_is_not_the_limit(world: Watched) -> None:
    world.lives_in(v2="/a")
    world.v2("a", limit=GIB, charged=MIB, stat={"anon": MIB, "file": 0})
    assert world.eye(budget_bytes=2 * GIB).look().limit_source == world.source("a")


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_budget_with_a_cgroup_is_counted_by_the_kernel(world: Watched, kind: str) -> None:
    world.process(7, 1, 700 * MIB)
    world.root = 7
    if kind == "v1":
        folder = world.v1("ours", limit=GIB, charged=300 * MIB, stat={"total_rss": 200 * MIB, "total_cache": 0})
    else:
        folder = world.v2("ours", limit=GIB, charged=300 * MIB, stat={"anon": 200 * MIB, "file": 0})
    eye = world.eye(budget_bytes=GIB)
    assert eye.look().usage_bytes == 700 * MIB
    eye.budget_folder = str(folder)  # seen at once, not a second later
    assert (eye.look().usage_bytes, eye.look().limit_source) == (200 * MIB, "budget")
    eye.budget_folder = str(folder.with_name("gone"))
    assert eye.look().usage_bytes == 700 * MIB
    eye.budget_folder = "/\0"  # nonsense in a registration
    assert eye.look().usage_bytes == 700 * MIB


def test_a_budgets_cgroup_that_we_live_in_has_two_limits(world: Watched) -> None:
    """Its own file may say less than the setting; both bind."""
    world.lives_in(v2="/ours")
    folder = world.v2("ours", limit=GIB, charged=300 * MIB, stat={"anon": 300 * MIB, "file": 0})
    eye = world.eye(budget_bytes=2 * GIB)
    eye.budget_folder = str(folder)
    assert [(source, limit) for source, limit, _ in eye.measured()] == [
        (world.source("ours"), GIB),
        ("budget", 2 * GIB),
        ("machine", 16 * GIB),
    ]
    assert {usage.firm_bytes for _, _, usage in eye.measured()} == {300 * MIB, 4 * GIB}


@pytest.mark.parametrize(("root", "used"), [(os.getpid, True), (lambda: None, False)])
def test_this_very_process_against_a_budget(root: Callable[[], int | None], used: bool) -> None:
    sample = Eye(budget_bytes=MIB, tree_root=root).look()
    assert (sample.limit_bytes, sample.limit_source) == (MIB, "budget")
    assert (sample.usage_bytes > MIB) is used
    assert (sample.headroom_bytes == 0) is used


def test_members_of_the_tree_are_looked_up_a_few_times_a_second(world: Watched) -> None:
    world.process(7, 1, 100 * MIB)
    world.root = 7
    eye = world.eye(budget_bytes=GIB)
    assert eye.look().usage_bytes == 100 * MIB
    world.holds(7, 150 * MIB)
    world.process(8, 7, 30 * MIB)
    assert eye.look().usage_bytes == 150 * MIB
    world.now_s += MEMBERS_S
    assert eye.look().usage_bytes == 180 * MIB


# -- stalls and refaults --------------------------------------------------------------------------------------

PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"


def test_stalls_are_those_of_the_limits_own_cgroup_where_it_counts_them(world: Watched) -> None:
    world.write("proc/pressure/memory", PSI.format(111))
    folder = world.v2("a", limit=GIB, pressure="")
    gauge = StallGauge(world.proc)
    assert gauge.stalled_us("") == 111
    assert gauge.stalled_us(str(folder)) == 111
    (folder / "memory.pressure").write_text(PSI.format(222))
    assert gauge.stalled_us(str(folder)) == 222
    assert gauge.stalled_us(f"{folder}/gone") == 111


def test_a_kernel_without_psi_or_refaults(world: Watched) -> None:
    gauge = StallGauge(world.proc)
    assert (gauge.stalled_us(""), gauge.refaulted_pages()) == (None, None)
    world.write("proc/vmstat", "workingset_nodes 5\nworkingset_refault_anon 2\nworkingset_refault_file 40\npgfault 1\n")
    assert gauge.refaulted_pages() == 42
    world.write("proc/vmstat", "workingset_refault 40\n")  # before Linux 5.9
    assert gauge.refaulted_pages() is None


@pytest.mark.parametrize(
    ("data", "total"),
    [
        (PSI.format(123).encode(), 123),
        (b"some avg10=0.00 avg60=0.00 avg300=0.00 total=7", 7),
        *((damaged, None) for damaged in (b"", b"some", b"some total=", b"some total=x\n", b"full total=5\n")),
        (b"some total=" + b"9" * 5000, None),
    ],
)
def test_the_total_of_psi(data: bytes, total: int | None) -> None:
    assert total_us(data) == total

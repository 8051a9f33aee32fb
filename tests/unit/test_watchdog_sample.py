"""What counts as used memory: on the machine, in v1 and v2 cgroups; and which bound is the tightest."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.sample import (
    Sample,
    SampleError,
    Usage,
    bounded,
    cgroup1_usage,
    cgroup2_usage,
    combine,
    left_bytes,
    machine_usage,
)

MIB = 2**20
GIB = 2**30

# A 16 GiB machine: 4 GiB anonymous, 1 GiB shmem (all of it mapped), 2 GiB of mapped files, 6 GiB clean cache,
# 256 MiB dirty, 64 MiB under writeback, 512 MiB reclaimable and 256 MiB other kernel memory, the rest free.
ANON, SHMEM, MAPPED_FILE, CLEAN, DIRTY, WRITEBACK = 4 * GIB, GIB, 2 * GIB, 6 * GIB, 256 * MIB, 64 * MIB
RECLAIMABLE, KERNEL, TOTAL = 512 * MIB, 256 * MIB, 16 * GIB
FILE = MAPPED_FILE + CLEAN + DIRTY + WRITEBACK
MACHINE = {
    "MemTotal": TOTAL,
    "MemFree": TOTAL - ANON - SHMEM - FILE - RECLAIMABLE - KERNEL,
    "Buffers": 128 * MIB,
    "Cached": SHMEM + FILE - 128 * MIB,
    "Shmem": SHMEM,
    "Mapped": MAPPED_FILE + SHMEM,
    "Dirty": DIRTY,
    "Writeback": WRITEBACK,
    "KReclaimable": RECLAIMABLE,
}
FIRM, SLOW = ANON + SHMEM + KERNEL, MAPPED_FILE + DIRTY + WRITEBACK
V1 = {
    "total_rss": ANON,
    "total_cache": SHMEM + FILE,
    "total_shmem": SHMEM,
    "total_mapped_file": MAPPED_FILE + SHMEM,
    "total_dirty": DIRTY,
    "total_writeback": WRITEBACK,
}
V2 = {
    "anon": ANON,
    "file": SHMEM + FILE,
    "shmem": SHMEM,
    "file_mapped": MAPPED_FILE + SHMEM,
    "file_dirty": DIRTY,
    "file_writeback": WRITEBACK,
    "kernel": KERNEL + RECLAIMABLE,
    "slab_reclaimable": RECLAIMABLE,
}


def old(stat: Mapping[str, int], kernel_bytes: int = KERNEL) -> Usage:
    usage = cgroup1_usage(stat, kernel_bytes)
    assert usage is not None
    return usage


def new(stat: Mapping[str, int]) -> Usage:
    usage = cgroup2_usage(stat)
    assert usage is not None
    return usage


def whole(meminfo: Mapping[str, int]) -> Usage:
    usage = machine_usage(meminfo)
    assert usage is not None
    return usage


def test_the_three_ways_of_counting_agree() -> None:
    assert whole(MACHINE) == old(V1) == new(V2) == Usage(FIRM, SLOW)
    assert Usage(FIRM, SLOW).usage_bytes == FIRM + SLOW


@given(st.integers(0, CLEAN // 2))
def test_clean_page_cache_is_not_usage(more: int) -> None:
    """Whoever writes or reads any amount of files, once they are on disk, has used nothing."""
    free = MACHINE["MemFree"] + CLEAN // 2  # so that there is room for that much more
    machine = MACHINE | {"Cached": MACHINE["Cached"] - CLEAN // 2 + more, "MemFree": free - more}
    assert whole(machine) == Usage(FIRM, SLOW)
    assert old(V1 | {"total_cache": V1["total_cache"] + more}) == Usage(FIRM, SLOW)
    assert new(V2 | {"file": V2["file"] + more}) == Usage(FIRM, SLOW)


@pytest.mark.parametrize(
    ("machine", "v1", "v2"),
    [
        ("Dirty", "total_dirty", "file_dirty"),
        ("Writeback", "total_writeback", "file_writeback"),
        ("Mapped", "total_mapped_file", "file_mapped"),
    ],
)
def test_cache_that_cannot_simply_be_dropped_is_usage_but_not_firm(machine: str, v1: str, v2: str) -> None:
    assert whole(MACHINE | {machine: MACHINE[machine] + GIB}) == Usage(FIRM, SLOW + GIB)
    assert old(V1 | {v1: V1[v1] + GIB}) == Usage(FIRM, SLOW + GIB)
    assert new(V2 | {v2: V2[v2] + GIB}) == Usage(FIRM, SLOW + GIB)


@given(st.integers(0, 40 * GIB), st.integers(0, 40 * GIB), st.integers(0, 40 * GIB))
def test_slow_memory_is_never_more_than_there_is_page_cache(mapped: int, dirty: int, writeback: int) -> None:
    """A program that fills the limit with dirty or mapped pages leaves the firm part as it is."""
    machine = whole(MACHINE | {"Mapped": mapped, "Dirty": dirty, "Writeback": writeback})
    v1 = old(V1 | {"total_mapped_file": mapped, "total_dirty": dirty, "total_writeback": writeback})
    v2 = new(V2 | {"file_mapped": mapped, "file_dirty": dirty, "file_writeback": writeback})
    assert machine == v1 == v2
    assert machine.firm_bytes == FIRM
    assert 0 <= machine.slow_bytes <= FILE


def test_mapped_shared_memory_counts_once() -> None:
    """8 GiB of shared buffers, all of them mapped, beside a page cache that would hide a double count."""
    stat = {"anon": 0, "file": 40 * GIB, "shmem": 8 * GIB, "file_mapped": 8 * GIB}
    assert new(stat) == Usage(8 * GIB, 0)
    v1 = {"total_rss": 0, "total_cache": 40 * GIB, "total_shmem": 8 * GIB, "total_mapped_file": 8 * GIB}
    assert old(v1, 0) == Usage(8 * GIB, 0)
    machine = {
        "MemTotal": 64 * GIB,
        "MemFree": 24 * GIB,
        "Cached": 40 * GIB,
        "Shmem": 8 * GIB,
        "Mapped": 8 * GIB,
    }
    assert whole(machine) == Usage(8 * GIB, 0)


def test_a_dirty_mapped_page_counts_once() -> None:
    assert new({"anon": 0, "file": GIB, "file_mapped": GIB, "file_dirty": GIB}) == Usage(0, GIB)


def test_memory_that_no_counter_names_is_used_on_the_machine() -> None:
    """A balloon or a driver takes free pages and shows up nowhere else."""
    assert whole(MACHINE | {"MemFree": MACHINE["MemFree"] - GIB}) == Usage(FIRM + GIB, SLOW)


def test_what_the_kernel_itself_calls_available_is_believed_when_it_is_less() -> None:
    """It knows of reserves that no counter names."""
    assert whole(MACHINE | {"MemAvailable": TOTAL - FIRM - GIB}).firm_bytes == FIRM + GIB
    assert whole(MACHINE | {"MemAvailable": TOTAL}).firm_bytes == FIRM
    assert whole(MACHINE | {"MemAvailable": 0}).firm_bytes == TOTAL


def test_kernels_before_the_kernel_counter() -> None:
    parts = {"slab_unreclaimable": 100, "kernel_stack": 20, "pagetables": 3, "percpu": 4000, "vmalloc": 50000}
    stat = {"anon": 0, "file": 0, **parts, "slab_reclaimable": 999999, "sock": 600000}
    assert new(stat).usage_bytes == 654123
    assert new(stat | {"kernel": 1000000}).usage_bytes == 600001
    assert new(stat | {"kernel": 1}).usage_bytes == 600000  # the counters race: never below nothing


def test_kernels_before_kreclaimable() -> None:
    older = {name: value for name, value in MACHINE.items() if name != "KReclaimable"}
    assert whole(older | {"SReclaimable": RECLAIMABLE}) == Usage(FIRM, SLOW)
    assert whole(older) == Usage(FIRM + RECLAIMABLE, SLOW)


def test_refaults_are_those_of_files_and_of_swap() -> None:
    assert (old(V1).refaulted_pages, new(V2).refaulted_pages) == (None, None)
    v1 = {"total_workingset_refault_file": 5, "total_workingset_refault_anon": 7}
    assert old(V1 | v1).refaulted_pages == 12
    assert new(V2 | {"workingset_refault_file": 5}).refaulted_pages == 5


@pytest.mark.parametrize("missing", ["MemTotal", "MemFree", "Cached"])
def test_a_meminfo_without_the_basics_gives_no_figure(missing: str) -> None:
    assert machine_usage({name: value for name, value in MACHINE.items() if name != missing}) is None


@pytest.mark.parametrize(("total", "free"), [(0, 0), (100, 101), (100, 10**24), (100, 100)])
def test_a_meminfo_that_contradicts_itself_gives_no_figure(total: int, free: int) -> None:
    """More free memory than memory would look like all is well."""
    assert machine_usage({"MemTotal": total, "MemFree": free, "Cached": 0}) is None


def test_a_short_meminfo_as_sandboxes_show_it() -> None:
    assert machine_usage({"MemTotal": 100, "MemFree": 40, "Cached": 30}) == Usage(30, 0)


@pytest.mark.parametrize("name", ["total_rss", "total_cache"])
def test_a_v1_stat_without_the_basics_gives_no_figure(name: str) -> None:
    assert cgroup1_usage({key: value for key, value in V1.items() if key != name}, 0) is None


@pytest.mark.parametrize("name", ["anon", "file"])
def test_a_v2_stat_without_the_basics_gives_no_figure(name: str) -> None:
    assert cgroup2_usage({key: value for key, value in V2.items() if key != name}) is None


def test_swap_is_room() -> None:
    assert whole(MACHINE | {"SwapFree": GIB}) == Usage(FIRM, SLOW, swap_room_bytes=GIB)
    assert left_bytes(10, Usage(7, 2)) == 1
    assert left_bytes(10, Usage(7, 2), firm=True) == 3
    assert left_bytes(10, Usage(7, 2, swap_room_bytes=4)) == 5
    assert left_bytes(10, Usage(7, 2, swap_room_bytes=400)) == 10  # headroom is part of the limit
    assert left_bytes(10, Usage(70, 2, swap_room_bytes=4)) == 0


@pytest.mark.parametrize(
    ("usage", "charged", "found"),
    [
        (None, None, None),
        (None, 7, Usage(7, 0)),  # a damaged memory.stat: the charge is the best figure there is
        (Usage(5, 3), None, Usage(5, 3)),
        (Usage(5, 3), 8, Usage(5, 3)),
        (Usage(5, 3), 100, Usage(5, 3)),  # the rest is clean page cache
        # counters may overlap, or be of a moment ago; what is charged is exact
        (Usage(5, 3, 1, 9), 6, Usage(5, 1, 1, 9)),
        (Usage(5, 3), 4, Usage(4, 0)),
    ],
)
def test_what_is_charged_bounds_what_is_counted(usage: Usage | None, charged: int | None, found: Usage | None) -> None:
    assert bounded(usage, charged) == found


def test_one_bound() -> None:
    sample = combine([("machine", 100, Usage(60, 25, refaulted_pages=3))], 5.0)
    assert sample == Sample(5.0, 100, "machine", 85, 15, "machine", 40, slow_bytes=25, refaulted_pages=3)


def test_a_larger_bound_that_others_have_filled_is_the_tightest() -> None:
    leaf, parent = ("cgroup:/p/leaf", 400, Usage(100, 0)), ("cgroup:/p", 800, Usage(790, 9))
    sample = combine([leaf, parent, ("machine", 1600, Usage(800, 0))], 0.0)
    assert (sample.limit_bytes, sample.limit_source, sample.usage_bytes) == (400, "cgroup:/p/leaf", 100)
    assert (sample.headroom_bytes, sample.headroom_source) == (1, "cgroup:/p")
    assert sample.firm_headroom_bytes == 10


def test_a_bound_that_is_full_of_slow_memory_does_not_hide_one_that_is_full_of_firm() -> None:
    slow, firm = ("cgroup:/a", 400, Usage(10, 389)), ("machine", 1600, Usage(1590, 0))
    sample = combine([slow, firm], 0.0)
    assert (sample.headroom_bytes, sample.headroom_source) == (1, "cgroup:/a")
    assert sample.firm_headroom_bytes == 10


def test_blind_says_so() -> None:
    with pytest.raises(SampleError, match="meminfo"):
        combine([], 0.0)


sizes = st.integers(0, 10**21)
usages = st.builds(Usage, sizes, sizes, sizes)


@given(st.lists(st.tuples(st.just("machine"), st.integers(1, 2**60), usages), min_size=1, max_size=5))
def test_headroom_is_between_nothing_and_the_limit(measured: list[tuple[str, int, Usage]]) -> None:
    measured.sort(key=lambda each: each[1])
    sample = combine(measured, 0.0)
    assert 0 <= sample.headroom_bytes <= sample.firm_headroom_bytes <= sample.limit_bytes


names = st.sampled_from(sorted({*MACHINE, *V1, *V2, "MemAvailable", "SwapFree", "sock", "percpu", "vmalloc"}))


@given(st.dictionaries(names, sizes), st.none() | sizes)
def test_any_figures_give_a_usage_that_is_not_negative_or_none(figures: dict[str, int], charged: int | None) -> None:
    for usage in (machine_usage(figures), cgroup1_usage(figures, figures.get("sock", 0)), cgroup2_usage(figures)):
        found = bounded(usage, charged)
        assert (found is None) is (usage is None and charged is None)
        if found is not None:
            assert min(found.firm_bytes, found.slow_bytes, found.swap_room_bytes) >= 0
            assert charged is None or found.usage_bytes <= charged

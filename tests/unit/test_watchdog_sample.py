"""What counts as used memory: on the machine, in v1 and v2 cgroups; and which bound is the tightest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.limits import Bound
from overnight_watchdog.sample import (
    Sample,
    SampleError,
    cgroup1_usage,
    cgroup2_usage,
    machine_usage,
    parse_meminfo,
    parse_stat,
    slope_bytes_per_s,
    take_sample,
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
USED = ANON + SHMEM + MAPPED_FILE + DIRTY + WRITEBACK + KERNEL
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


def test_the_three_ways_of_counting_agree() -> None:
    assert machine_usage(MACHINE) == USED
    assert cgroup1_usage(V1, KERNEL) == USED
    assert cgroup2_usage(V2) == USED


@given(st.integers(0, 64 * GIB))
def test_clean_page_cache_is_not_usage(more: int) -> None:
    """Whoever writes or reads any amount of files, once they are on disk, has used nothing."""
    assert machine_usage(MACHINE | {"Cached": MACHINE["Cached"] + more, "MemFree": MACHINE["MemFree"] - more}) == USED
    assert cgroup1_usage(V1 | {"total_cache": V1["total_cache"] + more}, KERNEL) == USED
    assert cgroup2_usage(V2 | {"file": V2["file"] + more}) == USED


@pytest.mark.parametrize(
    ("machine", "v1", "v2"),
    [
        ("Dirty", "total_dirty", "file_dirty"),
        ("Writeback", "total_writeback", "file_writeback"),
        ("Mapped", "total_mapped_file", "file_mapped"),
    ],
)
def test_cache_that_cannot_simply_be_dropped_is_usage(machine: str, v1: str, v2: str) -> None:
    assert machine_usage(MACHINE | {machine: MACHINE[machine] + GIB}) == USED + GIB
    assert cgroup1_usage(V1 | {v1: V1[v1] + GIB}, KERNEL) == USED + GIB
    assert cgroup2_usage(V2 | {v2: V2[v2] + GIB}) == USED + GIB


def test_mapped_shared_memory_counts_once() -> None:
    """8 GiB of shared buffers, all of them mapped, beside a page cache that would hide a double count."""
    stat = {"anon": 0, "file": 40 * GIB, "shmem": 8 * GIB, "file_mapped": 8 * GIB}
    assert cgroup2_usage(stat) == 8 * GIB
    old = {"total_rss": 0, "total_cache": 40 * GIB, "total_shmem": 8 * GIB, "total_mapped_file": 8 * GIB}
    assert cgroup1_usage(old, 0) == 8 * GIB
    machine = {
        "MemTotal": 64 * GIB,
        "MemFree": 24 * GIB,
        "Cached": 40 * GIB,
        "Shmem": 8 * GIB,
        "Mapped": 8 * GIB,
    }
    assert machine_usage(machine) == 8 * GIB


def test_a_dirty_mapped_page_counts_once() -> None:
    assert cgroup2_usage({"anon": 0, "file": GIB, "file_mapped": GIB, "file_dirty": GIB}) == GIB


def test_memory_that_no_counter_names_is_used_on_the_machine() -> None:
    """A balloon or a driver takes free pages and shows up nowhere else."""
    assert machine_usage(MACHINE | {"MemFree": MACHINE["MemFree"] - GIB}) == USED + GIB


def test_kernels_before_the_kernel_counter() -> None:
    parts = {"slab_unreclaimable": 100, "kernel_stack": 20, "pagetables": 3, "percpu": 4000, "vmalloc": 50000}
    stat = {"anon": 0, "file": 0, **parts, "slab_reclaimable": 999999, "sock": 600000}
    assert cgroup2_usage(stat) == 654123
    assert cgroup2_usage(stat | {"kernel": 1000000}) == 600001


@pytest.mark.parametrize("missing", ["MemTotal", "MemFree", "Cached"])
def test_a_meminfo_without_the_basics_gives_no_figure(missing: str) -> None:
    assert machine_usage({name: value for name, value in MACHINE.items() if name != missing}) is None


def test_a_short_meminfo_as_sandboxes_show_it() -> None:
    assert machine_usage({"MemTotal": 100, "MemFree": 40, "Cached": 30}) == 30


@pytest.mark.parametrize("name", ["total_rss", "total_cache"])
def test_a_v1_stat_without_the_basics_gives_no_figure(name: str) -> None:
    assert cgroup1_usage({key: value for key, value in V1.items() if key != name}, 0) is None


@pytest.mark.parametrize("name", ["anon", "file"])
def test_a_v2_stat_without_the_basics_gives_no_figure(name: str) -> None:
    assert cgroup2_usage({key: value for key, value in V2.items() if key != name}) is None


def test_parsing_passes_over_damage() -> None:
    assert parse_stat("anon 5\nfile\nshmem x\n\nsock -1\nkernel 7 8\npercpu " + "9" * 5000 + "\nfile 6\n") == {
        "anon": 5,
        "file": 6,
    }
    assert parse_meminfo("MemTotal:  2 kB\nHugePages_Total:  3\nMemFree: x kB\nCached\nShmem:\n") == {
        "MemTotal": 2048,
        "HugePages_Total": 3,
    }


def write_meminfo(proc: Path, figures: dict[str, int]) -> None:
    proc.mkdir(exist_ok=True)
    (proc / "meminfo").write_text("".join(f"{name}: {value // 1024:>10} kB\n" for name, value in figures.items()))


def write_cgroup2(folder: Path, current: int | None, stat: dict[str, int] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if current is not None:
        (folder / "memory.current").write_text(f"{current}\n")
    if stat is not None:
        (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))
    return folder


def test_the_machine_as_the_limit(tmp_path: Path) -> None:
    write_meminfo(tmp_path / "proc", MACHINE)
    sample = take_sample((Bound("machine", TOTAL),), root_pid=None, now_s=5.0, proc_root=tmp_path / "proc")
    assert sample == Sample(5.0, TOTAL, "machine", USED, TOTAL - USED, "machine")


def test_a_cgroup_as_the_limit(tmp_path: Path) -> None:
    write_meminfo(tmp_path / "proc", MACHINE)
    folder = write_cgroup2(tmp_path / "leaf", 3 * GIB, {"anon": GIB, "file": 2 * GIB})
    found = (Bound("cgroup2", 3 * GIB, folder), Bound("machine", TOTAL))
    sample = take_sample(found, root_pid=None, now_s=5.0, proc_root=tmp_path / "proc")
    assert sample == Sample(5.0, 3 * GIB, f"cgroup:{folder}", GIB, 2 * GIB, f"cgroup:{folder}")


def test_a_v1_cgroup_as_the_limit(tmp_path: Path) -> None:
    write_meminfo(tmp_path / "proc", MACHINE)
    folder = tmp_path / "leaf"
    folder.mkdir()
    (folder / "memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    (folder / "memory.kmem.usage_in_bytes").write_text(f"{64 * MIB}\n")
    (folder / "memory.stat").write_text(f"rss 1\ntotal_cache {2 * GIB}\ntotal_rss {GIB}\n")
    found = (Bound("cgroup1", 4 * GIB, folder), Bound("machine", TOTAL))
    sample = take_sample(found, root_pid=None, now_s=5.0, proc_root=tmp_path / "proc")
    assert (sample.usage_bytes, sample.headroom_bytes) == (GIB + 64 * MIB, 3 * GIB - 64 * MIB)


def test_a_larger_bound_that_others_have_filled_is_the_tightest(tmp_path: Path) -> None:
    write_meminfo(tmp_path / "proc", MACHINE)
    leaf = write_cgroup2(tmp_path / "parent" / "leaf", GIB, {"anon": GIB, "file": 0})
    parent = write_cgroup2(tmp_path / "parent", 8 * GIB, {"anon": 8 * GIB - MIB, "file": 0})
    found = (Bound("cgroup2", 4 * GIB, leaf), Bound("cgroup2", 8 * GIB, parent), Bound("machine", TOTAL))
    sample = take_sample(found, root_pid=None, now_s=0.0, proc_root=tmp_path / "proc")
    assert (sample.limit_bytes, sample.limit_source, sample.usage_bytes) == (4 * GIB, f"cgroup:{leaf}", GIB)
    assert (sample.headroom_bytes, sample.headroom_source) == (MIB, f"cgroup:{parent}")


def test_what_is_charged_bounds_what_is_counted(tmp_path: Path) -> None:
    """Counters of memory.stat may overlap; memory.current never does."""
    write_meminfo(tmp_path / "proc", MACHINE)
    folder = write_cgroup2(tmp_path / "leaf", GIB, {"anon": 2 * GIB, "file": 0})
    sample = take_sample((Bound("cgroup2", 3 * GIB, folder),), root_pid=None, now_s=0.0)
    assert sample.usage_bytes == GIB


def test_headroom_is_never_negative(tmp_path: Path) -> None:
    folder = write_cgroup2(tmp_path / "leaf", 3 * GIB, {"anon": 3 * GIB, "file": 0})
    sample = take_sample((Bound("cgroup2", GIB, folder),), root_pid=None, now_s=0.0)
    assert (sample.usage_bytes, sample.headroom_bytes) == (3 * GIB, 0)


def test_a_damaged_stat_leaves_the_charge(tmp_path: Path) -> None:
    folder = write_cgroup2(tmp_path / "leaf", GIB, {"garbage": 1})
    assert take_sample((Bound("cgroup2", 3 * GIB, folder),), root_pid=None, now_s=0.0).usage_bytes == GIB


def test_a_cgroup_that_is_gone_leaves_the_machine(tmp_path: Path) -> None:
    write_meminfo(tmp_path / "proc", MACHINE)
    found = (Bound("cgroup2", GIB, tmp_path / "gone"), Bound("machine", TOTAL))
    sample = take_sample(found, root_pid=None, now_s=0.0, proc_root=tmp_path / "proc")
    assert sample.limit_source == "machine"


def test_blind_says_so(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="meminfo"):
        take_sample((Bound("machine", TOTAL),), root_pid=None, now_s=0.0, proc_root=tmp_path)


def test_slope() -> None:
    def sample(at_s: float, headroom: int, limit: int = GIB, tight: str = "machine") -> Sample:
        return Sample(at_s, limit, "machine", 0, headroom, tight)

    first = sample(10.0, 500)
    assert slope_bytes_per_s(None, first) is None
    assert slope_bytes_per_s(first, sample(12.0, 300)) == 100
    assert slope_bytes_per_s(first, sample(12.0, 700)) == -100
    assert slope_bytes_per_s(first, sample(10.0, 300)) is None
    assert slope_bytes_per_s(first, sample(12.0, 300, limit=2 * GIB)) is None
    assert slope_bytes_per_s(first, sample(12.0, 300, tight="cgroup:/a")) is None

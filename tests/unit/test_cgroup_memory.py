"""What a cgroup holds, from the texts of both versions' files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from overnight.cgroup_memory import (
    PAGE_BYTES,
    CgroupMemory,
    field,
    held1,
    held2,
    pinned_kernel_bytes,
    refaulted,
    version_of,
)

MIB = 2**20
STAT_1 = b"cache 90\nrss 1\nshmem 2\nmapped_file 5\ntotal_cache 90\ntotal_rss 100\ntotal_rss_huge 64\ntotal_shmem 20\n"
STAT_2 = b"anon 100\nfile 90\nkernel 50\nkernel_stack 7\npagetables 3\nsock 4\nshmem 20\nslab_reclaimable 40\n"
OLD_STAT_2 = b"anon 100\nfile 90\nkernel_stack 7\nshmem 20\nslab_reclaimable 40\nslab_unreclaimable 9\n"


def test_anonymous_and_shared_of_the_cgroup_and_its_children() -> None:
    assert held1(STAT_1, 30) == 100 + 20 + 30
    assert held1(b"", 30) is None
    assert held1(b"total_rss 7\n", 0) == 7


def test_kernel_memory_that_cannot_be_reclaimed_counts() -> None:
    assert held2(STAT_2) == 100 + 20 + (50 - 40) + 4
    assert held2(OLD_STAT_2) == 100 + 20 + 7 + 9
    assert held2(b"anon 1\nkernel 3\nslab_reclaimable 4\n") == 1  # two counters that were read a moment apart
    assert held2(b"file 5\n") is None


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        (b"a 1\nab 2\n", b"a", 1),
        (b"ab 2\na 1\n", b"a", 1),
        (b"xa 2\na 1", b"a", 1),
        (b"VmPeak:\t  9 kB\nVmData:\t  1234 kB\n", b"VmData:", 1234),
        (b"VmData:    1234 kB\n", b"VmData:", 1234),
        (b"a max\n", b"a", None),
        (b"a -1\n", b"a", None),
        (b"a 1\n", b"b", None),
        (b"a " + b"9" * 30 + b"\n", b"a", None),
        (b"", b"a", None),
    ],
)
def test_fields(data: bytes, name: bytes, value: int | None) -> None:
    assert field(data, name) == value


@pytest.mark.parametrize(
    ("stat", "version", "pages"),
    [
        (
            b"total_rss 1\nworkingset_refault_file 9\ntotal_workingset_refault_anon 2\ntotal_workingset_refault_file 5",
            1,
            7,
        ),
        (b"anon 1\nworkingset_refault_anon 2\nworkingset_refault_file 5\nworkingset_activate_file 9\n", 2, 7),
        (b"anon 1\nworkingset_refault 5\nworkingset_activate 9\n", 2, 5),  # before Linux 5.9
        (STAT_1, 1, None),
        (STAT_2, 2, None),
        (b"", 2, None),
    ],
)
def test_refaults_of_either_version(stat: bytes, version: Literal[1, 2], pages: int | None) -> None:
    assert refaulted(stat, version) == (None if pages is None else pages * PAGE_BYTES)


def test_refaults_are_those_of_the_last_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.stat").write_bytes(STAT_2 + b"workingset_refault_file 5\n")
    memory, reads, pread = CgroupMemory(tmp_path), [], os.pread
    monkeypatch.setattr(os, "pread", lambda *how: (reads.append(how), pread(*how))[1])
    assert memory.refaulted_bytes() is None
    assert (memory.read(), memory.refaulted_bytes(), len(reads)) == (134, 5 * PAGE_BYTES, 1)
    (tmp_path / "memory.stat").write_bytes(STAT_2)
    assert memory.refaulted_bytes() == 5 * PAGE_BYTES
    assert (memory.read(), memory.refaulted_bytes()) == (134, None)
    memory.close()


def test_a_walk_over_very_many_files_is_no_memory_of_the_cells(tmp_path: Path) -> None:
    """v1 does not tell which kernel memory could be reclaimed; the machine tells how much cannot be."""
    (tmp_path / "memory.limit_in_bytes").write_text("max")
    (tmp_path / "memory.stat").write_text(f"total_rss {100 * MIB}\n")
    kernel = tmp_path / "memory.kmem.usage_in_bytes"
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nSUnreclaim:  81920 kB\nPageTables:  20480 kB\n")
    memory = CgroupMemory(tmp_path, proc_root=tmp_path)
    found = []
    for mib in (5, 60, 90, 100, 700):
        kernel.write_text(f"{mib * MIB}\n")
        found.append(memory.read())
    assert found == [mib * MIB for mib in (105, 160, 190, 200, 200)]
    assert pinned_kernel_bytes(b"MemTotal: 9 kB\n") is None


def test_one_that_is_gone_says_nothing_and_one_that_comes_is_read(tmp_path: Path) -> None:
    memory = CgroupMemory(tmp_path / "cell-1")
    assert memory.read() is None
    (tmp_path / "cell-1").mkdir()
    (tmp_path / "cell-1/memory.stat").write_bytes(STAT_2)
    assert version_of(tmp_path / "cell-1") == 2
    assert memory.read() == 134
    (tmp_path / "cell-1/memory.stat").write_bytes(b"")
    assert memory.read() is None
    memory.close()

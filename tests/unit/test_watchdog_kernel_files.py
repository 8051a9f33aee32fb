"""Small files of the kernel: opened once, and never believed when they are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.kernel_files import KernelFile, named_numbers, whole_number


def test_it_is_opened_once_and_read_afresh(tmp_path: Path) -> None:
    path = tmp_path / "memory.current"
    path.write_text("5\n")
    file = KernelFile(path)
    before = psutil.Process().num_fds()
    assert file.number() == 5
    path.write_text("12345\n")
    assert file.number() == 12345
    path.write_text("7\n")
    assert file.number() == 7
    assert psutil.Process().num_fds() == before + 1
    file.close()
    file.close()
    assert psutil.Process().num_fds() == before


def test_a_file_that_comes_later_is_found(tmp_path: Path) -> None:
    file = KernelFile(tmp_path / "later")
    assert (file.read(), file.number()) == (b"", None)
    (tmp_path / "later").write_text("5")
    assert file.number() == 5
    file.close()


def test_a_descriptor_that_went_bad_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a removed cgroup's does (ENODEV) and a dead process's (ESRCH)."""

    def gone(*_: object) -> bytes:
        raise OSError(19, "No such device")

    path = tmp_path / "memory.stat"
    path.write_text("anon 5\n")
    file = KernelFile(path)
    assert file.read() == b"anon 5\n"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", gone)
        assert file.read() == b""
    path.unlink()
    path.write_text("anon 6\n")
    assert file.read() == b"anon 6\n"
    file.close()


@pytest.mark.parametrize("path", ["", "/", "/\0", "/\ud800", "/" + "x" * 5000, "/proc/1/nothing"])
def test_no_path_is_too_odd(path: str) -> None:
    assert KernelFile(path).read() == b""


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("18446744073709551615", 2**64 - 1), ("007", 7)]
    + [(bad, None) for bad in ("", "max", "-1", "+1", "1.5", "1 2", "1_000", "0x10", "\u0663", "²", "9" * 21)],
)
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number
    assert whole_number(text.encode()) == number


MEMINFO = b"MemTotal:       2 kB\nHugePages_Total:  3\nMemFree: x kB\nCached\nShmem:\nDirty:      7 kB"


def test_names_are_found_at_the_beginnings_of_lines() -> None:
    names = (b"MemTotal:", b"MemFree:", b"Cached:", b"Shmem:", b"Dirty:", b"Total:", b"Active:")
    assert named_numbers(MEMINFO, names, scale=1024) == {"MemTotal": 2048, "Dirty": 7168}


def test_a_name_is_not_part_of_another() -> None:
    stat = b"inactive_anon 1\nanon 2\nanon_thp 3\ntotal_rss 4\nrss 5\nrss_huge 6\n"
    assert named_numbers(stat, (b"anon ", b"rss ", b"total_rss ")) == {"anon": 2, "rss": 5, "total_rss": 4}


def test_parsing_passes_over_damage() -> None:
    stat = b"anon 5\nfile\nshmem x\n\nsock -1\npercpu " + b"9" * 5000 + b"\nfile_dirty \nkernel 8"
    names = tuple(f"{name} ".encode() for name in ("anon", "file", "shmem", "sock", "percpu", "file_dirty", "kernel"))
    assert named_numbers(stat, names) == {"anon": 5, "kernel": 8}
    assert named_numbers(b"", names) == {}


@given(st.binary())
def test_any_bytes_give_numbers_or_nothing(data: bytes) -> None:
    for content in (data, b"anon " + data, b"anon 5\nfile " + data + b"\nshmem 6\n"):
        found = named_numbers(content, (b"anon ", b"file ", b"shmem "))
        assert all(0 <= number < 10**20 for number in found.values())

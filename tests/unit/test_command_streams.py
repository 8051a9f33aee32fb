"""Logs of bounded size that never hold anybody up, and the ends of streams in bounded memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from overnight.cells.command_streams import Log, Stream, Tail


def test_a_log_is_appended_to_and_rotated(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    for line in (b"1111\n", b"2222\n", b"3333\n", b"4444\n", b"5555\n"):
        log = Log(path, limit_bytes=8, kept=2)
        log.append(line)
        log.close()
    assert path.read_bytes() == b"5555\n"
    assert (tmp_path / "out.log.1").read_bytes() == b"4444\n"
    assert (tmp_path / "out.log.2").read_bytes() == b"3333\n"
    assert len(list(tmp_path.iterdir())) == 3


class FullDisk:
    """Takes `room` bytes, then none until there is more room."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(fd, data[: min(self.room, 3)])
        self.room -= written
        return written


def test_what_a_full_disk_refuses_is_dropped_and_counted(tmp_path: Path) -> None:
    disk = FullDisk(6)
    log = Log(tmp_path / "out.log", write=disk.write)
    log.append(b"12345678")
    log.append(b"abc")
    assert log.lost_bytes == 5
    disk.room = 100
    log.append(b"xyz")
    assert log.lost_bytes == 5
    assert (tmp_path / "out.log").read_bytes() == b"123456xyz"


def test_a_log_that_cannot_be_opened_counts_all(tmp_path: Path) -> None:
    log = Log(tmp_path / "no" / "out.log")
    log.append(b"1234")
    (tmp_path / "no").mkdir()
    log.append(b"56")
    assert log.lost_bytes == 4
    assert (tmp_path / "no" / "out.log").read_bytes() == b"56"


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ([b""], b""),
        ([b"one\ntwo\n"], b"two"),
        ([b"one\ntwo"], b"two"),
        ([b"one\nt", b"wo\n \n\n"], b"two"),
        ([b"x" * 10], b"x" * 10),
        ([b"x" * 11], None),
        ([b"one\n", b"x" * 11], None),
        ([b"y" * 9 + b"\n"] * 50, b"y" * 9),
        ([b"y" * 50, b"y" * 50, b"\nlast\n"], b"last"),
        ([b"y" * 50, b"y" * 50, b"\n"], None),
    ],
)
def test_the_last_line(pieces: list[bytes], line: bytes | None) -> None:
    tail = Tail(10)
    for piece in pieces:
        tail.feed(piece)
    assert tail.last_line() == line


def test_a_tail_keeps_a_bounded_end() -> None:
    tail = Tail(100)
    for number in range(1000):
        tail.feed(b"%d\n" % number)
    assert tail.text().endswith("998\n999")
    assert len(tail.text()) <= 100


def test_a_stream_reads_what_there_is_and_closes_at_the_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    stream = Stream(reader, Log(tmp_path / "out.log"), Tail(100))
    assert not stream.take()
    os.write(writer, b"hello\n")
    assert stream.take()
    assert not stream.take()
    assert stream.fd == reader
    os.close(writer)
    assert not stream.take()
    assert stream.fd == -1
    assert (tmp_path / "out.log").read_bytes() == b"hello\n"

"""The transcript: sealed lines, torn tails, corrupt middles, one writer, full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight import durable
from overnight.cells import transcript
from overnight.cells.transcript import Transcript
from overnight.errors import Busy, NoSpace, TranscriptCorrupt


def write(path: Path, turns: int) -> list[bytes]:
    """A whole transcript; returns its lines."""
    writer = Transcript.open(path)
    assert list(writer.records()) == []
    writer.write_header({"spec": {"key": "k"}, "conditions": {}})
    for number in range(turns):
        writer.append({"reply": f"rëply\n{number}", "reply_ids": [number]})
    writer.close()
    return path.read_bytes().splitlines(keepends=True)


def resume(path: Path) -> tuple[int, Transcript]:
    writer = Transcript.open(path)
    return sum(1 for _ in writer.records()), writer


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "transcript.jsonl"
    lines = write(path, 3)
    records = [json.loads(line) for line in lines]
    assert [record["kind"] for record in records] == ["header", "turn", "turn", "turn"]
    assert [record.get("turn") for record in records] == [None, 1, 2, 3]
    seen = transcript.check(path)
    assert (seen.turns, seen.fault, seen.has_header) == (3, None, True)


def test_hash_kept_while_writing_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    write(path, 2)
    count, writer = resume(path)
    assert count == 3
    writer.append({"reply": "more"})
    assert writer.sha256 == transcript.check(path).sha256
    writer.close()


def test_interrupted_and_undisturbed_have_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write(whole, 3)
    write(broken, 2)
    _, writer = resume(broken)
    writer.append({"reply": "rëply\n2", "reply_ids": [2]})
    writer.close()
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("ending", [b"", b"\n", b"\0" * 700, b"\0" * 700 + b"\n", b"\n\0\0\n", b"x\n\n"])
def test_torn_last_line_at_each_offset_is_cut_and_kept_beside(tmp_path: Path, ending: bytes) -> None:
    path = tmp_path / "transcript.jsonl"
    lines = write(path, 2)
    good = b"".join(lines[:-1])
    for length in range(len(lines[-1]) - 1):
        tail = lines[-1][:length] + ending
        path.write_bytes(good + tail)
        for old in tmp_path.glob("*.cut-*"):
            old.unlink()
        count, writer = resume(path)
        writer.close()
        assert count == 2
        assert path.read_bytes() == good
        kept = [file.read_bytes() for file in tmp_path.glob("*.cut-*")]
        assert kept == ([tail] if tail else [])


def test_a_line_without_its_newline_is_cut_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    lines = write(path, 1)
    path.write_bytes(b"".join(lines)[:-1])
    count, writer = resume(path)
    writer.close()
    assert count == 1
    assert path.read_bytes() == lines[0]


def test_second_cut_does_not_overwrite_the_first(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    write(path, 1)
    for tail in (b"first", b"second"):
        with path.open("ab") as stream:
            stream.write(tail)
        resume(path)[1].close()
    assert sorted(file.read_bytes() for file in tmp_path.glob("*.cut-*")) == [b"first", b"second"]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flip") / "transcript.jsonl"
    lines = write(path, 3)
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    fault = transcript.check(path).fault
    assert fault is not None
    if at >= sum(len(line) for line in lines[:-1]):
        assert fault.torn_tail  # the last line: cut off, and produced again
    else:
        before = path.read_bytes()
        with pytest.raises(TranscriptCorrupt, match="nothing was changed"):
            resume(path)
        assert path.read_bytes() == before
        assert list(path.parent.glob("*.cut-*")) == []


@pytest.mark.parametrize("change", ["swap", "drop", "double"])
def test_whole_lines_in_the_wrong_place_are_corrupt(tmp_path: Path, change: str) -> None:
    path = tmp_path / "transcript.jsonl"
    header, one, two, three = write(path, 3)
    order = {
        "swap": [header, two, one, three],
        "drop": [header, two, three],
        "double": [header, one, one, two],
    }
    path.write_bytes(b"".join(order[change]))
    with pytest.raises(TranscriptCorrupt):
        resume(path)


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    first = Transcript.open(path)
    with pytest.raises(Busy, match="another process"):
        Transcript.open(path, wait_s=0.0)
    first.close()
    Transcript.open(path, wait_s=0.0).close()


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "transcript.jsonl"
    before = b"".join(write(path, 1))
    _, writer = resume(path)
    real_write = os.write

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        calls = iter([10])

        def once(fd: int, data: bytes) -> int:
            for amount in calls:
                return real_write(fd, bytes(data[:amount]))
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", once)
    else:
        monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(NoSpace, match="every finished turn is on disk"):
        writer.append({"reply": "too much"})
    writer.close()
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert writer.turns == 1

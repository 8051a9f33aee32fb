"""var/run/verdicts.ring as the watchdog writes it: its size, its sequence, its damage, its disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.journal import checksum
from overnight_watchdog.verdicts import RECORD_BYTES, RECORDS, VerdictRing, read_ring

BOOT = "4c1f0c5e-5f0f-4d2e-9c43-6b5a6d1f2e3a"


def record(number: int = 1, **changes: Any) -> dict[str, Any]:
    """What the loop hands over, the largest figures that it can have."""
    return {
        "monotonic_s": 123456.789012,
        "wall_s": 1700000000.123,
        "pid": 4194304,
        "start_ticks": 10**12,
        "role": "command",
        "cell": f"night/cell_{number}",
        "attempt": number,
        "step": "restart",
        "trigger": "grace_over",
        "level": "shrink",
        "limit_bytes": 2**48,
        "limit_source": "cgroup:/sys/fs/cgroup/memory/x",
        "headroom_bytes": 2**48,
        "slope_bytes_per_s": -(2**48),
        "exhaustion_s": 86400.123,
        "own_bytes": 2**48,
        "peak_bytes": 2**48,
        "loss_s": 1234567.123,
    } | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "verdicts.ring"


@pytest.fixture
def ring(path: Path) -> VerdictRing:
    made = VerdictRing(path, BOOT)
    assert made.open()
    return made


def attempts(path: Path) -> list[int]:
    """Of all whole records, oldest first."""
    return [each["attempt"] for each in sorted(read_ring(path.read_bytes()), key=lambda each: each["sequence"])]


def test_64_slots_of_1024_bytes_are_there_from_the_start(ring: VerdictRing, path: Path) -> None:
    assert path.stat().st_size == 64 * 1024
    assert path.stat().st_blocks * 512 >= 64 * 1024, "allocated, so that a full disk cannot refuse a verdict"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_ring(path.read_bytes()) == []


def test_a_record_is_a_whole_slot(ring: VerdictRing, path: Path) -> None:
    assert ring.write(record())
    data = path.read_bytes()
    slot = data[:1024]
    assert slot.endswith(b" \n") and b"\n" not in slot[:-1] and not data[1024:].strip(b"\0")
    found = json.loads(slot)
    assert found == record() | {"v": 1, "boot_id": BOOT, "sequence": 1, "checksum": found["checksum"]}
    assert found["checksum"] == checksum(found)
    assert slot.rstrip().decode() == json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_the_oldest_makes_room(ring: VerdictRing, path: Path) -> None:
    for number in range(1, 200):
        assert ring.write(record(number))
        assert attempts(path) == list(range(max(1, number - RECORDS + 1), number + 1))
    assert path.stat().st_size == RECORDS * RECORD_BYTES


def test_the_sequence_goes_on_after_a_restart_and_under_another_boot(path: Path) -> None:
    for number in range(1, 131):
        ring = VerdictRing(path, BOOT if number < 100 else "another boot")
        assert ring.open()
        assert ring.write(record(number))
        ring.close()
    found = sorted(read_ring(path.read_bytes()), key=lambda each: each["sequence"])
    assert [each["sequence"] for each in found] == [each["attempt"] for each in found] == list(range(67, 131))


@given(
    cut=st.integers(0, RECORD_BYTES - 2),
    which=st.integers(0, 4),
    rest=st.sampled_from([b"", b"\0", b" ", b"x", b"{"]),
)
def test_a_torn_slot_hides_only_itself(
    tmp_path_factory: pytest.TempPathFactory, cut: int, which: int, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.ring"
    path.unlink(missing_ok=True)
    ring = VerdictRing(path, BOOT)
    ring.open()
    for number in range(5):
        ring.write(record(number))
    ring.close()
    data = bytearray(path.read_bytes())
    start = which * RECORD_BYTES
    text = len(data[start : start + RECORD_BYTES].rstrip())
    data[start + cut : start + RECORD_BYTES] = (rest * RECORD_BYTES)[: RECORD_BYTES - cut].ljust(RECORD_BYTES - cut)
    path.write_bytes(data)
    found = attempts(path)
    assert [number for number in found if number != which] == [number for number in range(5) if number != which]
    assert which not in found or cut >= text
    # and the next one goes on behind the newest that is whole
    ring = VerdictRing(path, BOOT)
    assert ring.open()
    before = ring.sequence
    assert before == max((number + 1 for number in found), default=0)
    assert ring.write(record(9))
    assert max(each["sequence"] for each in read_ring(path.read_bytes())) == before + 1
    ring.close()


@given(st.binary(max_size=4000))
def test_any_file_can_be_read(data: bytes) -> None:
    assert read_ring(data) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 10, b"[" * 65536, b"\0" * 65536, b"7\n" * 32768, b"{}" * 100_000, b'{"checksum":1}'.ljust(1024)],
)
def test_a_file_that_is_none_becomes_one(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    ring = VerdictRing(path, BOOT)
    assert ring.open() and ring.write(record(3))
    assert path.stat().st_size == RECORDS * RECORD_BYTES
    assert attempts(path) == [3]


@pytest.mark.parametrize("clear", [Path.unlink, lambda path: path.rename(path.with_name("away"))])
def test_a_file_that_is_taken_away_is_made_again(
    ring: VerdictRing, path: Path, clear: Callable[[Path], object]
) -> None:
    """A renamed one is still written to: it may be on its way to somebody who collects evidence."""
    assert ring.write(record(1))
    clear(path)
    assert ring.write(record(2))
    if path.exists():
        assert attempts(path) == [2]
        assert read_ring(path.read_bytes())[0]["sequence"] == 2
    else:
        assert attempts(path.with_name("away")) == [1, 2]


def test_a_folder_that_is_taken_away_is_made_again(ring: VerdictRing, path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    assert ring.write(record(2))
    assert attempts(path) == [2]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_at_the_start_is_tried_again_at_each_verdict(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    ring = VerdictRing(path, BOOT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refused)
        assert not ring.open()
        assert not ring.write(record(1))
        assert ring.sequence == 0
    assert ring.write(record(2))
    assert attempts(path) == [2]


def test_what_was_there_before_a_full_disk_is_gone_on_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring cannot be opened at the start; when it can, its records are not taken for older than they are."""
    first = VerdictRing(path, BOOT)
    first.open()
    for number in range(1, 11):
        first.write(record(number))
    first.close()
    ring = VerdictRing(path, BOOT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EMFILE, "too many")))
        assert not ring.open()
    assert ring.write(record(11))
    assert attempts(path) == list(range(1, 12))


def test_a_write_that_fails_is_no_exception_and_the_next_one_is_written(
    ring: VerdictRing, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ring.write(record(1))

    def refused(*_: object) -> int:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refused)
        assert not ring.write(record(2))
    assert ring.write(record(3))
    assert attempts(path) == [1, 3]


def test_a_descriptor_that_somebody_closed_is_opened_again(ring: VerdictRing, path: Path) -> None:
    os.close(ring._fd)
    assert ring.write(record(1))
    assert attempts(path) == [1]


def test_a_path_that_can_never_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ring = VerdictRing(tmp_path / "file" / "verdicts.ring", BOOT)
    assert not ring.open()
    assert not ring.write(record())
    ring.close()


@given(
    st.text(max_size=2000) | st.text(st.characters(codec=None), max_size=300) | st.just("\ud800" * 400),
    st.text(max_size=2000),
)
def test_any_name_fits(cell: str, source: str) -> None:
    ring = VerdictRing(Path("/dev/null/none"), BOOT)
    data = ring.encode(record(cell=cell, limit_source=source))
    assert len(data) == RECORD_BYTES
    (found,) = read_ring(data)
    assert found["cell"].isascii() and found["limit_source"].isascii()
    if cell.isascii() and source.isascii() and len(json.dumps([cell, source])) < 200:
        assert (found["cell"], found["limit_source"]) == (cell, source)


def test_of_a_long_name_the_end_is_kept() -> None:
    ring = VerdictRing(Path("/dev/null/none"), BOOT)
    (found,) = read_ring(ring.encode(record(cell="grid/" + "a" * 500 + "_run7")))
    assert found["cell"].startswith("...") and found["cell"].endswith("_run7")

"""The heartbeat file and the rotating log, on good disks and bad ones."""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight_watchdog.journal import (
    PRESSURE_BYTES,
    EventLog,
    PressureFile,
    block,
    checksum,
    pressure_block,
    read_pressure,
    short_source,
    timestamp,
)

RECORD: dict[str, Any] = {
    "v": 1,
    "boot_id": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "pid": 2**22,
    "start_ticks": 10**15,
    "level": "shrink",
    "limit_bytes": 2**60,
    "limit_source": short_source("cgroup:/sys/fs/cgroup/" + "x" * 4000),
    "headroom_bytes": 2**60,
    "usage_bytes": 2**60,
    "slope_bytes_per_s": -(2**60),
    "exhaustion_s": None,
    "frozen": 1000,
    "sequence": 10**15,
    "monotonic_s": 12345678.123456789,
}


def test_the_largest_heartbeat_fits_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "pressure.json"
    heartbeat = PressureFile(path)
    assert heartbeat.write(RECORD)
    assert read_pressure(path) == RECORD | {"checksum": checksum(RECORD)}
    data = path.read_bytes()
    assert len(data) == PRESSURE_BYTES and data.endswith(b" \n")
    assert path.stat().st_mode & 0o077 == 0
    heartbeat.close()


def test_the_checksum_is_the_contracts() -> None:
    """Spelled out here, since the daemon has a reader of its own."""
    plain = json.dumps(RECORD, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert checksum(RECORD) == f"{zlib.crc32(plain.encode()):08x}"
    assert json.loads(pressure_block(RECORD))["checksum"] == checksum(RECORD)


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_a_block_is_exactly_as_long_as_it_should_be(size: int) -> None:
    made = block({"v": 1, "cell": "é"}, size)
    assert len(made) == size and made.endswith(b" \n")
    assert json.loads(made) == {"v": 1, "cell": "é", "checksum": checksum({"v": 1, "cell": "é"})}
    with pytest.raises(ValueError, match=f"does not fit into {size}"):
        block({"cell": "x" * size}, size)


def test_a_heartbeat_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        pressure_block(RECORD | {"limit_source": "x" * 400})


def test_overwritten_in_place(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pressure.json"
    heartbeat = PressureFile(path)
    heartbeat.write(RECORD)
    inode = path.stat().st_ino
    heartbeat.write(RECORD | {"sequence": 2, "limit_source": "machine"})
    assert path.stat().st_ino == inode
    assert read_pressure(path)["sequence"] == 2
    heartbeat.close()


@pytest.mark.parametrize("left", [b"", b"{}", b"x" * 511, b"y" * 5000])
def test_whatever_was_left_behind_is_overwritten(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "pressure.json"
    path.write_bytes(left)
    heartbeat = PressureFile(path)
    assert heartbeat.write(RECORD)
    assert read_pressure(path)["sequence"] == RECORD["sequence"]
    heartbeat.close()


def test_a_cleared_run_folder_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pressure.json"
    heartbeat = PressureFile(path)
    heartbeat.write(RECORD)
    path.unlink()
    path.parent.rmdir()
    assert heartbeat.write(RECORD)
    assert read_pressure(path)["pid"] == RECORD["pid"]
    heartbeat.close()


def test_a_heartbeat_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    blocked = tmp_path / "run"
    blocked.write_text("a file where the folder should be")
    heartbeat = PressureFile(blocked / "pressure.json")
    assert not heartbeat.write(RECORD)
    blocked.unlink()
    assert heartbeat.write(RECORD)
    heartbeat.close()


@pytest.mark.parametrize("short", [0, 100])
def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    """A short write counts as none; the next call opens afresh."""
    heartbeat = PressureFile(tmp_path / "pressure.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: short)
        assert not heartbeat.write(RECORD)
    assert heartbeat.write(RECORD)
    heartbeat.close()


@given(st.integers(0, PRESSURE_BYTES - 1), st.integers(0, 255))
def test_any_damaged_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    whole = pressure_block(RECORD | {"limit_source": "machine"})
    damaged = whole[:place] + bytes([byte]) + whole[place + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged-pressure.json"
    path.write_bytes(damaged)
    try:
        record = read_pressure(path)
    except ValueError:
        assert damaged != whole
    else:  # only white space for white space leaves the record as it was
        assert {name: value for name, value in record.items() if name != "checksum"} == json.loads(
            json.dumps(RECORD | {"limit_source": "machine"})
        )


@pytest.mark.parametrize("text", [b"", b"{}\n", b" " * 511 + b"\n", b"[]".ljust(511) + b"\n", b"\x00" * 512])
def test_a_torn_heartbeat_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "pressure.json"
    path.write_bytes(text)
    with pytest.raises(ValueError):
        read_pressure(path)


def test_no_heartbeat_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pressure(tmp_path / "pressure.json")


def test_sources_are_shortened_from_the_front() -> None:
    assert short_source("machine") == "machine"
    assert short_source("cgroup:/" + "a" * 100 + "/leaf").endswith("a/leaf")
    assert len(short_source("cgroup:/" + "a" * 100)) == 48
    assert short_source("cgroup:/\udc80é") == "cgroup:/??"
    assert short_source('cgroup:/a\\x2db"\n\x7f') == "cgroup:/a?x2db???"  # what JSON would make longer


@given(st.text(st.characters(codec=None)))
def test_a_short_source_is_as_long_in_json(source: str) -> None:
    short = short_source(source)
    assert len(json.dumps(short)) == len(short) + 2 <= 82


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log" / "watchdog.jsonl", clock=lambda: 1738367999.1239)
    assert log.write("info", "watchdog_started", limit_bytes=5, bounds=[{"source": "machine"}])
    log.close()
    text = (tmp_path / "log" / "watchdog.jsonl").read_text()
    assert text.startswith('{"ts": "2025-01-31T23:59:59.123Z", "level": "info", "event": "watchdog_started", ')
    assert json.loads(text)["bounds"] == [{"source": "machine"}]
    assert text.count("\n") == 1


@given(st.floats(0, 4102444800))
def test_timestamps(now_s: float) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp(now_s))


def test_undecodable_cgroup_names_stay_valid_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "watchdog.jsonl")
    assert log.write("info", "pressure_sampled", limit_source="cgroup:/\udc80")
    log.close()
    assert lines(tmp_path / "watchdog.jsonl")[0]["limit_source"] == "cgroup:/\udc80"


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "watchdog.jsonl"
    log = EventLog(path, max_bytes=1000, kept=3)
    for number in range(200):
        log.write("info", "pressure_sampled", number=number)
    log.close()
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert [file.name for file in files] == [f"watchdog.jsonl{end}" for end in (".3", ".2", ".1", "")]
    assert all(file.stat().st_size <= 1000 for file in files)
    numbers = [line["number"] for file in files for line in lines(file)]
    assert numbers == list(range(numbers[0], 200))


def test_rotation_that_is_refused_goes_on_in_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "replace", refuse)
    log = EventLog(tmp_path / "watchdog.jsonl", max_bytes=200)
    assert all(log.write("info", "pressure_sampled", number=number) for number in range(20))
    log.close()
    assert len(lines(tmp_path / "watchdog.jsonl")) == 20


def test_a_line_cut_off_by_a_power_cut_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "watchdog.jsonl"
    path.write_bytes(b'{"ts": "2025-01-31T23:59')
    log = EventLog(path)
    log.write("info", "watchdog_started")
    log.close()
    assert json.loads(path.read_text().splitlines()[1])["event"] == "watchdog_started"


def test_lost_lines_are_counted_in_the_next_one(tmp_path: Path) -> None:
    blocked = tmp_path / "log"
    blocked.write_text("a file where the folder should be")
    log = EventLog(blocked / "watchdog.jsonl")
    assert not log.write("info", "watchdog_started")
    assert not log.write("info", "pressure_sampled")
    blocked.unlink()
    assert log.write("info", "pressure_sampled")
    assert log.write("info", "pressure_sampled")
    log.close()
    assert [line.get("lines_lost") for line in lines(blocked / "watchdog.jsonl")] == [2, None]


def test_a_short_write_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills in the middle of a line: half of it is there, and the next one begins afresh."""
    path = tmp_path / "watchdog.jsonl"
    log = EventLog(path)
    log.write("info", "watchdog_started")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
        assert not log.write("info", "pressure_sampled")
    assert log.write("info", "watchdog_stopped")
    log.close()
    found = path.read_text().splitlines()
    assert len(found) == 3
    assert json.loads(found[2]) | {"ts": ""} == {
        "ts": "",
        "level": "info",
        "event": "watchdog_stopped",
        "lines_lost": 1,
    }


def test_a_log_that_was_deleted_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "watchdog.jsonl"
    log = EventLog(path)
    log.write("info", "watchdog_started")
    path.unlink()
    log.write("info", "watchdog_stopped")
    log.close()
    assert [line["event"] for line in lines(path)] == ["watchdog_stopped"]

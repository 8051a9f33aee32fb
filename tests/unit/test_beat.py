"""daemon.beat: one write in place, at most once a second, and readable at every moment."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from overnight import procfs
from overnight.dispatch import records
from overnight.dispatch.beat import BEAT_BYTES, Beat


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert (len(data), data[-1:]) == (BEAT_BYTES, b"\n")
    record = records.whole(data)
    assert record is not None
    return record


def test_a_beat_names_the_daemon_and_its_moment(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "daemon.beat"
    Beat(path, clock=clock).strike()
    found = read(path)
    assert found == {
        "v": 1,
        "boot_id": procfs.boot_id(),
        "pid": os.getpid(),
        "start_ticks": procfs.start_ticks(os.getpid()),
        "sequence": 1,
        "monotonic_s": 100.0,
        "stopping": False,
        "checksum": found["checksum"],
    }


def test_once_a_second_but_stopping_is_said_at_once(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "daemon.beat"
    beat = Beat(path, clock=clock)
    sequences = []
    for clock.now in (0.0, 0.5, 0.99, 1.0, 1.2, 2.5):
        beat.strike()
        sequences.append(read(path)["sequence"])
    assert sequences == [1, 1, 1, 2, 2, 3]
    clock.now = 2.6
    beat.strike(stopping=True)
    assert (read(path)["sequence"], read(path)["stopping"]) == (4, True)
    beat.strike(stopping=True)
    assert read(path)["sequence"] == 4


def test_an_older_file_is_written_over_and_a_longer_one_cut(tmp_path: Path) -> None:
    path = tmp_path / "daemon.beat"
    path.write_bytes(b"{torn" * 1000)
    Beat(path).strike()
    assert read(path)["sequence"] == 1


def test_a_folder_that_is_gone_is_no_reason_to_fail_and_is_tried_again(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "run" / "daemon.beat"
    beat = Beat(path, clock=clock)
    beat.strike()
    path.parent.mkdir()
    clock.now += 1
    beat.strike()
    assert read(path)["sequence"] == 2
    beat.close()


def test_a_disk_that_allocates_nothing_takes_beats_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "daemon.beat"
    path.write_bytes(b" " * BEAT_BYTES)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    Beat(path).strike()
    assert json.loads(path.read_bytes())["sequence"] == 1


@pytest.mark.parametrize("how", ["removed", "replaced", "folder removed"])
def test_somebody_who_empties_the_folder_does_not_silence_it(tmp_path: Path, how: str) -> None:
    clock, path = Clock(), tmp_path / "run" / "daemon.beat"
    path.parent.mkdir()
    beat = Beat(path, clock=clock)
    beat.strike()
    if how == "replaced":
        (tmp_path / "other").write_bytes(b"")
        (tmp_path / "other").replace(path)
    else:
        path.unlink()
    if how == "folder removed":
        path.parent.rmdir()
        clock.now += 1
        beat.strike()
        path.parent.mkdir()
    clock.now += 1
    beat.strike()
    assert read(path)["monotonic_s"] == clock.now


def test_it_writes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "daemon.beat").symlink_to(tmp_path / "precious")
    Beat(tmp_path / "daemon.beat").strike()
    assert (tmp_path / "precious").read_text() == "mine"

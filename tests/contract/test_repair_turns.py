"""The turns of a cell after a repair: never others than its attempts tell, or the daemon would refuse the queue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import small_home
from helpers.queue_checks import assert_sound
from overnight.paths import Paths
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair import mending, repair


@pytest.fixture(autouse=True)
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return small_home.build(tmp_path / "h")


def mend(paths: Paths) -> None:
    assert repair.run(paths).mended
    assert_sound(paths.queue)
    assert not repair.run(paths).mended


@pytest.mark.parametrize("damaged", [True, False], ids=["cut", "whole again"])
def test_turns_on_disk_that_no_attempt_told(paths: Paths, damaged: bool) -> None:
    """After a reset its only attempt met a damaged line at once. Turns that are the cell's alone would contradict the
    attempts, and the daemon would refuse the queue."""
    key = "baseline_script_run1"
    path = paths.transcript("night", key)
    whole = path.read_bytes()
    data = bytearray(whole)
    data[data.index(b'"turn":4') + 7] ^= 1
    with Queue.open(paths.queue) as queue:
        queue.reset("night", aside=None)
        path.write_bytes(data)
        small_home.attempt(paths, queue, key=key)
        row = queue.find_cell(key)[0]
        assert (row.status, row.reason_code) == (Status.QUARANTINED, "transcript_corrupt")
        assert [attempt.turns for attempt in queue.attempts(row.id)] == [5, None]
    if not damaged:
        path.write_bytes(whole)
    mend(paths)
    with Queue.open(paths.queue, check=True) as queue:
        row = queue.find_cell(key)[0]
        assert (row.status, row.turns, row.output_tokens) == (Status.PENDING, 0, 0)
    small_home.run(paths)
    assert path.read_bytes() == whole


def test_a_queue_that_contradicts_itself_after_a_repair_is_told(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever put it there: what a daemon would refuse is never called mended, and the next repair mends it."""
    data = bytearray(paths.transcript("night", "baseline_script_run5").read_bytes())
    data[data.index(b'"turn":1') + 7] ^= 1
    paths.transcript("night", "baseline_script_run5").write_bytes(data)
    monkeypatch.setattr(mending, "_turned", lambda db, cell, turns, tokens: {"turns": 9, "output_tokens": tokens})
    outcome = repair.run(paths)
    monkeypatch.undo()
    (told,) = [str(step) for step in outcome.left]
    assert told.startswith("queue.db: cell 5 has other turns or tokens than its attempts: not mended; `overnight rep")
    assert outcome.folder is not None
    assert json.loads((outcome.folder / "report.json").read_text())["steps"][-1]["todo"]
    with pytest.raises(repair.QueueError):
        Queue.open(paths.queue, check=True)
    mend(paths)

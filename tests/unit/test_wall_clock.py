"""A wall clock that is set back: who waits to be tried again waits as long as it was told, not until it catches up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from helpers.queue_cells import Clock, run_one, submit, take
from overnight.dispatch.wall_clock import WallClock
from overnight.queue.states import Outcome
from overnight.queue.store import Queue

HOUR_S = 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[Queue]:
    with Queue.open(tmp_path / "queue.db", clock=clock) as found:
        submit(found, count=3)
        yield found


def left_s(queue: Queue, clock: Clock, cell_id: int) -> float:
    return queue.cell(cell_id).not_before - clock.now


@pytest.mark.parametrize("back_s", [HOUR_S, 365 * 86400.0, 46 * 365 * 86400.0])
def test_a_wait_is_as_long_as_it_was_told_after_the_clock_was_set_back(
    queue: Queue, clock: Clock, back_s: float
) -> None:
    waiting = run_one(queue, Outcome.FAILED, delay_s=5.0).cell.id
    clock.step(2.0)
    clock.step(-back_s)
    assert left_s(queue, clock, waiting) == pytest.approx(back_s + 3.0)
    assert queue.shorten_waits() == 1
    assert left_s(queue, clock, waiting) == pytest.approx(5.0)
    assert queue.shorten_waits() == 0, "it was told anew"
    clock.step(-10.0)
    assert queue.shorten_waits() == 1, "and the clock was set back again"
    assert left_s(queue, clock, waiting) == pytest.approx(5.0)
    clock.step(5.0)
    assert take(queue).cell.id == waiting
    assert [event.kind for event in queue.events(waiting)][-3:] == ["wait_shortened", "wait_shortened", "claimed"]


def test_waits_are_left_alone_while_the_clock_runs_on(queue: Queue, clock: Clock) -> None:
    waiting = run_one(queue, Outcome.FAILED, delay_s=3 * HOUR_S).cell.id
    for _ in range(3):
        assert queue.shorten_waits() == 0
        clock.step(10.0)
    assert left_s(queue, clock, waiting) == pytest.approx(3 * HOUR_S - 30.0)
    clock.step(86400.0)  # set forward: it is ready early, which harms nobody
    assert queue.shorten_waits() == 0
    assert take(queue).cell.id == waiting


def test_only_steps_back_are_heeded_and_told(queue: Queue, clock: Clock) -> None:
    monotonic, log = Clock(100.0), CapturingLogger()
    wall = WallClock(log, wall=clock, monotonic=monotonic)

    def both(seconds: float) -> None:
        clock.step(seconds)
        monotonic.step(seconds)
        wall.heed(queue)

    wall.heed(queue)
    waiting = run_one(queue, Outcome.FAILED, delay_s=60.0).cell.id
    both(1.0)
    clock.step(HOUR_S)
    both(1.0)  # forward
    clock.step(-0.5)
    both(1.0)  # as little as a time server sets it back
    assert log.calls == []
    waiting = run_one(queue, Outcome.FAILED, delay_s=60.0).cell.id
    clock.step(-2 * HOUR_S)
    both(1.0)
    assert left_s(queue, clock, waiting) == pytest.approx(60.0)
    assert [(call.method_name, call.args) for call in log.calls] == [("warning", ("clock_set_back",))]
    assert log.calls[0].kwargs == {"back_s": pytest.approx(2 * HOUR_S + 0.5), "cells": 1}
    both(1.0)
    assert len(log.calls) == 1


def test_a_daemon_that_starts_after_the_clock_was_set_back_heeds_it(queue: Queue, clock: Clock) -> None:
    waiting = run_one(queue, Outcome.FAILED, delay_s=5.0).cell.id
    clock.step(-HOUR_S)
    log = CapturingLogger()
    WallClock(log, wall=clock, monotonic=Clock(3.0)).heed(queue)
    assert left_s(queue, clock, waiting) == pytest.approx(5.0)
    assert log.calls[0].kwargs == {"back_s": None, "cells": 1}

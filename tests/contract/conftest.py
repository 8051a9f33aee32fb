"""The queue's contract is run on both: the one on disk, and the one in memory that unit tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from helpers.queue_cells import Clock
from helpers.queue_checks import assert_sound
from helpers.queue_fake import FakeQueue, FakeStore
from overnight.queue.store import Queue

Opened = Callable[[], Queue]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "fake"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Opened]:
    """Opens the one queue of this test: each time as another process would. Sound at the end of every test, too."""
    store, queues = FakeStore(), list[Queue]()

    def another() -> Queue:
        if request.param == "fake":
            queues.append(cast("Queue", FakeQueue(store, clock)))
        else:
            queues.append(Queue.open(tmp_path / "queue.db", clock=clock))
        return queues[-1]

    yield another
    for queue in queues:
        queue.close()
    if request.param == "sqlite":
        assert_sound(tmp_path / "queue.db")


@pytest.fixture
def queue(opened: Opened) -> Queue:
    return opened()

"""SIGUSR1 and the safe points, without a process: when a shrink is tried, when it is told, and of which bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from overnight import memory
from overnight.cells.shrinking import Shrinker


class Bench:
    """A session that says `not now` while it is `busy`; every measurement of memory is one less than the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy = False
        self.tries = self.trims = 0
        self.told: list[dict[str, int]] = []
        self._bytes = iter(range(100, 0, -1))
        monkeypatch.setattr(memory, "anonymous_bytes", lambda: next(self._bytes))
        monkeypatch.setattr(memory, "give_back", self._trim)
        session: Any = self
        self.shrinker = Shrinker()
        self.safe_point = self.shrinker.watch(session, self._report)

    def shrink(self) -> bool:
        self.tries += 1
        return not self.busy

    def _trim(self) -> None:
        self.trims += 1

    def _report(self, event: str, **fields: int) -> None:
        assert event == "shrunk"
        self.told.append(fields)

    def points(self, count: int) -> None:
        for _ in range(count):
            self.safe_point()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield Bench(monkeypatch)


def test_nobody_asked(bench: Bench) -> None:
    bench.points(5)
    assert (bench.tries, bench.trims, bench.told) == (0, 0, [])


def test_asked_once_it_is_done_and_told_once(bench: Bench) -> None:
    bench.shrinker.wanted = True
    bench.points(5)
    assert (bench.tries, bench.trims, bench.told) == (1, 1, [{"before_bytes": 100, "after_bytes": 99}])


def test_not_now_is_trimmed_at_once_and_told_of_the_whole_when_it_is_done(bench: Bench) -> None:
    bench.shrinker.wanted = bench.busy = True
    bench.points(5)
    assert (bench.trims, bench.told, bench.shrinker.wanted) == (1, [], True)
    bench.shrinker.wanted = True  # asked again meanwhile: that is the same
    bench.points(5)
    bench.busy = False
    bench.points(5)
    assert (bench.trims, bench.told, bench.shrinker.wanted) == (2, [{"before_bytes": 100, "after_bytes": 99}], False)


def test_the_next_signal_begins_anew(bench: Bench) -> None:
    for busy in (True, False):
        bench.shrinker.wanted, bench.busy = True, busy
        bench.points(2)
    bench.shrinker.wanted = True
    bench.points(2)
    assert bench.told == [{"before_bytes": 100, "after_bytes": 99}, {"before_bytes": 98, "after_bytes": 97}]


def test_a_signal_that_comes_while_it_shrinks_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink() -> bool:
        bench.shrinker.wanted = bench.tries == 0
        bench.tries += 1
        return True

    monkeypatch.setattr(bench, "shrink", shrink)
    bench.shrinker.wanted = True
    bench.points(5)
    assert len(bench.told) == 2

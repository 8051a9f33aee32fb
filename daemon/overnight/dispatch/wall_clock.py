"""The wall clock may be set back: then cells that wait to be tried again must not wait for it to catch up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from overnight.queue.store import Queue

_STEP_S = 1.0
"""A smaller step back makes a wait so much longer, and no more."""


class WallClock:
    """Compares the wall clock with the monotonic one. What it measures is never a duration of anything else."""

    def __init__(
        self, log: Any, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._wall, self._monotonic = log, wall, monotonic
        self._ahead_s: float | None = None

    def heed(self, queue: Queue) -> None:
        """At the first time, and whenever the clock was set back: nobody waits longer than he was told to. Raises
        QueueUnavailable; then the next call tries again."""
        ahead_s = self._wall() - self._monotonic()
        if self._ahead_s is not None and ahead_s > self._ahead_s - _STEP_S:
            self._ahead_s = max(self._ahead_s, ahead_s)
            return
        cells = queue.shorten_waits()
        if cells or self._ahead_s is not None:
            back_s = None if self._ahead_s is None else round(self._ahead_s - ahead_s, 1)
            self._log.warning("clock_set_back", back_s=back_s, cells=cells)
        self._ahead_s = ahead_s

"""SIGUSR1 = give back what you can at the next safe point: memory only, never a byte of the transcript.

The handler does nothing but remember; a safe point is between two turns (replayed ones too), and wherever the session
itself calls `safe_point` while it generates. The heap is trimmed at the first one. What the session can only give back
later (spare room, while it decodes) it gives back at the turn's end, and only then is it told how much it was.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from overnight import memory
from overnight.engines.base import Session

Report = Callable[..., None]


class Shrinker:
    """`wanted` from a SIGUSR1 on until the session has given back what it can."""

    def __init__(self) -> None:
        self.wanted = False
        self._before_bytes: int | None = None  # what there was when a shrink began that is not done yet

    def install(self) -> None:
        """Handle SIGUSR1 in this process from now on."""
        signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, _number: int, _frame: Any) -> None:
        self.wanted = True

    def watch(self, session: Session, report: Report) -> Callable[[], None]:
        """What to call at a safe point; the session gets it too. report("shrunk", before_bytes, after_bytes)."""

        def safe_point() -> None:
            if not self.wanted:
                return
            self.wanted = False  # before anything is looked at: a signal that comes meanwhile asks again
            before, begins = self._before_bytes, self._before_bytes is None
            if before is None:
                before = memory.anonymous_bytes()
            done = session.shrink()
            if begins or done:
                memory.give_back()
            if not done:
                self.wanted, self._before_bytes = True, before
                return
            self._before_bytes = None
            report("shrunk", before_bytes=before, after_bytes=memory.anonymous_bytes())

        session.safe_point = safe_point
        return safe_point

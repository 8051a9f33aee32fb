"""SIGUSR1 = give back what you can at the next safe point: memory only, never a byte of the transcript.

The handler does nothing but remember; a safe point is between two turns (replayed ones too), and wherever the session
itself calls `safe_point` while it generates.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from overnight import memory
from overnight.engines.base import Session

Report = Callable[..., None]


class Shrinker:
    """`wanted` from a SIGUSR1 on until the next safe point."""

    def __init__(self) -> None:
        self.wanted = False

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
            self.wanted = False
            before = memory.anonymous_bytes()
            session.shrink()
            memory.give_back()
            report("shrunk", before_bytes=before, after_bytes=memory.anonymous_bytes())

        session.safe_point = safe_point
        return safe_point

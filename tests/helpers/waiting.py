"""Integration tests wait for a condition, with a deadline; they never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(look: Callable[[], T], deadline_s: float = 30.0, what: str = "") -> T:
    """The first true value of `look`. Fails when it does not come in time."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {deadline_s:g} s: {what or look}; last seen {found!r}")
        time.sleep(0.02)

"""The clock follows tokens, never the wall."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from overnight.cells.simulated_clock import message, remaining_minutes


def test_words() -> None:
    assert message(600) == "10 hours and 0 minutes to go"
    assert message(61) == "1 hour and 1 minute to go"
    assert message(0) == "0 hours and 0 minutes to go"


@given(st.floats(0.1, 100), st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_begins_whole_ends_at_nothing_and_never_goes_back(hours: float, target: int, spent: int) -> None:
    def left(at: int) -> int:
        return remaining_minutes(shift_hours=hours, spent=at, target=target)

    assert left(0) == round(hours * 60)
    assert left(target) == left(target + spent) == 0
    assert left(spent) >= left(spent + 1) >= 0

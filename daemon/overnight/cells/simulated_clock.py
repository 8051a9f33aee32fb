"""The clock that an idle loop shows: time left follows output tokens against the target, never the wall."""

from __future__ import annotations


def remaining_minutes(*, shift_hours: float, spent: int, target: int) -> int:
    """Whole minutes left when `spent` of `target` units (tokens, or turns) are used up; 0 at the target."""
    total = round(shift_hours * 60)
    return max(0, total - total * min(spent, target) // target)


def message(minutes: int) -> str:
    """`10 hours and 0 minutes to go`: all that the model ever hears back."""
    hours, minutes = divmod(minutes, 60)
    return f"{_count(hours, 'hour')} and {_count(minutes, 'minute')} to go"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

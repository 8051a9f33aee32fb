"""Does a figure that was taken again and again grow? Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

ENDS = 3
"""So many of the first and of the last marks are compared, by their medians: one odd mark decides nothing."""


def growth(marks: Sequence[float]) -> float:
    """From the median of the first marks to that of the last."""
    first, last = ends(marks)
    return last - first


def ratio(marks: Sequence[float]) -> float:
    """The median of the last marks, in terms of that of the first."""
    first, last = ends(marks)
    return last / first


def ends(marks: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last marks, which never overlap."""
    count = min(ENDS, len(marks) // 2)
    return statistics.median(marks[:count]), statistics.median(marks[-count:])


def rises(marks: Sequence[float]) -> bool:
    """Is it a trend: is the median of each quarter above that of the one before?"""
    quarter = len(marks) // 4
    if not quarter:
        return False
    medians = [statistics.median(marks[at * quarter : (at + 1) * quarter]) for at in range(4)]
    return all(one < other for one, other in itertools.pairwise(medians))

"""Collapse by the older harness's windowed matrix profile: `method: profile`.

A matrix profile gives each window of a series the distance to its most similar other window (Yeh et al. 2016, Matrix
Profile I, ICDM). Here a window is the sum of its turns' vectors and the distance 1 - cosine. Windows among the lowest
share `threshold_pct` of a conversation's own distances make spans, which then grow over similar neighbours: so a
conversation that repeats itself throughout has no span, and that is why `absolute` is the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overnight.analysis import tokens
from overnight.analysis.collapse import Span
from overnight.analysis.similarity import Matrix, Vectors
from overnight.analysis.windows import window_similarities

M_PCT = 0.30
THRESHOLD_PCT = 0.15
MIN_WINDOWS = 3
MIN_SPAN_TURNS = 5
GROW_SIM = 0.85
_DIGITS = 9
"""Distances are compared so far: windows of equal turns must be equal, whatever rounding made of their sums."""


def parameters() -> dict[str, Any]:
    return {
        "m_pct": M_PCT,
        "threshold_pct": THRESHOLD_PCT,
        "min_windows": MIN_WINDOWS,
        "min_span_messages": MIN_SPAN_TURNS,
        "grow_sim": GROW_SIM,
        "grow_max": None,
    }


def spans(texts: Sequence[str], vectors: Vectors) -> list[Span]:
    """The spans of a conversation; `similarity` is 1 - their windows' mean distance."""
    turns = vectors.turns
    length = window_turns(turns)
    if turns - length + 1 <= 1:
        return []
    distances = profile(vectors.motif, length)
    found = _merged(_groups(distances, length, turns))
    unit = _unit_rows(vectors.motif)
    grown = _merged(sorted((_grown(span, unit) for span in found), key=lambda span: span.first))
    return [
        Span(
            first_turn=span.first + 1,
            last_turn=span.last + 1,
            similarity=1.0 - span.distance,
            label=tokens.motif(texts[span.first : span.last + 1]),
        )
        for span in grown
        if span.last - span.first + 1 >= MIN_SPAN_TURNS
    ]


def window_turns(turns: int) -> int:
    """m = max(1, round(B * m_pct)), Python's round."""
    return max(1, round(turns * M_PCT))


def profile(motif: Matrix, length: int) -> NDArray[np.float64]:
    """1 - the largest cosine, at least 0, of each window to one that begins at least max(1, length // 2) away."""
    apart = max(1, length // 2)
    windows = motif.shape[0] - length + 1
    nearest = np.zeros(windows)
    for at, row in window_similarities(motif, length):
        far = [row[: max(0, at - apart + 1)], row[at + apart :]]
        nearest[at] = max((float(part.max()) for part in far if part.size), default=0.0)
    return 1.0 - np.clip(nearest, 0.0, None)


@dataclass(frozen=True)
class _Stretch:
    """Turns first .. last, 0-based, inclusive."""

    first: int
    last: int
    distance: float


def _groups(distances: NDArray[np.float64], length: int, turns: int) -> list[_Stretch]:
    compared = np.round(distances, _DIGITS)
    threshold = np.sort(compared)[round((len(compared) - 1) * THRESHOLD_PCT)]
    low = np.flatnonzero(compared <= threshold)
    runs = np.split(low, np.flatnonzero(np.diff(low) > 1) + 1)
    return [
        _Stretch(int(run[0]), min(int(run[-1]) + length - 1, turns - 1), float(distances[run].mean()))
        for run in runs
        if len(run) >= MIN_WINDOWS
    ]


def _merged(stretches: Sequence[_Stretch]) -> list[_Stretch]:
    """Those that touch or overlap become one, their distances averaged."""
    found: list[_Stretch] = []
    for one in stretches:
        if not found or one.first > found[-1].last + 1:
            found.append(one)
        else:
            before = found[-1]
            distance = (before.distance + one.distance) / 2
            found[-1] = _Stretch(before.first, max(before.last, one.last), distance)
    return found


def _grown(span: _Stretch, unit: Matrix) -> _Stretch:
    """Taking in neighbours, left and right in turn, while they are like the motif: the sum of the span's turns."""
    first, last = span.first, span.last
    motif = np.asarray(unit[first : last + 1].sum(axis=0)).ravel()
    taken = True
    while taken:
        taken = False
        for beside in (first - 1, last + 1):
            if not 0 <= beside < unit.shape[0]:
                continue
            row = _dense_row(unit, beside)
            if row @ motif < GROW_SIM * np.linalg.norm(motif):
                continue
            motif += row
            first, last, taken = min(first, beside), max(last, beside), True
    return _Stretch(first, last, span.distance)


def _unit_rows(motif: Matrix) -> Matrix:
    if hasattr(motif, "multiply"):
        from overnight.analysis.tfidf import normalised

        return normalised(motif)
    return motif


def _dense_row(matrix: Matrix, at: int) -> NDArray[np.float64]:
    row = matrix[at : at + 1]
    return np.asarray(row.toarray() if hasattr(row, "toarray") else row).ravel()

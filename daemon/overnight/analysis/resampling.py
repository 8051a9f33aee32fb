"""Bootstrap intervals, permutation tests and effect sizes of a few numbers, all seeded; scipy does the resampling.

Rows of a matrix are metrics that share their runs: one set of resamples serves them all, which is what made thirty
metrics as cheap as two (drawing the permutations takes nearly all of the time).

How far an interval can be trusted, measured with 400 simulated samples each (nominal 95 %, mean of a normal, a skewed
and a zero-inflated distribution): n = 3: 70 to 73 %, n = 5: 82 to 87, n = 8: 83 to 94, n = 15: 89 to 96, n = 30: 92 to
95. BCa is never clearly worse than the percentile interval, and better for skewed values from n = 15 on.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Rows = NDArray[np.float64]
"""Metrics x runs, without NaN."""

BATCH_NUMBERS = 2**21
"""So many numbers of resamples are in memory at once (16 MiB), however many runs there are."""

_DIGITS = 9
"""Of standardised values: sums of the same numbers in another order differ behind these, also where the values are ten
thousand times their spread. (Without it, one p in six was wrong for tenths around 100.)"""

_NO_SPREAD = 1e-12
"""Of the largest value, and of 1 where all are smaller: what sums of equal numbers differ by. (Of the largest alone,
noise around 0 would be all the spread there is, and significant.)"""


@dataclass(frozen=True, slots=True)
class Interval:
    """method: `BCa`, or `percentile` where BCa is not defined (values that are all the same)."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class Test:
    """Two-sided p of a permutation test. permutations: how many were looked at; exact: these are all there are."""

    p: float
    permutations: int
    exact: bool


def generator(seed: int, *of: object) -> np.random.Generator:
    """Hangs on the seed and on what it is for, not on what else is computed: one more group changes no other's."""
    digest = hashlib.sha256(repr(of).encode(errors="backslashreplace")).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])


def _mean(values: Any, axis: int = -1) -> Any:
    return np.mean(values, axis=axis)


def _difference(values: Any, others: Any, axis: int = -1) -> Any:
    return np.mean(values, axis=axis) - np.mean(others, axis=axis)


def _rounded_difference(values: Any, others: Any, axis: int = -1) -> Any:
    return np.round(_difference(values, others, axis=axis), _DIGITS)


def mean_intervals(
    rows: Rows, rng: np.random.Generator, *, level: float, resamples: int
) -> list[Interval] | list[None]:
    """Of each row's mean. Efron and Tibshirani 1993, ch. 14 (BCa). None for fewer than two runs."""
    return _intervals((rows,), _mean, rng, level, resamples)


def difference_intervals(
    rows: Rows, others: Rows, rng: np.random.Generator, *, level: float, resamples: int
) -> list[Interval] | list[None]:
    """Of each row's mean less that of the same row of `others`; both are resampled on their own."""
    return _intervals((rows, others), _difference, rng, level, resamples)


def _intervals(
    data: tuple[Rows, ...], statistic: Any, rng: np.random.Generator, level: float, resamples: int
) -> list[Any]:
    metrics = len(data[0])
    if min(sample.shape[1] for sample in data) < 2:
        return [None] * metrics
    found: list[Interval | None] = [None] * metrics
    for method in ("BCa", "percentile"):
        left = [i for i, interval in enumerate(found) if interval is None]
        if not left:
            break
        chosen = tuple(sample[left] for sample in data)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # "BCa cannot be calculated": that is why there is a second method
            interval = stats.bootstrap(
                chosen,
                statistic,
                n_resamples=resamples,
                batch=_batch(chosen),
                vectorized=True,
                axis=-1,
                confidence_level=level,
                method=method,
                rng=rng,
            ).confidence_interval
        for i, low, high in zip(left, np.atleast_1d(interval.low), np.atleast_1d(interval.high), strict=True):
            if math.isfinite(low) and math.isfinite(high):
                # Percentiles of equal numbers are interpolated, and may stand the wrong way round by the last bit.
                found[i] = Interval(float(min(low, high)), float(max(low, high)), method)
    return found


def _batch(data: Sequence[Rows]) -> int:
    return max(1, BATCH_NUMBERS // sum(sample.size for sample in data))


def permutation_tests(rows: Rows, others: Rows, rng: np.random.Generator, *, permutations: int) -> list[Test | None]:
    """Of the difference of means, two-sided (twice the smaller tail): all permutations when there are no more than
    `permutations`, else so many random ones (Phipson and Smyth 2010: the one observed counts as one of them). None for
    fewer than two runs on a side."""
    n, m = rows.shape[1], others.shape[1]
    if min(n, m) < 2:
        return [None] * len(rows)
    both = np.concatenate([rows, others], axis=1)
    centred = both - both.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    # Unit variance, so that rounding means the same for every metric: equal sums have to count as equal.
    some = spread > _least_spread(both)
    scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=some)
    found = stats.permutation_test(
        (scaled[:, :n], scaled[:, n:]),
        _rounded_difference,
        permutation_type="independent",
        vectorized=True,
        n_resamples=permutations,
        batch=_batch((both,)),
        axis=-1,
        alternative="two-sided",
        rng=rng,
    )
    exact = math.comb(n + m, n) <= permutations
    looked_at = math.comb(n + m, n) if exact else permutations
    return [Test(float(p), looked_at, exact) for p in np.atleast_1d(found.pvalue)]


def _least_spread(values: NDArray[np.float64]) -> Any:
    return _NO_SPREAD * np.maximum(1.0, np.abs(values).max(axis=-1, keepdims=True))


def all_the_same(values: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """But for rounding."""
    both = np.concatenate([values, others])
    return bool(both.std() <= _least_spread(both)[0])


def smallest_p(n: int, m: int, permutations: int) -> float | None:
    """The smallest p that `permutation_tests` can give for n against m runs; None where it gives none."""
    if min(n, m) < 2:
        return None
    ways = math.comb(n + m, n)
    return min(1.0, 2 / ways if ways <= permutations else 2 / (permutations + 1))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over all that are not None (Holm 1979, Scand. J. Statist. 6, 65-70)."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    most = 0.0
    for rank, (p, i) in enumerate(order):
        most = max(most, min(1.0, p * (len(order) - rank)))
        found[i] = most
    return found


def cliffs_delta(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """P(value > other) - P(value < other), from -1 to 1 (Cliff 1993, Psychological Bulletin 114, 494-509)."""
    n, m = len(values), len(others)
    ranks = stats.rankdata(np.concatenate([values, others]))
    return float(2 * (ranks[:n].sum() - n * (n + 1) / 2) / (n * m) - 1)


def hedges_g(values: NDArray[np.float64], others: NDArray[np.float64]) -> float | None:
    """Difference of means in pooled standard deviations, with the exact correction for few runs (Hedges 1981, J. Educ.
    Statist. 6, 107-128). None where there is no spread to measure by."""
    n, m = len(values), len(others)
    free = n + m - 2
    if min(n, m) < 2:
        return None
    pooled = math.sqrt(((n - 1) * np.var(values, ddof=1) + (m - 1) * np.var(others, ddof=1)) / free)
    if pooled <= _least_spread(np.concatenate([values, others]))[0]:
        return None
    correction = math.exp(math.lgamma(free / 2) - math.lgamma((free - 1) / 2)) / math.sqrt(free / 2)
    return float(correction * (values.mean() - others.mean()) / pooled)

"""Intervals, tests and effects against scipy, against simulation, and against what they are by definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from overnight.analysis import resampling

few = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6)


def means(values: list[float], seed: int = 0, **how: float) -> resampling.Interval | None:
    rng = resampling.generator(seed, "test")
    return resampling.mean_intervals(np.array([values]), rng, level=0.95, resamples=999, **how)[0]


def test_one_run_has_no_interval_and_no_test() -> None:
    rng = np.random.default_rng(0)
    rows, others = np.array([[1.0], [2.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    assert resampling.mean_intervals(rows, rng, level=0.95, resamples=99) == [None, None]
    assert resampling.difference_intervals(rows, others, rng, level=0.95, resamples=99) == [None, None]
    assert resampling.permutation_tests(rows, others, rng, permutations=99) == [None, None]
    assert resampling.hedges_g(rows[0], others[0]) is None
    assert resampling.smallest_p(1, 3, 999) is None


def test_none_has_nothing() -> None:
    nothing = np.empty((1, 0))
    assert resampling.mean_intervals(nothing, np.random.default_rng(0), level=0.95, resamples=99) == [None]


def test_equal_values_get_an_interval_of_no_width_by_the_other_method() -> None:
    assert means([0.3] * 5) == resampling.Interval(pytest.approx(0.3), pytest.approx(0.3), "percentile")
    rows = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    constant, varied = resampling.mean_intervals(rows, np.random.default_rng(0), level=0.95, resamples=999)
    assert (constant, varied and varied.method) == (resampling.Interval(0.0, 0.0, "percentile"), "BCa")


def test_rows_do_not_influence_each_other() -> None:
    values = np.random.default_rng(3).normal(size=(4, 7))
    whole = resampling.mean_intervals(values, resampling.generator(1, "a"), level=0.9, resamples=500)
    alone = [
        resampling.mean_intervals(values[i : i + 1], resampling.generator(1, "a"), level=0.9, resamples=500)[0]
        for i in range(4)
    ]
    for one, other in zip(whole, alone, strict=True):
        assert one is not None and other is not None
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)


def test_it_is_scipys_interval() -> None:
    values = np.random.default_rng(5).lognormal(size=12)
    expected = stats.bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=resampling.generator(0, "test"))
    found = means(list(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), rel=1e-9)


def test_memory_is_bounded_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(6).normal(size=50))
    whole = means(values)
    monkeypatch.setattr(resampling, "BATCH_NUMBERS", 300)
    assert means(values) == whole


@settings(deadline=None)
@given(few, st.integers(0, 5))
@example([0.02, 0.02], 0)
def test_an_interval_is_deterministic_and_within_the_runs(values: list[float], seed: int) -> None:
    found = means(values, seed)
    assert found == means(values, seed)
    assert found is not None
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


@pytest.mark.parametrize(
    ("n", "least", "most"),
    [(3, 0.60, 0.80), (20, 0.88, 0.98), (60, 0.90, 0.99)],
    ids=["three runs: too narrow, as documented", "twenty", "sixty"],
)
@pytest.mark.parametrize(
    ("draw", "true"),
    [
        (lambda rng, shape: rng.normal(2.0, 1.0, shape), 2.0),
        (lambda rng, shape: np.where(rng.random(shape) < 0.4, 0.0, rng.beta(2, 2, shape)), 0.3),
    ],
    ids=["normal", "zero-inflated"],
)
def test_coverage_of_the_mean(n: int, least: float, most: float, draw: Callable[..., np.ndarray], true: float) -> None:
    rows = draw(np.random.default_rng(11), (300, n))
    found = resampling.mean_intervals(rows, np.random.default_rng(12), level=0.95, resamples=999)
    covered = np.mean([each is not None and each.low <= true <= each.high for each in found])
    assert least <= covered <= most


def test_coverage_of_a_difference() -> None:
    rng = np.random.default_rng(13)
    rows, others = rng.normal(1.0, 1.0, (300, 20)), rng.normal(0.0, 2.0, (300, 25))
    found = resampling.difference_intervals(rows, others, rng, level=0.95, resamples=999)
    covered = np.mean([each is not None and each.low <= 1.0 <= each.high for each in found])
    assert 0.88 <= covered <= 0.99


# -- permutation tests ------------------------------------------------------------------------------------------------


def exactly(values: list[float], others: list[float]) -> float:
    """Twice the smaller tail over all ways to divide them: by definition."""
    both, n = [*values, *others], len(values)
    told = [
        np.mean([both[i] for i in chosen]) - np.mean([both[i] for i in range(len(both)) if i not in chosen])
        for chosen in itertools.combinations(range(len(both)), n)
    ]
    seen, slack = told[0], 1e-9 * max(1.0, *map(abs, both))
    tails = [np.mean([t <= seen + slack for t in told]), np.mean([t >= seen - slack for t in told])]
    return float(min(1.0, 2 * min(tails)))


@settings(deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=4),
    st.lists(st.integers(-20, 20), min_size=2, max_size=4),
    st.sampled_from([1.0, 1e-7, 0.1, 1e9]),
    st.sampled_from([0.0, 1.0, 1e6]),
)
def test_exact_p_by_definition_whatever_the_unit(
    values: list[int], others: list[int], unit: float, offset: float
) -> None:
    """Ties are ties in every unit: 0.1 + 0.2 is not 0.3, and must count as equal."""
    if offset and unit < 1e-3:
        unit = 1.0
    rows, base = (np.array([[offset + unit * v for v in each]]) for each in (values, others))
    found = resampling.permutation_tests(rows, base, np.random.default_rng(0), permutations=9999)[0]
    assert found is not None
    assert found.exact
    assert found.permutations == math.comb(len(values) + len(others), len(values))
    assert found.p == pytest.approx(exactly(values, others))


@pytest.mark.parametrize("offset", [0, 100, 10_000])
def test_ties_are_ties_however_they_are_summed(offset: int) -> None:
    """0.2 - 0.5 - 0.1 is 0.7 - 0.8 - 0.3, but not in floating point, and less so a hundred higher."""
    for values, others, p in (
        ([2, -5, -1], [7, -8, -7, -4], 26 / 35),
        ([-4, -3, 7], [-9, -6, -1, 7], 26 / 35),
        ([-9, 5, 8], [0, -9, 5, 0], 28 / 35),
    ):
        rows, base = (np.array([[offset + x / 10 for x in each]]) for each in (values, others))
        found = resampling.permutation_tests(rows, base, np.random.default_rng(0), permutations=99)[0]
        assert found is not None and found.p == pytest.approx(p)


def test_three_against_three_cannot_be_below_a_tenth() -> None:
    rows, others = np.array([[100.0, 101.0, 102.0]]), np.array([[1.0, 2.0, 3.0]])
    assert resampling.permutation_tests(rows, others, np.random.default_rng(0), permutations=9999) == [
        resampling.Test(pytest.approx(0.1), 20, True)
    ]
    assert resampling.smallest_p(3, 3, 9999) == pytest.approx(0.1)


@pytest.mark.parametrize(("n", "m", "permutations"), [(2, 2, 99), (2, 5, 99), (4, 4, 99), (6, 6, 99), (30, 40, 499)])
def test_the_smallest_p_is_what_the_clearest_difference_gets(n: int, m: int, permutations: int) -> None:
    rows, others = np.arange(n, dtype=float)[None] + 1000, np.arange(m, dtype=float)[None]
    found = resampling.permutation_tests(rows, others, np.random.default_rng(0), permutations=permutations)[0]
    assert found is not None
    assert found.exact == (math.comb(n + m, n) <= permutations)
    assert found.p == pytest.approx(resampling.smallest_p(n, m, permutations))


def test_it_is_scipys_test() -> None:
    rng = np.random.default_rng(2)
    values, others = rng.normal(size=9), rng.normal(0.7, 1, size=8)
    expected = stats.permutation_test(
        (values, others),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        vectorized=True,
        n_resamples=2000,
        rng=np.random.default_rng(4),
    )
    found = resampling.permutation_tests(values[None], others[None], np.random.default_rng(4), permutations=2000)[0]
    assert found == resampling.Test(pytest.approx(expected.pvalue), 2000, False)


@pytest.mark.parametrize(("n", "m", "permutations"), [(5, 5, 999), (9, 8, 499)], ids=["exact", "random"])
def test_p_is_uniform_under_the_null(n: int, m: int, permutations: int) -> None:
    rng = np.random.default_rng(21)
    ps = []
    for _ in range(40):  # fresh permutations now and then: rows of one call share theirs
        rows, others = rng.gamma(2.0, size=(25, n)), rng.gamma(2.0, size=(25, m))
        found = resampling.permutation_tests(rows, others, rng, permutations=permutations)
        ps += [each.p for each in found if each is not None]
    assert len(ps) == 1000
    assert stats.kstest(ps, "uniform").statistic < 0.06
    for alpha in (0.05, 0.1, 0.25):
        assert np.mean(np.array(ps) <= alpha) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 1000)


def test_values_that_are_all_equal_differ_in_nothing() -> None:
    rows = np.full((1, 3), 0.1 + 0.2)
    found = resampling.permutation_tests(rows, rows, np.random.default_rng(0), permutations=999)[0]
    assert found is not None and found.p == 1.0


@pytest.mark.parametrize("around", [0.0, 1.0, 1e6])
def test_rounding_is_no_difference(around: float) -> None:
    """Also where it is all the spread there is: around 0 nothing else gives a measure."""
    noise = 1.1e-16 * max(1.0, around)
    rows, others = np.full((1, 5), around + noise), np.full((1, 5), around - noise)
    found = resampling.permutation_tests(rows, others, np.random.default_rng(0), permutations=999)[0]
    assert found is not None and found.p == 1.0
    assert resampling.hedges_g(rows[0] + [0, 0, 0, 0, noise], others[0]) is None
    assert resampling.all_the_same(rows[0], others[0])
    assert not resampling.all_the_same(rows[0], others[0] + 1e-3)


# -- Holm -------------------------------------------------------------------------------------------------------------


def test_holm_on_the_textbooks_numbers() -> None:
    assert resampling.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert resampling.holm([None, 0.02, None]) == [None, 0.02, None]
    assert resampling.holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1) | st.none(), max_size=12), st.randoms())
def test_holm_is_monotone_and_between_the_p_and_bonferronis(ps: list[float | None], random: object) -> None:
    found = resampling.holm(ps)
    told = sorted((p, q) for p, q in zip(ps, found, strict=True) if p is not None and q is not None)
    assert [q is None for q in found] == [p is None for p in ps]
    assert [q for _, q in told] == sorted(q for _, q in told)
    for p, q in told:
        assert p <= q <= min(1.0, p * len(told))
    order = list(range(len(ps)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert resampling.holm([ps[i] for i in order]) == [found[i] for i in order]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 7), st.floats(0, 1))
def test_a_smaller_p_never_makes_a_corrected_one_larger(ps: list[float], at: int, factor: float) -> None:
    at %= len(ps)
    lower = [p * factor if i == at else p for i, p in enumerate(ps)]
    for now, before in zip(resampling.holm(lower), resampling.holm(ps), strict=True):
        assert now is not None and before is not None and now <= before


# -- effects ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(few, few)
def test_cliffs_delta_by_definition_and_by_scipys_u(values: list[float], others: list[float]) -> None:
    pairs = [(a > b) - (a < b) for a in values for b in others]
    found = resampling.cliffs_delta(np.array(values), np.array(others))
    assert found == pytest.approx(np.mean(pairs))
    u = stats.mannwhitneyu(values, others, method="asymptotic").statistic
    assert found == pytest.approx(2 * u / len(pairs) - 1)
    assert found == pytest.approx(-resampling.cliffs_delta(np.array(others), np.array(values)))


def test_hedges_g_by_its_definition() -> None:
    values, others = np.array([3.0, 5.0, 9.0]), np.array([1.0, 2.0, 4.0, 4.0])
    pooled = math.sqrt((2 * values.var(ddof=1) + 3 * others.var(ddof=1)) / 5)
    approximate = (1 - 3 / (4 * 5 - 1)) * (values.mean() - others.mean()) / pooled
    exact = math.gamma(5 / 2) / (math.sqrt(5 / 2) * math.gamma(4 / 2)) * (values.mean() - others.mean()) / pooled
    found = resampling.hedges_g(values, others)
    assert found == pytest.approx(exact)
    assert found == pytest.approx(approximate, rel=0.01)
    assert resampling.hedges_g(np.full(3, 0.1), np.full(3, 0.3)) is None


def test_hedges_g_is_unbiased() -> None:
    rng = np.random.default_rng(8)
    found = [resampling.hedges_g(rng.normal(1, 1, 4), rng.normal(0, 1, 4)) for _ in range(4000)]
    assert np.mean([each for each in found if each is not None]) == pytest.approx(1.0, abs=0.05)


def test_a_seed_is_for_one_thing() -> None:
    draws = {tuple(resampling.generator(seed, *of).integers(0, 2**62, 4)) for seed in (0, 1) for of in (("a",), ("b",))}
    assert len(draws) == 4
    assert resampling.generator(1, "a").integers(2**62) == resampling.generator(1, "a").integers(2**62)

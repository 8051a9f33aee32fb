"""Sampling against its definition, worked out by hand or in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.errors import ExperimentFailed

torch = pytest.importorskip("torch")

from overnight.engines import sampling  # noqa: E402 - imports torch
from overnight.engines.sampling import Sampling  # noqa: E402


def by_definition(logits: list[float], how: Sampling) -> list[float]:
    """p of every id, in plain Python: softmax, then top_k, then the smallest set with a sum >= top_p."""
    largest = max(logits)
    weights = [math.exp((value - largest) / how.temperature) for value in logits]
    if how.top_k:
        edge = sorted(weights, reverse=True)[min(how.top_k, len(weights)) - 1]
        weights = [weight if weight >= edge else 0.0 for weight in weights]
    total = sum(weights)
    if how.top_p < 1.0:
        cumulated, edge = 0.0, 0.0
        for weight in sorted(weights, reverse=True):
            cumulated, edge = cumulated + weight / total, weight
            if cumulated >= how.top_p:
                break
        weights = [weight if weight >= edge else 0.0 for weight in weights]
    total = sum(weights)
    return [weight / total for weight in weights]


def probabilities(logits: list[float], how: Sampling) -> list[float]:
    p = sampling.probabilities(torch.tensor(logits), how)
    found: list[float] = (p / p.sum()).tolist()
    return found


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Sampling(1.0), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_k=9), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(1.0, top_p=0.39), [1, 0, 0, 0]),
        (Sampling(1.0, top_p=0.69), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_p=0.71), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(1.0, top_p=0.56, top_k=2), [1, 0, 0, 0]),  # 4/7 of what top_k left is more than 0.56
        (Sampling(1.0, top_p=0.58, top_k=2), [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_by_hand(how: Sampling, expected: list[float]) -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert probabilities(logits, how) == pytest.approx(expected, abs=1e-6)


def test_ties_stay_together() -> None:
    assert probabilities([1.0, 1.0, 1.0, 0.0], Sampling(1.0, top_k=2)) == pytest.approx([1 / 3] * 3 + [0])
    assert probabilities([1.0, 1.0, 1.0, -9.0], Sampling(1.0, top_p=0.4)) == pytest.approx([1 / 3] * 3 + [0])


# Multiples of 1/8 are exact in float32, and far enough apart that rounding moves no edge.
_LOGITS = st.lists(st.integers(-64, 64).map(lambda eighth: eighth / 8), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(
    logits=_LOGITS,
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 50),
    top_p=st.sampled_from([0.05, 0.3333, 0.7001, 0.95, 1.0]),
)
def test_against_the_definition(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    how = Sampling(temperature, top_p, top_k)
    found, expected = probabilities(logits, how), by_definition(logits, how)
    # A sum that equals top_p but for rounding may fall on either side; then one more or one fewer tie group is kept.
    if sum(p > 0 for p in found) == sum(p > 0 for p in expected):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        kept = sorted((p for p in by_definition(logits, Sampling(temperature, 1.0, top_k))), reverse=True)
        sums = [sum(kept[: count + 1]) for count in range(len(kept))]
        assert any(abs(total - top_p) < 1e-6 for total in sums)


def test_a_wide_nucleus_is_found_too() -> None:
    """More ids than the first look covers, on a flat distribution of a large vocabulary."""
    logits = torch.linspace(0.0, 1e-3, 20_000)
    p = sampling.probabilities(logits, Sampling(1.0, top_p=0.9))
    assert int((p > 0).sum()) == pytest.approx(18_000, abs=20)
    assert p[:1900].sum() == 0.0, "the least probable ones are gone"


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([math.log(p) for p in (0.4, 0.3, 0.2, 0.1)])
    source = sampling.generator(7)
    counts = Counter(sampling.pick(logits, Sampling(1.0, top_p=0.85), source) for _ in range(9000))
    assert set(counts) == {0, 1, 2}
    assert [counts[token] / 9000 for token in range(3)] == pytest.approx([4 / 9, 3 / 9, 2 / 9], abs=0.02)


def test_the_draw_is_the_inverse_of_the_cumulated_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([math.log(p) for p in (0.5, 0.25, 0.25)])
    almost = 1.0 - 2.0**-53
    for u, expected in ((0.0, 0), (0.4999, 0), (0.5001, 1), (0.7499, 1), (0.7501, 2), (almost, 2)):
        monkeypatch.setattr(torch, "rand", lambda *_, u=u, **__: torch.tensor([u], dtype=torch.float64))
        assert sampling.pick(logits, Sampling(1.0), sampling.generator(0)) == expected


def test_an_id_without_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    for u, expected in ((0.0, 1), (1.0 - 2.0**-53, 3), (1.0, 3)):
        monkeypatch.setattr(torch, "rand", lambda *_, u=u, **__: torch.tensor([u], dtype=torch.float64))
        assert sampling.pick(logits, Sampling(1.0), sampling.generator(0)) == expected


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert sampling.pick(logits, Sampling(0.0), sampling.generator(0)) == 1


def test_a_tiny_temperature_is_greedy_and_no_overflow() -> None:
    logits = torch.tensor([10.0, 30.0, 20.0])
    assert {sampling.pick(logits, Sampling(1e-30), sampling.generator(seed)) for seed in range(20)} == {1}


def test_the_generator_follows_its_seed_alone() -> None:
    logits = torch.zeros(5000)

    def draws(seed: int) -> list[int]:
        source = sampling.generator(seed)
        return [sampling.pick(logits, Sampling(1.0), source) for _ in range(10)]

    assert draws(2**63 - 1) == draws(2**63 - 1)
    assert draws(1) != draws(2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: float, temperature: float) -> None:
    logits: Any = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(ExperimentFailed, match="not finite"):
        sampling.pick(logits, Sampling(temperature), sampling.generator(0))


def test_of_a_specification() -> None:
    assert Sampling.of({"temperature": 1, "top_p": 0.5, "top_k": 3}) == Sampling(1.0, 0.5, 3)
    assert Sampling.of({"temperature": 0}) == Sampling(0.0, 1.0, 0)

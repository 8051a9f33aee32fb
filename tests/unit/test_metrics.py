"""Metrics on vectors whose diversity is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from overnight.analysis import dynamics, metrics, spectrum
from overnight.analysis.conversation import Turn
from overnight.analysis.similarity import Vectors
from overnight.analysis.tfidf import Tfidf


def vectors(rows: Any, backend: str = "embedding") -> Vectors:
    rows = np.asarray(rows, dtype=float)
    return Vectors(backend, rows, rows)


def random_units(turns: int, width: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((turns, width))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def poles(sequence: list[int], width: int = 4) -> Vectors:
    """Turns that stand at orthogonal points."""
    return vectors(np.eye(width)[sequence])


def test_one_thing_said_again_and_again() -> None:
    found = metrics.conversation_metrics(poles([2] * 20))
    assert found["vendi_score"] == pytest.approx(1)
    assert found["vendi_score_normalized"] == pytest.approx(1 / 20)
    assert found["spherical_dispersion"] == pytest.approx(0)
    assert found["distance_entropy"] == found["cde"] == pytest.approx(1)  # all equally far from the centre: not at all
    for name in ("spectral_entropy", "entropy_rate", "semantic_entropy", "semantic_entropy_rate"):
        assert found[name] == 0
    assert found["windowed_vendi_score"] == found["windowed_vendi_score_min"] == pytest.approx(1)
    assert found["embedding_divergence_rate"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_equal_turns_are_spread_over_nothing_to_the_last_bit(seed: int) -> None:
    found = metrics.conversation_metrics(vectors(np.repeat(random_units(1, 384, seed), 13 + seed, axis=0)))
    for name in ("spherical_dispersion", "spherical_dispersion_trim", "spectral_entropy", "semantic_entropy"):
        assert found[name] == 0.0
    near = random_units(1, 384, seed) + 1e-9 * random_units(20, 384, seed)  # what encoders differ by
    assert (
        metrics.conversation_metrics(vectors(near / np.linalg.norm(near, axis=1, keepdims=True)))["spectral_entropy"]
        == 0.0
    )


def test_turns_without_words_are_left_out() -> None:
    texts = [f"the lamp number{n} burns{n % 3}" for n in range(12)]
    gaps = [*texts[:4], "", *texts[4:9], "Как прошла ночь?", *texts[9:]]
    made = Tfidf()
    found = metrics.conversation_metrics(made.vectors(gaps))
    assert found.keys() == metrics.conversation_metrics(made.vectors(texts)).keys()
    kept = made.vectors(gaps).unit[[n for n in range(14) if n not in (4, 10)]]
    assert found == metrics.conversation_metrics(Vectors("tfidf", kept, kept))
    assert found["vendi_score_normalized"] == pytest.approx(found["vendi_score"] / 12)


def test_conversations_with_few_words_have_no_metrics() -> None:
    russian = [f"Ночь номер {word} прошла" for word in ("один", "два", "три", "четыре", "пять", "шесть")]
    assert metrics.conversation_metrics(Tfidf().vectors(russian)) == {}
    assert metrics.conversation_metrics(Tfidf().vectors([*russian, *["two words"] * 5])) == {}
    assert "vendi_score" in metrics.conversation_metrics(Tfidf().vectors([*russian, *["two words"] * 6]))


def test_a_turn_without_words_is_like_no_other_and_unlike_none() -> None:
    texts = ["lamp", "lamp", "", "lamp"]
    rows = metrics.series(texts, Tfidf().vectors(texts))
    assert [row["sim_prev1"] for row in rows] == [None, pytest.approx(1), None, None]
    assert [row["sim_prev5_mean"] for row in rows] == [None, pytest.approx(1), None, pytest.approx(1)]
    assert [row["sim_surround5_mean"] for row in rows] == [pytest.approx(1), pytest.approx(1), None, pytest.approx(1)]


def test_nothing_said_twice() -> None:
    found = metrics.conversation_metrics(vectors(np.eye(16)))
    assert found["vendi_score"] == pytest.approx(16)
    assert found["windowed_vendi_score"] == pytest.approx(10)
    assert found["semantic_entropy"] == pytest.approx(math.log(16))
    assert found["semantic_entropy_rate"] == pytest.approx(0)  # each class leads to one other
    assert found["spherical_dispersion"] == pytest.approx(1 - 4 / 16)
    assert found["vendi_score_trim"] == pytest.approx(14)


def test_a_loop_between_two_poles_is_foreseeable() -> None:
    found = metrics.conversation_metrics(poles([0, 1] * 10))
    assert found["vendi_score"] == pytest.approx(2)
    assert found["semantic_entropy"] == pytest.approx(math.log(2))
    assert found["semantic_entropy_rate"] == pytest.approx(0)
    assert found["entropy_rate"] == pytest.approx(0)


def test_a_coin_that_is_thrown_is_not() -> None:
    coin = np.random.default_rng(3).integers(0, 2, 4000).tolist()
    found = metrics.conversation_metrics(poles(coin))
    assert found["semantic_entropy_rate"] == pytest.approx(math.log(2), abs=0.01)
    assert found["entropy_rate"] == pytest.approx(math.log(2), abs=0.01)


def test_the_entropy_rate_of_a_known_chain() -> None:
    """From state 0 one stays or leaves with 1/2, from state 1 one always returns: 2/3 of the time 1 bit."""
    random = np.random.default_rng(5)
    chain = [0]
    for _ in range(20_000):
        chain.append(int(random.integers(0, 2)) if chain[-1] == 0 else 0)
    assert dynamics.markov_entropy_rate(np.array(chain)) == pytest.approx(2 / 3 * math.log(2), abs=0.01)


def test_turns_that_part_diverge() -> None:
    """Two tracks that begin as neighbours and part by a factor of e^0.3 a turn."""
    angles = [1e-4 * math.exp(0.3 * step) for step in range(12)]
    there = [[math.cos(a + 0.5), math.sin(a + 0.5)] for a in angles]
    unit = np.array([[math.cos(0.5), math.sin(0.5)]] * 12 + there)
    nearest = np.full(19, -1, dtype=np.int64)
    nearest[0] = 12
    assert dynamics.divergence_rate(unit, nearest) == pytest.approx(0.3, abs=1e-3)
    assert dynamics.divergence_rate(unit, np.full(19, -1, dtype=np.int64)) is None


@pytest.mark.parametrize("turns", range(5))
def test_what_is_not_defined_is_left_out(turns: int) -> None:
    found = metrics.conversation_metrics(vectors(random_units(max(turns, 1), 6)[:turns]))
    assert all(math.isfinite(value) for value in found.values())
    assert ("vendi_score" in found) == (turns >= 1)
    assert ("cde" in found) == (turns >= 2)
    assert ("vendi_score_trim" in found) == (turns >= 3)
    assert ("cde_trim" in found) == (turns >= 4)
    assert "windowed_vendi_score" not in found


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 10_000))
def test_bounds_and_indifference_to_order_and_turning(turns: int, width: int, seed: int) -> None:
    unit = random_units(turns, width, seed)
    random = np.random.default_rng(seed)
    found = metrics._diversity(unit)
    assert 1 - 1e-9 <= found["vendi_score"] <= min(turns, width) + 1e-9
    for name in ("cde", "spectral_entropy", "spherical_dispersion"):
        assert -1e-9 <= found[name] <= 1 + 1e-9
    turned = unit @ np.linalg.qr(random.standard_normal((width, width)))[0]
    for other in (unit[random.permutation(turns)], turned):
        assert metrics._diversity(other) == pytest.approx(found, abs=1e-9)
    doubled = metrics._diversity(np.concatenate((unit, unit)))
    assert doubled["vendi_score"] == pytest.approx(found["vendi_score"], abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(12, 40), st.integers(0, 10_000))
def test_sparse_and_dense_rows_give_the_same_figures(turns: int, seed: int) -> None:
    unit = np.abs(random_units(turns, 9, seed))
    unit[unit < 0.2] = 0
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
    packed = sparse.csr_matrix(unit)
    dense = metrics.conversation_metrics(Vectors("tfidf", unit, unit))
    assert metrics.conversation_metrics(Vectors("tfidf", packed, packed)) == pytest.approx(dense, abs=1e-9)


@pytest.mark.parametrize("topics", [1, 40])
def test_estimated_eigenvalues_are_near_the_exact_ones(topics: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is 1 % off at most where both can be had; it is the same every time."""
    random = np.random.default_rng(topics)
    centres = random_units(topics, 500, 7)[random.integers(0, topics, 700)]
    rows = np.maximum(centres + 0.05 * random.standard_normal((700, 500)), 0)
    unit = sparse.csr_matrix(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    exact = metrics.vendi_score(unit), metrics.spectral_entropy(unit)
    monkeypatch.setattr(spectrum, "EXACT_SIZE", 100)
    assert not spectrum.is_exact(unit)
    estimated = metrics.vendi_score(unit), metrics.spectral_entropy(unit)
    assert estimated != exact
    assert estimated == pytest.approx(exact, rel=0.01)
    assert estimated == (metrics.vendi_score(unit), metrics.spectral_entropy(unit))


def test_windowed_scores_are_vendi_scores_of_the_windows() -> None:
    unit = random_units(17, 5)
    scores = metrics.windowed_vendi_scores(vectors(unit), 6)
    assert scores.tolist() == pytest.approx([metrics.vendi_score(unit[at : at + 6]) for at in range(12)])


def test_the_series_of_a_short_conversation() -> None:
    texts = ["wait wait here", "wait", "gone"]
    rows = metrics.series(texts, vectors([[1, 0], [0.6, 0.8], [0, 1]]))
    assert [(row["turn"], row["words"], row["unique_words"]) for row in rows] == [(1, 3, 2), (2, 1, 1), (3, 1, 1)]
    assert [row["sim_prev1"] for row in rows] == [None, pytest.approx(0.6), pytest.approx(0.8)]
    assert rows[2]["sim_prev5_mean"] == pytest.approx(0.4)
    assert rows[2]["sim_prev5_max"] == pytest.approx(0.8)
    assert [row["sim_surround5_mean"] for row in rows] == pytest.approx([0.3, 0.7, 0.4])
    (alone,) = metrics.series(["wait"], vectors([[1.0]]))
    assert alone == {"turn": 1, "words": 1, "unique_words": 1} | dict.fromkeys(
        ("sim_prev1", "sim_prev5_mean", "sim_prev5_max", "sim_surround5_mean")
    )


def test_time_travel_is_counted_in_every_form_of_a_call() -> None:
    calls = [
        {"tool_calls": [{"function": {"name": "time_travel", "arguments": "{}"}}, {"function": {"name": "draw"}}]},
        {"fragments": [{"type": "tool_use", "name": "time_travel", "input": {"name": "time_travel"}}]},
        {"tool": "time_travel"},
        {"note": "time_travel", "iteration": 3},
    ]
    turns = [Turn(number=at + 1, text="", extra=extra) for at, extra in enumerate(calls)]
    assert metrics.time_travel_used(turns) == 3

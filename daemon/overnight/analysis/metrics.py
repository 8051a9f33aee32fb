"""How diverse a conversation is: figures of the whole and a series over its turns. Pure; formulas in the docstrings.

e_i are the B unit vectors of the turns, d their dimension. Entropies are natural. What is not defined for so few turns
is left out, never invented. `_trim`: the same without the first and the last turn.

A turn without words has no direction (a row of zeros): metrics are of the other turns, and of none where fewer than
LEAST_WORDED_SHARE have words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overnight.analysis import dynamics, spectrum, tokens
from overnight.analysis.conversation import Turn
from overnight.analysis.similarity import Matrix, Vectors, pairs

AROUND_TURNS = 5
VENDI_WINDOW_TURNS = 10
TIME_TRAVEL = "time_travel"
LEAST_WORDED_SHARE = 0.5
_FLOOR = 1e-6
_ROUNDING = 1e-12
"""Figures closer to 0 are what sums of equal numbers differ by: left as they are, runs would seem to differ by them."""
_CHUNK_WINDOWS = 2048


def conversation_metrics(vectors: Vectors) -> dict[str, float]:
    """All metrics of a conversation that its vectors give, by name."""
    there = worded(vectors)
    if there.sum() < LEAST_WORDED_SHARE * there.size:
        return {}
    if not there.all():
        vectors = replace(vectors, unit=vectors.unit[np.flatnonzero(there)], motif=vectors.motif[np.flatnonzero(there)])
    return {name: 0.0 if abs(value) < _ROUNDING else value for name, value in _of_worded(vectors).items()}


def worded(vectors: Vectors) -> NDArray[np.bool_]:
    """Which turns have words that the backend counts."""
    return pairs(vectors.unit, vectors.unit) > 0


def _of_worded(vectors: Vectors) -> dict[str, float]:
    unit = vectors.unit
    found = _diversity(unit)
    if vectors.turns >= 3:
        found |= {f"{name}_trim": value for name, value in _diversity(unit[1:-1]).items()}
    if vectors.turns >= VENDI_WINDOW_TURNS:
        scores = windowed_vendi_scores(vectors, VENDI_WINDOW_TURNS)
        found["windowed_vendi_score"] = float(scores.mean())
        found["windowed_vendi_score_min"] = float(scores.min())
    if vectors.turns >= 3:
        found |= _movement(vectors)
    return found


def spectrum_of(vectors: Vectors) -> str:
    """How the eigenvalues are had: `exact` or `lanczos` (see `spectrum`)."""
    return "exact" if spectrum.is_exact(vectors.unit) else "lanczos"


def parameters(backend: str) -> dict[str, Any]:
    """What the metrics hang on, for the record."""
    return {
        "vendi_window_turns": VENDI_WINDOW_TURNS,
        "same_meaning": dynamics.SAME_MEANING[backend],
        "separation_turns": dynamics.SEPARATION_TURNS,
        "horizon_turns": dynamics.HORIZON_TURNS,
        "least_worded_share": LEAST_WORDED_SHARE,
    }


def _diversity(unit: Matrix) -> dict[str, float]:
    turns = unit.shape[0]
    found: dict[str, float] = {}
    if turns >= 2:
        found["distance_entropy"] = found["cde"] = distance_entropy(unit)
        found["spectral_entropy"] = spectral_entropy(unit)
    if turns >= 1:
        found["spherical_dispersion"] = spherical_dispersion(unit)
        found["vendi_score"] = vendi_score(unit)
        found["vendi_score_normalized"] = found["vendi_score"] / turns
    return found


def distance_entropy(unit: Matrix) -> float:
    """Centroid-distance entropy: with c the normalised mean, d_i = max(0, 1 - e_i.c), p_i proportional to
    d_i + 1e-6: -sum p ln p / ln B: Shannon's entropy (1948), evenness-normalised as by Pielou (1966), of how far each
    turn is from the centre (definition of the older harness). 1: all turns equally far; low: few stand apart."""
    mean = np.asarray(unit.mean(axis=0)).ravel()
    length = float(np.linalg.norm(mean))
    centre = mean / length if length > 0 else mean
    distances = np.maximum(0.0, 1.0 - np.asarray(unit @ centre).ravel()) + _FLOOR
    shares = distances / distances.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(unit.shape[0]))


def spectral_entropy(unit: Matrix) -> float:
    """Entropy of the eigenvalues q of the covariance (centred, B-1 in the denominator), clipped at 0 and normalised to
    sum 1: -sum q ln q / ln d. The logarithm of the effective rank (Roy and Vetterli 2007, EUSIPCO) over that of d."""
    dimensions = unit.shape[1]
    return spectrum.covariance_spectrum(unit).normalised_entropy / float(np.log(dimensions)) if dimensions > 1 else 0.0


def spherical_dispersion(unit: Matrix) -> float:
    """1 - ||sum e_i|| / B: one minus the mean resultant length (Mardia and Jupp 2000, Directional Statistics, 9.2)."""
    return 1.0 - float(np.linalg.norm(np.asarray(unit.sum(axis=0)).ravel())) / int(unit.shape[0])


def vendi_score(unit: Matrix) -> float:
    """exp of the entropy of the eigenvalues of E E^T / B: the effective number of different turns (Friedman and Dieng
    2022, The Vendi Score, arXiv 2210.02410)."""
    return float(np.exp(spectrum.similarity_spectrum(unit).entropy))


def windowed_vendi_scores(vectors: Vectors, window: int) -> NDArray[np.float64]:
    """The Vendi score (as above) of every `window` turns that follow each other: how many different things are said
    within so many turns, wherever in the conversation. Their mean and minimum are metrics."""
    near = vectors.neighbours(window - 1)
    squares = np.asarray(
        vectors.unit.multiply(vectors.unit).sum(axis=1)
        if hasattr(vectors.unit, "multiply")
        else np.square(vectors.unit).sum(axis=1)
    ).ravel()
    windows = vectors.turns - window + 1
    scores = np.empty(windows)
    for start in range(0, windows, _CHUNK_WINDOWS):
        first = np.arange(start, min(start + _CHUNK_WINDOWS, windows))
        gram = np.empty((first.size, window, window))
        for row in range(window):
            gram[:, row, row] = squares[first + row]
            for column in range(row):
                gram[:, row, column] = gram[:, column, row] = near[first + row, row - column - 1]
        values = np.linalg.eigvalsh(gram) / window
        positive = np.where(values > 1e-14, values, 1.0)  # 1 ln 1 = 0
        scores[first] = np.exp(-(positive * np.log(positive)).sum(axis=1))
    return scores


def _movement(vectors: Vectors) -> dict[str, float]:
    """entropy_rate: of the states that `dynamics.states` finds. semantic_entropy: Kuhn, Gal and Farquhar 2023 (arXiv
    2302.09664), in the discrete form of Farquhar et al. 2024 (Nature 630): of the shares of the classes of meaning.
    semantic_entropy_rate: the same classes as a Markov chain (Cover and Thomas 2006, Theorem 4.2.4): what the class of
    the last turn leaves open about the next. embedding_divergence_rate: see `dynamics.divergence_rate`."""
    walked = dynamics.walk(vectors)
    found = {
        "entropy_rate": dynamics.markov_entropy_rate(dynamics.states(vectors.unit)),
        "semantic_entropy": dynamics.entropy(walked.classes),
        "semantic_entropy_rate": dynamics.markov_entropy_rate(walked.classes),
    }
    if vectors.turns >= dynamics.MIN_TURNS:
        rate = dynamics.divergence_rate(vectors.unit, walked.nearest)
        if rate is not None:
            found["embedding_divergence_rate"] = rate
    return found


def series(texts: Sequence[str], vectors: Vectors) -> list[dict[str, Any]]:
    """Turn by turn: `turn` (1-based), `words`, `unique_words`, `sim_prev1` (cosine to the turn before),
    `sim_prev5_mean`, `sim_prev5_max` (up to 5 before), `sim_surround5_mean` (up to 5 before and up to 5 after). None
    where there are no such turns, and a turn without words is like no other and unlike none."""
    near = vectors.neighbours(AROUND_TURNS)
    turns = vectors.turns
    wordless = ~worded(vectors)
    near[wordless] = np.nan
    for back in range(1, min(AROUND_TURNS, turns - 1) + 1):
        near[back:, back - 1][wordless[:-back]] = np.nan
    found = []
    for at, text in enumerate(texts):
        said = tokens.words(text)
        before = near[at, : min(at, AROUND_TURNS)]
        after = [near[at + step, step - 1] for step in range(1, min(AROUND_TURNS, turns - 1 - at) + 1)]
        around = _there(np.concatenate((before, after)))
        previous, before = _there(before[:1]), _there(before)
        found.append(
            {
                "turn": at + 1,
                "words": len(said),
                "unique_words": len(set(said)),
                "sim_prev1": float(previous[0]) if previous.size else None,
                "sim_prev5_mean": float(before.mean()) if before.size else None,
                "sim_prev5_max": float(before.max()) if before.size else None,
                "sim_surround5_mean": float(around.mean()) if around.size else None,
            }
        )
    return found


def _there(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def time_travel_used(turns: Iterable[Turn]) -> int:
    """How many calls of the tool `time_travel` the turns record (the older harness's tool that moves the clock)."""
    return sum(_calls(turn.extra) for turn in turns)


def _calls(value: Any, depth: int = 0) -> int:
    """A call is an object with that name: `{"name": ...}`, as `tool`, or below `function`, as providers write it."""
    if depth > 8:
        return 0
    if isinstance(value, dict) or hasattr(value, "items"):
        if TIME_TRAVEL in (value.get("name"), value.get("tool"), value.get("tool_name")):
            return 1
        return sum(_calls(each, depth + 1) for each in value.values())
    return sum(_calls(each, depth + 1) for each in value) if isinstance(value, list) else 0

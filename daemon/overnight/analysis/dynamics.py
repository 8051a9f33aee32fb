"""How a conversation moves from turn to turn: entropy rates of its states, divergence of turns that were alike.

All deterministic: clusterings begin at fixed turns, and ties go to the earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overnight.analysis.similarity import Matrix, Vectors, pairs

SAME_MEANING = {"tfidf": 0.6, "embedding": 0.85}
"""Turns with a cosine of at least this to the first turn of a class belong to it."""

MOST_STATES = 16
SEPARATION_TURNS = 3
HORIZON_TURNS = 5
MIN_TURNS = 12
_KMEANS_ROUNDS = 100
_SAME_DISTANCE = 1e-6

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Walk:
    """From one pass over all similarities: the class of each turn, and for each of the first turns - HORIZON_TURNS
    the nearest of them that is more than SEPARATION_TURNS away (-1: none)."""

    classes: Labels
    nearest: Labels


def walk(vectors: Vectors) -> Walk:
    """Blocks of similarities are looked at once, in the order of turns.

    Classes: greedily, each turn is compared with the first turn of each class and joins the first that it equals, as
    in the semantic entropy of Kuhn, Gal and Farquhar 2023 (arXiv 2302.09664, Algorithm 1), with a bound on the cosine
    where they ask for entailment both ways.
    """
    same = SAME_MEANING[vectors.backend]
    turns, tracked = vectors.turns, max(0, vectors.turns - HORIZON_TURNS)
    classes = np.zeros(turns, dtype=np.int64)
    nearest = np.full(tracked, -1, dtype=np.int64)
    founders: list[int] = []
    for start, block in vectors.blocks():
        for turn, row in enumerate(block, start=start):
            alike = np.flatnonzero(row[founders] >= same) if founders else np.empty(0, dtype=np.int64)
            if not alike.size:
                founders.append(turn)
            classes[turn] = alike[0] if alike.size else len(founders) - 1
            if turn < tracked:
                nearest[turn] = _nearest(row[:tracked], turn)
    return Walk(classes, nearest)


def _nearest(row: NDArray[np.float32], turn: int) -> int:
    far = row.copy()
    far[max(0, turn - SEPARATION_TURNS) : turn + SEPARATION_TURNS + 1] = -np.inf
    found = int(far.argmax())
    return found if np.isfinite(far[found]) else -1


def entropy(labels: Labels) -> float:
    """-sum p ln p over the shares of the labels, in nats."""
    shares = np.bincount(labels) / labels.size
    shares = shares[shares > 0]
    return abs(float(-(shares * np.log(shares)).sum()))


def markov_entropy_rate(labels: Labels) -> float:
    """Entropy rate of the first-order Markov chain with the transitions of a sequence, in nats a step:
    H = -sum_i p_i sum_j P_ij ln P_ij, p_i the share of steps that leave i (Cover and Thomas 2006, Elements of
    Information Theory, Theorem 4.2.4)."""
    _, numbered = np.unique(labels, return_inverse=True)
    steps = numbered[:-1] * (int(numbered.max()) + 1) + numbered[1:]
    _, both = np.unique(steps, return_counts=True)
    _, leaving = np.unique(numbered[:-1], return_counts=True)
    total = labels.size - 1
    joint = -float((both / total * np.log(both / total)).sum())
    return max(0.0, joint + float((leaving / total * np.log(leaving / total)).sum()))


def states(unit: Matrix) -> Labels:
    """Which of k states each turn is in, k = sqrt(B / 2) rounded, 2 to 16 (the rule of thumb of Mardia, Kent and Bibby
    1979, Multivariate Analysis, 13.5): spherical k-means (Dhillon and Modha 2001, Machine Learning 42), begun at the
    turns that farthest-first traversal finds from the first turn (Gonzalez 1985, Theor. Comput. Sci. 38), so that
    nothing is left to chance."""
    wanted = min(MOST_STATES, max(2, round(float(np.sqrt(unit.shape[0] / 2)))))
    centres = _dense(unit[_farthest_first(unit, wanted)])
    labels = np.full(unit.shape[0], -1, dtype=np.int64)
    for _ in range(_KMEANS_ROUNDS):
        # Rounded, so that two centres that are equally near stay so on every machine.
        now = np.round(np.asarray(unit @ centres.T), 12).argmax(axis=1).astype(np.int64)
        if (now == labels).all():
            break
        labels = now
        for state in range(len(centres)):
            members = np.flatnonzero(labels == state)
            total = np.asarray(unit[members].sum(axis=0)).ravel() if members.size else centres[state]
            length = float(np.linalg.norm(total))
            centres[state] = total / length if length > 0 else total
    return labels


def _farthest_first(unit: Matrix, wanted: int) -> list[int]:
    chosen = [0]
    closest = np.asarray(unit @ _dense(unit[:1])[0]).ravel()
    while len(chosen) < wanted:
        closest[chosen] = np.inf
        farthest = int(closest.argmin())
        if closest[farthest] >= 1.0 - 1e-9:
            break
        chosen.append(farthest)
        closest = np.maximum(closest, np.asarray(unit @ _dense(unit[farthest : farthest + 1])[0]).ravel())
    return chosen


def divergence_rate(unit: Matrix, nearest: Labels) -> float | None:
    """How fast turns that were alike part, per turn: the slope of the mean ln distance between a turn and its nearest
    neighbour, followed for HORIZON_TURNS turns: the largest Lyapunov exponent of Rosenstein, Collins and De Luca 1993
    (Physica D 65), the embedded turns taken as the states. Distances: ||e_i - e_j||; pairs that are equal at a step
    are left out of its mean, as there; 0 when all of them are always equal. None when no turn has a neighbour."""
    left = np.flatnonzero(nearest >= 0)
    if not left.size:
        return None
    right = nearest[left]
    steps, means = [], []
    for step in range(HORIZON_TURNS + 1):
        cosines = pairs(unit[left + step], unit[right + step])
        distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosines))
        distances = distances[distances > _SAME_DISTANCE]
        if distances.size:
            steps.append(float(step))
            means.append(float(np.log(distances).mean()))
    return float(np.polyfit(steps, means, 1)[0]) if len(steps) > 1 else 0.0


def _dense(rows: Matrix) -> Array:
    return np.asarray(rows.toarray() if hasattr(rows, "toarray") else np.array(rows), dtype=np.float64)

"""The entropy of the eigenvalues of a conversation's similarity matrix, or of its covariance.

With up to 1,500 turns or dimensions: exact, from the smaller of the two matrices. Beyond, in memory that grows with
turns + dimensions alone and without any matrix: the largest eigenvalues by ARPACK, of the rest the sum of -x ln x by
stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature,
SIAM J. Matrix Anal. Appl. 38(4)), with the large ones taken out first as in Hutch++ (Meyer et al. 2021, arXiv
2010.09649) and the known trace as a control variate. Its probes come from a fixed seed: the same figures every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overnight.analysis.similarity import Matrix

EXACT_SIZE = 1500
"""Eigenvalues of a matrix of this size take half a second and 36 MB."""

_LARGEST = 48
_PROBES = 8
_STEPS = 40
_SEED = 20221005
_NO_SPREAD = 1e-12
"""Rows of length 1 whose eigenvalues sum to less are all the same but for rounding."""
_NOTHING = 1e-14
"""Eigenvalues below this share of the trace are rounding."""

Array = NDArray[np.float64]
Apply = Callable[[Array], Array]


@dataclass(frozen=True)
class Spectrum:
    """trace: sum of the eigenvalues x; entropy: sum of -x ln x, not normalised."""

    trace: float
    entropy: float

    @property
    def normalised_entropy(self) -> float:
        """Of the eigenvalues divided by their sum; 0 when there is nothing."""
        return self.entropy / self.trace + float(np.log(self.trace)) if self.trace > 0 else 0.0


def is_exact(unit: Matrix) -> bool:
    return int(min(unit.shape)) <= EXACT_SIZE


def similarity_spectrum(unit: Matrix) -> Spectrum:
    """Of E E^T / B, for the B rows E."""
    return _spectrum(unit, np.zeros(unit.shape[1]), unit.shape[0])


def covariance_spectrum(unit: Matrix) -> Spectrum:
    """Of the covariance of the rows, B - 1 in the denominator; B >= 2."""
    return _spectrum(unit, np.asarray(unit.mean(axis=0)).ravel(), unit.shape[0] - 1)


def _spectrum(unit: Matrix, centre: Array, divisor: int) -> Spectrum:
    squares = unit.multiply(unit).sum() if hasattr(unit, "multiply") else np.square(unit).sum()
    trace = (float(squares) - unit.shape[0] * float(centre @ centre)) / divisor
    if trace <= _NO_SPREAD:
        return Spectrum(0.0, 0.0)
    if is_exact(unit):
        return _exact(unit, centre, divisor)
    return _estimated(unit, centre, divisor, trace)


def _exact(unit: Matrix, centre: Array, divisor: int) -> Spectrum:
    turns, dimensions = unit.shape
    product = unit @ unit.T if turns <= dimensions else unit.T @ unit
    matrix = np.asarray(product.toarray() if hasattr(product, "toarray") else product, dtype=np.float64)
    if centre.any():
        if turns <= dimensions:
            along = np.asarray(unit @ centre).ravel()
            matrix += float(centre @ centre) - along[:, None] - along[None, :]
        else:
            matrix -= turns * np.outer(centre, centre)
    values = np.linalg.eigvalsh(matrix) / divisor
    values = values[values > _NOTHING * values.max()]
    return Spectrum(float(values.sum()), float(_f(values).sum()))


def _f(values: Array) -> Array:
    positive = np.maximum(values, np.finfo(float).tiny)
    return np.where(values > 0, -positive * np.log(positive), 0.0)


def _estimated(unit: Matrix, centre: Array, divisor: int, trace: float) -> Spectrum:
    from scipy.sparse.linalg import LinearOperator, eigsh

    apply, size = _operator(unit, centre, divisor)
    random = np.random.default_rng(_SEED)
    whole = LinearOperator((size, size), matvec=apply, dtype=np.float64)
    largest, vectors = eigsh(whole, k=_LARGEST, v0=random.standard_normal(size), tol=1e-4)
    largest = np.maximum(largest, 0.0)

    def deflated(vector: Array) -> Array:
        image = apply(vector - vectors @ (vectors.T @ vector))
        return np.asarray(image - vectors @ (vectors.T @ image))

    rest = max(0.0, trace - float(largest.sum()))
    entropies, traces = 0.0, 0.0
    for _ in range(_PROBES):
        probe = random.choice((-1.0, 1.0), size)
        nodes, weights = _quadrature(deflated, probe - vectors @ (vectors.T @ probe))
        entropies += float(weights @ _f(nodes))
        traces += float(weights @ nodes)
    of_rest = rest * entropies / traces if traces > 0 else 0.0
    return Spectrum(trace, float(_f(largest).sum()) + of_rest)


def _operator(unit: Matrix, centre: Array, divisor: int) -> tuple[Apply, int]:
    """Multiplies with the smaller of the two matrices that have these eigenvalues, without making it."""
    turns, dimensions = unit.shape
    turned = unit.T.tocsr() if hasattr(unit, "tocsr") else unit.T

    def among_dimensions(vector: Array) -> Array:
        vector = np.asarray(vector).ravel()
        return np.asarray(turned @ (unit @ vector) - turns * centre * (centre @ vector)) / divisor

    def among_turns(vector: Array) -> Array:
        vector = np.asarray(vector).ravel()
        along = turned @ vector - centre * vector.sum()
        return np.asarray(unit @ along - centre @ along) / divisor

    return (among_dimensions, dimensions) if dimensions < turns else (among_turns, turns)


def _quadrature(apply: Apply, start: Array) -> tuple[Array, Array]:
    """Nodes and weights of the Gauss quadrature that stands for `start`: Lanczos, each step made orthogonal to all
    before it."""
    square = float(start @ start)
    if square == 0.0:
        return np.zeros(1), np.zeros(1)
    basis = np.empty((_STEPS, start.size))
    basis[0] = start / np.sqrt(square)
    diagonal, beside = [], []
    for step in range(_STEPS):
        image = apply(basis[step])
        diagonal.append(float(image @ basis[step]))
        for _ in range(2):
            image -= basis[: step + 1].T @ (basis[: step + 1] @ image)
        length = float(np.linalg.norm(image))
        if step + 1 == _STEPS or length < _NOTHING:
            break
        beside.append(length)
        basis[step + 1] = image / length
    tridiagonal = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    nodes, vectors = np.linalg.eigh(tridiagonal)
    return nodes, square * vectors[0] ** 2

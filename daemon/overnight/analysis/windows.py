"""Cosines between windows of a conversation, row by row: never the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from overnight.analysis.similarity import BLOCK_BYTES, Matrix, products

_DENSE_BYTES = 2 * BLOCK_BYTES
"""Up to this size the windows' vectors are kept themselves."""


def window_similarities(rows: Matrix, length: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(window, its cosines to all windows) for every window: window i is the sum of rows i .. i + length - 1."""
    windows = rows.shape[0] - length + 1
    if windows * rows.shape[1] * 8 <= _DENSE_BYTES:
        yield from _from_vectors(rows, length, windows)
    else:
        yield from _from_products(rows, length, windows)


def _from_vectors(rows: Matrix, length: int, windows: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    vectors = np.stack([np.asarray(rows[at : at + length].sum(axis=0)).ravel() for at in range(windows)])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    step = max(1, BLOCK_BYTES // (8 * windows))
    for start in range(0, windows, step):
        for offset, row in enumerate(vectors[start : start + step] @ vectors.T):
            yield start + offset, row


def _from_products(rows: Matrix, length: int, windows: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Without the windows' vectors, which are as good as dense: 7,001 windows of 20,000 words would take a gigabyte.

    With C[a, j] = row a times window j, the products of window i with all windows follow from those of window i - 1:
    P[i] = P[i-1] - C[i-1] + C[i-1+length]. Rounding adds up to some 1e-12 of the value over 10,000 turns.
    """
    scale = 1.0 / np.maximum(_window_lengths(rows, length, windows), np.finfo(float).tiny)
    first = np.asarray(rows[:length].sum(axis=0)).ravel()
    product = _sliding(np.asarray(rows @ first).ravel(), length)
    yield 0, product * scale[0] * scale
    leaving, entering = products(rows, 0, windows - 1), products(rows, length, windows - 1 + length)
    for at, (left, entered) in enumerate(zip(leaving, entering, strict=True), start=1):
        product += _sliding(entered - left, length)
        yield at, product * scale[at] * scale


def _sliding(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Sums over `length` values that follow each other."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    return np.asarray(total[length:] - total[:-length])


def _window_lengths(rows: Matrix, length: int, windows: int) -> NDArray[np.float64]:
    vector = np.asarray(rows[:length].sum(axis=0), dtype=np.float64).ravel()
    found = np.empty(windows)
    found[0] = np.linalg.norm(vector)
    for at in range(1, windows):
        _add(vector, rows, at - 1, -1.0)
        _add(vector, rows, at + length - 1, 1.0)
        found[at] = np.linalg.norm(vector)
    return found


def _add(vector: NDArray[np.float64], rows: Matrix, at: int, sign: float) -> None:
    if hasattr(rows, "indptr"):
        inside = slice(rows.indptr[at], rows.indptr[at + 1])
        vector[rows.indices[inside]] += sign * rows.data[inside]
    else:
        vector += sign * rows[at]

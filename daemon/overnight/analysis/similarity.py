"""Turns as vectors, behind one interface: `tfidf` (small, fast, the default) or `embedding` (a local encoder).

Nothing here keeps a matrix of all turns against all turns: similarities come in blocks of rows, or as a band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BACKENDS = ("tfidf", "embedding")
BLOCK_BYTES = 32 * 2**20
"""What one block of similarities may take."""

Matrix = Any
"""A scipy CSR matrix or a dense array of shape (turns, dimensions), float64."""


@dataclass(frozen=True)
class Vectors:
    """The turns of one conversation, a row each.

    unit: L2-normalised rows (a turn without words is a row of zeros), what metrics and similarities are taken of.
    motif: what collapse spans are taken of: for tfidf without stop words and not normalised; else `unit` itself.
    terms: the words that stand for the columns of `motif`, empty for embeddings.
    """

    backend: str
    unit: Matrix
    motif: Matrix
    terms: Sequence[str] = ()

    @property
    def turns(self) -> int:
        return int(self.unit.shape[0])

    @property
    def dimensions(self) -> int:
        return int(self.unit.shape[1])

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first turn's index, similarities of `rows` turns to all turns), block by block: cosines as float32."""
        return row_blocks(self.unit, rows)

    def neighbours(self, window: int) -> NDArray[np.float64]:
        """Shape (turns, window): [i, k-1] is the cosine of turn i and turn i-k; NaN where there is no such turn."""
        return band(self.unit, window)


class Backend(Protocol):
    """Makes vectors of texts. name: `tfidf` or `embedding`; model: what it embeds with, None for tfidf."""

    name: str
    model: str | None

    def vectors(self, texts: Sequence[str]) -> Vectors: ...

    def parameters(self) -> dict[str, Any]: ...


def open_backend(name: str, model: str | None = None, store: Path | None = None) -> Backend:
    """The backend of that name. An embedding model is loaded by its first use, once. Raises UserError.

    model: for `embedding`: a folder, a built-in encoder, or a name in the model store `store` (var/models)."""
    from overnight.errors import UserError

    if name == "tfidf":
        from overnight.analysis.tfidf import Tfidf

        return Tfidf()
    if name == "embedding":
        from overnight.analysis.embedding import Embedding

        return Embedding(model, store)
    raise UserError(f"there is no backend {name!r}; there are: {', '.join(BACKENDS)}")


def row_blocks(unit: Matrix, rows: int | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cosines of blocks of rows to all rows, from rows of length 1."""
    small = unit.astype(np.float32)
    rows = rows or _rows_of_a_block(small, 4)
    for start in range(0, small.shape[0], rows):
        yield start, _product(small, small[start : start + rows])


def products(matrix: Matrix, first: int, last: int) -> Iterator[NDArray[np.float64]]:
    """Row by row, first <= row < last: its products with all rows. Blocks of them are in memory, no more."""
    step = _rows_of_a_block(matrix, 8)
    for start in range(first, last, step):
        yield from _product(matrix, matrix[start : min(start + step, last)])


def _rows_of_a_block(matrix: Matrix, item_bytes: int) -> int:
    return max(1, BLOCK_BYTES // (item_bytes * max(1, int(max(matrix.shape)))))


def _product(matrix: Matrix, block: Matrix) -> NDArray[Any]:
    """block times all rows. A sparse block is made dense first: ten times faster than a product of two sparse
    matrices, whose result is as good as dense anyway."""
    dense = block.toarray() if hasattr(block, "toarray") else block
    return np.ascontiguousarray((matrix @ np.ascontiguousarray(dense.T)).T)


def band(unit: Matrix, window: int) -> NDArray[np.float64]:
    """Cosines of each row to the `window` rows before it."""
    turns = unit.shape[0]
    found = np.full((turns, window), np.nan)
    for back in range(1, min(window, turns - 1) + 1):
        found[back:, back - 1] = pairs(unit[back:], unit[:-back])
    return found


def pairs(left: Matrix, right: Matrix) -> NDArray[np.float64]:
    """The product of each row of one matrix with the same row of the other."""
    product = left.multiply(right).sum(axis=1) if hasattr(left, "multiply") else (left * right).sum(axis=1)
    return np.asarray(product, dtype=np.float64).ravel()

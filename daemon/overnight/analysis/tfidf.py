"""The backend `tfidf`: words, counted and weighted. Formula and words are those of the older harness.

tf-idf of word w in turn i of N turns = count(w, i) * (ln((1 + N) / (1 + df(w))) + 1), df = turns that hold w: what
scikit-learn's TfidfVectorizer(smooth_idf=True) computes (a test compares the two). It is built here since importing
that takes 116 MiB, and scipy's sparse matrices alone 48 MiB: this runs beside cells.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from overnight.analysis import tokens
from overnight.analysis.similarity import Matrix, Vectors


class Tfidf:
    """Needs no model. A conversation's vectors know nothing of other conversations."""

    name = "tfidf"
    model: str | None = None

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """unit: of all words; motif: without stop words, not normalised."""
        weights, _ = weighted(tokens.words(text) for text in texts)
        motif, terms = weighted(tokens.content_words(text) for text in texts)
        return Vectors(backend=self.name, unit=normalised(weights), motif=motif, terms=terms)

    def parameters(self) -> dict[str, Any]:
        return {"idf": "ln((1+N)/(1+df))+1", "norm": "l2"}


def weighted(documents: Iterable[Sequence[str]]) -> tuple[Matrix, list[str]]:
    """The tf-idf of documents given as words, one CSR row each, and the word of each column, in alphabetical order."""
    columns: dict[str, int] = {}
    indices, counts, ends = array("i"), array("d"), array("q", [0])
    for words in documents:
        for word, count in Counter(words).items():
            indices.append(columns.setdefault(word, len(columns)))
            counts.append(count)
        ends.append(len(indices))
    terms = sorted(columns)
    place = np.empty(len(terms), dtype=np.int32)
    for new, word in enumerate(terms):
        place[columns[word]] = new
    rows, found = len(ends) - 1, place[np.frombuffer(indices, dtype=np.int32)]
    frequency = np.bincount(found, minlength=len(terms))
    idf = np.log((1 + rows) / (1 + frequency)) + 1
    data = np.frombuffer(counts, dtype=np.float64) * idf[found]
    matrix = sparse.csr_matrix((data, found, np.frombuffer(ends, dtype=np.int64)), shape=(rows, len(terms)))
    matrix.sort_indices()
    return matrix, terms


def normalised(matrix: Matrix) -> Matrix:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    factors = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return sparse.diags_array(factors).tocsr() @ matrix

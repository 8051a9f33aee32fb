"""Vectors of turns: the same as scikit-learn's, blocks and bands the same as the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from overnight.analysis import tfidf, tokens, windows
from overnight.analysis.similarity import Vectors, open_backend, products
from overnight.errors import UserError

WORDS = st.sampled_from(["clock", "hours", "the", "Waiting", "a", "x9", "ünïcode", "night", "42"])
TEXTS = st.lists(st.lists(WORDS, max_size=6).map(" ".join), min_size=1, max_size=9)


def test_words_are_the_older_harnesss() -> None:
    assert tokens.words("It's 10 o'clock: THE x-ray, a b!") == ["it", "10", "clock", "the", "ray"]
    assert tokens.content_words("It's 10 o'clock: THE x-ray") == ["10", "clock", "ray"]
    assert len(tokens.STOP_WORDS) == 35


def test_the_motif_is_what_most_turns_hold() -> None:
    assert tokens.motif(["so I wait here quietly", "still wait here quietly now", "hm"]) == "wait here quietly"
    assert tokens.motif(["[9 hours remaining]", "[8 hours remaining]"]) == "hours remaining"
    assert tokens.motif(["the of", "!"]) == ""


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_it_computes_what_scikit_learn_does(texts: list[str]) -> None:
    found, terms = tfidf.weighted(tokens.words(text) for text in texts)
    if not terms:
        assert found.shape == (len(texts), 0)
        return
    judge = TfidfVectorizer(analyzer=tokens.words, norm=None)
    expected = judge.fit_transform(texts)
    assert list(judge.get_feature_names_out()) == terms
    assert np.allclose(found.toarray(), expected.toarray(), rtol=0, atol=1e-12)
    lengths = np.linalg.norm(tfidf.normalised(found).toarray(), axis=1)
    assert all(abs(length - 1) < 1e-12 or length == 0 for length in lengths)


def rows(turns: int = 23, width: int = 7, *, seed: int = 1) -> Vectors:
    found = np.random.default_rng(seed).standard_normal((turns, width))
    found[5] = found[3]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return Vectors("embedding", found, found)


@pytest.mark.parametrize("made", [lambda v: v, lambda v: Vectors("tfidf", *(2 * [sparse.csr_matrix(v.unit)]))])
def test_blocks_and_bands_are_parts_of_the_matrix(made: object) -> None:
    vectors: Vectors = made(rows())  # type: ignore[operator]
    whole = rows().unit @ rows().unit.T
    blocks = list(vectors.blocks(4))
    assert [start for start, _ in blocks] == [0, 4, 8, 12, 16, 20]
    assert all(block.dtype == np.float32 for _, block in blocks)
    assert np.allclose(np.concatenate([block for _, block in blocks]), whole, atol=1e-6)
    assert np.allclose(np.stack(list(products(vectors.unit, 2, 9))), whole[2:9], atol=1e-12)
    near = vectors.neighbours(3)
    assert near.shape == (23, 3)
    for turn in range(23):
        for back in (1, 2, 3):
            if turn < back:
                assert np.isnan(near[turn, back - 1])
            else:
                assert near[turn, back - 1] == pytest.approx(whole[turn, turn - back], abs=1e-12)


def test_a_band_wider_than_the_conversation_is_mostly_nothing() -> None:
    two = rows().unit[:2]
    near = Vectors("tfidf", two, two).neighbours(5)
    assert np.isfinite(near).sum() == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_windows_are_the_same_with_and_without_their_vectors(seed: int, length: int) -> None:
    matrix = sparse.random_array((20, 30), density=0.3, rng=np.random.default_rng(seed)).tocsr()
    count = 20 - length + 1
    direct = dict(windows._from_vectors(matrix, length, count))
    recursive = dict(windows._from_products(matrix, length, count))
    assert list(recursive) == list(range(count))
    for window, row in direct.items():
        assert np.allclose(recursive[window], row, rtol=0, atol=1e-9)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="there are: tfidf, embedding"):
        open_backend("words")


def test_texts_without_words_are_rows_of_zeros() -> None:
    found = open_backend("tfidf").vectors(["", "!", "night"])
    assert found.unit.toarray().tolist() == [[0.0], [0.0], [1.0]]
    assert open_backend("tfidf").vectors([]).turns == 0

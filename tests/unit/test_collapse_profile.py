"""The older harness's method on constructed conversations, and what follows from spans."""

from __future__ import annotations

import numpy as np
import pytest

from overnight.analysis import collapse, profile, tfidf
from overnight.analysis.collapse import Span
from overnight.errors import UserError

DIVERSE = [" ".join(f"w{turn}x{word}" for word in range(12)) for turn in range(20)]


def test_a_late_collapse_is_found_and_grown_to_its_whole_length() -> None:
    texts = [*DIVERSE[:14], *(["the clock goes on and nothing else happens"] * 16)]
    found = collapse.detect(texts, "profile", message_indices=range(1, 60, 2))
    (span,) = found.spans
    assert (span.first_turn, span.last_turn, span.start_message, span.end_message) == (15, 30, 29, 59)
    assert span.similarity == pytest.approx(1)
    assert span.label == "nothing else happens"
    assert found.onset_turn == 15
    assert found.collapsed_fraction == pytest.approx(16 / 30)
    assert found.collapse_rate == pytest.approx(1 / 15)


@pytest.mark.parametrize("turns", range(5))
def test_too_few_turns_give_no_span(turns: int) -> None:
    found = collapse.detect(["same"] * turns, "profile")
    assert found == collapse.Collapse((), None, 0.0, 0.0)


def test_the_distance_is_to_the_nearest_window_that_is_far_enough() -> None:
    rows = np.eye(8)[[0, 1, 2, 0, 1, 3, 4, 5]]
    assert profile.profile(rows, 2) == pytest.approx([0, 0.5, 0.5, 0, 0.5, 0.5, 0.5])
    assert profile.profile(rows, 4)[0] == pytest.approx(1 - 4 / (2 * 6**0.5))


def test_rounding_does_not_decide_which_windows_are_equal() -> None:
    """Windows of the same turns in another order differ in the last bits of their sums, and not otherwise."""
    base = np.random.default_rng(1).random((3, 50))
    rows = base[[turn % 3 for turn in range(30)]]
    distances = profile.profile(rows, 9)
    assert distances == pytest.approx(np.zeros(22), abs=1e-12)
    (stretch,) = profile._groups(distances, 9, 30)
    assert (stretch.first, stretch.last) == (0, 29)


def test_the_parameters_are_those_of_the_older_harness() -> None:
    found = profile.parameters()
    assert (found["m_pct"], found["threshold_pct"], found["min_windows"]) == (0.30, 0.15, 3)
    assert (found["min_span_messages"], found["grow_sim"], found["grow_max"]) == (5, 0.85, None)


def test_what_follows_from_spans() -> None:
    found = collapse.summed_up([Span(3, 4, 0.9), Span(7, 10, 0.8)], 10)  # an episode, and a collapse
    assert (found.onset_turn, found.collapsed_fraction, found.collapse_rate) == (7, 0.6, pytest.approx(1 / 7))
    whole = collapse.summed_up([Span(1, 10, 0.9)], 10)
    assert (whole.onset_turn, whole.collapsed_fraction, whole.collapse_rate) == (1, 1.0, 1.0)
    assert collapse.summed_up([], 0).to_json() == {
        "spans": [],
        "onset_turn": None,
        "collapsed_fraction": 0.0,
        "collapse_rate": 0.0,
    }


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="there are: absolute, profile"):
        collapse.detect(["a"], "relative", vectors=tfidf.Tfidf().vectors(["a"]))

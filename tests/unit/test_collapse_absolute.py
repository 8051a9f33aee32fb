"""Collapse against fixed bounds: on the labelled shared conversations, and on made ones of which the truth is known."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from helpers.constructed import FAMILIES, Made, Writer, constructed
from helpers.labelled import LABELS, Score, collapsed, inside, labelled
from overnight.analysis import absolute
from overnight.analysis.similarity import Vectors
from overnight.analysis.tfidf import Tfidf

SEEDS = range(3)
UNFOUND = {"loop9", "reworded"}
"""Known not to be found, or not all of it: more poles than the window; the same, told in ever other sentences."""


def made(family: str) -> list[Made]:
    return [one for one in constructed(SEEDS) if one.family == family]


def spans(texts: tuple[str, ...] | list[str]) -> list[absolute.Span]:
    return absolute.spans(texts, Tfidf().vectors(texts))


def test_labels_name_every_turn_once_and_hold_no_text() -> None:
    for file in LABELS.glob("*.json"):
        label = json.loads(file.read_text())
        parts = [span for name in ("repetitive", "unclear", "diverse") for span in label[name]]
        turns = sorted(turn for span in parts for turn in range(span["first_turn"], span["last_turn"] + 1))
        assert turns == list(range(1, label["turns"] + 1)), file.name
        assert all(set(span) <= {"first_turn", "last_turn", "kind", "reason"} for span in parts)


def test_shared_conversations_are_found_as_labelled(upstream: Path) -> None:
    turns, conversations = Score(), Score()
    for one in labelled(upstream):
        found = spans(one.texts)
        turns.add(inside(found, len(one.texts)), one.truth)
        conversations.add([collapsed(found)], [one.collapsed])
    assert turns.precision >= 0.98 and turns.recall >= 0.95
    assert (conversations.missed, conversations.false) == (0, 0)


def test_a_conversation_that_collapses_throughout_is_one_full_span(upstream: Path) -> None:
    texts = next(one.texts for one in labelled(upstream) if one.family == "baseline_4b_think_run1")
    (span,) = spans(texts)
    assert (span.first_turn, span.last_turn, span.kind) == (1, 29, "full")  # at 30 it was cut while thinking
    assert {"hour", "companion"} <= set(span.label.split(", "))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNFOUND])
def test_made_conversations(family: str) -> None:
    for one in made(family):
        found = spans(one.texts)
        score = Score().add(inside(found, len(one.texts)), one.truth)
        assert score.precision >= 0.95 and score.recall >= 0.95, (score.false_turns, score.missed_turns)
        assert collapsed(found) == one.collapsed


def test_what_is_told_in_other_sentences_is_found_in_part_and_a_loop_longer_than_the_window_not_at_all() -> None:
    score = Score()
    for one in made("reworded"):
        score.add(inside(spans(one.texts), len(one.texts)), one.truth)
    assert score.false == 0 and score.recall >= 0.6
    assert all(spans(one.texts) == [] for one in made("loop9"))


@pytest.mark.parametrize(
    ("family", "kinds"),
    [("full", {"full"}), ("late", {"late"}), ("loop2", {"loop"}), ("loop3", {"loop"}), ("pair", {"repeat"})],
)
def test_kinds(family: str, kinds: set[str]) -> None:
    for one in made(family):
        assert {span.kind for span in spans(one.texts)} == kinds


def test_a_stretch_that_ends_is_a_repeat_and_its_label_names_what_only_it_says() -> None:
    w = Writer(5)
    stretch = ["The gardener waters tulips beside a rusty gate, and the gate never minds at all."] * 6
    texts = [" ".join(w.text("music")) for _ in range(8)]
    (span,) = spans([*texts[:4], *stretch, *texts[4:]])
    assert (span.first_turn, span.last_turn, span.kind) == (5, 10, "repeat")
    assert span.label == "gardener, waters, tulips, gate" or set(span.label.split(", ")) <= set(
        stretch[0].replace(",", "").lower().split()
    )


def test_the_label_of_a_loop_names_each_pole() -> None:
    poles = ["Waiting quietly beneath the silent lighthouse again.", "Counting copper kettles inside another kitchen."]
    (span,) = spans(poles * 4)
    first, second = span.label.split(" / ")
    assert span.kind == "loop"
    assert all(word in poles[0].lower() for word in first.split(", "))
    assert all(word in poles[1].lower() for word in second.split(", "))


@pytest.mark.parametrize("texts", [[], ["Hello."], ["", ""], ["", "", "", "", ""], ["7", "8", "9", "10"]])
def test_the_smallest_conversations(texts: list[str]) -> None:
    found = spans(texts)
    assert inside(found, len(texts)) == [len(texts) > 1] * len(texts)


def test_a_reply_that_only_thinks_says_nothing() -> None:
    thought = "<think>The same long thought about the very same thing, which goes on, and on, and is cut"
    texts = ["A lamp stands on the old table.", thought, "Two boats left at noon for the far shore.", thought]
    assert spans(texts) == []


def test_reasoning_does_not_hide_that_the_same_is_said() -> None:
    w = Writer(2)
    texts = [
        f"<think>{' '.join(w.text(sentences=9))}</think>I will go on waiting for the time to pass." for _ in range(8)
    ]
    (span,) = spans(texts)
    assert (span.first_turn, span.last_turn) == (1, 8)


def test_scripts_without_spaces_are_read_by_characters() -> None:
    same = ["我会继续安静地等待时间过去没有别的事情可做。"] * 5
    others = ["今天下雨了。", "他买了三个苹果。", "火车晚点两小时。", "山上的雪已经融化。", "老师讲了一个笑话。"]
    assert [span.last_turn for span in absolute.spans(same)] == [5]
    assert absolute.spans(others) == []


def test_an_embedding_finds_what_is_said_in_other_words() -> None:
    import numpy as np

    texts = [
        "Rain falls on the harbour.",
        "It pours down at the port.",
        "A shower over the docks.",
        "Wet weather by the quay.",
    ]
    rows = np.array([[1.0, 0.0], [0.99, 0.141], [0.98, 0.199], [0.99, -0.141]])
    near = Vectors("embedding", rows, rows)
    assert absolute.spans(texts) == []
    assert [(span.first_turn, span.last_turn) for span in absolute.spans(texts, near)] == [(1, 4)]
    far = np.eye(4)
    assert absolute.spans(texts, Vectors("embedding", far, far)) == []


def test_spans_are_in_order_and_do_not_overlap() -> None:
    for one in constructed(range(2)):
        found = spans(one.texts)
        assert all(1 <= span.first_turn < span.last_turn <= len(one.texts) for span in found)
        assert all(a.last_turn < b.first_turn for a, b in pairwise(found))
        assert all(0 <= span.similarity <= 1 and span.label for span in found)


def test_each_turn_is_held_against_a_window_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the turns, twice the comparisons."""
    compared: list[int] = []
    likeness = absolute.online.likeness
    monkeypatch.setattr(absolute.online, "likeness", lambda *given: compared.append(1) or likeness(*given))
    counts = []
    for turns in (200, 400):
        compared.clear()
        absolute.spans([f"Word{turn} stands alone here" for turn in range(turns)])
        counts.append(len(compared))
    assert counts[1] < 2.1 * counts[0]


def test_parameters_are_json() -> None:
    assert json.loads(json.dumps(absolute.parameters())) == absolute.parameters()

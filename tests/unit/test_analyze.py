"""The record of a conversation, and how much memory a long one may take."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from overnight.analysis import analyze, collapse
from overnight.analysis.conversation import Conversation, Turn
from overnight.analysis.similarity import open_backend
from overnight.errors import ModelError, UserError

LONG_TURNS = 10_000
WORDS_A_TURN = 8
VOCABULARY = 1800


def conversation(texts: list[str], **extra: Any) -> Conversation:
    turns = tuple(Turn(at + 1, text, tokens=7, message_index=2 * at + 1, extra=extra) for at, text in enumerate(texts))
    return Conversation(
        grid="g",
        key="baseline_m_run1",
        scaffold="baseline",
        model="m",
        run=1,
        coords={"style": "short"},
        status="done",
        end_reason="max_iterations",
        system="",
        turns=turns,
        header={},
        sha256="0" * 64,
        source="x",
    )


def test_a_record_holds_figures_and_nothing_of_what_was_said() -> None:
    texts = ["a secret thought about tides", "another of lamps"] + ["[9 hours remaining]"] * 10
    made = open_backend("tfidf")
    found = analyze.analyze(conversation(texts, tool="time_travel"), made, "profile")
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert found == analyze.analyze(conversation(texts, tool="time_travel"), open_backend("tfidf"), "profile")
    assert (found["turns"], found["tokens"], found["tokens_known"]) == (12, 84, True)
    assert (found["backend"], found["embedding_model"], found["method"]) == ("tfidf", None, "profile")
    assert found["parameters"] == analyze.parameters(made, "profile")
    assert found["spectrum"] == "exact"
    assert found["coords"] == {"style": "short"}
    assert found["collapse"]["onset_turn"] == 3
    assert found["collapse"]["spans"][0]["start_message"] == 5
    assert found["metrics"]["time_travel_used"] == 12
    assert len(found["series"]) == 12
    assert "tides" not in json.dumps(found)


@pytest.mark.parametrize("method", ["absolute", "profile"])
@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["one"], ["same"] * 3, ["", "!", "?"] * 7])
def test_conversations_with_little_in_them(texts: list[str], method: str) -> None:
    found = analyze.analyze(conversation(texts), open_backend("tfidf"), method)
    json.dumps(found, allow_nan=False)
    assert found["turns"] == len(found["series"]) == len(texts)


def test_a_record_knows_what_was_said_again_and_what_has_no_words() -> None:
    one, other = (["Ночь", "lamp"], ["Утро", "lamp"])
    found = [analyze.analyze(conversation(texts), open_backend("tfidf")) for texts in (one, other, list(one))]
    assert [each["wordless_turns"] for each in found] == [1, 1, 1]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["texts_sha256"] == found[2]["texts_sha256"] != found[1]["texts_sha256"]
    assert len(analyze.analyze(conversation(["\ud800"]), open_backend("tfidf"))["texts_sha256"]) == 64


def test_tokens_of_zero_are_not_known() -> None:
    found = conversation(["said"])
    assert not replace(found, turns=(replace(found.turns[0], tokens=0),)).tokens_known
    assert not replace(found, turns=(replace(found.turns[0], tokens=None),)).tokens_known


def test_an_embedding_model_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(ModelError, match="overnight models add nowhere/to-be-found"):
        analyze.parameters(open_backend("embedding", "nowhere/to-be-found"), "absolute")
    with pytest.raises(UserError, match="there is no method"):
        analyze.parameters(open_backend("tfidf"), "other")


def test_ten_thousand_turns_in_bounded_memory() -> None:
    """A matrix of all turns against all turns would take 381 MiB in float32: less than half of that is touched."""
    random.seed(1)
    words = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiouy" for third in "bdfglmnprstvxz"]
    pool = [word + ending for word in words for ending in ("", "en")][:VOCABULARY]
    texts = [" ".join(random.choices(pool, k=WORDS_A_TURN)) for _ in range(LONG_TURNS)]
    texts[6000:7000] = ["nothing happens, the clock goes on"] * 1000
    tracemalloc.start(1)
    try:
        found = analyze.analyze(conversation(texts), open_backend("tfidf"), "profile")
        ours = collapse.detect(texts, "absolute", open_backend("tfidf"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LONG_TURNS**2 * 4 / 2
    assert found["spectrum"] == "lanczos"
    assert len(found["series"]) == LONG_TURNS
    assert ours.onset_turn == 6001

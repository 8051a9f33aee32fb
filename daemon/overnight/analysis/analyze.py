"""The whole analysis of one conversation: a record of JSON values, and nothing of what was said.

    vectors -> collapse spans -> metrics -> series

Pure: it reads no file and writes none (`store` and `jobs` do). Equal conversations give equal records.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import overnight
from overnight.analysis import collapse, metrics
from overnight.analysis.conversation import Conversation
from overnight.analysis.similarity import Backend

VERSION = 2
"""Raised whenever the same conversation gives another record."""


def parameters(backend: Backend, method: str) -> dict[str, Any]:
    """All that a record hangs on besides the conversation and VERSION. Reads no conversation; raises UserError for an
    unknown method, ModelError for an embedding model that cannot be had."""
    return {
        "backend": backend.parameters(),
        "method": collapse.method_named(method).parameters(),
        "metrics": metrics.parameters(backend.name),
    }


def analyze(conversation: Conversation, backend: Backend, method: str = "absolute") -> dict[str, Any]:
    """The record of a conversation. Raises UserError, or ModelError for an embedding model that cannot be had.

    Metrics that are not defined for so few turns are left out. `wordless_turns`: those that the backend finds no words
    in (see `metrics`). `texts_sha256`: of the replies, to know a conversation that is there twice.
    `spectrum`: `exact`, or `lanczos` where a long conversation's eigenvalues are estimated."""
    texts = conversation.texts
    vectors = backend.vectors(texts)
    places = [turn.message_index for turn in conversation.turns]
    found = collapse.detect(texts, method, vectors=vectors, message_indices=places)
    figures: dict[str, float] = {**metrics.conversation_metrics(vectors)}
    if texts:
        figures["time_travel_used"] = float(metrics.time_travel_used(conversation.turns))
    return {
        "v": 1,
        "version": VERSION,
        "overnight": overnight.__version__,
        "grid": conversation.grid,
        "key": conversation.key,
        "scaffold": conversation.scaffold,
        "model": conversation.model,
        "run": conversation.run,
        "coords": dict(conversation.coords),
        "status": conversation.status,
        "end_reason": conversation.end_reason,
        "transcript_sha256": conversation.sha256,
        "backend": backend.name,
        "embedding_model": backend.model,
        "method": method,
        "parameters": parameters(backend, method),
        "spectrum": metrics.spectrum_of(vectors),
        "turns": len(texts),
        "wordless_turns": int((~metrics.worded(vectors)).sum()),
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "tokens": conversation.tokens,
        "tokens_known": conversation.tokens_known,
        "collapse": found.to_json(),
        "metrics": figures,
        "series": metrics.series(texts, vectors),
    }

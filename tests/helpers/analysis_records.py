"""Analysis records, as `overnight.analysis.analyze` writes them, made of numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def record(scaffold: str = "baseline", model: str = "small", run: int = 1, **changes: Any) -> dict[str, Any]:
    """changes: fields of the record; `fraction` (collapsed_fraction, with a span and an onset when it is not 0) and
    `metrics` are merged."""
    fraction = changes.pop("fraction", 0.0)
    turns = changes.get("turns", 10)
    span = {
        "first_turn": 4, "last_turn": 8, "start_message": 6, "end_message": 14, "similarity": 0.9, "kind": "late",
        "label": changes.pop("label", "again and again"),
    }  # fmt: skip
    collapse = {
        "spans": [span] if fraction else [],
        "onset_turn": 4 if fraction else None,
        "collapsed_fraction": fraction,
        "collapse_rate": fraction / 10,
    }
    series = [{"turn": n, "words": 40 + run, "unique_words": 30, "sim_prev1": None if n == 1 else n / turns}
              for n in range(1, turns + 1)]  # fmt: skip
    return {
        "v": 1, "grid": "night", "key": f"{scaffold}_{model}_run{run}",
        "scaffold": scaffold, "model": model, "run": run, "coords": {},
        "status": "done", "end_reason": "max_iterations", "transcript_sha256": f"{run:064x}",
        "backend": "tfidf", "embedding_model": None, "method": "absolute", "parameters": {"window": 6},
        "overnight": "0.1.0", "texts_sha256": f"{run:08x}" * 8, "wordless_turns": 0,
        "turns": turns, "tokens": 1000 + run, "tokens_known": True, "collapse": collapse,
        "metrics": {"vendi_score": 3.0 + run / 7}, "series": series,
    } | changes  # fmt: skip


def of_metric(values: Mapping[tuple[str, str], Iterable[float | None]], metric: str = "m") -> Iterator[dict[str, Any]]:
    """(scaffold, model) -> the metric's value in each run."""
    for (scaffold, model), runs in values.items():
        for run, value in enumerate(runs, 1):
            yield record(scaffold, model, run, metrics={metric: value})

"""A small night in the older harness's layout, made up here: cells in every state, both layouts of `content`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGAN = "2026-01-12T15:03:44.031430+00:00"
ENDED = "2026-01-12T15:16:26.623357+00:00"


def entry(scaffold: str = "baseline", model: str = "8b_think", run: int = 1, **changes: Any) -> dict[str, Any]:
    """What grid_state.json and metadata hold of a completed cell."""
    found = {
        "scaffold_id": {"baseline": 1, "values_only": 2}.get(scaffold, 9),
        "scaffold_name": scaffold,
        "model_id": model,
        "run_num": run,
        "status": "completed",
        "started_at": BEGAN,
        "iterations": 4,
        "total_tokens": 40,
        "collapse_detected": False,
        "collapse_iteration": None,
        "error": None,
        "completed_at": ENDED,
        "result_path": None,
    }
    return {name: value for name, value in {**found, **changes}.items() if value != "absent"}


def messages(words: str, turns: int = 4, *, fragments: bool = False, **changes: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for turn in range(1, turns + 1):
        said = f"{words} {turn}, and so on"
        content: Any = [{"type": "text", "text": said}] if fragments else said
        reply = {"iteration": turn, "role": "assistant", "content": content, "reasoning": "hm", "tokens": 10}
        found.append({**reply, **changes})
        found.append({"iteration": turn, "role": "user", "content": f"[{turn} of {turns}]"})
    return found[:-1]


def conversation(
    folder: Path, scaffold: str = "baseline", model: str = "8b_think", run: int = 1, *, words: str = "", **more: Any
) -> Path:
    """Write one; more: of its metadata, or `said`: its messages."""
    said = more.pop("said", None)
    if said is None:
        said = messages(words or f"{scaffold} {model} {run}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scaffold}_{model}_run{run}.json"
    path.write_text(json.dumps({"metadata": entry(scaffold, model, run, **more), "conversation": said}, indent=2))
    return path


def state(folder: Path, *entries: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = {f"{each['scaffold_id']}_{each['model_id']}_{each['run_num']}": each for each in entries}
    path = folder / "grid_state.json"
    path.write_text(json.dumps({"cells": cells, "started_at": BEGAN, "last_updated": ENDED}))
    return path


def night(folder: Path) -> Path:
    """Two completed (one of them in fragments), one completed without its file, one failed, one left running, one
    pending, and one that only a conversation tells of."""
    conversation(folder, run=1)
    conversation(folder, run=2, said=messages("in pieces", fragments=True))
    conversation(folder, "values_only", "4b_think", 1)
    lost = {"iterations": 27, "total_tokens": 154939, "error": "peer closed connection"}
    bare = dict.fromkeys(
        ("iterations", "total_tokens", "collapse_detected", "collapse_iteration", "error", "completed_at"), "absent"
    )
    state(
        folder,
        entry(run=1),
        entry(run=2),
        entry(run=3),
        entry("values_only", run=1, status="failed", **lost),
        entry("values_only", run=2, status="running", **bare, result_path="absent"),
        entry("values_only", run=3, status="pending", **bare, result_path="absent", started_at="absent"),
    )
    return folder

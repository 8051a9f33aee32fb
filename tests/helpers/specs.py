"""Cell specifications for the scripted engine."""

from __future__ import annotations

from typing import Any


def scripted_spec(
    *,
    key: str = "baseline_script_run1",
    seed: int = 7,
    turns: int = 6,
    target: int | None = None,
    token_limit: int = 30,
    **options: Any,
) -> dict[str, Any]:
    """A whole cell specification, as the queue hands it to a child."""
    return {
        "v": 1,
        "kind": "idle_loop",
        "engine": "scripted",
        "model": {
            "name": "script",
            "source": "scripted",
            "dtype": "float32",
            "device": "cpu",
            "thinking": None,
            "options": options,
        },
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "scaffold": {"id": 1, "name": "baseline"},
        "system": "You have nothing to do for the next 10 hours.",
        "limits": {
            "max_iterations": turns,
            "target_output_tokens": target,
            "token_limit": token_limit,
            "shift_hours": 10.0,
        },
        "threads": 1,
        "template_date": "2025-01-01",
        "key": key,
        "coords": {"scaffold": "baseline", "model": "script", "run": 1},
        "seed": seed,
    }


def warm_of(spec: dict[str, Any]) -> dict[str, Any]:
    """What a warm server has to load for a cell."""
    model = spec["model"]
    return {
        "engine": spec["engine"],
        "source": model["source"],
        "dtype": model["dtype"],
        "device": model["device"],
        "options": model["options"],
    }

"""var/run/daemon.json as commands show it: nothing is shown, or asked for by its pid, that is not of the right kind.

Whether a daemon lives is told by `check` alone. What it says beside that is only shown, and what of it cannot be shown
is left out: a daemon that was taken for dead for its words would lose the commands that it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from overnight import procfs
from overnight.checked import number, path, text, whole

MOST_BYTES = 64 * 2**20
"""It has a row for each running cell."""

_Check = Callable[[Any], object]


def _or_none(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _pid(value: Any) -> int:
    return whole(value, 1, procfs.PID_MOST)


_ROW: Mapping[str, _Check] = {
    **dict.fromkeys(("grid", "cell", "phase"), text),
    **dict.fromkeys(("turn", "output_tokens", "bytes", "claim_bytes", "peak_bytes"), _or_none(whole)),
    "cell_id": whole,
    "pid": _or_none(_pid),
    "new_turns": lambda value: whole(value, -(2**63)),
    "seconds": number,
}
_WARM: Mapping[str, _Check] = {
    "model": lambda value: path(value, 10_000),  # it names the folder that the model came from
    "state": text,
    "cells": whole,
    "load_s": _or_none(number),
    "bytes": _or_none(whole),
    "pid": _or_none(_pid),
}
_MEMORY: Mapping[str, _Check] = dict.fromkeys(("claimed_bytes", "warm_bytes", "limit_bytes", "reserve_bytes"), whole)


def check(state: Mapping[str, Any]) -> None:
    """Who wrote it, and when. Raises ValueError or KeyError for what no daemon writes."""
    _pid(state["pid"])
    whole(state["start_ticks"], 1)
    number(state["monotonic_s"])


def shown(state: Mapping[str, Any]) -> dict[str, Any]:
    """All else that readers use of it, each of its kind: what is not, and any row that is not, is left out."""
    return {
        "slots": _or_else(1, whole, state.get("slots")),
        "holding": _or_else("", lambda value: text(value, 10_000), state.get("holding")),
        "stopping": state.get("stopping") is True,
        "running": _rows(state.get("running"), _ROW),
        "warm": _rows(state.get("warm"), _WARM),
        "memory": _or_else(None, _memory, state.get("memory")),
    }


def _or_else(other: Any, check: _Check, value: Any) -> Any:
    try:
        check(value)
    except (ValueError, KeyError):
        return other
    return value


def _rows(rows: Any, shape: Mapping[str, _Check]) -> list[Any]:
    checked = (_or_else(None, lambda row: _each(row, shape), row) for row in (rows if isinstance(rows, list) else []))
    return [row for row in checked if row is not None]


def _memory(memory: Any) -> None:
    _each(memory, _MEMORY)
    _or_none(whole)(memory.get("others_bytes"))
    whole(memory.get("most_bytes", 0))


def _each(row: Any, shape: Mapping[str, _Check]) -> None:
    if not isinstance(row, dict):
        raise ValueError("no mapping where one belongs")  # noqa: TRY004 - readers catch one thing
    for name, fits in shape.items():
        fits(row[name])

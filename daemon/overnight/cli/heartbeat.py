"""var/run/daemon.json as commands show it: nothing is shown, or asked for by its pid, that is not of the right kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from overnight import procfs
from overnight.checked import number, text, whole

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
    "pid": _or_none(_pid),
    "new_turns": lambda value: whole(value, -(2**63)),
    "seconds": number,
}
_WARM: Mapping[str, _Check] = {
    **dict.fromkeys(("model", "state"), lambda value: text(value, 10_000)),
    "cells": whole,
    "load_s": _or_none(number),
    "pid": _or_none(_pid),
}
_MEMORY: Mapping[str, _Check] = dict.fromkeys(("claimed_bytes", "warm_bytes", "limit_bytes", "reserve_bytes"), whole)


def check(state: Mapping[str, Any]) -> None:
    """Raises ValueError or KeyError for what no daemon writes."""
    _pid(state["pid"])
    whole(state["start_ticks"], 1)
    number(state["monotonic_s"])
    whole(state["slots"])
    text(state["holding"], 10_000)
    if not isinstance(state["stopping"], bool):
        raise ValueError("stopping")  # noqa: TRY004 - readers catch one thing
    for name, shape in (("running", _ROW), ("warm", _WARM)):
        if not isinstance(state[name], list):
            raise ValueError(name)  # noqa: TRY004 - readers catch one thing
        for row in state[name]:
            _each(row, shape)
    if (memory := state.get("memory")) is not None:
        _each(memory, _MEMORY)
        for name in ("others_bytes", "most_bytes"):
            _or_none(whole)(memory.get(name, 0))
        if memory.get("most_bytes", 0) is None:
            raise ValueError("most_bytes")


def _each(row: Any, shape: Mapping[str, _Check]) -> None:
    if not isinstance(row, dict):
        raise ValueError("no mapping where one belongs")  # noqa: TRY004 - readers catch one thing
    for name, fits in shape.items():
        fits(row[name])

"""Tool calls out of what a record says of a turn, in whichever of the common forms they were written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from overnight.report.words import shortened, visible

_LONGEST = 20_000
_HIDDEN = frozenset(("minutes_left", "cropped", "conditions", "iteration", "tokens"))
"""Shown elsewhere on the page, or of use to a replay alone."""

_LISTS = ("tool_calls", "tools", "function_calls", "tool_results")
_CALL_KINDS = ("tool_call", "tool_use", "function_call", "tool")
_RESULT_KINDS = ("tool_result", "function_call_output", "tool_response")


@dataclass
class Call:
    """One tool card."""

    name: str
    short: str = ""
    arguments: str = ""
    result: str = ""


def calls(extra: Mapping[str, Any]) -> tuple[list[Call], dict[str, Any]]:
    """The calls of a turn, each with its answer where that is known, and what is left of `extra`."""
    found: list[Call] = []
    by_id: dict[str, Call] = {}
    rest: dict[str, Any] = {}
    for name, value in extra.items():
        if name in _HIDDEN or value in (None, "", [], {}):
            continue
        if name in _LISTS and isinstance(value, list):
            left = [item for item in value if not _take(item, found, by_id, result=name == "tool_results")]
        elif name == "fragments" and isinstance(value, list):
            left = [item for item in value if not _fragment(item, found, by_id)]
        else:
            rest[name] = value
            continue
        if left:
            rest[name] = left
    return found, rest


def _fragment(item: Any, found: list[Call], by_id: dict[str, Call]) -> bool:
    kind = item.get("type") if isinstance(item, Mapping) else None
    return kind in (*_CALL_KINDS, *_RESULT_KINDS) and _take(item, found, by_id, result=kind in _RESULT_KINDS)


def _take(item: Any, found: list[Call], by_id: dict[str, Call], *, result: bool) -> bool:
    """False for what is no call."""
    if not isinstance(item, Mapping):
        return False
    inner = item.get("function")
    together = {**item, **(inner if isinstance(inner, Mapping) else {})}
    number = str(next(_values(item, ("tool_call_id", "tool_use_id", "call_id", "id")), ""))
    answer = _told(next(_values(together, ("result", "output", "content", "response")), ""))
    if result and number in by_id:
        by_id[number].result = answer
        return True
    name = next(_values(together, ("name", "tool", "tool_name")), "")
    if not name and not result:
        return False
    arguments = next(_values(together, ("arguments", "args", "input", "parameters")), "")
    call = Call(
        shortened(str(name or "answer"), 80), shortened(_told(arguments, flat=True), 90), _told(arguments), answer
    )
    found.append(call)
    if number:
        by_id[number] = call
    return True


def _values(item: Mapping[str, Any], names: Iterable[str]) -> Iterator[Any]:
    return (item[name] for name in names if item.get(name) not in (None, ""))


def _told(value: Any, *, flat: bool = False) -> str:
    """Arguments are often JSON in a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value[:1] in "{[" else value
        except (ValueError, RecursionError):
            pass
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, indent=None if flat else 2, default=str)
    return visible(value[:_LONGEST])

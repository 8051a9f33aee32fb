"""The structural engine: hypothesis edits real JSON documents, and puts hostile values where others stood."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """A text that stands in the output as it is."""

    text: str


@dataclass(frozen=True)
class Pairs:
    """A mapping that may have a key twice."""

    pairs: tuple[tuple[str, Any], ...]


def deep(levels: int, opening: str = "[", inside: str = "1", closing: str = "]") -> Raw:
    return Raw(opening * levels + inside + closing * levels)


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**64), 10**25, 10**400),
    *(
        Raw("9" * 4000),
        Raw("9" * 5000),
        Raw("-0"),
        -0.0,
        0.1,
        1e308,
        5e-324,
        math.inf,
        -math.inf,
        math.nan,
        Raw("1e999"),
    ),
    *(
        "",
        " ",
        "0",
        "7",
        "1e5",
        "nan",
        "inf",
        "true",
        "null",
        "\0",
        "a\nb",
        "\x1b[31mred",
        "\u202e",
        "\ud800",
        "\u2028",
    ),
    *(
        "../../x",
        "/dev/zero",
        "/etc/passwd",
        ".",
        "..",
        "a/b",
        "%s%n{0}",
        "{cell}",
        "{",
        "é" * 300,
        "x" * 300,
        "x" * 5000,
    ),
    *([], {}, [[]], [None], {"": 1}, {"a": {"b": []}}, [1] * 300, Pairs((("a", 1), ("a", 2)))),
    *(deep(60), deep(900), deep(1100), deep(100_000), deep(900, '{"a":', "1", "}"), Raw("[" * 2000)),
)
_HUGE: tuple[Any, ...] = (
    "y" * 10_000_000,
    Raw(f"[{'0,' * 300_000}0]"),
    Raw(json.dumps({str(number): number for number in range(50_000)})),
)
_MOST_DIGITS = 10**4000
"""Python writes no longer number than 4,300 digits."""


def dump(value: Any) -> str:
    """JSON, but for what no JSON writer writes: NaN, infinities, a key twice, raw text."""
    match value:
        case Raw():
            return value.text
        case Pairs():
            return "{" + ",".join(f"{json.dumps(key)}:{dump(inner)}" for key, inner in value.pairs) + "}"
        case dict():
            return "{" + ",".join(f"{json.dumps(str(key))}:{dump(inner)}" for key, inner in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(dump, value)) + "]"
        case int() if not isinstance(value, bool) and abs(value) >= _MOST_DIGITS:
            return "9" * 4001
        case _:
            return json.dumps(value)


Edit = tuple[str, int, Any]
"""(what, which of the places, the value that it needs)."""

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
_VALUES = st.one_of(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE), st.sampled_from(HOSTILE), _PLAIN)
_ACTIONS = (
    *("replace", "replace", "replace", "spoil", "spoil", "spoil", "delete"),
    *("double", "rename", "wrap", "retype", "swap", "huge"),
)


def edits() -> st.SearchStrategy[tuple[int, list[Edit]]]:
    """Which of the documents, and what to do to it."""
    edit = st.tuples(st.sampled_from(_ACTIONS), st.integers(0, 10**6), _VALUES)
    return st.tuples(st.integers(0, 10**3), st.lists(edit, min_size=1, max_size=3))


def edited(documents: Sequence[Any], drawn: tuple[int, list[Edit]]) -> Any:
    number, changes = drawn
    holder = [copy.deepcopy(documents[number % len(documents)])]
    for edit in changes:
        _apply(holder, edit)
    return holder[0]


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value, the whole document first."""
    found: list[tuple[Any, Any]] = []
    waiting = [holder]
    while waiting:
        at = waiting.pop()
        keys = list(at) if isinstance(at, dict) else range(min(len(at), 200))
        found += [(at, key) for key in keys]
        waiting += [at[key] for key in keys if isinstance(at[key], dict | list)]
    return found


def _apply(holder: list[Any], edit: Edit) -> None:
    what, number, value = edit
    value = copy.deepcopy(value)  # the strategy's own, which later edits must not reach
    places = _places(holder)
    at, key = places[number % len(places)]
    how: dict[str, Callable[[], Any]] = {
        "replace": lambda: value,
        "huge": lambda: copy.copy(_HUGE[number // 16 % len(_HUGE)]) if number % 16 == 0 else value,
        "wrap": lambda: [at[key]] if number % 2 else {"a": at[key]},
        "retype": lambda: _retyped(at[key]),
        "spoil": lambda: _spoiled(at[key], number, value),
    }
    if what in how:
        at[key] = how[what]()
    elif what == "swap":
        other, place = places[number // 7 % len(places)]
        at[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(at[key])  # one may be within the other
    elif at is holder:
        at[key] = value
    elif what == "delete":
        del at[key]
    elif isinstance(at, list):
        at.insert(key, copy.copy(at[key]))
    elif what == "rename":
        at[value if isinstance(value, str) else f"{key}x"] = at.pop(key)
    else:
        _double(holder, at, key, value)


def _double(holder: list[Any], at: dict[str, Any], key: str, value: Any) -> None:
    """A mapping with this key twice, in the place of the one that has it once."""
    twice = Pairs((*at.items(), (key, value)))
    for container, place in _places(holder):
        if container[place] is at:
            container[place] = twice
            return


def _spoiled(value: Any, number: int, other: Any) -> Any:
    """Nearly what it was."""
    match value:
        case str():
            at = number % (len(value) + 1)
            return value[:at] + (other if isinstance(other, str) else "\x1b") + value[at:]
        case bool() | None:
            return other
        case int() | float():
            return (value + 1, value - 1, -value, value * 2**32, [value], dump(value))[number % 6]
        case list():
            return [*value, other]
        case dict():
            return {**value, f"x{number}": other}
        case _:
            return other


def _retyped(value: Any) -> Any:
    match value:
        case bool() | None:
            return str(value).lower()
        case str():
            return [value]
        case int() | float():
            return dump(value)
        case dict():
            return list(value.items())
        case Raw() | Pairs():
            return [value]
        case _:
            return {str(index): inner for index, inner in enumerate(value)}

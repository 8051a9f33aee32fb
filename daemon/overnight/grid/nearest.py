"""The nearest known name to one that is not known, and how names are shown in a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from overnight.line import one_line

__all__ = ["did_you_mean", "one_line", "one_of", "quoted"]

_COMPARED = 100
"""Characters that are compared: difflib is quadratic, and no name is longer."""

_SHOWN = 40
_LISTED = 20


def did_you_mean(word: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or nothing where none is near. shown: how to write a name."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:_COMPARED].lower(), by_lower, n=1, cutoff=0.6)
    if not near:
        return ""
    name = by_lower[near[0]]
    return f"; did you mean '{_listed(shown[name] if shown else name)}'?"


def one_of(known: Iterable[str]) -> str:
    """`a`, `one of a, b`, or of many the first twenty and how many more there are."""
    names = [_listed(name) for name in known]
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"one of {', '.join(names[:_LISTED])}{more}"


def _listed(name: str) -> str:
    """A name as it stands in a list: values of axes may be long, or hold lines."""
    return one_line(name if len(name) <= _COMPARED else f"{name[:_COMPARED]}…")


def quoted(text: str) -> str:
    """`'text'`, escaped and, when it is long, cut short with its length."""
    shown = one_line(text[:_SHOWN])
    return f"'{shown}'" if len(text) <= _SHOWN else f"'{shown}…' ({len(text)} characters)"

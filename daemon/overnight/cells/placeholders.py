"""Placeholders of a command cell: `{axis}`, `{cell}`, `{seed}`, `{run}`; `{{` and `}}` are literal braces. Pure.

A grid file is checked with names() when it is submitted and a cell's command is made with fill() when it runs, by
the same parser, so that what was accepted can be filled in. Nothing but a name stands between braces: no format
specification, no attribute and no index, so that a value never becomes code.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")
"""The name of an axis, too."""

_PIECE = re.compile(r"(?P<literal>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<stray>[{}])")
_SHOWN_CHARACTERS = 24


def names(text: str) -> list[str]:
    """The names between braces, in order, each as often as it is written; a ValueError says which brace is wrong."""
    return [name for _, name in _pieces(text) if name is not None]


def fill(text: str, values: Mapping[str, Any], *, quote: bool = False) -> str:
    """The text with the values in place of their names; `quote` makes each value one word of a shell's line."""
    parts: list[str] = []
    for literal, name in _pieces(text):
        parts.append(literal)
        if name is None:
            continue
        if name not in values:
            known = ", ".join(f"{{{known}}}" for known in sorted(values))
            raise ValueError(f"{{{name}}} has no value here; there are {known or 'no values'}")
        written = written_as(values[name])
        parts.append(shlex.quote(written) if quote else written)
    return "".join(parts)


def quoted_names(line: str) -> list[str]:
    """The names that stand between quotes in a line for a shell: their values are quoted already when they are filled
    in, and within another pair of quotes that would be undone: a value could become code. Raises ValueError."""
    found, quote, escaped = [], "", False
    for literal, name in _pieces(line):
        for character in literal:
            if escaped:
                escaped = False
            elif character == "\\" and quote != "'":
                escaped = True
            elif quote:
                quote = "" if character == quote else quote
            elif character in "'\"":
                quote = character
        if name is not None and (quote or escaped):
            found.append(name)
        escaped = escaped and name is None
    return found


def values_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a full specification has for its placeholders: its coordinates, the cell's key and a seed.

    An axis `seed` wins over the seed that is derived from the grid's.
    """
    return {"seed": spec["seed"], **spec["coords"], "cell": spec["key"]}


def written_as(value: Any) -> str:
    """A value as a command sees it: true, false and null as in YAML and JSON, a float so that it can be read back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Runs of literal text, each with the name that follows it (None after a literal brace and at the end)."""
    at = 0
    for match in _PIECE.finditer(text):
        before, at = text[at : match.start()], match.end()
        if match["literal"]:
            yield before + match["literal"][0], None
            continue
        if match["stray"]:
            raise ValueError(_stray(text, match.start(), match["stray"]))
        name = match["name"]
        if NAME.fullmatch(name) is None:
            raise ValueError(
                f"{_shown('{' + name + '}')} holds no name of an axis; write {{{{ and }}}} for braces that are meant"
            )
        yield before, name
    yield text[at:], None


def _stray(text: str, at: int, brace: str) -> str:
    missing = "is never closed" if brace == "{" else "closes nothing"
    near = _shown(text[at:] if brace == "{" else text[: at + 1][-_SHOWN_CHARACTERS:])
    return f"the brace {brace} in {near} {missing}; write {brace * 2} for a brace that is meant"


def _shown(text: str) -> str:
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    return repr(cut)

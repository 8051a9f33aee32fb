"""Keys of command cells, `{axis}{value}[_{axis}{value}...][_run{n}]`: each is the name of a folder.

A key follows from the names of the axes and the cell's own values alone, so that more values or more runs change no
key that there is already; and two cells of a grid never share one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from overnight.cells.placeholders import written_as
from overnight.grid.keys import LONGEST_KEY

ONLY_KEY = "command"
"""Of the one cell of a grid that has neither axes nor runs."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")
_LOOKS_HASHED = re.compile(r".*-[0-9a-f]{8}", re.DOTALL)
_LONGEST_PART = 48


def separators(axes: Sequence[str], *, runs: bool) -> list[str]:
    """What stands in a key behind the value of each axis."""
    return [*(f"_{axis}" for axis in axes[1:]), "_run" if runs else ""][: len(axes)]


def part(axis: str, value: Any, separator: str) -> str:
    """What a key holds for one value of an axis.

    A value stays as it is written when it is safe as a part of a file name and when, read from the left, what
    follows it begins at the first `separator`: so a key can be read in one way only. Otherwise it is made safe, and
    eight digits of its hash make up for what was lost; so does a value that looks as if that had been done to it.
    """
    text = written_as(value)
    ends_itself = not separator or (text + separator).find(separator) == len(text)
    if ends_itself and len(text) <= _LONGEST_PART and not _UNSAFE.search(text) and not _LOOKS_HASHED.fullmatch(text):
        return axis + text
    safe = _UNSAFE.sub("-", text).replace("_", "-")[:_LONGEST_PART]
    return f"{axis}{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def key(parts: Sequence[str], run: int | None) -> str:
    """The parts of a cell's values put together; where that is too long, the beginning and a hash of the whole."""
    whole = "_".join([*parts, *([f"run{run}"] if run is not None else [])]) or ONLY_KEY
    if len(whole) <= LONGEST_KEY:
        return whole
    mark = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return f"{whole[: LONGEST_KEY - len(mark) - 1]}-{mark}"

"""The single values of a grid file of commands: their types, ranges and what a message says is expected.

Written like `fields.py`: every description completes "expected ...".
"""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from overnight import secrets
from overnight.cells import placeholders
from overnight.grid import units
from overnight.grid.fields import distinct, refusal
from overnight.grid.nearest import one_line, quoted

MOST_VALUES = 100_000
"""Of one axis."""

OWN_NAMES = ("cell", "run")
"""Placeholders that no axis may take; an axis `seed` is a user's own way to seed."""

_LONGEST_WORD = 100_000
_LONGEST_SECRET = 200
_LONGEST_GRACE_S = 3600.0
_LONGEST_SHOWN = 160
_SHELLS_OWN = re.compile(r"[|&;<>$`*?~]|^\s*cd\s")

_VALUES_SAID = f"a list of 1 to {MOST_VALUES} values, or a range such as 1..5 or 0..100..10"


def _words(value: Any, info: ValidationInfo) -> Any:
    """The words of a command. A line for the shell is kept as the only one of them."""
    if info.data.get("shell"):
        if isinstance(value, list) and len(value) != 1:
            raise refusal("found a list, expected one text for the shell; write it as text or remove `shell: true`")
        return [value] if isinstance(value, str) else value
    if isinstance(value, str) and value.strip():
        raise refusal(f"found {quoted(value)} (text), expected a list of words; {_as_a_list(value)}")
    return value


def _as_a_list(text: str) -> str:
    """What to write instead of a text: its words as a list, or `shell: true` where only a shell understands it."""
    if _SHELLS_OWN.search(text):
        return "add `shell: true` to have it run by a shell, or write its words as a list"
    try:
        words = json.dumps(shlex.split(text), ensure_ascii=False)
    except ValueError:
        return 'mend its quotes and write it as a list such as ["python3", "train.py"]'
    shown = one_line(words)
    return f"write {shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + '…'}, or add `shell: true`"


def _something_to_run(words: list[str]) -> list[str]:
    if not words[0].strip():
        raise refusal("found an empty text, expected the command to run", 0)
    return words


def _value(value: Any) -> Any:
    """One value of an axis."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not finite")
        return value + 0.0  # -0.0 would be another cell for the same number
    if isinstance(value, str) and units.RANGE.fullmatch(value):
        raise refusal(f"found the range '{value}' within a list, expected it alone, without brackets: {value}")
    if isinstance(value, str) and len(value) > 1000:
        raise refusal(f"found a text of {len(value)} characters, expected at most 1000; put it into a file")
    if value is None or isinstance(value, int | str):
        return value
    raise ValueError("no value of an axis")


def _spread(value: Any) -> Any:
    """A range written out; a value that stands alone is told how to become a list."""
    if isinstance(value, str) and units.RANGE.fullmatch(value):
        try:
            values = units.whole_range(value)
        except ValueError as error:
            raise refusal(f"found the range '{value}', {error}") from None
        if len(values) > MOST_VALUES:
            raise refusal(f"found the range '{value}' of {len(values)} values, expected at most {MOST_VALUES}")
        return list(values)
    if isinstance(value, int | float | str):
        written = placeholders.written_as(value)
        shown = quoted(written) if isinstance(value, str) else written
        instead = f"; write [{one_line(written)}]" if len(written) <= 40 else ""
        if ".." in written:
            instead = "; a range is of whole numbers: write the values of others out"
        raise refusal(f"found {shown}, expected {_VALUES_SAID}{instead}")
    return value


def _told_apart(values: list[Any]) -> list[Any]:
    """1 and "1" are one value for a command."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        text = placeholders.written_as(value)
        if first.setdefault(text, index) != index:
            raise refusal(
                f"found {quoted(text)} a second time (first in [{first[text]}]), expected different values; remove it",
                index,
            )
    return values


def _axis_names(axes: dict[str, Any]) -> dict[str, Any]:
    for name in axes:
        if name in OWN_NAMES:
            instead = "use `runs` for repetition" if name == "run" else "choose another name"
            raise refusal(f"found an axis '{name}', which every cell has of itself; {instead}", name)
        if placeholders.NAME.fullmatch(name) is None:
            said = "a name of at most 48 letters, digits, '_' or '-', the first a letter"
            raise refusal(f"found an axis {quoted(name)}, expected {said}", name)
    return axes


def _variables(env: dict[str, str]) -> dict[str, str]:
    for name in env:
        if name.startswith("OVERNIGHT_"):
            raise refusal(f"found {quoted(name)}, which every cell is given; expected a name without OVERNIGHT_", name)
        if secrets.NAME.fullmatch(name) is None:
            said = "letters, digits and '_', the first no digit"
            raise refusal(f"found a variable {quoted(name)}, expected {said}", name)
    return env


def _secret(name: str) -> str:
    if name.startswith("OVERNIGHT_"):
        raise refusal(f"found {quoted(name)}, which every cell is given; expected a name without OVERNIGHT_")
    if secrets.NAME.fullmatch(name) is None or len(name) > _LONGEST_SECRET:
        # It is not shown: somebody may have written the secret itself.
        said = "the name of a variable (letters, digits and '_', the first no digit)"
        raise refusal(f"found a text that is no name, expected {said}; its value is looked up when a cell runs")
    return name


def _below_the_folder(glob: str) -> str:
    path = PurePosixPath(glob)
    if path.is_absolute() or ".." in path.parts or glob.startswith("~") or not path.parts:
        raise ValueError("not below")
    return glob


def _grace(value: Any) -> Any:
    wanted = units.seconds(value) if isinstance(value, str) else value
    number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
    if not number or not 0 <= wanted <= _LONGEST_GRACE_S:
        raise ValueError("not a time")
    return float(wanted)


Word = Annotated[str, Field(max_length=_LONGEST_WORD, description=f"text of at most {_LONGEST_WORD} characters")]
Words = Annotated[
    list[Word],
    Field(
        min_length=1,
        max_length=1000,
        description="a list of 1 to 1000 words such as [python3, train.py, --lr, '{lr}']",
    ),
    AfterValidator(_something_to_run),
    BeforeValidator(_words),
]
AxisValues = Annotated[
    list[Annotated[Any, AfterValidator(_value), Field(description="a finite number, text, true, false or null")]],
    Field(min_length=1, max_length=MOST_VALUES, description=_VALUES_SAID),
    AfterValidator(_told_apart),
    BeforeValidator(_spread),
]
CommandAxes = Annotated[
    dict[str, AxisValues],
    Field(max_length=20, description="a mapping of at most 20 axes, each with its values"),
    AfterValidator(_axis_names),
]
Environment = Annotated[
    dict[str, Word],
    Field(max_length=1000, description="a mapping of variables to text"),
    AfterValidator(_variables),
]
Secrets = Annotated[
    list[
        Annotated[
            str,
            Field(description="the name of a variable: letters, digits and '_', the first no digit"),
            AfterValidator(_secret),
        ]
    ],
    Field(max_length=100, description="a list of at most 100 names of variables such as [OPENAI_API_KEY]"),
    AfterValidator(distinct),
]
Keep = Annotated[
    list[
        Annotated[
            str,
            Field(max_length=1000, description="a path or glob below the working folder such as out/*.png"),
            AfterValidator(_below_the_folder),
        ]
    ],
    Field(max_length=100, description="a list of at most 100 paths or globs"),
    AfterValidator(distinct),
]
WorkingFolder = Annotated[
    str, Field(min_length=1, max_length=4000, description="a folder, or scratch for one of each cell's own")
]
Grace = Annotated[
    float, BeforeValidator(_grace), Field(description="a time from 0 seconds to 1 hour such as 10, 30s or 2m")
]

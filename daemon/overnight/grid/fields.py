"""The single values of a grid file: their types, ranges and what a message says is expected.

Every description completes "expected ...". Validators raise ValueError where the description says it all, and
`refusal` where more is to be said.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from overnight.grid import keys, units
from overnight.grid.nearest import quoted

MOST_RUNS = 100_000
MOST_CELLS = 10_000_000

_LONGEST_TIMEOUT_S = 366 * 86400.0
_LARGEST_GROWTH_BYTES = 1 << 40
_LEAST_MEMORY_BYTES, _MOST_MEMORY_BYTES = 1 << 20, 1 << 46

T = TypeVar("T")


class Section(BaseModel):
    """A mapping of a grid file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def refusal(message: str, *at: str | int) -> PydanticCustomError:
    """A whole message, for what lies at the path `at` below the value that is being validated."""
    return PydanticCustomError("overnight", "{said}", {"said": message, "at": at})


def distinct(values: list[T]) -> list[T]:
    for index, value in enumerate(values):
        if value in values[:index]:
            shown = quoted(value) if isinstance(value, str) else value
            raise refusal(f"found {shown} a second time, expected different values; remove it", index)
    return values


def _seconds(value: Any) -> Any:
    wanted = units.seconds(value) if isinstance(value, str) else value
    if wanted is None:
        return None
    number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
    if not number or not 1 <= wanted <= _LONGEST_TIMEOUT_S:
        raise ValueError("not a time")
    return float(wanted)


def _bytes(value: Any) -> Any:
    wanted = units.size_bytes(value) if isinstance(value, str) else value
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= _LARGEST_GROWTH_BYTES:
        raise ValueError("not a size")
    return wanted


def _memory(value: Any) -> Any:
    wanted = units.size_bytes(value) if isinstance(value, str) else value
    if wanted is None:
        return None
    whole = isinstance(wanted, int) and not isinstance(wanted, bool)
    if not whole or not _LEAST_MEMORY_BYTES <= wanted <= _MOST_MEMORY_BYTES:
        raise ValueError("not a size")
    return wanted


def _length_or_range(value: Any) -> Any:
    ends = value if isinstance(value, list) else [value, value]
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not whole or not 1 <= ends[0] <= ends[1] <= 1_000_000:
        raise ValueError("not a length")
    return value


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise refusal(f"found {quoted(text)}, expected printable text with no spaces around it")
    return text


def _day(text: str) -> str:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError("not a day")
    date.fromisoformat(text)  # raises ValueError for the 31st of February
    return text


def _positive_zero(value: float) -> float:
    return value + 0.0  # -0.0 would be another specification, and another key, for the same thing


def _whole(least: int, most: int, least_means: str = "", or_null: str = "") -> FieldInfo:
    said = f"a whole number from {least}{least_means} to {most}{or_null}"
    info: FieldInfo = Field(ge=least, le=most, description=said)
    return info


Name = Annotated[
    str,
    Field(
        pattern=keys.NAME,
        description="a name of at most 48 letters, digits, '.', '_' or '-', the first a letter or digit",
    ),
]
Source = Annotated[
    str,
    Field(
        min_length=1,
        max_length=500,
        description="a model-store name, a local folder or GGUF file, or a hub id",
    ),
    AfterValidator(_printable),
]
Temperature = Annotated[
    float,
    Field(ge=0, le=10, allow_inf_nan=False, description="a number from 0 (greedy) to 10"),
    AfterValidator(_positive_zero),
]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="a number above 0 and at most 1 (1 is off)")]
TopK = Annotated[int, _whole(0, 1_000_000, " (off)")]
Iterations = Annotated[int, _whole(1, 1_000_000)]
TargetTokens = Annotated[int | None, _whole(1, 1_000_000_000, or_null=", or null for none")]
RepeatingTurns = Annotated[int | None, _whole(1, 1_000_000, or_null=", or null for never")]
TokenLimit = Annotated[int, _whole(1, 1_000_000)]
ShiftHours = Annotated[
    float, Field(ge=0.1, le=10_000, allow_inf_nan=False, description="a number of hours from 0.1 to 10000")
]
Timeout = Annotated[
    float | None,
    BeforeValidator(_seconds),
    Field(description="a time from 1 second to 366 days such as 90, 90s, 15m or 2h, or null for none"),
]
Day = Annotated[str, AfterValidator(_day), Field(description="a day written as 2025-01-31")]
Threads = Annotated[int, _whole(1, 1024)]
Seed = Annotated[int, _whole(0, (1 << 63) - 1)]
Tries = Annotated[int, _whole(1, 100)]
Runs = Annotated[int, _whole(1, MOST_RUNS)]
Turn = Annotated[int | None, _whole(1, 1_000_000, or_null=", or null for never")]
ContextTokens = Annotated[int, _whole(1, 1_000_000_000)]
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False, description="seconds from 0 to 3600")]
SizeBytes = Annotated[
    int,
    BeforeValidator(_bytes),
    Field(description="a size up to 1024GiB: a whole number of bytes, or text such as 8MiB"),
]
Memory = Annotated[
    int | None,
    BeforeValidator(_memory),
    Field(description="a size from 1MiB to 64TiB such as 512MiB, 1.5GB or 2GiB, or null for none"),
]
LengthOrRange = Annotated[
    int | list[int],
    BeforeValidator(_length_or_range),
    Field(description="a length from 1 to 1000000 tokens, or [shortest, longest]"),
]
Values = Annotated[
    list[T],
    Field(min_length=1, max_length=1000, description="a list of 1 to 1000 values"),
    AfterValidator(distinct),
]

"""Times, sizes and ranges as people write them."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)"
_TIME = re.compile(rf"{_NUMBER} ?([smhd])")
RANGE = re.compile(r"(-?[0-9]{1,15})\.\.(-?[0-9]{1,15})(?:\.\.(-?[0-9]{1,15}))?")
_SIZE = re.compile(rf"{_NUMBER} ?({'|'.join(_BYTES)})")


def seconds(text: str) -> float:
    """`90s`, `15m`, `1.5h`, `2d` -> seconds. Raises ValueError; a bare number needs its unit in text."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time: {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def size_bytes(text: str) -> int:
    """`8MiB`, `1.5 GB`, `512B` -> bytes. Raises ValueError; `8M` is refused, since it could be either."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a size: {text!r}")
    return round(float(found[1]) * _BYTES[found[2]])


def whole_range(text: str) -> range:
    """`1..5`, or with a step `0..100..10`: whole numbers, both ends among them. Raises ValueError with what is
    expected."""
    found = RANGE.fullmatch(text)
    if found is None:
        raise ValueError("expected a range of whole numbers such as 1..5 or 0..100..10")
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step < 1:
        raise ValueError("expected a step from 1 on")
    if first > last:
        raise ValueError(f"expected the smaller end first, {last}..{first}")
    return range(first, last + 1, step)

"""Times and sizes as people write them."""

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
}
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)"
_TIME = re.compile(rf"{_NUMBER} ?([smhd])")
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

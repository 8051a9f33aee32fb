"""How values read in a report, and how other people's text is kept from doing anything but being read."""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime
from typing import Any

from overnight import figures

NONE = "\N{EN DASH}"

_JOINERS = "\u200c\u200d"
"""Needed by several scripts, and by emoji; they join, and move nothing."""


def visible(text: str) -> str:
    """`text` with each character that is not seen but does something (NUL, escape, bidirectional overrides, lone
    surrogates, ...) named instead. Line ends become newlines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if _plain(c) else f"⟨U+{ord(c):04X}⟩" for c in text)


def _plain(char: str) -> bool:
    return char in "\n\t" or char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def shortened(text: str, most: int) -> str:
    """On one line, no longer than `most` characters."""
    line = " ".join(visible(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"


def number(value: Any, digits: int = 2) -> str:
    """A figure of an analysis: `0.42`, `12.3`, `1 204`."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return count(int(value))
    if abs(value) >= 1000:
        return count(round(value))
    if abs(value) >= 100:
        digits = min(digits, 1)
    found = f"{value:.{digits}f}"
    return found.removeprefix("-") if float(found) == 0 else found.replace("-", "\N{MINUS SIGN}")


def fixed(value: float, digits: int) -> str:
    """With so many digits behind the point, also of large values: for a scale, whose values must differ."""
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\N{MINUS SIGN}")


def count(value: int | None) -> str:
    """Thousands apart by a narrow space that does not break."""
    return NONE if value is None else f"{value:,}".replace(",", "\u202f")


def percent(share: float | None) -> str:
    """`38 %`; a share that is not quite nothing or everything never reads as such."""
    if share is None or not math.isfinite(share):
        return NONE
    whole = round(100 * share)
    if whole == 0 and share > 0:
        return "<1\u202f%"
    if whole == 100 and share < 1:
        return ">99\u202f%"
    return f"{whole}\u202f%"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def probability(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def plural(n: int, noun: str, many: str | None = None) -> str:
    """`1 cell`, `12 cells`."""
    return f"{count(n)} {noun if n == 1 else many or noun + 's'}"


def times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{count(n)} times")


def when(seconds: float | None, *, seconds_too: bool = False) -> str:
    if seconds is None:
        return NONE
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %Y, %H:%M:%S" if seconds_too else "%d %b %Y, %H:%M")


def clock(seconds: float | None, *, seconds_too: bool = False) -> str:
    if seconds is None:
        return NONE
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S" if seconds_too else "%H:%M")


def iso(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


size, duration = figures.size, figures.duration

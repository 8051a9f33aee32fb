"""How figures and other people's text look in a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from overnight import figures

size, duration = figures.size, figures.duration

ODD = re.compile(r"[^\n\x20-\x7e]")
"""All but the plainest characters, for a closer look at each."""

_NOTHING = (None, 0, "", "-")


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, optional: Collection[str] = ()) -> str:
    """Aligned columns; numbers to the right. optional: columns that are left out where they say nothing."""
    shown = [
        i for i, name in enumerate(headings) if name not in optional or any(row[i] not in _NOTHING for row in rows)
    ]
    headings, rows = [headings[i] for i in shown], [[row[i] for i in shown] for row in rows]
    cells = [[harmless(str("-" if value is None else value), newlines=False) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headings), *cells]) for i in range(len(headings))]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(headings))]
    lines = []
    for row in [list(headings), *cells]:
        parts = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def harmless(text: str, *, newlines: bool = True) -> str:
    """A model's words must not move the cursor, recolour the screen or set a title: control and format characters
    (escape, bell, bidirectional overrides, ...) are shown as escapes instead of being obeyed."""
    keep = "\n\t" if newlines else ""
    shown = ODD.sub(lambda match: c if (c := match.group()) in keep or _is_shown(c) else _escaped(c), text)
    return shown if newlines else shown.replace("\n", _escaped("\n"))


def _is_shown(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def shortened(text: str, most: int) -> str:
    """On one line, and no longer than `most` characters."""
    line = harmless(text, newlines=False)
    return line if len(line) <= most else line[: most - 1] + "…"


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def when(seconds: float | None) -> str:
    """A wall clock time, to the second, in UTC."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")

"""Other people's text for a terminal: names of cells, arguments, paths."""

from __future__ import annotations


def plain(text: str) -> str:
    """On one line, with whatever a terminal might obey (escape, bell, bidirectional overrides, ...) as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

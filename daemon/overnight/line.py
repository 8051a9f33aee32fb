"""Other people's text made fit for one line of a terminal. (The watchdog has the same of its own.)"""

from __future__ import annotations

LONGEST = 900
"""Characters of a message. What is wrong stands at its beginning, what to do at its end: the middle is left out."""

_END = 300


def one_line(text: str) -> str:
    """`text` with whatever could break or recolour a line of a terminal shown as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def clear(text: str) -> str:
    """A message as one line that can be read, whatever it quotes."""
    # Shortened twice: escapes are longer than what they stand for, and there is no need for a million of them.
    return _shortened(one_line(_shortened(text)))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - _END - 5]} ... {text[-_END:]}"

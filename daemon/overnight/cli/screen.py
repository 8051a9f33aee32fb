"""Our stdout and stderr: whatever a command prints, of whomever it tells, no terminal obeys it.

Commands make other people's text fit where they print it (`text.py`); this is the net below them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from overnight.cli import text


class Screen:
    """A text stream that shows control and format characters as escapes. All but `write` is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, words: str) -> int:
        self._stream.write(text.harmless(words))
        return len(words)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def command(self, sequence: str) -> None:
        """An escape sequence that is meant."""
        self._stream.write(sequence)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def command(sequence: str, stream: TextIO | None = None) -> None:
    """Have the terminal obey this. stream: sys.stdout by default."""
    to = sys.stdout if stream is None else stream
    (to.command if isinstance(to, Screen) else to.write)(sequence)


@contextmanager
def guarded() -> Iterator[None]:
    """Both streams, while it lasts. A stream that was closed at the start stays None."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None:
            continue
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only is no reason to fail
        setattr(sys, name, Screen(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

"""What a reader is to a fuzzer."""

from __future__ import annotations

import contextlib
import io
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fuzz import documents

LONGEST_LINE = 1000


class Wrong(AssertionError):
    """The reader did not crash, and yet what came out is wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input. crafted: by somebody who knows the format: its checksums fit, so it is no damage."""

    data: bytes
    crafted: bool = False


class Target(ABC):
    """One reader. `read` returns a word or a line for what came out: inputs that bring a new one are mutated further.

    tokens: pieces of the format. share: of a round's executions, for what is slow. clear: the exceptions by which it
    may refuse, each with one clear line.
    """

    name: ClassVar[str]
    tokens: ClassVar[tuple[bytes, ...]] = ()
    share: ClassVar[float] = 1.0
    clear: ClassVar[tuple[type[BaseException], ...]] = ()

    def __init__(self, folder: Path) -> None:
        """folder: empty, its own, there until `close`."""
        self.folder = folder

    @abstractmethod
    def seeds(self) -> Sequence[bytes]:
        """Whole inputs, as the product writes them."""

    def documents(self) -> Sequence[Any]:
        """Seeds as JSON values, for the structural engine; none: it has no structure that JSON could tell."""
        return ()

    def render(self, document: Any) -> bytes:
        """A document (which may hold `documents.Raw`) as input, its checksums made anew."""
        return documents.dump(document).encode("utf-8", "surrogatepass")

    @abstractmethod
    def read(self, case: Case) -> str:
        """Raises what the reader raises, and `Wrong`."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Leave nothing open."""


def check_line(line: str) -> str:
    """The line itself, when a terminal may have it. Raises Wrong."""
    if not line.strip():
        raise Wrong("it refused without a word")
    if len(line) > LONGEST_LINE:
        raise Wrong(f"a line of {len(line)} characters: {line[:60]!r}...")
    for char in line:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise Wrong(f"its line holds U+{ord(char):04X}: {ascii(line)[:200]}")
    return line


def check_harmless(text: str) -> str:
    """Like `check_line`, for a text of several lines and of any length."""
    for char in set(text):
        if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise Wrong(f"it prints U+{ord(char):04X}")
    return text


def expect(held: bool, otherwise: str) -> None:
    if not held:
        raise Wrong(otherwise)


@contextlib.contextmanager
def printed() -> Iterator[io.StringIO]:
    """What is printed meanwhile, to stdout and stderr."""
    caught = io.StringIO()
    with contextlib.redirect_stdout(caught), contextlib.redirect_stderr(caught):
        yield caught

"""What a check found, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REPAIR = "`overnight repair`"


_MOST_CHARACTERS = 300


def shortened(text: str) -> str:
    """On one line; SQLite may tell of a hundred places in one sentence."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    area: queue, cell, model or file. where: a table, GRID/KEY, a path below the home. what: one sentence. todo: what
    mends it. note: for information; nothing is broken.
    """

    area: str
    where: str
    what: str
    todo: str = ""
    note: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.todo}" if self.todo else "")

    def to_json(self) -> dict[str, Any]:
        named = {"area": self.area, "where": self.where, "what": self.what, "todo": self.todo}
        return {name: value for name, value in named.items() if value}

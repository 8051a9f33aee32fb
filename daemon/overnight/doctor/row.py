"""What a check says. The checks themselves are pure: `memory_checks`, `home_checks`; `facts` looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """OK: it is there. LACKS: it is not, and we do with less. BAD: work will not go well until it is mended."""

    OK = "ok"
    LACKS = "lacks"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Row:
    """One check. `advice` is empty where there is nothing to do."""

    check: str
    status: Status
    found: str
    advice: str = ""


def worst(rows: Iterable[Row]) -> Status:
    """The status of all together."""
    order = list(Status)
    return max((row.status for row in rows), key=order.index, default=Status.OK)

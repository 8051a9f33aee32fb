"""What a check of the audit finds, and how it is worded.

error     the results are not what they claim: nothing may be concluded from them as they are
warning   they may mislead
note      worth knowing
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from overnight.analysis.audit_look import Subject

SEVERITIES = ("error", "warning", "note")
_MOST_TOLD = 60
"""Cells that are told of one by one; `cells` names all."""


@dataclass(frozen=True)
class Finding:
    """severity: one of SEVERITIES. code: a stable name of the check. title: one sentence; detail: of each cell, or what
    it means. cells: keys."""

    severity: str
    code: str
    title: str
    detail: str
    cells: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.cells)


def of(
    severity: str, code: str, cells: Sequence[Subject], one: str, many: str, told: Callable[[Subject], str]
) -> Iterator[Finding]:
    """A finding about these cells; nothing when there are none. `many` holds their number as {}."""
    if cells:
        title = one if len(cells) == 1 else many.format(f"{len(cells):,}")
        details = (f"{cell.key} ({said})" if (said := told(cell)) else cell.key for cell in cells)
        yield Finding(severity, code, title, listed(details, len(cells)), tuple(cell.key for cell in cells))


def listed(details: Iterable[str], count: int) -> str:
    """`a, b, and 40 more`: the first of `count` details."""
    first = list(islice(details, _MOST_TOLD))
    return ", ".join([*first, f"and {count - len(first):,} more"] if count > len(first) else first)


def nothing(_: Subject) -> str:
    return ""


def with_replies(subjects: Sequence[Subject]) -> list[Subject]:
    """Those that have said something."""
    return [each for each in subjects if each.replies is not None and each.replies.count]


def having(subjects: Sequence[Subject], name: str) -> list[Subject]:
    """Those of whose replies this is not 0."""
    return [each for each in with_replies(subjects) if getattr(each.replies, name)]


def of_replies(name: str) -> Callable[[Subject], str]:
    def told(cell: Subject) -> str:
        assert cell.replies is not None  # noqa: S101 - only such are asked
        return f"{getattr(cell.replies, name):,} of {cell.replies.count:,} replies"

    return told


Check = Callable[[Sequence[Subject]], Iterator[Finding]]

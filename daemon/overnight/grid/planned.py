"""What grids of every kind plan: cells with seeds, and the parts of a grid that filters keep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from overnight.durable import canonical
from overnight.errors import GridError
from overnight.grid.nearest import did_you_mean, one_of, quoted

V = TypeVar("V")

Only = Mapping[str, Collection[str]]
"""Axis -> the values to keep, as text."""


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell before it is queued. Its specification is `template` with key, coords and seed; cells that differ by
    their run alone share the very template object, so never change it."""

    key: str
    coords: dict[str, Any]
    template: dict[str, Any]
    seed: int


def cell_seed(grid_seed: int, coords: Mapping[str, Any]) -> int:
    """0 <= seed < 2**63, from the grid's seed and the cell's coordinates alone: no other cell can change it."""
    digest = hashlib.sha256(f"{grid_seed}:{canonical(coords)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Filter:
    """What of a grid is kept. Raises GridError for an axis, a value or a run that the grid does not have."""

    grid: str
    only: Only

    def check(self, known: Sequence[str]) -> None:
        """Refuse every axis that is none of `known`."""
        for axis, values in self.only.items():
            if axis not in known:
                said = f"expected {one_of(known)}{did_you_mean(axis, known)}" if known else "it has none"
                raise GridError(f"no axis {quoted(axis)} in grid {self.grid}, {said}")
            if not values:
                raise GridError(f"no value for axis {axis} of grid {self.grid}, expected at least one")

    def kept(
        self,
        axis: str,
        values: list[V],
        texts: Callable[[V], list[str]],
        usual: Callable[[str, list[V]], str] = lambda text, _: text,
    ) -> list[V]:
        """The values that the filter names, in the grid's order.

        texts: value -> the ways to write it, the first for messages. usual: a user's way of writing -> one of those.
        """
        if axis not in self.only:
            return values
        by_text = {text: index for index, value in enumerate(values) for text in texts(value)}
        keep = set()
        for text in sorted(self.only[axis]):
            index = by_text.get(text)
            if index is None:
                index = by_text.get(usual(text, values))
            if index is None:
                near = did_you_mean(text, by_text)
                shown = one_of(texts(value)[0] for value in values)
                raise GridError(f"no {axis} {quoted(text)} in grid {self.grid}, expected {shown}{near}")
            keep.add(index)
        return [value for index, value in enumerate(values) if index in keep]

    def runs(self, runs: int) -> Collection[int]:
        if "run" not in self.only:
            return range(1, runs + 1)
        keep = set()
        for text in sorted(self.only["run"]):
            run = int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
            if not 1 <= run <= runs:
                raise GridError(f"no run {quoted(text)} in grid {self.grid}, expected 1 to {runs}")
            keep.add(run)
        return sorted(keep)


def usual_number(text: str, values: Sequence[Any], written: Callable[[Any], str]) -> str:
    """`1`, `1.00` and `1e0` name the axis value 1.0."""
    try:
        number = float(text)
    except ValueError:
        return text
    numbers = (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    return next((written(value) for value in numbers if value == number), text)

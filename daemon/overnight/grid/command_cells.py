"""A grid of commands -> its cells: the axes in the order of the file, then the run, the last the fastest."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from overnight.cells.placeholders import written_as
from overnight.errors import GridError
from overnight.grid import command_keys
from overnight.grid.command_schema import CommandGrid, cells_problem
from overnight.grid.planned import Filter, Only, PlannedCell, cell_seed, usual_number


@dataclass(frozen=True, slots=True)
class _Chosen:
    axes: dict[str, list[Any]]
    runs: Collection[int | None]


def expand(grid: CommandGrid, only: Only) -> Iterator[PlannedCell]:
    """The cells, lazily; `only` is checked at once. Raises GridError."""
    if (problem := cells_problem(grid)) is not None:
        raise GridError(problem[1], key=problem[0])
    return _cells(grid, _choose(grid, only))


def count(grid: CommandGrid, only: Only) -> int:
    """How many cells `expand` would give. Raises GridError."""
    chosen = _choose(grid, only)
    total = len(chosen.runs)
    for values in chosen.axes.values():
        total *= len(values)
    return total


def policy(grid: CommandGrid) -> dict[str, Any]:
    """How cells are tried, ended and capped; no part of their specification."""
    return {
        "timeout_s": grid.timeout,
        "tries": grid.tries,
        "memory_bytes": grid.memory,
        "grace_s": grid.grace,
        "cap": grid.cap,
    }


def template(grid: CommandGrid) -> dict[str, Any]:
    """What all cells of the grid share: the command before it is filled in, and where and with what it runs."""
    return {
        "v": 1,
        "kind": "command",
        "command": grid.command[0] if grid.shell else list(grid.command),
        "shell": grid.shell,
        "env": dict(grid.env),
        "cwd": grid.cwd,
        "keep": list(grid.keep),
        "threads": grid.threads,
        # Only where there are any: cells of before are to stay the cells that they were.
        **({"secrets": list(grid.secrets)} if grid.secrets else {}),
    }


def _cells(grid: CommandGrid, chosen: _Chosen) -> Iterator[PlannedCell]:
    shared = template(grid)
    separators = command_keys.separators(list(grid.axes), runs=grid.runs is not None)
    named = [
        [(value, command_keys.part(axis, value, separator)) for value in values]
        for (axis, values), separator in zip(chosen.axes.items(), separators, strict=True)
    ]
    for pairs in itertools.product(*named):
        values = dict(zip(chosen.axes, (value for value, _ in pairs), strict=True))
        parts = [part for _, part in pairs]
        for run in chosen.runs:
            coords = values if run is None else {**values, "run": run}
            yield PlannedCell(command_keys.key(parts, run), coords, shared, cell_seed(grid.seed, coords))


def _choose(grid: CommandGrid, only: Only) -> _Chosen:
    chosen = Filter(grid.name, only)
    chosen.check([*grid.axes, *(["run"] if grid.runs is not None else [])])
    return _Chosen(
        axes={
            axis: chosen.kept(axis, values, lambda value: [written_as(value)], _usual_number)
            for axis, values in grid.axes.items()
        },
        runs=[None] if grid.runs is None else chosen.runs(grid.runs),
    )


def _usual_number(text: str, values: list[Any]) -> str:
    return usual_number(text, values, written_as)

"""A grid -> its cells, one at a time: a million cells cost no more memory than one.

Cells of idle loops come in the order model, scaffold, extra axes, run, the last the fastest: each model is loaded
once. Cells of commands are planned in `command_cells.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from overnight.errors import GridError
from overnight.grid import after_each, command_cells, keys
from overnight.grid.command_schema import CommandGrid
from overnight.grid.nearest import quoted
from overnight.grid.planned import Filter, Only, PlannedCell, cell_seed, usual_number
from overnight.grid.scaffolds import system_prompt
from overnight.grid.schema import Grid, Model, Sampling, Scaffold, cells_problem

AnyGrid = Grid | CommandGrid


@dataclass(frozen=True, slots=True)
class _Chosen:
    models: list[Model]
    scaffolds: list[Scaffold]
    axes: dict[str, list[keys.AxisValue]]
    runs: Collection[int]


def expand(grid: AnyGrid, *, only: Only | None = None, engine: str | None = None) -> Iterator[PlannedCell]:
    """The cells of `grid`, lazily. `only` and `engine` are checked at once: raises GridError.

    only: {"scaffold": {"1", "mine"}, "model": {...}, "run": {...}, AXIS: {...}}; a grid of commands has its axes, and
    `run` where it has runs.
    engine: `scripted` runs every model of another engine as a script, for a dry run.
    """
    if isinstance(grid, CommandGrid):
        if engine is not None:
            raise GridError(f"no engine {quoted(engine)} for grid {grid.name}, whose cells are commands")
        return command_cells.expand(grid, only or {})
    if (problem := cells_problem(grid)) is not None:
        raise GridError(problem[1], key=problem[0])
    if engine not in (None, "scripted"):
        raise GridError(f"no engine {quoted(str(engine))} for dry runs, expected scripted")
    return _cells(grid, _choose(grid, only or {}), scripted=engine == "scripted")


def count_cells(grid: AnyGrid, *, only: Only | None = None) -> int:
    """How many cells `expand` would give. Raises GridError."""
    if isinstance(grid, CommandGrid):
        return command_cells.count(grid, only or {})
    chosen = _choose(grid, only or {})
    total = len(chosen.models) * len(chosen.scaffolds) * len(chosen.runs)
    for values in chosen.axes.values():
        total *= len(values)
    return total


def policy(grid: AnyGrid) -> dict[str, Any]:
    """How cells are tried; no part of their specification, so a change of it changes no cell."""
    if isinstance(grid, CommandGrid):
        return command_cells.policy(grid)
    found = {"timeout_s": grid.limits.timeout, "tries": grid.tries, "memory_bytes": grid.memory}
    return {**found, "then": after_each.then(grid.name, grid.analysis)} if grid.analysis.after_each else found


def _cells(grid: Grid, chosen: _Chosen, *, scripted: bool) -> Iterator[PlannedCell]:
    for model, scaffold in itertools.product(chosen.models, chosen.scaffolds):
        for values in itertools.product(*chosen.axes.values()):
            axes = dict(zip(chosen.axes, values, strict=True))
            template = _template(grid, model, scaffold, axes, scripted=scripted)
            for run in chosen.runs:
                coords = {"scaffold": scaffold.name, "model": model.name, **axes, "run": run}
                key = keys.key(scaffold.name, model.name, axes, run)
                yield PlannedCell(key, coords, template, cell_seed(grid.seed, coords))


def _template(
    grid: Grid, model: Model, scaffold: Scaffold, axes: dict[str, keys.AxisValue], *, scripted: bool
) -> dict[str, Any]:
    sampling = model.sampling.model_dump()
    limits = grid.limits.model_dump(exclude={"timeout"})  # the timeout is policy
    for axis, value in axes.items():
        (sampling if axis in Sampling.model_fields else limits)[axis] = value
    if limits["stop_early"] is None:
        del limits["stop_early"]  # cells of before are to stay the cells that they were
    replaced = scripted and model.engine != "scripted"
    return {
        "v": 1,
        "kind": "idle_loop",
        "engine": "scripted" if replaced else model.engine,
        "model": {
            "name": model.name,
            "source": "scripted" if replaced else model.source,
            "dtype": model.dtype,
            "device": model.device,
            "thinking": model.thinking,
            "options": {} if replaced else model.options,
        },
        "sampling": sampling,
        "scaffold": {"id": scaffold.id, "name": scaffold.name},
        "system": system_prompt(scaffold.text, limits["shift_hours"]),
        "limits": limits,
        "threads": model.threads,
        "template_date": grid.template_date,
    }


def _choose(grid: Grid, only: Only) -> _Chosen:
    axes = grid.axes.given()
    chosen = Filter(grid.name, only)
    chosen.check(["scaffold", "model", "run", *axes])
    return _Chosen(
        models=chosen.kept("model", grid.models, lambda model: [model.name]),
        scaffolds=chosen.kept("scaffold", grid.scaffolds, lambda scaffold: [scaffold.name, str(scaffold.id)]),
        axes={
            axis: chosen.kept(axis, values, lambda value: [keys.value_text(value)], _usual_number)
            for axis, values in axes.items()
        },
        runs=chosen.runs(grid.runs),
    )


def _usual_number(text: str, values: list[keys.AxisValue]) -> str:
    return usual_number(text, values, keys.value_text)

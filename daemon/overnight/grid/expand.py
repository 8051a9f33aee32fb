"""A grid -> its cells, one at a time: a million cells cost no more memory than one.

The order is model, scaffold, extra axes, run, the last the fastest: each model is loaded once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from overnight.durable import canonical
from overnight.errors import GridError
from overnight.grid import keys
from overnight.grid.nearest import did_you_mean, one_of, quoted
from overnight.grid.scaffolds import system_prompt
from overnight.grid.schema import Grid, Model, Sampling, Scaffold, cells_problem

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


@dataclass(frozen=True, slots=True)
class _Chosen:
    models: list[Model]
    scaffolds: list[Scaffold]
    axes: dict[str, list[keys.AxisValue]]
    runs: Collection[int]


def expand(grid: Grid, *, only: Only | None = None, engine: str | None = None) -> Iterator[PlannedCell]:
    """The cells of `grid`, lazily. `only` and `engine` are checked at once: raises GridError.

    only: {"scaffold": {"1", "mine"}, "model": {...}, "run": {...}, AXIS: {...}}.
    engine: `scripted` runs every model of another engine as a script, for a dry run.
    """
    if (problem := cells_problem(grid)) is not None:
        raise GridError(problem[1], key=problem[0])
    if engine not in (None, "scripted"):
        raise GridError(f"no engine {quoted(str(engine))} for dry runs, expected scripted")
    return _cells(grid, _choose(grid, only or {}), scripted=engine == "scripted")


def count_cells(grid: Grid, *, only: Only | None = None) -> int:
    """How many cells `expand` would give. Raises GridError."""
    chosen = _choose(grid, only or {})
    total = len(chosen.models) * len(chosen.scaffolds) * len(chosen.runs)
    for values in chosen.axes.values():
        total *= len(values)
    return total


def policy(grid: Grid) -> dict[str, Any]:
    """How cells are tried; no part of their specification, so a change of it changes no cell."""
    return {"timeout_s": grid.limits.timeout, "tries": grid.tries}


def cell_seed(grid_seed: int, coords: Mapping[str, Any]) -> int:
    """0 <= seed < 2**63, from the grid's seed and the cell's coordinates alone: no other cell can change it."""
    digest = hashlib.sha256(f"{grid_seed}:{canonical(coords)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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
    known = ["scaffold", "model", "run", *axes]
    for axis, values in only.items():
        if axis not in known:
            near = did_you_mean(axis, known)
            raise GridError(f"no axis {quoted(axis)} in grid {grid.name}, expected {one_of(known)}{near}")
        if not values:
            raise GridError(f"no value for axis {axis} of grid {grid.name}, expected at least one")
    return _Chosen(
        models=_kept(grid, only, "model", grid.models, lambda model: [model.name]),
        scaffolds=_kept(grid, only, "scaffold", grid.scaffolds, lambda scaffold: [scaffold.name, str(scaffold.id)]),
        axes={
            axis: _kept(grid, only, axis, values, lambda value: [keys.value_text(value)], _usual_number)
            for axis, values in axes.items()
        },
        runs=_runs(grid, only),
    )


def _kept(
    grid: Grid,
    only: Only,
    axis: str,
    values: list[V],
    texts: Callable[[V], list[str]],
    usual: Callable[[str, list[V]], str] = lambda text, _: text,
) -> list[V]:
    """The values that `only` names, in the grid's order.

    texts: value -> the ways to write it, the first for messages. usual: a user's way of writing -> one of those.
    """
    if axis not in only:
        return values
    by_text = {text: index for index, value in enumerate(values) for text in texts(value)}
    keep = set()
    for text in sorted(only[axis]):
        index = by_text.get(usual(text, values))
        if index is None:
            near = did_you_mean(text, by_text)
            shown = one_of(texts(value)[0] for value in values)
            raise GridError(f"no {axis} {quoted(text)} in grid {grid.name}, expected {shown}{near}")
        keep.add(index)
    return [value for index, value in enumerate(values) if index in keep]


def _usual_number(text: str, values: list[keys.AxisValue]) -> str:
    """`1`, `1.00` and `1e0` name the axis value 1.0."""
    try:
        number = float(text)
    except ValueError:
        return text
    return next((keys.value_text(value) for value in values if value == number), text)


def _runs(grid: Grid, only: Only) -> Collection[int]:
    if "run" not in only:
        return range(1, grid.runs + 1)
    keep = set()
    for text in sorted(only["run"]):
        run = int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
        if not 1 <= run <= grid.runs:
            raise GridError(f"no run {quoted(text)} in grid {grid.name}, expected 1 to {grid.runs}")
        keep.add(run)
    return sorted(keep)

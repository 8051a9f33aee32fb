"""What a grid file of commands (`kind: command`) may hold, as a pydantic model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from overnight.cells import placeholders
from overnight.grid.command_fields import (
    OWN_NAMES,
    CommandAxes,
    Environment,
    Grace,
    Keep,
    Secrets,
    Words,
    WorkingFolder,
)
from overnight.grid.fields import (
    MOST_CELLS,
    MOST_RUNS,
    Memory,
    Name,
    Runs,
    Section,
    Seed,
    Threads,
    Timeout,
    Tries,
    refusal,
)
from overnight.grid.nearest import did_you_mean, one_line, one_of, quoted

SCRATCH = "scratch"
"""As a working folder: an empty one of each cell's own."""


class CommandGrid(Section):
    """A whole grid file of commands.

    runs: None, where the file does not speak of runs: cells then have none in their key and coordinates.
    command: its words; with `shell` the only word is the line. It is filled in when a cell runs.
    secrets: names alone; the values are looked up when a cell runs, and are no part of anything that is written down.
    cwd: an absolute path or `scratch`, once `working_folder` has been asked.
    memory, timeout, grace, cap, tries: policy, no part of any cell's specification.
    """

    name: Name
    kind: Annotated[Literal["command"], Field(description="one of idle_loop, command")] = "command"
    seed: Seed = 0
    runs: Annotated[Runs | None, Field(description=f"a whole number from 1 to {MOST_RUNS}")] = None
    tries: Tries = 3
    shell: Annotated[bool, Field(description="true or false")] = False
    command: Words
    axes: CommandAxes = Field(default_factory=dict)
    env: Environment = Field(default_factory=dict)
    secrets: Secrets = Field(default_factory=list)
    cwd: WorkingFolder = "."
    memory: Memory = None
    timeout: Timeout = None
    grace: Grace = 10.0
    cap: Annotated[Literal["auto", "address_space", "none"], Field(description="one of auto, address_space, none")] = (
        "auto"
    )
    keep: Keep = Field(default_factory=list)
    threads: Threads = 1

    @model_validator(mode="after")
    def _cells(self) -> CommandGrid:
        for index, name in enumerate(self.secrets):
            if name in self.env:
                raise refusal(f"found {name}, which `env` gives too; remove one of the two", "secrets", index)
        for path, text in _texts(self):
            if (said := _placeholder_problem(self, text)) is not None:
                raise refusal(said, *path)
        if (problem := cells_problem(self)) is not None:
            raise refusal(problem[1], problem[0])
        return self


def total_cells(grid: CommandGrid) -> int:
    return (grid.runs or 1) * math.prod(len(values) for values in grid.axes.values())


def cells_problem(grid: CommandGrid) -> tuple[str, str] | None:
    """(key, message) of what keeps a grid's cells from being planned, though each of its fields is valid alone."""
    if grid.runs is not None and not 1 <= grid.runs <= MOST_RUNS:  # a copy with other runs was not validated
        return "runs", f"found {grid.runs}, expected a whole number from 1 to {MOST_RUNS}"
    if (total := total_cells(grid)) > MOST_CELLS:
        return "axes", f"the grid has {total} cells, expected at most {MOST_CELLS}; lower runs or shorten an axis"
    return None


def working_folder(cwd: str, beside: Path) -> str:
    """`cwd` as an absolute path, or `scratch`: cells run later, from a daemon with another working folder.

    beside: where a relative path begins. Raises ValueError with what is wrong.
    """
    if cwd == SCRATCH:
        return cwd
    try:
        folder = (beside / Path(cwd).expanduser()).resolve()
        found = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(f"found {quoted(cwd)}, which cannot be ({one_line(reason)}); mend the path") from None
    if found:
        return str(folder)
    filled = "; nothing is filled in here" if "{" in cwd else ""
    raise ValueError(f"no folder {one_line(str(folder))[:200]}, expected one that is there, or scratch{filled}")


def _texts(grid: CommandGrid) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text that holds placeholders, and its path."""
    for index, word in enumerate(grid.command):
        yield ("command", index), word
    for name, text in grid.env.items():
        yield ("env", name), text
    for index, glob in enumerate(grid.keep):
        yield ("keep", index), glob


def _placeholder_problem(grid: CommandGrid, text: str) -> str | None:
    known = [*grid.axes, *(["run"] if grid.runs is not None else []), *(["seed"] if "seed" not in grid.axes else [])]
    known.append("cell")
    try:
        names = placeholders.names(text)
    except ValueError as error:
        return str(error)
    for name in names:
        if name not in known:
            shown = {each: f"{{{each}}}" for each in known}
            hint = did_you_mean(name, known, shown=shown) or f"; write {{{{{name}}}}} for braces that are meant"
            if name in OWN_NAMES:
                hint = "; set `runs` to have runs"
            elif f"${{{name}}}" in text:
                hint = f"; write ${{{{{name}}}}} for a variable of the shell"
            return f"unknown placeholder {{{name}}}, expected {one_of(shown.values())}{hint}"
    if grid.shell and text in grid.command and (quoted := placeholders.quoted_names(text)):
        return f"{{{quoted[0]}}} stands in quotes, expected it bare: values are quoted when they are filled in"
    return None

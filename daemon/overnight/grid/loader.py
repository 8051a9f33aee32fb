"""A grid file -> Grid, or one line that says what is wrong with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pydantic import ValidationError

from overnight.errors import GridError
from overnight.grid import yaml_source
from overnight.grid.command_schema import CommandGrid, working_folder
from overnight.grid.expand import AnyGrid
from overnight.grid.explain import first_error, kind_of
from overnight.grid.nearest import did_you_mean, one_line, one_of, quoted

_SUFFIXES = (".yaml", ".yml")


def load_grid(path: Path) -> AnyGrid:
    """Read and check a grid file. Raises GridError with one line."""
    file = one_line(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device could keep us waiting for ever
            said = "is a folder" if path.is_dir() else "is no regular file"
            raise GridError(f"{said}, expected a grid file{_grids_in(path)}", file=file)
        with path.open("rb") as opened:
            data = opened.read(yaml_source.LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise GridError(f"no such file{_near(path)}", file=file) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GridError(f"cannot be read ({one_line(reason)}); mend its path or permissions", file=file) from None
    return parse_grid(_decoded(data, file), file, path.absolute().parent)


def parse_grid(text: str, file: str, folder: Path | None = None) -> AnyGrid:
    """Check the text of a grid file. Raises GridError with one line.

    file: its name for messages. folder: where its relative paths begin, by default the current folder.
    """
    file = one_line(file)
    source = yaml_source.read(text.removeprefix("\ufeff"), file)
    if not isinstance(source.value, dict):
        found = "a list" if isinstance(source.value, list) else quoted(str(source.value))
        raise GridError(
            f"found {found}, expected a mapping that begins like `name: my-grid`", file=file, line=source.place(()).line
        )
    schema = kind_of(source.value, source, file)
    try:
        grid = schema.model_validate(source.value)
    except ValidationError as error:
        raise first_error(error, source, file, root=schema) from None
    if not isinstance(grid, CommandGrid):
        return grid
    try:
        return grid.model_copy(update={"cwd": working_folder(grid.cwd, folder or Path.cwd())})
    except ValueError as error:
        raise GridError(str(error), file=file, line=source.place(("cwd",)).line, key="cwd") from None


def _decoded(data: bytes, file: str) -> str:
    if len(data) > yaml_source.LARGEST_BYTES:
        raise GridError("larger than 1 MiB; a grid file is never that large, split it", file=file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GridError(
            f"not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8",
            file=file,
            line=data.count(b"\n", 0, error.start) + 1,
        ) from None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {quoted(str(path.parent))}; mend the path"
    names = _grid_names(path.parent)
    hint = did_you_mean(path.name, names) or did_you_mean(f"{path.name}.yaml", names)
    return (f"; that folder has {one_of(names)}{hint}") if names else "; that folder has no grid files"


def _grids_in(folder: Path) -> str:
    names = _grid_names(folder)
    return f" such as {quoted(str(folder / names[0]))}" if names else ""


def _grid_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(one_line(entry.name) for entry in entries if entry.name.endswith(_SUFFIXES))
    except OSError:
        return []

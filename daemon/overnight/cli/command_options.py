"""`overnight submit --command '...' --axis ...`: a grid of commands without a file."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.cli import common
from overnight.errors import GridError, UserError

if TYPE_CHECKING:
    from overnight.grid.command_schema import CommandGrid

_OPTIONS = ("name", "axis", "memory", "timeout", "env", "secret", "cwd", "keep", "threads", "tries", "shell", "grace")
"""What goes with --command only; --runs, --only and --replace go with a file, too."""

_IDLE_LOOPS_ONLY = ("scaffold", "model", "engine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a command instead of a file")
    group.add_argument(
        "--command",
        dest="command_text",
        metavar="TEXT",
        help="the command of each cell; {axis}, {seed}, {run} and {cell} are filled in, and {{ }} are braces",
    )
    group.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="NAME=V,V",
        help="an axis: values, or a range such as 1..5 (repeatable; the last is the fastest)",
    )
    group.add_argument("--name", metavar="N", help="the grid's name (default: command- and a hash of it)")
    group.add_argument("--shell", action="store_true", help="have the command run by a shell (/bin/sh)")
    group.add_argument("--memory", metavar="SIZE", help="what a cell needs, such as 2GiB (default: learned)")
    group.add_argument("--timeout", metavar="T", help="seconds, or a time such as 2h, of one attempt")
    group.add_argument("--grace", metavar="T", help="how long a cell may take to leave (default: 10s)")
    group.add_argument(
        "--env", action="append", default=[], metavar="K=V", help="a variable of its environment (repeatable)"
    )
    group.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable whose value is looked up when a cell runs: in the daemon's environment, else in "
        "etc/secrets.env (repeatable)",
    )
    group.add_argument("--cwd", metavar="DIR", help="its working folder, or scratch (default: the current folder)")
    group.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="files to keep, below its folder (repeatable)"
    )
    group.add_argument("--threads", type=common.positive, metavar="N", help="CPU slots of a cell (default: 1)")
    group.add_argument("--tries", type=common.positive, metavar="N", help="tries of a cell that fails (default: 3)")


def given(args: argparse.Namespace) -> bool:
    """Whether the grid is one of --command. Raises UserError for options that do not go together."""
    if args.command_text is None and args.file is None:
        raise UserError(f"{args.command}: name a grid FILE, or give a command with --command")
    if args.command_text is not None and args.file is not None:
        raise UserError(f"{args.command}: both the file {args.file} and --command; give one of the two")
    if args.command_text is None and (option := _first(args, _OPTIONS)):
        raise UserError(f"--{option} goes with --command only; write it in the grid file instead")
    if args.command_text is not None:
        refuse_idle_loop_options(args, "--command")
    return args.command_text is not None


def refuse_idle_loop_options(args: argparse.Namespace, of: str) -> None:
    """For a grid of commands. Raises UserError."""
    if option := _first(args, _IDLE_LOOPS_ONLY):
        raise UserError(f"--{option} is for grids of idle loops, and {of} gives a grid of commands; leave it out")


def grid(args: argparse.Namespace) -> CommandGrid:
    """The grid that the options describe. Raises GridError with one line that names the option."""
    from pydantic import ValidationError

    from overnight.grid import yaml_source
    from overnight.grid.command_schema import CommandGrid, working_folder
    from overnight.grid.explain import first_error

    command = args.command_text if args.shell else _split(args.command_text)
    try:
        cwd = working_folder(args.cwd if args.cwd is not None else ".", Path.cwd())
    except ValueError as error:
        raise GridError(str(error), key="--cwd") from None
    values: dict[str, Any] = {
        "name": args.name if args.name is not None else _default_name(command, cwd),
        "kind": "command",
        "runs": args.runs,
        "shell": args.shell,
        "command": command,
        "axes": {axis: _values(axis, text) for axis, text in _pairs("axis", args.axis, "lr=0.1,0.01").items()},
        "env": _pairs("env", args.env, "OMP_NUM_THREADS=1"),
        "secrets": args.secret,
        "cwd": cwd,
        "keep": args.keep,
    }
    for option in ("memory", "timeout", "grace", "threads", "tries"):
        if (text := getattr(args, option)) is not None:
            values[option] = yaml_source.scalar(text) if isinstance(text, str) else text
    try:
        return CommandGrid.model_validate(values)
    except ValidationError as error:
        source = yaml_source.Source(values, {path: yaml_source.Place(1, 1) for path in _paths(values)})
        raise first_error(error, source, root=CommandGrid, named=_option) from None


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        reason = str(error).lower()
        raise GridError(f"its quotes cannot be read ({reason}); mend them, or add --shell", key="--command") from None


def _default_name(command: str | list[str], cwd: str) -> str:
    """The same command in the same folder is the same grid, so that giving it again adds what is missing."""
    from overnight.durable import canonical

    return f"command-{hashlib.sha256(canonical([command, cwd]).encode()).hexdigest()[:8]}"


def _pairs(option: str, items: list[str], example: str) -> dict[str, str]:
    """NAME=TEXT arguments, in their order."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise GridError(f"found {item!r}, expected NAME=VALUE such as {example}", key=f"--{option}")
        if name in found:
            again = "; write all values in one, with commas" if option == "axis" else ""
            raise GridError(f"{name} is given twice{again}", key=f"--{option}")
        found[name] = text
    return found


def _values(axis: str, text: str) -> Any:
    """A range stays a text, which the schema spreads out; else each value is read as in a grid file."""
    from overnight.grid import units, yaml_source

    if units.RANGE.fullmatch(text):
        return text
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise GridError(f"an empty value in {axis}={text}, expected values such as {axis}=1,2,3", key="--axis")
    return [yaml_source.scalar(part) for part in parts]


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value within `value`."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in parts:
        yield from _paths(inner, (*path, part))


def _option(path: tuple[str | int, ...]) -> str:
    """What a user wrote that stands at `path` of the grid: `--axis lr`, `--timeout`."""
    first = {"axes": "axis", "secrets": "secret"}.get(str(path[0]), str(path[0])) if path else "command"
    name = f" {path[1]}" if first in ("axis", "env") and len(path) > 1 else ""
    return f"--{first}{name}"


def _first(args: argparse.Namespace, options: tuple[str, ...]) -> str:
    """The first of these options that was given, or nothing."""
    return next((option for option in options if getattr(args, option) not in (None, False, [])), "")

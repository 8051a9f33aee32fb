"""`overnight submit FILE`, or `submit --command '...'`: put a grid's cells into the queue."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight import procfs, secrets
from overnight.cli import command_options, common
from overnight.durable import canonical
from overnight.errors import GridError, ModelError
from overnight.paths import Paths

if TYPE_CHECKING:
    from overnight.grid.expand import AnyGrid

_PATH = re.compile(r"/|\.gguf$|^\.")

_LARGEST_SPEC_BYTES = 128 * 1024
_QUICK_S = 3.0
"""What takes longer than this is worth a word; a refusal comes sooner, and alone."""


def add(commands: Any) -> None:
    parser = commands.add_parser("submit", help="put the cells of a grid file, or of a command, into the queue")
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `submit` and `run` share."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="a grid file (YAML)")
    parser.add_argument("--scaffold", nargs="+", metavar="S", help="only these scaffolds (numbers or names)")
    parser.add_argument("--model", nargs="+", metavar="M", help="only these models")
    parser.add_argument("--runs", type=common.positive, metavar="N", help="N runs instead of the file's")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=V,V",
        help="only these values of an axis (repeatable)",
    )
    parser.add_argument(
        "--engine",
        choices=["scripted"],
        help="a dry run without a model, as a grid of its own (NAME-scripted)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="cells whose specification changed start afresh (results move aside)",
    )
    command_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    name, line = submit(paths, args)
    print(f"{name}: {line}")
    return 0


def submit(paths: Paths, args: argparse.Namespace) -> tuple[str, str]:
    """Read, check, prepare the models, enqueue. Returns (grid name, what was done)."""
    from overnight.grid.expand import expand, policy

    grid = command_options.grid(args) if command_options.given(args) else _from_file(args)
    if args.runs is not None:
        grid = grid.model_copy(update={"runs": args.runs})
    only = _filters(args)
    templates = [cell.template for cell in _one_a_template(expand(grid, only=only, engine=args.engine))]
    _refuse_large(grid.name, templates)
    _prepare_models(paths, templates)
    _prepare_analysis(paths, grid)
    _warn_of_secrets(paths, grid)
    aside = common.Aside(paths, grid.name)
    with common.open_queue(paths) as queue:
        done = queue.enqueue(
            grid.name,
            cells=expand(grid, only=only, engine=args.engine),
            spec=grid.model_dump(mode="json"),
            policy=policy(grid),
            replace=args.replace,
            aside=aside,
        )
    parts = [f"{done.added} added", f"{done.existing} there already"]
    if done.replaced:
        parts.append(f"{done.replaced} replaced" + (f" ({aside})" if aside.moved else ""))
    return grid.name, ", ".join(parts)


def _warn_of_secrets(paths: Paths, grid: AnyGrid) -> None:
    """One line on stderr when cells would lack a secret: by the environment of the daemon that runs now, else by our
    own, which one that is started from here inherits."""
    if not (names := getattr(grid, "secrets", [])):
        return
    state = common.daemon_state(paths)
    present, of = set(os.environ), "the environment"
    if state is not None and (inherited := procfs.environment(state["pid"])) is not None:
        present, of = inherited, f"the environment of the daemon that runs (pid {state['pid']})"
    if (said := secrets.missing(names, present, of, paths.secrets)) is not None:
        print(f"overnight: warning: {said}", file=sys.stderr)


def _refuse_large(grid: str, templates: list[dict[str, Any]]) -> None:
    """A cell's specification travels to its process in one packet. Raises GridError."""
    largest = max((len(canonical(template).encode()) for template in templates), default=0)
    if largest > _LARGEST_SPEC_BYTES:
        raise GridError(
            f"grid {grid}: one cell's specification is {largest // 1024} KiB, expected at most "
            f"{_LARGEST_SPEC_BYTES // 1024} KiB; put long texts into a file that the command reads"
        )


def _from_file(args: argparse.Namespace) -> AnyGrid:
    from overnight.grid.command_schema import CommandGrid
    from overnight.grid.loader import load_grid

    grid = load_grid(Path(args.file))
    if isinstance(grid, CommandGrid):
        command_options.refuse_idle_loop_options(args, args.file)
        return grid
    folder = Path(args.file).absolute().parent
    changes: dict[str, Any] = {"models": [_with_absolute_source(model, folder) for model in grid.models]}
    encoder = grid.analysis.model
    if encoder is not None and (folder / encoder).is_dir():
        changes["analysis"] = grid.analysis.model_copy(update={"model": str((folder / encoder).resolve())})
    if args.engine:
        changes["name"] = f"{grid.name}-{args.engine}"
    return grid.model_copy(update=changes)


def _with_absolute_source(model: Any, folder: Path) -> Any:
    """A path beside the grid file is written out: warm servers and later days have another working folder.

    What is no such path (a name in the store, a hub id) stays as it is."""
    if model.engine != "transformers" or not _PATH.search(model.source) or not (folder / model.source).exists():
        return model
    return model.model_copy(update={"source": str((folder / model.source).resolve())})


def _filters(args: argparse.Namespace) -> dict[str, set[str]]:
    only: dict[str, set[str]] = {}
    if args.scaffold:
        only["scaffold"] = set(args.scaffold)
    if args.model:
        only["model"] = set(args.model)
    for item in args.only:
        axis, equals, values = item.partition("=")
        if not equals or not axis or not values:
            raise GridError(f"--only {item}: AXIS=VALUE[,VALUE...] is expected, such as --only run=1,2")
        only.setdefault(axis, set()).update(value.strip() for value in values.split(","))
    return only


def _one_a_template(cells: Iterable[Any]) -> Iterable[Any]:
    """The first cell of each template: templates are shared objects, so a million cells have few."""
    seen: set[int] = set()
    for cell in cells:
        if id(cell.template) not in seen:
            seen.add(id(cell.template))
            yield cell


def _prepare_models(paths: Paths, templates: list[dict[str, Any]]) -> None:
    """Have every model in the store before anything is queued: what cannot be had is said now, not at 3 a.m."""
    from overnight.engines import model_store

    wanted = {
        (template["model"]["source"], template["model"]["dtype"])
        for template in templates
        if template.get("engine") == "transformers"
    }
    for source, dtype in sorted(wanted):
        ensure_model(paths, source, dtype)
        if (found := model_store.locate(paths.models, source, dtype)) is not None:
            model_store.check_converses(found)


def _prepare_analysis(paths: Paths, grid: AnyGrid) -> None:
    """What the jobs after each cell will need, for the same reason. Raises UserError."""
    from overnight.grid.command_schema import CommandGrid

    if isinstance(grid, CommandGrid) or not grid.analysis.after_each:
        return
    from overnight.analysis.process import Options, Process
    from overnight.grid import after_each

    with Process(paths, Options(after_each.backends(grid.analysis), grid.analysis.method, grid.analysis.model)) as one:
        one.check()


def ensure_model(paths: Paths, source: str, dtype: str, *, name: str | None = None) -> str:
    """Add a model to the store unless it is there; returns its name there. Raises ModelError.

    In a process of its own: torch must not stay in ours."""
    from overnight.engines import model_store

    if name is None and (found := model_store.locate(paths.models, source, dtype)) is not None:
        return str(found.name)
    command = [sys.executable, "-m", "overnight.engines.model_store", "add", str(paths.models), source]
    command += ["--dtype", dtype, *(["--name", name] if name else [])]
    # Libraries may say a file's name as its very bytes, which need be no text.
    adding = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="backslashreplace"
    )
    try:
        said, complaint = adding.communicate(timeout=_QUICK_S)
    except subprocess.TimeoutExpired:
        print(f"preparing model {source} ({dtype}); this is done once ...", file=sys.stderr, flush=True)
        said, complaint = adding.communicate()
    if adding.returncode != 0:
        words = complaint.strip().splitlines() or [f"adding {source} ended with exit status {adding.returncode}"]
        raise ModelError(words[-1].removeprefix("overnight: "))
    return str(json.loads(said.strip().splitlines()[-1])["name"])

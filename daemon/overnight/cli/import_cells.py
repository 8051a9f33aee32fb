"""`overnight import FILE|FOLDER`: what the older harness did, as cells of a grid that nothing runs."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from overnight.cli import common, text
from overnight.errors import UserError
from overnight.grid import keys
from overnight.queue.states import Status

_NAMED = 5


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "import", help="take conversations of the older harness (*_run*.json, grid_state.json) in, to be analysed"
    )
    parser.add_argument("path", metavar="FILE|FOLDER", type=Path)
    parser.add_argument("--grid", metavar="NAME", help="the grid they become (default: the name of their folder)")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="cells that ended otherwise than their files say now are replaced (results move aside)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from overnight.analysis import taking_in, upstream

    night = upstream.read(args.path)
    grid = args.grid if args.grid is not None else night.name
    if not re.fullmatch(keys.NAME, grid):
        raise UserError(
            f"{grid!r} cannot be a grid's name; expected at most 48 letters, digits and . _ - with a letter or digit "
            "in front: choose one with --grid NAME"
        )
    paths = common.home(args)
    aside = common.Aside(paths, grid)
    with common.open_queue(paths) as queue:
        done = taking_in.take_in(paths, queue, night, grid, replace=args.replace, aside=aside)
    taken = done.taken
    parts = [f"{len(taken.added)} cells added", f"{taken.existing} there already"]
    parts += [f"{len(taken.updated)} brought up to date"] if taken.updated else []
    parts += [f"{len(taken.replaced)} replaced"] if taken.replaced else []
    parts += [f"{len(done.healed)} conversations written again"] if done.healed else []
    print(f"{grid}: {', '.join(parts)}" + (f"; {aside}" if aside.moved else ""))
    for line in _said(night):
        print(text.harmless(f"  {line}", newlines=False))
    print(f"look at them: overnight audit {grid}, overnight cells {grid}")
    return 0


def _said(night: Any) -> Iterator[str]:
    """What the files hold, and what of it is not as one might think."""
    from overnight.analysis import upstream

    statuses = Counter(found.facts.status for found in night.cells)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    yield f"{counted}; {sum(found.file is not None for found in night.cells)} with a conversation"
    yield from _some(_failed(found) for found in night.cells if found.facts.status is Status.FAILED)
    if left := [found.key for found in night.cells if found.facts.said == "running"]:
        yield f"left running, so pending now: {_names(left)}"
    if bare := [found.key for found in night.cells if found.facts.status is Status.DONE and found.file is None]:
        yield f"done, but their conversation is not among the files ({len(bare)}): {_names(bare)}"
    if night.has_state and (more := [found.key for found in night.cells if found.state is None]):
        yield f"not in {upstream.STATE} ({len(more)}): {_names(more)}"
    unlike = ((found.key, "; ".join(upstream.differences(found))) for found in night.cells)
    yield from _some(
        f"{upstream.STATE} and the conversation differ about {key}: {told}" for key, told in unlike if told
    )
    if night.ignored:
        yield f"other files, left alone: {_names(night.ignored)}"
    if pending := statuses[Status.PENDING]:
        which = "its pending cell stays" if pending == 1 else f"its {pending} pending cells stay"
        yield (
            f"{which} pending: nothing here runs an imported cell, since its files do not say how; to have them run, "
            "`overnight submit` a grid file with these scaffolds and models under another name"
        )


def _failed(found: Any) -> str:
    facts = found.facts
    lost = "" if found.file is not None else ", of which no conversation is left"
    figures = f"{facts.iterations or 0:,} iterations, {facts.tokens or 0:,} tokens{lost}"
    return f"failed: {found.key} ({figures}): {facts.error or 'no error is told'}"


def _some(lines: Iterable[str]) -> Iterator[str]:
    """The first of them, and how many more there are."""
    more = 0
    for number, line in enumerate(lines):
        if number < _NAMED:
            yield line
        else:
            more += 1
    if more:
        yield f"and {more:,} more of these"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

"""`overnight analyze [GRID]`: where do conversations collapse, how diverse are they? Only what changed is done again.

A process of its own does it, and is gone afterwards with all that it loaded."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from overnight.cli import common, screen, text
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.store import GridRow, Queue

_FORMATS = ("csv", "json", "parquet")
_SAY_EVERY_S = 0.2


def add(commands: Any) -> None:
    parser = commands.add_parser("analyze", help="where conversations collapse, and how diverse they are; what changed")
    parser.add_argument("grid", nargs="?", metavar="GRID", help="only this grid")
    parser.add_argument("--backend", choices=["tfidf", "embedding"], help="instead of what the grid says (tfidf)")
    parser.add_argument("--method", choices=["absolute", "profile"], help="instead of what the grid says (absolute)")
    parser.add_argument("--model", metavar="MODEL", help="to embed with: a folder or a name (all-minilm-l6-v2)")
    parser.add_argument("--again", action="store_true", help="also what has not changed")
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("FORMAT", "DIR"),
        help="write tables (cells, turns, spans, groups, comparisons) as csv, json or parquet",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


@dataclass
class Found:
    """Of one grid. analysed, kept: records that were made, that still held. problems: conversations that have none."""

    grid: str
    backends: list[str]
    method: str
    conversations: int = 0
    analysed: int = 0
    kept: int = 0
    collapsed: int = 0
    problems: list[str] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    form, folder = args.export or ("", "")
    if form and form not in _FORMATS:
        raise UserError(f"--export {form}: one of {', '.join(_FORMATS)} is expected, and then a folder")
    paths = common.home(args)
    with common.open_queue(paths) as queue:
        everything = [_analyse(paths, queue, grid, args) for grid in _grids(queue, args.grid)]
        found = [each for each in everything if each.conversations or args.grid is not None]
        written = [] if not form else _export(paths, queue, found, form, Path(folder))
    if args.json:
        common.print_json([asdict(each) for each in found])
    else:
        for each in found:
            _show(paths, each)
        for path in written:
            print(path)
        if not found:
            print("no grid has conversations; submit one: overnight submit FILE")
    return 1 if any(each.problems for each in found) else 0


def _grids(queue: Queue, name: str | None) -> list[GridRow]:
    from overnight.analysis import process

    if name is None:
        return [grid for grid in queue.grids() if process.has_conversations(grid)]
    grid = queue.grid(name)
    process.refuse_followers(grid)
    return [grid]


def _analyse(paths: Paths, queue: Queue, grid: GridRow, args: argparse.Namespace) -> Found:
    from overnight.analysis import store
    from overnight.analysis.process import Process, jobs_of, options_of

    store.forget_half_written(paths, grid.name)
    options = options_of(grid, backend=args.backend, method=args.method)
    options = replace(options, model=args.model or options.model, again=args.again)
    found = Found(grid.name, list(options.backends), options.method)
    progress = _Progress(grid)
    with Process(paths, options) as process:
        for job in jobs_of(paths, queue, grid.name):
            progress.tell(found.conversations, job.key)
            answer = process.ask(job)
            found.conversations += 1
            found.analysed += answer.analysed
            found.kept += answer.kept
            found.collapsed += answer.onset_turn is not None
            found.problems += [f"{job.grid}/{job.key}: {answer.problem}"] if answer.problem else []
    progress.clear()
    return found


def _export(paths: Paths, queue: Queue, found: list[Found], form: Any, folder: Path) -> list[Path]:
    """Tables of all grids that were analysed. Raises UserError."""
    from overnight.analysis import statistics, table_files, tables

    records = _Records(paths, queue, found)
    written = [*tables.of_records(records), *tables.of_statistics(statistics.analyse(records))]
    return table_files.write(written, folder, form)


@dataclass(frozen=True)
class _Records:
    """Read from the disk as often as they are gone through: never all of them in memory."""

    paths: Paths
    queue: Queue
    found: list[Found]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from overnight.analysis import store

        for each in self.found:
            yield from store.records(self.paths, self.queue, each.grid, each.backends[0], each.method)


def _show(paths: Paths, found: Found) -> None:
    for problem in found.problems:
        print(text.harmless(problem, newlines=False))
    repeat = f"{found.collapsed} of them repeat themselves"
    made = f"{found.analysed} analysed now, {found.kept} unchanged"
    how = f"{' and '.join(found.backends)}, {found.method}"
    print(f"{found.grid}: {found.conversations} conversations, {repeat}; {made} ({how})")
    print(f"  {paths.analysis / found.grid}")


class _Progress:
    """A line on stderr, if that is a terminal."""

    def __init__(self, grid: GridRow) -> None:
        self._grid, self._of = grid.name, sum(grid.counts.values())
        self._next_s, self._shown = time.monotonic() + 1.0, False

    def tell(self, done: int, key: str) -> None:
        if time.monotonic() >= self._next_s and sys.stderr.isatty():
            self.clear()
            print(f"{self._grid}: {done} of at most {self._of}, {key}", end="", file=sys.stderr, flush=True)
            self._next_s, self._shown = time.monotonic() + _SAY_EVERY_S, True

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            screen.command("\r\x1b[K", sys.stderr)
            sys.stderr.flush()

"""`overnight cells`: one row a cell. Those that follow others (their analysis) only where their grid is named."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from overnight.cli import common, text
from overnight.queue import follow
from overnight.queue.states import Status

_ROWS = 1000


def add(commands: Any) -> None:
    parser = commands.add_parser("cells", help="one row a cell")
    parser.add_argument("grid", nargs="?", metavar="GRID", help="only this grid")
    parser.add_argument("--status", choices=[str(status) for status in Status], help="only cells with this status")
    parser.add_argument("--limit", type=common.positive, metavar="N", help="at most N rows (default 1000; all as JSON)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args, looks=True)
    with common.open_queue(paths) as queue:
        if args.grid:
            queue.grid(args.grid)
        followers = {grid.id for grid in follow.apart(queue.grids())[1].values()} if args.grid is None else ()
        found = (row for row in common.all_cells(queue, args.grid, args.status) if row.grid_id not in followers)
        if args.json:
            common.print_json_list(as_json(row) for row in itertools.islice(found, args.limit))
            return 0
        limit = args.limit or _ROWS
        rows = list(itertools.islice(found, limit + 1))
        commands = {grid.id for grid in queue.grids() if grid.spec.get("kind") == "command"}
    shown = rows[:limit]
    state = common.daemon_state(paths)
    live = {row["cell_id"]: (row["turn"], row["output_tokens"]) for row in (state["running"] if state else [])}
    heads = ("id", "grid", "cell", "status", "turns", "tokens", "attempts", "tries", "ended by", "reason")
    lines: list[tuple[object, ...]] = []
    optional = ["grid", "tries", "ended by", "reason"]
    if shown and all(row.grid_id in commands for row in shown):
        optional += ["turns", "tokens"]  # a command has none
    for row in shown:
        counted = max((row.turns, row.output_tokens), live.get(row.id, (0, 0)))
        grid = "" if args.grid else row.grid
        how = (row.attempts, row.tries_used, row.end_reason or "-", (row.reason or "-")[:80])
        told = (None, None) if row.grid_id in commands else counted
        lines.append((row.id, grid, row.key, row.status, *told, *how))
    print(text.table(heads, lines, optional=optional))
    if len(rows) > limit:
        print(f"... more than {limit} rows: use --limit, --status or GRID")
    return 0


def as_json(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}

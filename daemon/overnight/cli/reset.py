"""`overnight reset GRID`: start afresh. Old results are moved aside, never deleted."""

from __future__ import annotations

import argparse
import time
from typing import Any

from overnight.cli import common
from overnight.errors import UserError
from overnight.queue.states import Status
from overnight.queue.store import Queue

_WAIT_S = 30.0


def add(commands: Any) -> None:
    parser = commands.add_parser("reset", help="start a grid afresh; old results are moved aside, never deleted")
    parser.add_argument("grid", metavar="GRID")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    with common.open_queue(paths) as queue:
        grid = queue.grid(args.grid)
        _stop_cells(queue, args.grid, alive=common.daemon_state(paths) is not None)
        aside = common.Aside(paths, grid.name)
        count = queue.reset(grid.name, aside=aside)
    print(f"{count} cells pending again" + (f"; {aside}" if aside.moved else ""))
    return 0


def _stop_cells(queue: Queue, grid: str, *, alive: bool) -> None:
    """Cancel the whole grid and wait until nothing of it runs, so that nothing writes where things are moved."""
    running = list(queue.cell_ids(grid, [Status.RUNNING]))
    if running and not alive:
        raise UserError(
            f"{grid}: {len(running)} cells were running when their daemon died; start it with `overnight up` first; "
            "nothing was changed"
        )
    if not running:
        return
    queue.cancel(queue.cell_ids(grid, [Status.PENDING]))  # or they would be started while we wait
    deadline = time.monotonic() + _WAIT_S
    while running:
        if time.monotonic() > deadline:
            raise UserError(
                f"{grid}: {len(running)} cells are still running after {_WAIT_S:.0f} s; nothing was moved, the grid "
                f"is cancelled: `overnight retry --grid {grid}` takes that back"
            )
        queue.cancel(running)
        time.sleep(0.1)
        running = list(queue.cell_ids(grid, [Status.RUNNING]))

"""`overnight retry`: failed, quarantined and cancelled cells go back to pending and resume at their last turn."""

from __future__ import annotations

import argparse
from typing import Any

from overnight.cli import common


def add(commands: Any) -> None:
    parser = commands.add_parser("retry", help="put failed, quarantined and cancelled cells back into the queue")
    common.add_cell_choice(parser)
    parser.add_argument(
        "--accept-conditions",
        action="store_true",
        help="go on with a transcript that was begun under other conditions, and record that in it",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    with common.open_queue(paths) as queue:
        cells = common.chosen(args, queue)
        count = queue.retry(cells, accept_conditions=args.accept_conditions)
        left = common.left_imported(args, queue, cells)
    print(f"{count} back in the queue{left}")
    return 0

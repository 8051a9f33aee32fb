"""`overnight cancel`: pending cells at once, running ones within a second or two; finished turns stay."""

from __future__ import annotations

import argparse
from typing import Any

from overnight.cli import common


def add(commands: Any) -> None:
    parser = commands.add_parser("cancel", help="cancel cells; their finished turns stay")
    common.add_cell_choice(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    with common.open_queue(paths) as queue:
        cells = common.chosen(args, queue)
        cancelled, asked = queue.cancel(cells)
        left = common.left_imported(args, queue, cells)
    print(f"{cancelled} cancelled" + (f", {asked} running asked to leave" if asked else "") + left)
    return 0

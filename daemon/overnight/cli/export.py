"""`overnight export GRID [DIR]`: a grid's conversations and grid_state.json in the older harness's layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from overnight.cli import common, text


def add(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a grid's conversations in the older harness's layout")
    parser.add_argument("grid", metavar="GRID")
    parser.add_argument("folder", nargs="?", metavar="DIR", type=Path, help="where to (default: ./GRID)")
    parser.add_argument("--replace", action="store_true", help="files of the same names in DIR are replaced")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from overnight.analysis import exports

    paths = common.home(args, looks=True)
    folder = args.folder if args.folder is not None else Path(args.grid)
    with common.open_queue(paths) as queue:
        done = exports.write(paths, queue, args.grid, folder, replace=args.replace)
    without = f"; {done.without} cells have no conversation" if done.without else ""
    print(f"{args.grid}: {done.conversations} conversations and grid_state.json in {folder}{without}")
    for sentence in done.unread:
        print(text.harmless(f"not exported: {sentence}", newlines=False))
    return 1 if done.unread else 0

"""`overnight doctor`: what this machine offers and lacks, with advice for each."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections import Counter
from dataclasses import asdict
from typing import Any

from overnight.cli import common, text
from overnight.doctor.examine import examine
from overnight.doctor.row import Row, Status, worst

_NARROWEST, _WIDEST = 60, 100


def add(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what this machine offers and lacks, with advice for each")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rows = examine(common.home(args, looks=True))
    if args.json:
        common.print_json([asdict(row) for row in rows])
    else:
        columns = shutil.get_terminal_size().columns
        for line in lines(rows, min(max(columns, _NARROWEST), _WIDEST)):
            print(line)
    return 1 if worst(rows) is Status.BAD else 0


def lines(rows: list[Row], width: int) -> list[str]:
    """One row a check, what was found and the advice wrapped to the width below each other; then a count."""
    check_width = max(len(row.check) for row in rows)
    shown = []
    for row in rows:
        head = f"{row.status:<5}  {row.check:<{check_width}}  "
        shown += _wrapped(row.found, width, head, " " * len(head))
        if row.advice:
            shown += _wrapped(row.advice, width, " " * len(head) + "-> ", " " * len(head) + "   ")
    counts = Counter(row.status for row in rows)
    said = [
        f"{counts[Status.OK]} ok",
        f"{counts[Status.LACKS]} lacking (there is a way without)",
        f"{counts[Status.BAD]} bad",
    ]
    return [*shown, "", f"{len(rows)} checks: {', '.join(said)}"]


def _wrapped(words: str, width: int, first: str, rest: str) -> list[str]:
    wrapped = textwrap.wrap(
        text.harmless(words, newlines=False),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,  # a path or a command is copied whole
        break_on_hyphens=False,
    )
    return wrapped or [first.rstrip()]

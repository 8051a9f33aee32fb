"""`overnight show CELL`: its attempts, their outcomes, and where its files are."""

from __future__ import annotations

import argparse
from typing import Any

from overnight.cli import common, text
from overnight.cli.cells import as_json


def add(commands: Any) -> None:
    parser = commands.add_parser("show", help="a cell's attempts, outcomes, and where its files are")
    parser.add_argument("cell", metavar="CELL", help="KEY, GRID/KEY or '#ID'")
    parser.add_argument("--grid", metavar="G", help="where to look for CELL")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    with common.open_queue(paths) as queue:
        row = common.select_cells(queue, [args.cell], args.grid)[0]
        attempts, events, spec = queue.attempts(row.id), queue.events(row.id), queue.cell_spec(row.id)
    folder = paths.cell_results(row.grid, row.key)
    files = sorted(str(path) for path in folder.iterdir()) if folder.is_dir() else []
    if args.json:
        found = {
            "cell": as_json(row),
            "spec": spec,
            "attempts": [as_json(attempt) for attempt in attempts],
            "events": [as_json(event) for event in events],
            "files": files,
        }
        common.print_json(found)
        return 0
    print(f"{row.grid}/{row.key}  (#{row.id})  {row.status}")
    if row.reason:
        print(f"  why        {text.harmless(row.reason)} [{row.reason_code}]")
    print(f"  turns      {row.turns or 0}, {row.output_tokens or 0} tokens, {row.end_reason or 'not ended'}")
    print(f"  seed       {spec['seed']}")
    if row.transcript_sha256:
        print(f"  sha256     {row.transcript_sha256}")
    for number, file in enumerate(files):
        print(f"  {'files' if number == 0 else '     '}      {file}")
    rows = [
        (
            attempt.number,
            attempt.outcome or "under way",
            attempt.turns,
            text.when(attempt.claimed_at),
            text.duration(None if attempt.ended_at is None else attempt.ended_at - attempt.claimed_at),
            text.duration(attempt.load_s),
            text.duration(attempt.replay_s),
            attempt.reason or "-",
        )
        for attempt in attempts
    ]
    if rows:
        print("\n" + text.table(("attempt", "outcome", "turns", "started", "took", "load", "replay", "reason"), rows))
    return 0

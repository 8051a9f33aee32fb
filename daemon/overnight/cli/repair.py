"""`overnight repair [GRID]`: mend what can be mended. Everything that it changes is copied first."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from overnight.cli import common, text

DESCRIPTION = """\
Mend what can be mended without inventing anything. Everything that is changed is copied first, to
var/repair/TIME/, with report.json: what was found, what was done, and why. A second repair finds nothing to do.

  queue.db              every row that can be read goes into a new file; rows that cannot are named
  grids that it lost    cells are put back as their transcripts tell
  damaged transcripts   cut to the whole lines before the damage; only the turns behind are produced again
  done, and not so      a cell whose transcript or result is not what was recorded is pending again
  result.json           written again from its transcript
  what is left over     temporary files, registrations of dead processes, what a killed restore unpacked, modes
                        that let others look in

No daemon may run: `overnight down` first. Look first with --dry-run, or with `overnight verify --deep`.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "repair",
        help="mend a damaged queue, transcripts and results; copies what it changes first",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit code: 0 nothing is left to mend, 1 something is, and it said what to do, 2 refused or failed",
    )
    parser.add_argument("grid", nargs="?", metavar="GRID", help="only the cells of this grid (the queue in any case)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done; change nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from overnight.errors import UserError
    from overnight.repair import repair
    from overnight.repair.lock import held

    paths = common.home(args)
    if common.daemon_state(paths) is not None:
        raise UserError(f"a daemon runs on {paths.home}; stop it with `overnight down` first")
    with held(paths, dry_run=args.dry_run):
        outcome = repair.run(paths, grid=args.grid, dry_run=args.dry_run)
    for step in outcome.steps:
        print(text.harmless(str(step), newlines=False))
    mended, left = len(outcome.mended), len(outcome.left)
    if not mended and not left:
        print("nothing to mend")
    elif args.dry_run:
        print(f"{mended} can be mended, {left} not; nothing was changed")
    else:
        print(f"{mended} mended, {left} not" + (f"; what was changed is in {outcome.folder}" if outcome.folder else ""))
    sys.stdout.flush()
    return 1 if left else 0

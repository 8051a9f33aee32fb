"""`overnight audit [GRID|FOLDER]`: are these results what they claim? Exit code 1 when anything is found."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.cli import common, text
from overnight.errors import QueueError, UserError
from overnight.paths import Paths
from overnight.queue.store import Queue


def add(commands: Any) -> None:
    parser = commands.add_parser("audit", help="are these results what they claim? of a grid, or of a folder of files")
    parser.add_argument("what", nargs="?", metavar="GRID|FOLDER", help="a grid, or the older harness's files")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = list(_sources(args))
    findings = [(name, finding) for name, _, _, each in found for finding in each]
    cells = sum(count for _, count, _, _ in found)
    unread = sum(count for _, _, count, _ in found)
    severities = Counter(finding.severity for _, finding in findings)
    if args.json:
        common.print_json(
            {
                "checked": {"cells": cells, "results_unread": unread, "grids": [name for name, *_ in found]},
                "counts": {severity: severities[severity] for severity in ("error", "warning", "note")},
                "findings": [
                    {
                        "grid": name,
                        "severity": finding.severity,
                        "code": finding.code,
                        "title": finding.title,
                        "detail": finding.detail,
                        "count": finding.count,
                        "cells": list(finding.cells),
                    }
                    for name, finding in findings
                ],
            }
        )
        return 1 if findings else 0
    for name, finding in findings:
        where = f"{name}: " if len(found) > 1 else ""
        said = f"{finding.severity:<7}  {where}{finding.title}: {finding.detail}"
        print(text.harmless(said, newlines=False))
    counts = [(severity, severities[severity]) for severity in ("error", "warning", "note")]
    counted = ", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts)
    looked = f"{cells} cell{'s' if cells != 1 else ''} looked at"
    print(f"{looked}; {counted}" if findings else f"{looked}, nothing found")
    if unread:
        of = "a command" if unread == 1 else f"{unread} commands"
        print(f"of {of}, only the end was looked at: an audit reads conversations, and no other results")
    return 1 if findings else 0


def _sources(args: argparse.Namespace) -> Iterator[tuple[str, int, int, list[Any]]]:
    """(name, cells, those of them whose results say nothing to an audit, findings) of each grid, or of the folder. A
    grid's name comes before a folder of that name."""
    from overnight.analysis import audit

    paths = Paths.of(args.home)
    folder = None if args.what is None else Path(args.what)
    if folder is not None and folder.exists() and not _is_grid(paths, args.what):
        subjects = list(audit.subjects_of_folder(folder))
        yield str(folder), len(subjects), 0, audit.check(subjects)
        return
    paths = common.home(args, looks=True)
    lives = common.daemon_state(paths) is not None
    with common.open_queue(paths) as queue:
        try:
            names = [queue.grid(args.what).name] if args.what else [grid.name for grid in queue.grids()]
        except QueueError as error:
            raise UserError(f"{error}; and there is no folder of that name") from None
        for name in names:
            subjects = list(audit.subjects_of_grid(paths, queue, name, daemon_lives=lives))
            yield name, len(subjects), audit.unread(subjects), audit.check(subjects)


def _is_grid(paths: Paths, name: str) -> bool:
    if not paths.queue.exists():
        return False
    with Queue.open(paths.queue, create=False) as queue:
        return any(grid.name == name for grid in queue.grids())

"""`overnight verify [GRID]`: every transcript whole (header, hash chain, turn numbers), every command's result and kept
files unchanged, and all as the queue knows it, which must not contradict itself."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from overnight.cells import command_result, transcript
from overnight.cli import common, screen, text
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.states import Status
from overnight.queue.store import CellRow
from overnight.repair import unknown_grids


def add(commands: Any) -> None:
    parser = commands.add_parser("verify", help="check every transcript against its hash chain, result and queue")
    parser.add_argument("grid", nargs="?", metavar="GRID", help="only this grid")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also the queue itself (pages, counters, history), what every turn says, results recomputed, models "
        "hashed again, files that do not belong; works while the daemon runs",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args, looks=True)
    if args.deep:
        return _deep(paths, args)
    found: list[dict[str, Any]] = []
    checked = 0
    folders = unknown_grids.folders(paths)
    with common.open_queue(paths) as queue:
        if args.grid:
            queue.grid(args.grid)
        for sentence in queue.contradictions():
            found.append({"grid": None, "cell": None, "status": None, "problem": f"{paths.queue}: {sentence}"})
        damaged = bool(found)  # then its word is worth nothing
        if not (damaged or args.grid):
            found.extend(_unknown(paths, {row.name for row in queue.grids()}, folders))
        for row in () if damaged else common.all_cells(queue, args.grid):
            kind = queue.cell_spec(row.id)["kind"]
            if kind == specs.IMPORTED:
                has = row.transcript_sha256 is not None
            else:
                has = row.status == Status.DONE or paths.transcript(row.grid, row.key).exists()
            if has:
                checked += 1
                problem = _CHECKS.get(kind, check_cell)(paths, row)
                if problem:
                    found.append({"grid": row.grid, "cell": row.key, "status": str(row.status), "problem": problem})
    if args.json:
        common.print_json({"checked": checked, "problems": found})
    else:
        for item in found:
            where = f"{item['grid']}/{item['cell']}: " if item["cell"] is not None else ""
            print(text.harmless(f"{where}{item['problem']}", newlines=False))
        print(f"{checked} cells checked, {len(found)} with a problem")
    return 1 if found else 0


def _unknown(paths: Paths, known: set[str], folders: list[str]) -> Iterator[dict[str, Any]]:
    """Results of grids that the queue has lost."""
    for grid in unknown_grids.unknown(paths, known, folders):
        count = sum(1 for _ in unknown_grids.cells(paths, grid))
        problem = f"results/{grid} holds {count} cells that the queue does not know: {unknown_grids.TODO}"
        yield {"grid": grid, "cell": None, "status": None, "problem": problem}


def _deep(paths: Paths, args: argparse.Namespace) -> int:
    """Print findings as they come."""
    from overnight.repair.deep import Deep

    progress = _Progress()
    deep = Deep(paths, args.grid, progress.tell)
    problems: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    counts = Counter[bool]()
    for found in deep.findings():
        counts[found.note] += 1
        if args.json:
            (notes if found.note else problems).append(found.to_json())
        else:
            progress.clear()
            print(text.harmless(f"{'note: ' if found.note else ''}{found}", newlines=False))
    progress.clear()
    if args.json:
        common.print_json({"checked": dict(deep.checked), "problems": problems, "notes": notes})
    else:
        told = ", ".join(f"{count} {what}" for what, count in deep.checked.items() if count) or "nothing"
        print(f"checked: {told}; {counts[False]} problems, {counts[True]} notes")
    return 1 if counts[False] else 0


class _Progress:
    """A line on stderr, if that is a terminal."""

    def __init__(self) -> None:
        self._shown = False
        self._next_s = time.monotonic() + 1.0

    def tell(self, done: int, of: int) -> None:
        if time.monotonic() >= self._next_s and sys.stderr.isatty():
            self._shown, self._next_s = True, time.monotonic() + 0.5
            screen.command("\r\x1b[K", sys.stderr)
            print(f"{done} of {of} cells", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            screen.command("\r\x1b[K", sys.stderr)
            sys.stderr.flush()


def check_command(paths: Paths, row: CellRow) -> str | None:
    """What is wrong with the result of a command that is done, or None."""
    folder = paths.cell_results(row.grid, row.key)
    try:
        data = paths.result(row.grid, row.key).read_bytes()
        if hashlib.sha256(data).hexdigest() != row.transcript_sha256:
            return "its result.json is not the one that was recorded"
        for file in json.loads(data)["files"]:
            path = command_result.kept_path(folder, file)
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != file["sha256"]:
                return f"files/{file['name']} is not the one that was kept"
    except OSError as error:
        missing = os.fsencode(error.filename or folder).decode(errors="backslashreplace")
        return f"done, but {missing} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "its result.json cannot be understood"
    return None


def check_cell(paths: Paths, row: CellRow) -> str | None:
    """What is wrong with a cell's files, or None."""
    path = paths.transcript(row.grid, row.key)
    try:
        seen = transcript.check(path)
    except FileNotFoundError:
        return "done, but its transcript is missing"
    except OSError as error:
        return f"its transcript cannot be read: {error.strerror}"
    if seen.fault is not None:
        unfinished = row.status in (Status.RUNNING, Status.PENDING) and seen.fault.torn_tail
        if not unfinished:  # a torn tail of a cell under way is cut off when it goes on
            return f"line {seen.fault.line_number} (byte {seen.fault.offset}): {seen.fault.what}"
    if row.status != Status.DONE:
        return None
    if (seen.turns, seen.sha256) != (row.turns, row.transcript_sha256):
        return (
            f"{seen.turns} turns with hash {seen.sha256[:12]}, "
            f"but the queue knows {row.turns} with {(row.transcript_sha256 or 'none')[:12]}"
        )
    return _check_result(paths, row)


def check_imported(paths: Paths, row: CellRow) -> str | None:
    """What is wrong with an imported conversation, or None."""
    from overnight.repair.check_cell import wrong_conversation

    return wrong_conversation(paths.cell_results(row.grid, row.key), row)


_CHECKS = {"command": check_command, specs.IMPORTED: check_imported}
"""Of other cells than idle loops."""


def _check_result(paths: Paths, row: CellRow) -> str | None:
    try:
        result = json.loads(paths.result(row.grid, row.key).read_bytes())
        told = (result["turns"], result["transcript_sha256"], result["end_reason"], result["output_tokens"])
        named = (result["v"], result["kind"], result["key"], result["coords"])
    except FileNotFoundError:
        return "done, but its result.json is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its result.json cannot be read: {type(error).__name__}: {error}"
    same = told == (row.turns, row.transcript_sha256, row.end_reason, row.output_tokens)
    if not same or named != (1, "idle_loop", row.key, row.coords):
        return "its result.json says something else than the queue"
    return None

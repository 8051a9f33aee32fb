"""`overnight run FILE`, or `run --command '...'`: up, submit, and follow until every cell has ended.

Ctrl-C detaches; the work goes on."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import Any

from overnight.cli import common, screen, submit, text, up
from overnight.paths import Paths
from overnight.queue import follow as follows
from overnight.queue.states import Status
from overnight.queue.store import CellRow, GridRow, Queue

_LOOK_S = 0.5
_SUMMARY_ROWS = 60


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="a grid file or a --command to its end: up + submit + follow; Ctrl-C detaches, the work goes on",
    )
    submit.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    name, line = submit.submit(paths, args)
    print(f"{name}: {line}")
    try:
        for said in up.ensure(paths):
            print(said)
        with common.open_queue(paths) as queue:
            follow(paths, queue, name)
            if (analysis := follows.apart(queue.grids())[1].get(name)) is not None:
                follow(paths, queue, analysis.name)
            code = summary(paths, queue, name)
            if analysis is not None:
                print(_analysed(paths, name, queue.grid(analysis.name)))
            return code
    except KeyboardInterrupt:
        print("\ndetached; the work goes on. Look with: overnight status, overnight tail CELL -f")
        return 0


def follow(paths: Paths, queue: Queue, name: str) -> None:
    """Say what happens until no cell of the grid is pending or running."""
    seen = {row.id: row.status for row in common.all_cells(queue, name)} if _small(queue.grid(name)) else {}
    screen = _Screen()
    warned = False
    while True:
        grid = queue.grid(name)
        if _small(grid):
            for row in common.all_cells(queue, name):
                if seen.get(row.id) != row.status:
                    seen[row.id] = row.status
                    screen.line(_said(row, is_command=_is_command(grid)))
        state = common.daemon_state(paths)
        screen.progress(_progress(grid, state))
        if not grid.counts.get(Status.PENDING) and not grid.counts.get(Status.RUNNING):
            screen.clear()
            return
        if (state is None or state["age_s"] > 15) and not warned:
            screen.line("the daemon is not answering; `overnight up` heals it (cells keep their finished turns)")
            warned = True
        time.sleep(_LOOK_S)


def summary(paths: Paths, queue: Queue, name: str) -> int:
    """The grid's table; 0 when every cell is done."""
    grid = queue.grid(name)
    total, done = sum(grid.counts.values()), grid.counts.get(Status.DONE, 0)
    rows = []
    for row in common.all_cells(queue, name):
        if total <= _SUMMARY_ROWS or row.status != Status.DONE:
            rows.append(row)
        if len(rows) >= _SUMMARY_ROWS:
            break
    if rows:
        print(_table(rows, is_command=_is_command(grid)))
    what = "results" if _is_command(grid) else "transcripts"
    print(f"\n{name}: {done} of {total} cells done; {what} in {paths.grid_results(name)}")
    return 0 if done == total else 1


def _analysed(paths: Paths, name: str, analysis: GridRow) -> str:
    """One line: the exit code tells of the grid's own cells."""
    total, done = sum(analysis.counts.values()), analysis.counts[Status.DONE]
    missing = "" if done == total else f"; the others: overnight cells {analysis.name}"
    return f"{analysis.name}: {done} of {total} done, in {paths.analysis / name}{missing}"


def _table(rows: list[CellRow], *, is_command: bool) -> str:
    """One row a cell, within 80 columns for keys of ordinary length; attempts only where there was more than one, turns
    and tokens only of what has any."""
    several = any(row.attempts > 1 for row in rows)
    counted = [] if is_command else ["turns", "tokens"]
    heads = ["cell", "status", *counted, "ended by", "took", *(["attempts"] if several else []), "sha256"]
    lines = []
    for row in rows:
        line: list[object] = [row.key, row.status]
        line += [] if is_command else [row.turns, row.output_tokens]
        line += [row.end_reason or row.reason_code or "-", text.duration(row.run_s)]
        line += [row.attempts] if several else []
        lines.append([*line, (row.transcript_sha256 or "-")[:8]])
    return text.table(heads, lines)


def _small(grid: GridRow) -> bool:
    return sum(grid.counts.values()) <= 1000


def _is_command(grid: GridRow) -> bool:
    return grid.spec.get("kind") == "command"


def _said(row: CellRow, *, is_command: bool) -> str:
    counted = "" if is_command else f"{row.turns} turns, {row.output_tokens} tokens, "
    detail = f" ({counted}{row.end_reason})" if row.status == Status.DONE else ""
    reason = f": {row.reason}" if row.reason and row.status != Status.RUNNING else ""
    return f"{row.key}: {row.status}{detail}{reason}"


def _progress(grid: GridRow, state: dict[str, Any] | None) -> str:
    done, total = grid.counts.get(Status.DONE, 0), sum(grid.counts.values())
    parts = [f"{done}/{total} done"]
    if state is not None:
        mine = [row for row in state["running"] if row["grid"] == grid.name][:4]
        parts += [row["cell"] if _is_command(grid) else f"{row['cell']} turn {row['turn']}" for row in mine]
        if any(server["state"] == "loading" for server in state["warm"]):
            parts.append("loading the model")
        if state["holding"] not in ("", "slots"):
            parts.append(f"waiting: {state['holding']}")
    return ", ".join(parts)


class _Screen:
    """A progress line on a terminal; on anything else only the lines that say something new."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = ""

    def line(self, words: str) -> None:
        self.clear()
        print(text.harmless(words), flush=True)

    def progress(self, words: str) -> None:
        if self._live and words != self._shown:
            self.clear()
            # A line that wraps could not be taken back.
            print(text.harmless(words)[: shutil.get_terminal_size().columns - 1], end="", flush=True)
            self._shown = words

    def clear(self) -> None:
        if self._live and self._shown:
            screen.command("\r\x1b[K")
            sys.stdout.flush()
        self._shown = ""

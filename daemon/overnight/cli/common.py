"""What several commands need: the home, its queue, and naming cells."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from overnight import checked, durable, private, procfs
from overnight.cli import heartbeat, text
from overnight.dispatch import records
from overnight.errors import QueueError, UserError
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.store import CellRow, Queue


def home(args: argparse.Namespace, *, looks: bool = False) -> Paths:
    """The installation that this command is about, made on first use.

    looks: it makes no file there, so that root may use it on anybody's home, which stays as it is. (SQLite gives its
    log to the owner of the queue.) Raises ConfigError."""
    paths = Paths.of(args.home)
    try:
        return paths.ensure(take_over=not looks)
    except private.SomebodyElses:
        if looks and os.geteuid() == 0 and paths.var.is_dir():
            return paths
        raise


def open_queue(paths: Paths, *, check: bool = False) -> Queue:
    """check: also look for damage, as the daemon does when it starts. Root that looks at another user's home makes no
    queue there."""
    return Queue.open(paths.queue, check=check, create=paths.var.stat().st_uid == os.geteuid())


def daemon_state(paths: Paths) -> dict[str, Any] | None:
    """The daemon's last heartbeat, or None when no daemon is alive on this home."""
    try:
        state = checked.json_object(checked.read_small(paths.daemon_state, heartbeat.MOST_BYTES))
        # A daemon from before an upgrade may still write it without a checksum.
        if "checksum" in state and state["checksum"] != records.checksum(state):
            return None
        heartbeat.check(state)
        if state["boot_id"] == procfs.boot_id() and procfs.alive(state["pid"], state["start_ticks"]):
            return {**state, **heartbeat.shown(state), "age_s": time.monotonic() - state["monotonic_s"]}
    except (OSError, ValueError, KeyError):
        pass
    return None


def select_cells(queue: Queue, names: Iterable[str], grid: str | None) -> list[CellRow]:
    """Cells by KEY, GRID/KEY or #ID. Raises QueueError for a name that means none, or several."""
    found: dict[int, CellRow] = {}
    for name in names:
        rows = queue.find_cell(name, grid)
        if len(rows) > 1:
            where = ", ".join(f"{row.grid}/{row.key}" for row in rows[:5])
            raise QueueError(f"cell {name!r}: several grids have it ({where}); name one of them whole")
        found.update((row.id, row) for row in rows)
    return list(found.values())


def all_cells(queue: Queue, grid: str | None, status: str | None = None) -> Iterator[CellRow]:
    """Every cell of a grid (or of all), a page at a time."""
    after = 0
    while rows := queue.cells(grid, status, after_id=after):
        yield from rows
        after = rows[-1].id


def add_cell_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cell", nargs="*", metavar="CELL", help="KEY, GRID/KEY or '#ID'")
    parser.add_argument("--grid", metavar="G", help="every cell of this grid, or where to look for CELL")


def chosen(args: argparse.Namespace, queue: Queue) -> list[int]:
    """Ids of the cells that `CELL...|--grid G` names."""
    if args.cell:
        return [row.id for row in select_cells(queue, args.cell, args.grid)]
    if args.grid is None:
        raise UserError(f"{args.command}: name at least one CELL, or --grid G for a whole grid")
    queue.grid(args.grid)
    return list(queue.cell_ids(args.grid))


def left_imported(args: argparse.Namespace, queue: Queue, cells: Sequence[int]) -> str:
    """What is said of the imported cells among these, which `cancel` and `retry` pass over; "" when there are none."""
    if args.cell:
        imported = sum(queue.cell_spec(number)["kind"] == specs.IMPORTED for number in cells)
    else:  # of a grid all cells are imported, or none
        imported = len(cells) if queue.grid(args.grid).spec.get("kind") == specs.IMPORTED else 0
    if not imported:
        return ""
    which = "1 imported cell stays as it is" if imported == 1 else f"{imported} imported cells stay as they are"
    return f"; {which}: nothing here runs what another harness did"


class Aside:
    """Moves result folders of cells to `results/GRID/.aside/TIME/`. Nothing is deleted.

    Called by the queue with keys, while nobody can claim these cells. No cell can be named like that folder, since a
    key never begins with a dot. `moved` counts; `target` is where."""

    def __init__(self, paths: Paths, grid: str) -> None:
        self._paths, self._grid = paths, grid
        base = paths.grid_results(grid) / ".aside"
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.target, number = base / stamp, 1
        while self.target.exists():
            number += 1
            self.target = base / f"{stamp}-{number}"
        self.moved = 0

    def __call__(self, keys: Iterable[str]) -> None:
        """Raises UserError when a folder cannot be moved; the queue then changes nothing."""
        try:
            for key in keys:
                folder = self._paths.cell_results(self._grid, key)
                if folder.is_dir():
                    durable.make_folders(self.target)
                    folder.rename(self.target / key)
                    self.moved += 1
            if self.moved:
                durable.sync_folder(self.target)
                durable.sync_folder(self._paths.grid_results(self._grid))
        except OSError as error:
            raise UserError(f"old results cannot be moved to {self.target}: {error.strerror}") from None

    def __str__(self) -> str:
        return f"{self.moved} old results moved to {self.target}" if self.moved else ""


def positive(text: str) -> int:
    """An argument that counts something. Raises ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is expected, not {text!r}")
    return int(text)


def print_json_list(values: Iterable[Any]) -> None:
    """A JSON array, an element at a time: a million rows are never in memory at once."""
    lead = "["
    for value in values:
        print(lead + json_text(value), end="")
        lead = ",\n "
    print("[]" if lead == "[" else "]")


def print_json(value: Any) -> None:
    print(json_text(value, indent=2))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON whose texts are as they were for whoever parses it, and which no terminal obeys: JSON itself escapes the
    control characters of ASCII, but not DEL, those of Latin-1, and format characters."""
    written = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return text.ODD.sub(lambda match: c if (c := match.group()).isprintable() else json.dumps(c)[1:-1], written)

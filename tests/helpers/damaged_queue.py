"""Queues with a flipped bit: what is refused, what is harmless, and what is answered differently without a word."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.queue_cells import Cell, Clock, planned, run_one, submit, take, template
from overnight.errors import QueueError
from overnight.queue.rows import Peak
from overnight.queue.states import Outcome
from overnight.queue.store import Queue

__all__ = ["Cell", "answers", "build", "look", "region", "regions", "take", "with_log"]

_KINDS = {2: "index interior", 5: "table interior", 10: "index leaf", 13: "table leaf"}


def build(path: Path, *, cells: int = 400) -> None:
    """A closed queue with every kind of page: interior ones, overflow and free pages too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    with Queue.open(path, clock=clock) as queue:
        submit(queue, "night", cells)
        long = template("360m", system="You have nothing to do. " * 400)
        queue.enqueue("day", cells=planned(6, model="360m", shared=long), spec={"name": "day"}, policy={"tries": 2})
        for number in range(cells // 3):
            clock.step(1.0)
            outcome = list(Outcome)[number % len(Outcome)]
            done = outcome is Outcome.COMPLETED
            run_one(
                queue,
                outcome,
                reason="it was so",
                turns=3 + number % 5,
                output_tokens=40 + number,
                run_s=1.5,
                end_reason="max_iterations" if done else None,
                transcript_sha256=f"{number:064x}" if done else None,
                delay_s=5.0 if outcome is Outcome.FAILED else 0.0,
                learn=Peak("script", "scripted", 2**20 + number, whole=done),
            )
        take(queue)
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE gone (x)")
    db.execute("INSERT INTO gone VALUES (zeroblob(20000))")
    db.commit()
    db.execute("DROP TABLE gone")
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def with_log(settled: Path, target: Path) -> list[Any]:
    """The same queue with its last changes in the write-ahead log alone, as a killed daemon leaves it; returns what it
    answers after each of its transactions."""
    work = target.with_name("work.db")
    shutil.copyfile(settled, work)
    states = [answers(settled)]
    with Queue.open(work, clock=Clock(1_700_001_000.0)) as queue:
        for outcome in (Outcome.COMPLETED, Outcome.FAILED, Outcome.LOST):
            claimed = take(queue)
            states.append(_copied(work, target))
            queue.finish(claimed.attempt_id, outcome, turns=9, run_s=2.0)
            states.append(_copied(work, target))
    for left in target.parent.glob("work.db*"):
        left.unlink()
    return states


def _copied(work: Path, target: Path) -> Any:
    """Copy a queue that is open, with its log, and say what it answers."""
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{work}{suffix}", f"{target}{suffix}")
        shutil.copyfile(f"{work}{suffix}", f"{target}.look{suffix}")
    found = answers(target.with_name(f"{target.name}.look"))
    for left in target.parent.glob(f"{target.name}.look*"):
        left.unlink()
    return found


def regions(data: bytes) -> list[str]:
    """The kind of each page of a database file."""
    size = struct.unpack(">H", data[16:18])[0]
    kinds = ["overflow"] * (len(data) // size)
    for number in range(len(kinds)):
        kinds[number] = _KINDS.get(data[number * size + (100 if number == 0 else 0)], "overflow")
    trunk = struct.unpack(">I", data[32:36])[0]
    while trunk:
        start = (trunk - 1) * size
        trunk_next, leaves = struct.unpack(">2I", data[start : start + 8])
        kinds[trunk - 1] = "free"
        for leaf in struct.unpack(f">{leaves}I", data[start + 8 : start + 8 + 4 * leaves]):
            kinds[leaf - 1] = "free"
        trunk = trunk_next
    return kinds


def region(data: bytes, kinds: list[str], at: int) -> str:
    size = len(data) // len(kinds)
    return "header" if at < 100 else kinds[at // size]


def answers(path: Path, *, check: bool = True) -> Any:
    """Everything that the queue says of itself. Raises QueueError."""
    with Queue.open(path, clock=Clock(1_700_002_000.0), create=False, check=check) as queue:
        grids = queue.grids()
        cells = queue.cells(limit=10_000)
        ready = queue.next_ready_many(10_000)
        return {
            "grids": [asdict(grid) for grid in grids],
            "counts": queue.counts(),
            "pace": [asdict(queue.pace(grid.id)) for grid in grids],
            "cells": [asdict(cell) for cell in cells],
            "by status": [[row.id for row in queue.cells(grid.name)] for grid in grids],
            "found": [row.id for cell in cells for row in queue.find_cell(cell.key, cell.grid)],
            "specs": [queue.cell_spec(cell.id) for cell in cells[:2] + cells[-2:]],
            "attempts": [asdict(row) for cell in cells for row in queue.attempts(cell.id)],
            "events": [asdict(row) for row in queue.events(limit=100_000)],
            "ready": [asdict(row) for row in ready],
            "ready at": queue.next_ready_at(),
            "cancel": queue.cancel_requested(),
            "peaks": [asdict(row) for row in queue.peaks("script")],
            "family": [asdict(row) for row in queue.family_peaks("scripted")],
        }


def look(path: Path, *, check: bool = True) -> Any:
    """What it answers, or the line with which that is refused."""
    try:
        return answers(path, check=check)
    except QueueError as error:
        return str(error)

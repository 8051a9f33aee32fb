"""Soak: ten thousand short cells, and one of many turns. Nothing of ours may grow with what it has seen."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import psutil

from campaigns import soak_long, soak_marks
from campaigns.base import Campaign, Finding, Round, Violation
from campaigns.soak_marks import Mark
from helpers import soak_load, vitals
from helpers.home import Home
from helpers.soak_load import HUNGRY, Batch
from helpers.waiting import until
from overnight.cli.main import main
from overnight.queue.states import Status
from overnight.queue.store import Queue

SLOTS = 8
SETTINGS = '[memory]\nbudget = "2GiB"\n[warm]\nservers = 2\n'
CELL_S = 0.5
"""Deadline of a cell, on the average of a batch; it takes some 20 milliseconds."""
MOST_KIB, QUICK_MOST_KIB = 512, 1024
"""Promised is less than 1 MiB. *Measured*: of a leak of 200 bytes a cell, 2 MiB in all, the first 800 KiB go where the
warm-up has left room. (The few cells of a quick round fill caches of some 400 KiB.)"""
WARM_UP = 3000
"""Cells of the first batch, before the first mark. *Measured*: caches that have a bound of their own are full then.
SQLite's pages (2 MiB) are forgotten whenever another process has written, so that only one large batch fills them; and
before 3,000 cells the interpreter's table of interned names is made once as large again (1 MiB: pathlib interns each
part of a path, and one that has gone leaves its place in the table used until then)."""


class Soak(Campaign):
    name: ClassVar = "soak"
    tries: ClassVar = "10,000 short cells that end in every way, under supervisord; a cell of 5,000 turns"
    proves: ClassVar = ("11",)
    alone: ClassVar = True

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        del seed  # it is the number of cells that counts, not which they are
        if quick:
            return [_cells(warm_up=50, batches=2, cells=50, hungry=False, most_kib=QUICK_MOST_KIB)]
        return [
            _cells(warm_up=WARM_UP, batches=40, cells=250, hungry=True),
            _cells(warm_up=WARM_UP, batches=10, cells=250, hungry=False),
            Round("a cell of 5,000 turns", {"turns": 5000, "most_kib": MOST_KIB}),
        ]

    def run(self, one: Round, folder: Path) -> Finding:
        home = Home(folder / "h", slots=SLOTS, watchdog=True, settings=SETTINGS)
        try:
            if "turns" in one.arguments:
                return soak_long.run(home, **one.arguments)
            return short_cells(home, **one.arguments)
        finally:
            home.end()

    def missing(self) -> str | None:
        try:
            return None if "Pss_File" in vitals.rollup(psutil.Process().pid) else "smaps_rollup tells no Pss_File"
        except OSError as error:
            return f"the kernel tells no PSS: {error}"


def _cells(*, warm_up: int, batches: int, cells: int, hungry: bool, most_kib: int = MOST_KIB) -> Round:
    """hungry: some cells want all the memory, and all warm servers but theirs have to go; else these stay, and are
    looked at too."""
    servers = "warm servers come and go" if hungry else "warm servers stay"
    arguments = {"warm_up": warm_up, "batches": batches, "cells": cells, "hungry": hungry, "most_kib": most_kib}
    return Round(f"{batches * cells:,} cells, {servers}", arguments)


def overnight(home: Home, *args: str) -> None:
    """A command of the command line in this process: a process for each would be most of the time."""
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        code = main(["--home", str(home.paths.home), *args])
    if code != 0:
        raise Violation(f"overnight {' '.join(args)}: exit code {code}: {complaint.getvalue().strip()[:300]}")


def short_cells(home: Home, *, warm_up: int, batches: int, cells: int, hungry: bool, most_kib: int) -> Finding:
    """A batch of `warm_up` cells, then `batches` of `cells`, and a mark after each."""
    found, marks = Finding(), list[Mark]()
    grids = home.paths.home / "soak"
    grids.mkdir()
    expected: Counter[str] = Counter()
    for number, size in enumerate([warm_up, *[cells] * batches]):
        batch = soak_load.batch(grids, number, size, hungry=hungry)
        expected += batch.becomes
        _run_batch(home, batch, found)
        marks.append(soak_marks.take(home, expected.total()))
    statuses = home.statuses()
    found.expect(statuses == expected, f"cells became {dict(statuses)}, expected {dict(expected)}")
    found.count("cells", expected.total())
    for outcome, times in _outcomes(home).items():
        found.count(f"attempts {outcome}", times)
    soak_marks.judge(found, marks, most_kib=most_kib)
    soak_marks.judge_claims(found, home.paths.queue, marks)
    soak_marks.judge_logs(found, home.paths.log)
    # The table shows each figure once: of the warm servers, where they stay, and of all else where they do not.
    found.figures = {what: value for what, value in found.figures.items() if hungry != what.startswith("warm server")}
    home("down")
    return found


def _run_batch(home: Home, batch: Batch, found: Finding) -> None:
    """Submit it (which needs no daemon), cancel its sleepers once they run, and wait for the end of everything."""
    fresh = not home.paths.supervisor_pid.exists()
    if not fresh:
        for model, pid in soak_marks.servers(home).items():
            if HUNGRY in model:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
                    found.count("warm servers killed")
    for file in batch.files:
        overnight(home, "submit", str(file))
    if fresh:
        home("up")
    with Queue.open(home.paths.queue) as queue:
        slots = min(SLOTS, soak_load.SLEEPERS)
        until(lambda: queue.grid(batch.sleepers).counts[Status.RUNNING] >= slots, 60, f"{batch.sleepers} run")
        overnight(home, "cancel", "--grid", batch.sleepers)
        until(lambda: _over(queue), 60 + batch.cells * CELL_S, "no cell is pending or running")


def _over(queue: Queue) -> bool:
    time.sleep(0.05)  # what waits for the daemon must not keep it from its work
    return not any(queue.counts()[status] for status in (Status.PENDING, Status.RUNNING))


def _outcomes(home: Home) -> dict[str, int]:
    with closing(sqlite3.connect(f"{home.paths.queue.as_uri()}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT outcome, count(*) FROM attempts GROUP BY outcome ORDER BY outcome"))


SOAK = Soak()

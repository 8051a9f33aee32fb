"""One repair, in this order: look at everything -> copy all that will change -> change it.

    finish what an interrupted repair left between two renames
    look:   the queue (a damaged one is made anew, beside) -> the cells -> what is left over
    copy:   the queue and every file that a step names, and the plan as report.json
    change: the queue's file -> cells and files -> modes
    look:   does the queue contradict itself now?

Whoever ends it before the last copy is on disk has changed nothing; whoever ends it later finds the rest of it still to
be found, and runs it again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight import durable
from overnight.errors import QueueError, UserError
from overnight.paths import IMPORTED, Paths
from overnight.queue.connection import Database
from overnight.queue.rows import DamagedRow
from overnight.repair import pages, plan, queue_file, rebuild, salvage, salvage_read, stale, unknown_grids
from overnight.repair.check_queue import check
from overnight.repair.mending import Mending
from overnight.repair.originals import Originals
from overnight.repair.plan import Step, Tools
from overnight.repair.view import View, connect

_MOST_SAID = 100


@dataclass
class Outcome:
    """steps: all that was found. folder: where the copies are, None when nothing had to be changed."""

    steps: list[Step] = field(default_factory=list)
    folder: Path | None = None

    @property
    def mended(self) -> list[Step]:
        return [step for step in self.steps if step.does]

    @property
    def left(self) -> list[Step]:
        return [step for step in self.steps if not (step.does or step.note)]


def run(
    paths: Paths, *, grid: str | None = None, dry_run: bool = False, clock: Callable[[], float] = time.time
) -> Outcome:
    """Repair a home that no daemon holds; the caller has its lock. dry_run: look only.

    Raises UserError for what cannot be repaired, and for a disk that is full or fails: before the copies are whole
    nothing has been changed then."""
    originals = Originals(paths.var)
    found = Outcome()
    try:
        with contextlib.ExitStack() as stack:
            if dry_run:
                originals.work = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix=".repair-", dir=paths.var))
                )
            else:
                originals.clear()
                stack.callback(originals.tidy)
            _Repair(paths, originals, grid, dry_run, clock(), found, stack).run()
    except OSError as error:
        what = "nothing was changed" if found.folder is None else f"what it changed is in {found.folder}: run it again"
        raise UserError(f"{error.filename or paths.var}: {error.strerror or error}; {what}") from None
    except (sqlite3.Error, DamagedRow) as error:
        what = "nothing was changed" if found.folder is None else f"what it changed is in {found.folder}: run it again"
        raise UserError(f"{paths.queue}: {error}; {what}") from None
    return found


class _Repair:
    def __init__(
        self,
        paths: Paths,
        originals: Originals,
        grid: str | None,
        dry_run: bool,
        now: float,
        found: Outcome,
        stack: contextlib.ExitStack,
    ) -> None:
        self._paths, self._originals, self._grid, self._dry_run = paths, originals, grid, dry_run
        self._now, self._found, self._stack = now, found, stack
        self._new: Path | None = None

    def run(self) -> None:
        steps = self._found.steps
        if (left := self._finish()) is not None:
            steps.append(left)
            if self._dry_run:
                return  # what stands there now is not what will be looked at
        before = queue_file.unchanged(self._paths.queue)
        steps.extend(self._queue())
        if self._grid is not None and not self._has_grid:
            raise QueueError(f"grid {self._grid!r} is not in the queue; nothing was changed")
        steps.extend(self._cells())
        steps.extend(self._unknown())
        steps.extend(stale.steps(self._paths))
        acting = [step for step in steps if step.act is not None]
        if self._dry_run or not (acting or self._new):
            return
        self._found.folder = None
        folder = self._originals.keep(self._to_copy(acting), self._report("begun"))
        if queue_file.unchanged(self._paths.queue) != before:
            raise QueueError(f"{self._paths.queue} was written meanwhile; nothing was changed: run it again")
        self._found.folder = folder
        self._change(acting)
        self._originals.end(self._report("finished"))

    # -- looking ----------------------------------------------------------------------------------------------

    def _finish(self) -> Step | None:
        queue = self._paths.queue
        if not queue_file.interrupted(queue):
            if not self._dry_run:
                durable.calls.unlink(queue_file.beside(queue, ".repaired"))
            return None
        if not self._dry_run:
            queue_file.finish(queue)
        return Step("queue", "queue.db", "a repair was interrupted while it put it in place", "that was finished")

    def _queue(self) -> Iterator[Step]:
        """What is done about the queue's file. Afterwards `_view` shows what it will be."""
        work, queue = self._originals.work, self._paths.queue
        seen = queue_file.examine(queue, work)
        self._has_grid = False
        self._view: View | None = None
        self._lost: list[str] = []
        if not seen.findings:
            path = seen.path
            if path is not None:
                path = queue_file.upgraded(path, work / "upgraded.db", self._now) if seen.older else path
                self._open(path)
            cells = 0 if self._view is None else self._view.count(None)
            if cells and path is not None:
                yield from self._lost_grids(path)
                return
            if not any(True for _ in _cells_of_results(self._paths)):
                return
        steps, said = self._anew(seen)
        found = [str(each.what) for each in seen.findings] or ["missing or without cells, and there are results"]
        for what in found[:_MOST_SAID]:
            yield Step("queue", "queue.db", what, "a new one is made of " + said)
        yield from steps
        assert self._new is not None  # noqa: S101 - `_anew` has made it
        self._open(self._new)

    def _anew(self, seen: queue_file.Examined) -> tuple[list[Step], str]:
        """Make a new queue in the work folder of every row that can be read, and of results whose row cannot."""
        if self._paths.queue.is_symlink():
            raise QueueError(
                f"{self._paths.queue}: damaged, and a symbolic link: put the file itself there and repair again; "
                "nothing was changed"
            )
        work = self._originals.work
        work.mkdir(parents=True, exist_ok=True)
        self._new = work / "new.db"
        self._new.unlink(missing_ok=True)
        old: sqlite3.Connection | None = None
        steps: list[Step] = []
        rows: dict[str, int] = {}
        lost = seen.path is None
        new = salvage.create(self._new, self._now)
        try:
            if seen.path is not None:
                readable = not seen.torn or pages.mend(seen.path, work)
                old = salvage_read.connect(seen.path) if readable else None
                run = salvage.Salvage(
                    old,
                    seen.path,
                    pages.PAGE_BYTES,
                    new,
                    now=self._now,
                    torn=seen.torn,
                    headers=lambda grid, key: rebuild.header_of(self._paths, grid, key),
                    folders=lambda keys: rebuild.folder_of(self._paths, keys),
                    evidence=lambda grid, key: rebuild.hashes_of(self._paths, grid, key),
                )
                salvaged = run.run()
                rows = salvaged.rows
                steps.extend(Step("queue", "queue.db", what, "the rest is kept") for what in salvaged.losses)
                if salvaged.lost > len(salvaged.losses):
                    steps.append(
                        Step("queue", "queue.db", f"{salvaged.lost} rows could not be read", "the rest is kept")
                    )
                lost = bool(salvaged.lost) or "cells" not in rows or seen.torn
            if lost:
                steps.extend(
                    Step(each.area, each.where, each.what, "" if each.todo else "added", each.todo)
                    for each in rebuild.adopt(new, self._paths, self._now)
                )
            new.execute("COMMIT")
            if wrong := [str(each) for each in check(new)]:
                raise QueueError(f"the new queue is not sound ({wrong[0]}); nothing was changed: please report this")
        finally:
            new.close()
            if old is not None:
                old.close()
        if seen.torn or lost:
            steps.append(
                Step(
                    "queue",
                    "queue.db",
                    "rows that cannot be read leave no trace",
                    todo="`overnight submit FILE` adds cells that are missing, and changes no other",
                )
            )
        kept = ", ".join(f"{count} {table}" for table, count in rows.items())
        return steps, kept or "the results"

    def _lost_grids(self, path: Path) -> Iterator[Step]:
        """Whole grids that a sound queue does not know: it was lost, and begun anew by the submit of another grid. They
        are added to a copy of it, as they are to a new one when all of it is lost."""
        assert self._view is not None  # noqa: S101 - it shows what is at `path`
        self._lost = unknown_grids.unknown(self._paths, self._view.grids(), unknown_grids.folders(self._paths))
        if not self._lost:
            return
        if self._paths.queue.is_symlink():
            what = f"it does not know {unknown_grids.named(self._lost)}, and is a symbolic link"
            yield Step("queue", "queue.db", what, todo="put the file itself there and repair again")
            return
        copy = queue_file.upgraded(path, self._originals.work / "new.db", self._now)
        found = rebuild.extend(copy, self._paths, self._now, self._lost)
        yield from (Step(each.area, each.where, each.what, "" if each.todo else "added", each.todo) for each in found)
        if not all(each.todo for each in found):
            yield Step(
                "queue",
                "queue.db",
                f"it did not know {unknown_grids.named(self._lost)}; cells of these that had not begun leave no trace",
                todo="`overnight submit FILE` adds cells that are missing, and changes no other",
            )
            self._new = copy
            self._open(copy)

    def _open(self, path: Path) -> None:
        db = connect(path, immutable=True)
        self._stack.callback(db.close)
        self._view = View(db)
        self._has_grid = self._grid is not None and self._view.has_grid(self._grid)

    def _cells(self) -> Iterator[Step]:
        if self._view is not None:
            yield from plan.of_cells(self._paths, self._view, self._grid)

    def _unknown(self) -> Iterator[Step]:
        """Results of cells that a sound queue does not have. They may be another home's, so they are not taken in;
        but should the queue's last changes be gone without a trace, this is where it shows."""
        if self._view is None or self._grid is not None:
            return
        counts: Counter[tuple[str, str]] = Counter()
        for folder in self._paths.results.glob("*/*"):
            grid, key = folder.parent.name, folder.name
            if not key.startswith(".") and folder.is_dir() and not self._view.has_cell(grid, key):
                imported, analysis = (folder / IMPORTED).is_file(), unknown_grids.is_analysis(self._paths, grid, key)
                counts[grid, "imported cells" if imported else "analyses" if analysis else "cells"] += 1
        for (grid, kind), count in counts.items():
            if grid in self._lost:
                continue
            what = f"{count} folders of {kind} that the queue does not have"
            todo = "if they are of this home, `overnight submit FILE` adds their cells, which go on where they stopped"
            if kind == "imported cells":
                todo = f"if they are of this home, {unknown_grids.imports(self._paths, grid)}"
            elif kind == "analyses":
                todo = unknown_grids.analyses(self._paths, grid)
            shown = grid.encode(errors="surrogateescape").decode(errors="backslashreplace")
            yield Step("file", f"results/{shown}", what, todo=todo, note=True)

    # -- changing ---------------------------------------------------------------------------------------------

    def _to_copy(self, acting: list[Step]) -> Iterator[Path]:
        if self._new is not None or any(step.asks_queue for step in acting):
            yield from (queue_file.beside(self._paths.queue, suffix) for suffix in queue_file.SUFFIXES)
        seen: set[Path] = set()
        for step in acting:
            yield from (file for file in step.files if file not in seen)
            seen.update(step.files)

    def _change(self, acting: list[Step]) -> None:
        if self._new is not None:
            queue_file.install(self._new, self._paths.queue)
        opened: list[Mending] = []

        def queue() -> Mending:
            if not opened:
                database = Database(self._paths.queue, now=self._now, create=False, check=False, busy_timeout_s=10.0)
                self._stack.callback(database.close)
                opened.append(Mending(database, time.time))
            return opened[0]

        tools = Tools(self._originals, queue)
        for step in acting:
            assert step.act is not None  # noqa: S101 - the caller has looked
            step.act(tools)
        if opened:  # a new file alone was checked before it took its place
            self._found.steps.extend(
                Step("queue", "queue.db", what, todo="`overnight repair` again makes a new one of its rows")
                for what in opened[0].contradictions()
            )

    def _report(self, state: str) -> dict[str, Any]:
        return {
            "v": 1,
            "state": state,
            "at": self._now,
            "pid": os.getpid(),
            "grid": self._grid,
            "steps": [step.to_json() for step in self._found.steps],
        }


def _cells_of_results(paths: Paths) -> Iterator[Path]:
    """Folders of cells that have anything."""
    names = ("transcript.jsonl", "result.json", IMPORTED)
    return (path for name in names for path in paths.results.glob(f"*/*/{name}"))

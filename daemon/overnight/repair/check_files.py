"""What lies in var/results without a cell, and who may look at what is ours. Changes nothing."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from overnight.backup import leftovers
from overnight.paths import Paths
from overnight.repair import unknown_grids
from overnight.repair.check_cell import TEMPORARY
from overnight.repair.check_queue import GRID
from overnight.repair.finding import REPAIR, Finding

_GRID_FILES = ("grid_state.json", ".aside")


def unknown(paths: Paths, has_grid: Callable[[str], bool], has_cell: Callable[[str, str], bool]) -> Iterator[Finding]:
    """Folders and files of results that no cell of the queue has; an error only where it is a whole grid's cells."""
    for grid in _entries(paths.results):
        shown = _shown(grid.name)
        if grid.name == ".gitkeep":
            continue
        if not has_grid(grid.name):
            if GRID.fullmatch(grid.name) and (count := sum(1 for _ in unknown_grids.cells(paths, grid.name))):
                yield Finding(
                    "file", f"results/{shown}", f"holds {count} cells that the queue does not know", unknown_grids.TODO
                )
            else:
                yield Finding("file", f"results/{shown}", "unknown: the queue has no such grid", note=True)
            continue
        for entry in _entries(paths.results / grid.name):
            if entry.name in _GRID_FILES or has_cell(grid.name, entry.name):
                continue
            kind = "left over" if TEMPORARY.fullmatch(entry.name) else "unknown: the queue has no such cell"
            yield Finding("file", f"results/{shown}/{_shown(entry.name)}", kind, note=True)


def modes(paths: Paths) -> Iterator[tuple[Path, int, int]]:
    """(path, mode, what it should be) of our own folders and of the queue's files where others may look in."""
    made = (paths.run, paths.registry, paths.log, paths.models, paths.results, paths.analysis, paths.reports)
    folders = (paths.var, *made, paths.var / "repair")
    queue = [paths.queue.with_name(paths.queue.name + suffix) for suffix in ("", "-wal", "-shm")]
    for path in (*folders, *queue):
        try:
            found = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISLNK(found):
            continue
        if (mode := stat.S_IMODE(found)) & 0o077:
            yield path, mode, mode & 0o700


def lax(paths: Paths) -> Iterator[Finding]:
    for path, mode, wanted in modes(paths):
        yield Finding(
            "file", str(path.relative_to(paths.home)), f"others may look in (mode {mode:04o}, not {wanted:04o})", REPAIR
        )


def unpacked(paths: Paths) -> Iterator[Finding]:
    for path in leftovers.of_restores(paths.home):
        what = f"unpacked by a restore that was killed; {REPAIR} removes it, or rm -r {shlex.quote(str(path))}"
        yield Finding("file", str(path.relative_to(paths.home)), what, note=True)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Streamed: a grid may have a million cells."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _shown(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")

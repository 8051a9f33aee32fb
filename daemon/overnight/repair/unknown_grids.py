"""Results of grids that the queue does not know: it was lost or emptied, and perhaps begun anew since.

A cheap look, for whoever starts or saves a home: names of folders against names of grids; into a folder that no grid
has only as far as its first cell with anything in it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from overnight.grid.after_each import SUFFIX
from overnight.paths import IMPORTED, Paths
from overnight.repair.check_queue import GRID, KEY

TODO = (
    "`overnight repair` puts back what their transcripts tell and says what else can be done (`overnight down` first), "
    "or restore a backup; if they are not of this home, move them away"
)
_LEFT = ("transcript.jsonl", "result.json", IMPORTED)
"""What a cell leaves: of an idle loop, of a command, of an import."""
_MOST_NAMED = 5


def folders(paths: Paths) -> list[str]:
    """Names in var/results that can be a grid's.

    To be looked at before the queue is: a grid is in the queue before it has results, so that what appears between the
    two looks is not taken for unknown."""
    return sorted(name for name in _folders(paths.results) if GRID.fullmatch(name))


def unknown(paths: Paths, known: Collection[str], among: Iterable[str]) -> list[str]:
    """Those of the folders (`among`) that hold cells and are no grid's."""
    return [grid for grid in among if grid not in known and any(cells(paths, grid))]


def cells(paths: Paths, grid: str) -> Iterator[str]:
    """Keys of the cells that have left anything. Streamed: there may be a million."""
    folder = paths.grid_results(grid)
    return (
        key
        for key in _folders(folder)
        if KEY.fullmatch(key)
        and any((folder / key / name).exists() for name in _LEFT)
        and not is_analysis(paths, grid, key)
    )


def is_analysis(paths: Paths, grid: str, key: str) -> bool:
    """It is what followed a cell whose results are there: that is no loss, since it can be made again, and nobody may
    submit a grid of this name."""
    of, (cell, _, number) = grid.removesuffix(SUFFIX), key.rpartition(".")
    return of != grid and bool(cell) and number.isdecimal() and paths.cell_results(of, cell).is_dir()


def analyses(paths: Paths, grid: str) -> str:
    """What to do about results that are analyses of another grid's cells."""
    again = f"`overnight analyze {grid.removesuffix(SUFFIX)}` makes them again"
    return f"{paths.grid_results(grid)} may be moved away: no submit adds cells of that name, and {again}"


def imports(paths: Paths, grid: str) -> str:
    """What to do about imported conversations."""
    files = f"each {paths.grid_results(grid)}/*/{IMPORTED}"
    return f"`overnight import FOLDER --grid {grid}` again adds them, with the folder they came from, or with {files}"


def named(grids: Sequence[str]) -> str:
    """`results/g1, results/g2 and 3 more`."""
    more = len(grids) - _MOST_NAMED
    shown = ", ".join(f"results/{grid}" for grid in grids[:_MOST_NAMED])
    return shown + (f" and {more} more" if more > 0 else "")


def told(grids: Sequence[str]) -> str:
    """One line: what was found, and what to do."""
    return f"{named(grids)}: results of cells that the queue does not know; {TODO}"


def _folders(folder: Path) -> Iterator[str]:
    """Links are followed: a grid's or a cell's own folder may be kept on another disk."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_dir())
    except OSError:
        return

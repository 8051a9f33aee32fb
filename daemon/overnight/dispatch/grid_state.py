"""var/results/<grid>/grid_state.json in the older harness's layout, so that scripts that read it go on working."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from overnight import durable
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.store import CellRow, GridRow, Queue

LARGEST_GRID = 10_000
"""Larger grids are written on request only (`overnight status --write-grid-state`)."""

_EVERY_S = 2.0
_STATUS = {"done": "completed", "quarantined": "failed"}


class GridStates:
    """Rewrites the files of changed grids, each at most every two seconds."""

    def __init__(self, paths: Paths, queue: Queue, log: Any) -> None:
        self._paths, self._queue, self._log = paths, queue, log
        self._dirty: set[str] = set()
        self._next_s: dict[str, float] = {}

    def touch(self, grid: str) -> None:
        self._dirty.add(grid)

    def write(self, live: Mapping[int, tuple[int, int]], *, at_once: bool = False) -> None:
        """live: cell id -> (turns, output tokens) of running cells, which the queue learns only at their end."""
        self._forget(time.monotonic())
        for name in sorted(self._dirty):
            began = time.monotonic()
            if not at_once and began < self._next_s.get(name, 0.0):
                continue
            grid = self._queue.grid(name)
            if sum(grid.counts.values()) <= LARGEST_GRID:
                try:
                    write_grid_state(self._paths, self._queue, grid, live)
                except OSError as error:
                    self._log.warning("grid_state_failed", grid=name, error=error.strerror)
                    self._next_s[name] = began + _EVERY_S
                    continue
            self._dirty.discard(name)
            # A large grid takes its time: never more than a fiftieth of the dispatcher's.
            self._next_s[name] = began + max(_EVERY_S, 50 * (time.monotonic() - began))

    def _forget(self, now_s: float) -> None:
        """A grid that may be written at once is like one that never was: nothing grows with those that there were."""
        self._next_s = {name: next_s for name, next_s in self._next_s.items() if next_s > now_s}


def write_grid_state(paths: Paths, queue: Queue, grid: GridRow, live: Mapping[int, tuple[int, int]]) -> None:
    """Write one grid's state whole. Raises OSError."""
    path = paths.grid_state(grid.name)
    durable.make_folders(path.parent)
    durable.write_atomic(path, (piece.encode() for piece in _pieces(paths, queue, grid, live)))


class Scaffolds:
    """The numbers of a grid's scaffolds, asked for in the order of the queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._numbers: dict[str, int | None] = {}
        self._named: dict[int | None, str] = {}

    def of(self, row: CellRow) -> tuple[int | None, bool]:
        """Its number, and whether that tells it from the grid's other scaffolds: a number that two have names the first
        alone, whose cells keep their names when the second is added."""
        name = str(row.coords.get("scaffold"))
        if name not in self._numbers:  # looked up once a name, since it stands in the specification only
            number = self._numbers[name] = self._queue.cell_spec(row.id).get("scaffold", {}).get("id")
            self._named.setdefault(number, name)
        number = self._numbers[name]
        return number, number is not None and self._named[number] == name


def _pieces(paths: Paths, queue: Queue, grid: GridRow, live: Mapping[int, tuple[int, int]]) -> Iterator[str]:
    """The file in pieces: ten thousand cells are never in memory at once."""
    yield '{\n  "cells": {'
    after, lead = 0, "\n"
    imported = grid.spec.get("kind") == specs.IMPORTED
    scaffolds = Scaffolds(queue)
    while rows := queue.cells(grid.name, after_id=after, limit=500):
        for row in rows:
            key, cell = entry(row, scaffolds.of(row), result_path(paths, row, imported), live)
            body = json.dumps(cell, indent=2, ensure_ascii=False).replace("\n", "\n    ")
            yield f"{lead}    {json.dumps(key)}: {body}"
            lead = ",\n"
        after = rows[-1].id
    started = json.dumps(time_text(grid.created_at))
    yield f'\n  }},\n  "started_at": {started},\n  "last_updated": {json.dumps(time_text(time.time()))}\n}}\n'


def result_path(paths: Paths, row: CellRow, imported: bool) -> str | None:
    if row.status != "done" or (imported and row.transcript_sha256 is None):
        return None
    return str((paths.conversation if imported else paths.transcript)(row.grid, row.key))


def entry(
    row: CellRow, scaffold: tuple[int | None, bool], result_path: str | None, live: Mapping[int, tuple[int, int]]
) -> tuple[str, dict[str, Any]]:
    """Key and value. scaffold: see `Scaffolds.of`. The older harness named cells `1_8b_think_2`; with further axes, or
    for a scaffold that has no number of its own, only our own key is unique."""
    scaffold_id, numbered = scaffold
    turns, tokens = max((row.turns, row.output_tokens), live.get(row.id, (0, 0)))
    cell = {
        "scaffold_id": scaffold_id,
        "scaffold_name": row.coords.get("scaffold"),
        "model_id": row.coords.get("model"),
        "run_num": row.coords.get("run"),
        "status": _STATUS.get(row.status, str(row.status)),
        "started_at": time_text(row.started_at),
        "completed_at": time_text(row.finished_at),
        "iterations": turns or 0,
        "total_tokens": tokens or 0,
        "collapse_detected": None,
        "collapse_iteration": None,
        "error": row.reason or None,
        "result_path": result_path,
    }
    plain = numbered and set(row.coords) == {"scaffold", "model", "run"}
    key = f"{scaffold_id}_{cell['model_id']}_{cell['run_num']}" if plain else row.key
    return key, cell


def time_text(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()

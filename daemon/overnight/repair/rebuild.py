"""Cells out of their results: a transcript's header holds the whole specification, sealed by its hash.

What a command's result holds is not enough: the command itself stands in the queue alone."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from overnight import procfs
from overnight.cells import transcript
from overnight.cells.idle_loop import result_bytes
from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.paths import IMPORTED as IMPORTED_FILE
from overnight.paths import Paths
from overnight.queue import gate, specs
from overnight.queue.states import Outcome, Status
from overnight.repair import check_cell, check_queue, check_transcript, unknown_grids
from overnight.repair.check_queue import GRID, KEY
from overnight.repair.finding import Finding
from overnight.repair.salvage_columns import POLICY

SUBMIT = "`overnight submit FILE` adds it"
_FEW = 20


def header_of(paths: Paths, grid: str, key: str) -> dict[str, Any] | None:
    """The specification in the header of a cell's transcript; None when there is none that is whole."""
    if not (GRID.fullmatch(grid) and KEY.fullmatch(key)):
        return None
    try:
        with paths.transcript(grid, key).open("rb") as stream:
            opened = transcript.unseal(stream.readline(transcript.MAX_LINE_BYTES), "")
    except (OSError, RecursionError):
        return None
    spec = opened[0].get("spec") if opened else None
    return spec if isinstance(spec, dict) and _is_whole(spec, key) else None


def _is_whole(spec: dict[str, Any], key: str) -> bool:
    return (
        spec.get("kind") == "idle_loop"
        and spec.get("key") == key
        and isinstance(spec.get("coords"), dict)
        and type(spec.get("seed")) is int
        and isinstance(spec.get("limits"), dict)
    )


def folder_of(paths: Paths, keys: list[str]) -> str | None:
    """The one grid whose results hold some of these keys; None when there is none, or several."""
    held = [
        grid
        for grid, _ in _folders(paths)
        if any((paths.results / grid / key).is_dir() for key in keys[:_FEW] if KEY.fullmatch(key))
    ]
    return held[0] if len(held) == 1 else None


def hashes_of(paths: Paths, grid: str, key: str) -> set[str]:
    """Of what a cell left: its transcript and its result, or its imported conversation."""
    found = set()
    for path in (paths.transcript(grid, key), paths.result(grid, key), paths.cell_results(grid, key) / IMPORTED_FILE):
        try:
            with path.open("rb") as stream:
                found.add(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError:
            continue
    return found


def _folders(paths: Paths) -> Iterator[tuple[str, str]]:
    """(grid, path) of every folder that can be a grid's."""
    try:
        with os.scandir(paths.results) as entries:
            found = sorted((entry.name, entry.path) for entry in entries if entry.is_dir())
    except OSError:
        found = []
    yield from ((name, path) for name, path in found if GRID.fullmatch(name))


def adopt(db: sqlite3.Connection, paths: Paths, now: float, only: Collection[str] | None = None) -> Iterator[Finding]:
    """Add the cells that have results and no row, inside the caller's transaction. only: of these grids.

    A cell whose transcript and result prove that it is done is done; any other goes on where its transcript ends."""
    for grid, path in _folders(paths):
        if only is not None and grid not in only:
            continue
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
        commands = imported = analyses = 0
        for key in names:
            if not KEY.fullmatch(key) or _has(db, grid, key):
                continue
            spec = header_of(paths, grid, key)
            if spec is not None:
                done = _add(db, paths, grid, key, spec, now)
                what = "done, as its transcript and its result prove" if done else "pending, with the turns that it has"
                yield Finding("cell", f"{grid}/{key}", f"its row was lost; taken from its transcript: {what}")
            elif (paths.cell_results(grid, key) / IMPORTED_FILE).is_file():
                imported += 1
            elif paths.result(grid, key).is_file() and not paths.transcript(grid, key).exists():
                analysis = unknown_grids.is_analysis(paths, grid, key)
                analyses, commands = analyses + analysis, commands + (not analysis)
            else:
                yield Finding("cell", f"{grid}/{key}", "its row was lost, and no transcript tells what it was", SUBMIT)
        if imported:
            what = f"the rows of {imported} imported conversations were lost"
            yield Finding("cell", f"results/{grid}", what, unknown_grids.imports(paths, grid))
        if analyses:
            what = f"{analyses} analyses stood in the queue alone"
            yield Finding("cell", f"results/{grid}", what, unknown_grids.analyses(paths, grid))
        if commands:
            yield Finding(
                "cell",
                f"results/{grid}",
                f"the commands of {commands} results stood in the queue alone",
                "`overnight submit FILE` adds their cells and runs them again: to keep these results, move "
                f"{paths.grid_results(grid)} away first",
            )


def extend(copy: Path, paths: Paths, now: float, grids: Collection[str]) -> list[Finding]:
    """Add the cells of grids that it does not know to a copy of a sound queue. Raises sqlite3.Error, QueueError."""
    db = sqlite3.connect(copy, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN")
        found = list(adopt(db, paths, now, grids))
        db.execute("COMMIT")
        if (wrong := next(check_queue.check(db), None)) is not None:
            raise QueueError(f"the new queue is not sound ({wrong}); nothing was changed: please report this")
        return found
    finally:
        db.close()


def _has(db: sqlite3.Connection, grid: str, key: str) -> bool:
    query = "SELECT 1 FROM cells AS c JOIN grids AS g ON g.id = c.grid_id WHERE g.name = ? AND c.key = ?"
    return db.execute(query, (grid, key)).fetchone() is not None


def _add(db: sqlite3.Connection, paths: Paths, grid: str, key: str, spec: dict[str, Any], now: float) -> bool:
    """A new row, pending; True when it is done."""
    template = {name: value for name, value in spec.items() if name not in ("key", "coords", "seed")}
    new = specs.stored(template)
    db.execute(
        "INSERT INTO grids (name, spec, policy, created_at, last_submitted_at) VALUES (?, '{}', ?, ?, ?)"
        " ON CONFLICT (name) DO NOTHING",
        (grid, POLICY, now, now),
    )
    db.execute(
        "INSERT INTO warms (key, json) VALUES (?, ?) ON CONFLICT (key) DO NOTHING", (new.warm_key, new.warm_json)
    )
    (warm,) = db.execute("SELECT id FROM warms WHERE key = ?", (new.warm_key,)).fetchone()
    db.execute(
        "INSERT INTO specs (hash, json, warm_id, threads) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
        (new.hash, new.json, warm, new.threads),
    )
    number = db.execute(
        "INSERT INTO cells (grid_id, spec_id, warm_id, key, coords, seed) SELECT g.id, s.id, s.warm_id, ?, ?, ?"
        " FROM grids AS g, specs AS s WHERE g.name = ? AND s.hash = ?",
        (key, canonical(spec["coords"]), spec["seed"], grid, new.hash),
    ).lastrowid
    assert number is not None  # noqa: S101 - an INSERT has just given it
    return _prove(db, paths, grid, key, spec, number, now)


def _prove(
    db: sqlite3.Connection, paths: Paths, grid: str, key: str, spec: dict[str, Any], number: int, now: float
) -> bool:
    """Done, if every line of the transcript is right, it has all its turns, and result.json says the same."""
    row = gate.existing(db, number)
    try:
        scan = check_transcript.scan(paths.transcript(grid, key), spec)
        finished = scan.finished(spec, None)
        proven = finished is not None and not scan.problems and scan.fault is None
        if finished is None or not proven or check_cell.wrong_result(paths, row, result_bytes(spec, finished)):
            return False
    except (OSError, KeyError, TypeError, ValueError):
        return False
    figures = {
        "turns": finished.turns,
        "output_tokens": finished.output_tokens,
        "end_reason": finished.end_reason,
        "transcript_sha256": finished.transcript_sha256,
    }
    attempt = db.execute(
        "INSERT INTO attempts (cell_id, generation, number, boot_id, daemon, claimed_at, ended_at, outcome, turns,"
        " output_tokens, end_reason, transcript_sha256) VALUES (?, 0, 1, ?, 'repair', ?, ?, ?, ?, ?, ?, ?)",
        (number, procfs.boot_id(), now, now, str(Outcome.COMPLETED), *figures.values()),
    ).lastrowid
    gate.move(
        db, row, Status.RUNNING, now=now, kind="claimed", attempt_id=attempt, columns={"attempts": 1, "started_at": now}
    )
    columns = {**figures, "finished_at": now}
    running = gate.existing(db, number)
    gate.move(db, running, Status.DONE, now=now, kind="finished", attempt_id=attempt, columns=columns)
    return True

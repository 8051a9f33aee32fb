"""What a repair will do: found first, all of it, while nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight import durable
from overnight.cells.idle_loop import result_bytes
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.rows import CellRow
from overnight.queue.states import Status
from overnight.repair import check_cell, check_transcript
from overnight.repair.check_cell import TEMPORARY, Seen
from overnight.repair.check_transcript import Scan
from overnight.repair.mending import Mending
from overnight.repair.originals import Originals
from overnight.repair.view import View

IMPORT = "`overnight import FILE --grid GRID` with the file that it came from writes it again"
RESET = "`overnight reset GRID` moves the results of its grid aside and starts afresh"


@dataclass(frozen=True)
class Tools:
    """What an action works with."""

    originals: Originals
    queue: Callable[[], Mending]


@dataclass(frozen=True)
class Step:
    """One thing that is found, and what is done about it.

    area, where, what: as in a Finding. does: what is done, "" = nothing, for which `todo` says what to do instead.
    files: what is copied before. asks_queue: its action changes the queue. note: for information.
    """

    area: str
    where: str
    what: str
    does: str = ""
    todo: str = ""
    files: tuple[Path, ...] = ()
    asks_queue: bool = False
    note: bool = False
    act: Callable[[Tools], None] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if self.note:
            return f"note: {self.where}: {self.what}; {self.todo}"
        return f"{self.where}: {self.what}: " + (self.does or f"not mended; {self.todo}")

    def to_json(self) -> dict[str, Any]:
        return {"area": self.area, "where": self.where, "found": self.what, "done": self.does, "todo": self.todo}


def of_cells(paths: Paths, view: View, grid: str | None) -> Iterator[Step]:
    """Every cell against its files. Raises sqlite3.Error and OSError."""
    for row in view.cells(grid):
        spec = view.spec(row)
        seen = check_cell.check(paths, row, spec)
        yield from _leftovers(paths, row)
        for what in seen.strange:
            yield _told(row, what, "look at it, and move it away")
        if spec["kind"] == "command":
            yield from _of_command(paths, row, seen)
        elif spec["kind"] == specs.IMPORTED:
            yield from (_told(row, what, IMPORT.replace("GRID", row.grid)) for what in seen.problems)
        else:
            yield from _of_idle_loop(paths, row, spec, seen)


def _of_command(paths: Paths, row: CellRow, seen: Seen) -> Iterator[Step]:
    """What a command left cannot be made again but by the command."""
    if not seen.problems:
        return
    folder = paths.cell_results(row.grid, row.key)
    why = "; ".join(seen.problems)

    def act(tools: Tools) -> None:
        if folder.is_dir():
            tools.originals.take(folder)
        tools.queue().put_back(row, turns=0, output_tokens=0, why=why)

    yield _step(row, why, "its folder is moved to the copies, the cell is pending again", (), act)


def _of_idle_loop(paths: Paths, row: CellRow, spec: dict[str, Any], seen: Seen) -> Iterator[Step]:
    scan = seen.scan
    if scan is None:
        yield from _without_transcript(paths, row, seen)
    elif scan.problems:
        yield from _unlike(paths, row, spec, scan)
    elif scan.fault is not None and paths.transcript(row.grid, row.key).is_symlink():
        yield _told(row, f"{scan.fault.what}; its transcript is a symbolic link", "put the file itself there")
    elif scan.fault is not None:
        yield _cut(paths, row, scan)
    elif row.status is Status.DONE:
        yield from _done(paths, row, spec, scan)
    elif row.status is Status.QUARANTINED and row.reason_code == "transcript_corrupt":
        yield _again(row, scan, "quarantined for its transcript, which is whole", "the cell is pending again")
    elif scan.turns < row.turns:
        yield _figures(row, scan)


def _without_transcript(paths: Paths, row: CellRow, seen: Seen) -> Iterator[Step]:
    if not seen.problems:
        return
    if paths.transcript(row.grid, row.key).exists() or paths.transcript(row.grid, row.key).is_symlink():
        yield _told(row, seen.problems[0], f"see to {paths.transcript(row.grid, row.key)}")
    elif row.status is Status.DONE:
        yield _again(row, Scan(), seen.problems[0], "the cell is pending again, from its first turn")
    else:
        yield _figures(row, Scan())


def _unlike(paths: Paths, row: CellRow, spec: dict[str, Any], scan: Scan) -> Iterator[Step]:
    """Whole lines that say what cannot be. Where only the queue's seed or coordinates differ from the sealed header,
    the queue is what is damaged: nothing but the seal of every line proves what the cell was."""
    held = scan.header.get("spec") if scan.header else None
    if isinstance(held, dict) and held != spec and type(held.get("seed")) is int and _is_flat(held.get("coords")):
        own = {"seed": held["seed"], "coords": held["coords"]}
        if held == {**spec, **own} and not check_transcript.scan(paths.transcript(row.grid, row.key), held).problems:
            names = [name for name, value in own.items() if spec[name] != value]

            def act(tools: Tools) -> None:
                tools.queue().set_own(row, seed=held["seed"], coords=held["coords"])

            yield _step(
                row,
                f"its {' and '.join(names)} in the queue differ from those of its transcript",
                "those of its transcript are restored",
                (),
                act,
            )
            return
    yield _told(row, "; ".join(scan.problems), RESET.replace("GRID", row.grid))


def _is_flat(coords: object) -> bool:
    return isinstance(coords, dict) and all(isinstance(value, str | int | float | None) for value in coords.values())


def _cut(paths: Paths, row: CellRow, scan: Scan) -> Step:
    """The whole lines before the damage are true: each is sealed by all before it. What follows is made again."""
    assert scan.fault is not None  # noqa: S101 - the caller has looked
    path, good = paths.transcript(row.grid, row.key), scan.good_bytes
    back = row.status is Status.DONE or (row.status is Status.QUARANTINED and row.reason_code == "transcript_corrupt")
    why = f"line {scan.fault.line_number} (byte {scan.fault.offset}): {scan.fault.what}"

    def act(tools: Tools) -> None:
        fd = durable.calls.open(path, os.O_RDWR)
        try:
            durable.truncate(fd, good)
            durable.sync(fd)
        finally:
            os.close(fd)
        if back or scan.turns < row.turns:
            _put(tools, row, scan, why, back)

    does = f"cut to its {scan.turns} whole turns ({good} of {scan.size} bytes)"
    return _step(
        row, why, does + (", the cell is pending again" if back else ""), (path,), act, back or scan.turns < row.turns
    )


def _done(paths: Paths, row: CellRow, spec: dict[str, Any], scan: Scan) -> Iterator[Step]:
    finished = scan.finished(spec, row.end_reason)
    told = (row.turns, row.output_tokens, row.end_reason, row.transcript_sha256)
    if finished is None:
        yield _again(
            row, scan, f"done, but its transcript holds {scan.turns} turns and it has some to go", "pending again"
        )
        return
    if told != (finished.turns, finished.output_tokens, finished.end_reason, finished.transcript_sha256):
        yield _again(row, scan, "done, but the queue recorded another end than its transcript has", "pending again")
        return
    expected = result_bytes(spec, finished)
    if (problem := check_cell.wrong_result(paths, row, expected)) is not None:
        path = paths.result(row.grid, row.key)
        if path.is_dir() or path.is_symlink():
            yield _told(row, problem, f"move {path} away")
            return

        def act(tools: Tools) -> None:
            del tools
            durable.write_atomic(path, expected)

        yield _step(row, problem, "written again from its transcript", (path,), act, False)


def _again(row: CellRow, scan: Scan, why: str, does: str) -> Step:
    return _step(row, why, does, (), lambda tools: _put(tools, row, scan, why, True))


def _figures(row: CellRow, scan: Scan) -> Step:
    why = f"its transcript holds {scan.turns} whole turns, the queue knows {row.turns}"
    does = "the queue's figure is corrected"
    return _step(row, why, does, (), lambda tools: _put(tools, row, scan, why, False))


def _put(tools: Tools, row: CellRow, scan: Scan, why: str, back: bool) -> None:
    if back:
        tools.queue().put_back(row, turns=scan.turns, output_tokens=scan.output_tokens, why=why)
    else:
        tools.queue().set_turns(row, turns=scan.turns, output_tokens=scan.output_tokens)


def _leftovers(paths: Paths, row: CellRow) -> Iterator[Step]:
    folder = paths.cell_results(row.grid, row.key)
    for path in sorted(folder.glob(".*.tmp")) if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield removal("cell", f"{row.grid}/{row.key}/{path.name}", "left over by an interruption", path)


def removal(area: str, where: str, what: str, path: Path) -> Step:
    """Remove a file that has been copied."""

    def act(tools: Tools) -> None:
        del tools
        durable.calls.unlink(path)
        durable.sync_folder(path.parent)

    return Step(area, where, what, "removed", files=(path,), act=act)


def _step(
    row: CellRow,
    what: str,
    does: str,
    files: tuple[Path, ...],
    act: Callable[[Tools], None],
    asks_queue: bool = True,
) -> Step:
    return Step("cell", f"{row.grid}/{row.key}", what, does, files=files, asks_queue=asks_queue, act=act)


def _told(row: CellRow, what: str, todo: str) -> Step:
    return Step("cell", f"{row.grid}/{row.key}", what, todo=todo)

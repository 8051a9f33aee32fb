"""What was read of the older harness into a home: conversations below var/results, byte for byte, cells into the queue.

    read and checked (upstream)  ->  new conversations on disk  ->  the cells, in the queue's batches

Whoever ends it before a batch has added nothing of it: files without a cell, which the next import takes up. A
conversation that gives way to another one is moved aside inside of its batch; its successor was written before, out of
the way, and is only renamed there. What fails is taken back as far as the queue does not have it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from overnight import checked, durable
from overnight.analysis import upstream
from overnight.analysis.upstream import Found, Night
from overnight.errors import QueueError, UserError
from overnight.paths import IMPORTED, Paths
from overnight.queue import specs
from overnight.queue.importing import TakenIn
from overnight.queue.store import Queue


class Mover(Protocol):
    """Moves the results of cells away, to `target`/KEY, which it makes. Raises UserError."""

    @property
    def target(self) -> Path: ...
    def __call__(self, keys: Iterable[str], /) -> None: ...


@dataclass(frozen=True)
class Done:
    """taken: what the queue says; healed: keys of cells whose conversation was missing or damaged on disk."""

    taken: TakenIn
    healed: tuple[str, ...]


def take_in(
    paths: Paths,
    queue: Queue,
    night: Night,
    grid: str,
    *,
    replace: bool = False,
    aside: Mover,
) -> Done:
    """Import all of a night into `grid`. aside: for what is there in a conversation's place and is another one. Raises
    UserError; then nothing is in the queue, and no file of it is left, or it says what is."""
    placing = _Placing(paths, grid, {found.key: found for found in night.cells if found.file is not None}, aside)
    before: dict[str, str | None] | None = None
    try:
        before = _known(queue, grid)
        healed = placing.place(before)
        taken = queue.take_in(
            grid,
            [upstream.imported(found, has_state=night.has_state) for found in night.cells],
            spec={"kind": specs.IMPORTED, "name": grid, **night.times},
            replace=replace,
            aside=placing.supersede,
        )
    except BaseException as error:
        # Also after an interrupt behind the COMMIT: what the queue has got keeps its files.
        left = "" if before is None else _taken_back(placing, queue, grid, before)
        if isinstance(error, OSError):
            said = f"{error.filename or paths.results}: {error.strerror}"
            raise UserError(f"{said}; {left or 'nothing was imported'}") from None
        if left and isinstance(error, UserError):
            raise UserError(f"{error}; {left}") from None
        raise
    placing.clear()
    return Done(taken, tuple(healed))


def _taken_back(placing: _Placing, queue: Queue, grid: str, before: dict[str, str | None]) -> str:
    """Undo what the queue did not get; then what is left of it, in words."""
    try:
        after = _known(queue, grid)
    except QueueError:  # so nothing may be taken away that it perhaps has
        return f"what is in {placing.folder} may be ahead of the queue: the same command again mends it"
    stuck = placing.undo(after)
    said = ["part of it was imported: the same command again takes in the rest"] if after != before else []
    if stuck:
        what = "the old results of 1 cell are" if stuck == 1 else f"the old results of {stuck} cells are"
        said.append(f"{what} in {placing.aside.target}: the same command again mends it")
    return "; ".join(said)


def _known(queue: Queue, grid: str) -> dict[str, str | None]:
    """Key -> hash of the conversation that a cell was imported with; {} where there is no such grid yet. Raises
    QueueError for a grid of our own: not even a file may be put among its results."""
    if not any(row.name == grid for row in queue.grids()):
        return {}
    known: dict[str, str | None] = {}
    after = 0
    while page := queue.cells(grid, after_id=after):
        if not known and queue.cell_spec(page[0].id)["kind"] != specs.IMPORTED:
            raise QueueError(
                f"grid {grid!r} holds cells of its own: imported ones do not go among them; nothing was imported: "
                "choose another name with --grid NAME"
            )
        known.update((row.key, row.transcript_sha256) for row in page)
        after = page[-1].id
    return known


class _Placing:
    """Conversations in their cells' folders."""

    def __init__(self, paths: Paths, grid: str, found: dict[str, Found], aside: Mover) -> None:
        self._paths, self._grid, self._found, self.aside = paths, grid, found, aside
        self.folder = paths.grid_results(grid)
        self._staging = aside.target.with_name(f"{aside.target.name}-{os.getpid()}-new")
        self._made: list[str] = []
        self._staged: list[str] = []
        self._moved: list[str] = []

    def place(self, known: dict[str, str | None]) -> list[str]:
        """Write those that are new, and beside those that may give way to another one. Returns the keys of cells that
        had theirs, but not on disk as it was. Raises OSError, UserError."""
        healed, new = list[str](), list[str]()
        for key, found in self._found.items():
            had = known.get(key)
            if had is not None and had != found.sha256:
                self._staged.append(key)
                self._write(self._staging / key / IMPORTED, found)
            elif _sha256(self._target(key)) != found.sha256:
                (new if had is None else healed).append(key)
        # Results that no cell of the queue has, as after a lost queue: whoever they are of, they are kept.
        self._move([key for key in new if _holds_any(self._target(key).parent)])
        for key in new:
            self._made.append(key)
            self._write(self._target(key), self._found[key])
        for key in healed:
            self._write(self._target(key), self._found[key])
        return healed

    def supersede(self, keys: Sequence[str]) -> None:
        """Inside the queue's transaction: nobody reads the one with the other's hash. Only renames what `place` has
        written. Raises OSError, UserError."""
        self._move(keys)
        for key in keys:
            durable.calls.replace(self._staging / key, self._target(key).parent)
        durable.sync_folder(self.folder)

    def undo(self, known: dict[str, str | None]) -> int:
        """Take back what was written for cells that the queue (known) did not get, and move back what made room for it.
        Returns of how many that could not be done."""
        ours = [key for key in self._staged if not (self._staging / key).is_dir()]
        for key in (*self._made, *ours):
            if known.get(key) != self._found[key].sha256:
                _remove(self._target(key))
        stuck = 0
        for key in self._moved:
            old, folder = self.aside.target / key, self._target(key).parent
            if known.get(key) == self._found[key].sha256 or not old.is_dir():
                continue
            try:
                durable.calls.replace(old, folder)
            except OSError:
                stuck += 1
        self.clear()
        return stuck

    def clear(self) -> None:
        """Remove what is left beside, and folders that are empty now."""
        for key in self._staged:
            _remove(self._staging / key / IMPORTED)
        for folder in (self._staging, self.aside.target, self.aside.target.parent, self.folder):
            with suppress(OSError):
                folder.rmdir()

    def _move(self, keys: Sequence[str]) -> None:
        self._moved += keys
        self.aside(keys)

    def _target(self, key: str) -> Path:
        return self._paths.cell_results(self._grid, key) / IMPORTED

    def _write(self, target: Path, found: Found) -> None:
        assert found.file is not None  # noqa: S101 - only those with a file are here
        data = checked.read_small(found.file, upstream.LARGEST_BYTES)
        if hashlib.sha256(data).hexdigest() != found.sha256:
            raise UserError(f"{found.file}: it was written meanwhile; nothing was imported: try again")
        durable.make_folders(target.parent)
        durable.write_atomic(target, data)


def _holds_any(folder: Path) -> bool:
    """Is there more in it than what an ended write left? Raises OSError."""
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _remove(conversation: Path) -> None:
    """With its folder, when that is empty then."""
    with suppress(OSError):
        durable.calls.unlink(conversation)
        conversation.parent.rmdir()


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(checked.read_small(path, upstream.LARGEST_BYTES)).hexdigest()
    except OSError:
        return None

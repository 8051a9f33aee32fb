"""Making a backup of a home while it is in use.

    the queue -> every file -> did anybody move results aside meanwhile? -> the queue again, and what changed since

The queue is copied first. What runs goes on: files are then the same or newer than the queue says, which is what a
power cut leaves, and what resuming handles. Only `reset` and `--replace` take files away from under it: then the queue
is copied again, with the folders of all cells that anything happened to since, until nobody did during a pass. Each
pass is as long as there was to do in the one before.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overnight import __version__, durable, procfs
from overnight.backup import layout, snapshot
from overnight.backup.files import Files, Told
from overnight.backup.writer import Writer, packed
from overnight.engines import model_store
from overnight.errors import ModelError, UserError
from overnight.paths import Paths
from overnight.queue.probe import probe
from overnight.repair import unknown_grids

_PASSES = 30


class Backup:
    """One backup. `told`, `queue` and `passes` are complete when `pieces` has come to its end."""

    def __init__(
        self, paths: Paths, scratch: Path, *, logs: bool = False, models: bool = False, incomplete: bool = False
    ) -> None:
        """scratch: a file that may be made for the copy of the queue; whoever made this removes it. incomplete: also
        of a home whose queue does not know the grids that there are results of."""
        self._paths, self._scratch, self._logs, self._models = paths, scratch, logs, models
        self._incomplete = incomplete
        self.told = Told()
        self.queue: snapshot.Snapshot | None = None
        self.passes = 0

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the tar archive. Raises UserError."""
        paths, now_s = self._paths, time.time()
        writer = Writer()
        files = Files(paths.home, writer, self.told)
        folders = unknown_grids.folders(paths)  # before the queue: whatever appears meanwhile is in it already
        if not probe(paths.queue) and (lost := unknown_grids.unknown(paths, (), folders)):
            raise UserError(f"{paths.queue}: missing or empty; {unknown_grids.told(lost)}; no backup was made")
        queue = self.queue = snapshot.take(paths.queue, self._scratch)
        # In the place of a good backup, one of a queue that was lost would be a second loss.
        if not self._incomplete and (lost := unknown_grids.unknown(paths, queue.grids, folders)):
            raise UserError(f"{unknown_grids.told(lost)}; no backup was made: --incomplete makes one all the same")
        self.passes = 1
        yield from writer.json(layout.ABOUT, _about(paths, queue, now_s, self._logs, self._models), now_s)
        yield from _queue_member(writer, queue)
        for root in ("etc", "grids", layout.RESULTS):
            yield from files.tree(root)
        for wanted, root in ((self._models, "var/models"), (self._logs, "var/log")):
            if wanted:
                yield from files.tree(root)
        while snapshot.moved_aside_since(paths.queue, queue):
            if self.passes >= _PASSES:
                raise UserError(
                    f"{paths.home}: results were moved aside in each of {self.passes} looks (reset, --replace); "
                    "no backup was made: try again when that is over"
                )
            since, self.passes = queue.last_event, self.passes + 1
            queue = self.queue = snapshot.take(paths.queue, self._scratch)
            yield from _queue_member(writer, queue)
            for _, grid, key in queue.changed_since(since):
                yield from files.cell(grid, key)
        told = self.told
        end = {"left_out": told.left_out, "unread": told.unread, "changing": told.changing, "passes": self.passes}
        yield from writer.end({**end, "cells": queue.cells}, now_s)


def create(
    paths: Paths,
    target: Path,
    *,
    replace: bool = False,
    logs: bool = False,
    models: bool = False,
    incomplete: bool = False,
) -> Backup:
    """Write the backup to `target`, whole or not at all. Raises UserError, and nothing is left behind then."""
    suffix = layout.suffix(target.name)
    check_target(paths, target, replace=replace)
    _remove_leftovers(target)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.queue.tmp")
    backup = Backup(paths, scratch, logs=logs, models=models, incomplete=incomplete)
    try:
        durable.write_atomic(target, packed(backup.pieces(), suffix))
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; no backup was made, and nothing of it is left") from None
    finally:
        remove_scratch(scratch)
    return backup


def check_target(paths: Paths, target: Path, *, replace: bool) -> None:
    """Raises UserError where no backup may be written."""
    if target.exists() and not (replace and target.is_file()):
        todo = "choose another name, or --replace" if target.is_file() else "choose another name"
        raise UserError(f"{target}: is there already; {todo}")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder; make it first")
    place = target.parent.resolve()
    for folder in (paths.var, paths.results, paths.models, paths.log, paths.etc, paths.grids):
        if place.is_relative_to(folder.resolve()):
            raise UserError(f"{target}: inside of what is to be backed up; choose a place outside of {folder}")


def remove_scratch(scratch: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """What a backup of this name left that was killed."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)(\.queue)?\.tmp(-journal|-wal|-shm)?")
    for path in target.parent.iterdir():
        if (match := pattern.fullmatch(path.name)) and procfs.start_ticks(int(match[1])) is None:
            with suppress(OSError):
                path.unlink()


def _queue_member(writer: Writer, queue: snapshot.Snapshot) -> Iterator[bytes]:
    size = queue.file.stat().st_size
    with queue.file.open("rb") as stream:
        yield from writer.file(layout.QUEUE, 0o600, time.time(), size, iter(lambda: stream.read(1 << 20), b""))


def _about(paths: Paths, queue: snapshot.Snapshot, now_s: float, logs: bool, models: bool) -> dict[str, Any]:
    return {
        "v": layout.VERSION,
        "overnight": __version__,
        "schema": queue.schema,
        "made_at": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds"),
        "home": os.fsencode(paths.home).decode(errors="backslashreplace"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "grids": len(queue.grids),
        "cells": queue.cells,
        "logs": logs,
        "models_included": models,
        "models": _models(paths.models),
    }


def _models(store: Path) -> list[dict[str, Any]]:
    """Which models there were. A store that cannot be read is no reason against a backup of the results."""
    try:
        return [
            {name: getattr(model, name) for name in ("name", "dtype", "source", "fingerprint", "bytes")}
            for model in model_store.list_models(store)
        ]
    except (ModelError, OSError):
        return []

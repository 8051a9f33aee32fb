"""var/repair/TIME/: whole copies of all that a repair changes, made durable before anything is changed.

var/repair/.TIME.part/    being filled; becomes TIME once every copy is on disk
var/repair/TIME/          the paths below var/ as they were, and report.json: what was found, done, and why
var/repair/.work/         what is made on the way, such as a new queue
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overnight import durable

REPORT = "report.json"
_PIECE_BYTES = 2**20


class Originals:
    """One repair's folder. All raise OSError."""

    def __init__(self, var: Path) -> None:
        self._var = var
        self.root = var / "repair"
        self.work = self.root / ".work"
        self.folder: Path | None = None

    def clear(self) -> None:
        """Forget what an interrupted repair was making: nothing had been changed for it."""
        for left in self.root.glob(".*") if self.root.is_dir() else ():
            shutil.rmtree(left)

    def tidy(self) -> None:
        """Remove what was made on the way, and the folder itself when it holds nothing."""
        shutil.rmtree(self.work, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def keep(self, files: Iterable[Path], report: dict[str, Any]) -> Path:
        """Copy regular files (those that are there), with `report`. Returns the folder, which is durable then."""
        durable.make_folders(self.root)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        target, number = self.root / stamp, 1
        while target.exists():
            number += 1
            target = self.root / f"{stamp}-{number}"
        part = self.root / f".{target.name}.part"
        durable.make_folders(part)
        for file in files:
            if file.is_file() and not file.is_symlink():
                copy = part / file.relative_to(self._var)
                durable.make_folders(copy.parent)
                durable.write_atomic(copy, pieces(file))
        self._write_report(part, report)
        durable.calls.replace(part, target)
        durable.sync_folder(self.root)
        self.folder = target
        return target

    def take(self, folder: Path) -> Path:
        """Move a folder of var/ to its place among the copies: one rename."""
        assert self.folder is not None  # noqa: S101 - `keep` comes first
        target = self.folder / folder.relative_to(self._var)
        durable.make_folders(target.parent)
        durable.calls.replace(folder, target)
        durable.sync_folder(target.parent)
        durable.sync_folder(folder.parent)
        return target

    def end(self, report: dict[str, Any]) -> None:
        assert self.folder is not None  # noqa: S101 - `keep` comes first
        self._write_report(self.folder, report)

    @staticmethod
    def _write_report(folder: Path, report: dict[str, Any]) -> None:
        durable.write_atomic(folder / REPORT, (durable.canonical(report) + "\n").encode())


def pieces(file: Path) -> Iterator[bytes]:
    """A file's bytes, never all in memory. Raises OSError."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb", buffering=0) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece

"""`overnight backup FILE`: one archive of all that a home needs to go on elsewhere, made while it is in use."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from overnight.backup.create import Backup, create, remove_scratch
from overnight.backup.writer import packed
from overnight.cli import text
from overnight.errors import UserError
from overnight.paths import Paths

_SHOWN = 5


def add(commands: Any) -> None:
    parser = commands.add_parser("backup", help="one archive of the queue and its results, while they are in use")
    parser.add_argument("file", metavar="FILE", help=".tar, .tar.gz or .tar.xz; - writes a .tar to standard output")
    parser.add_argument("--models", action="store_true", help="with var/models (they can be large)")
    parser.add_argument("--logs", action="store_true", help="with var/log")
    parser.add_argument("--replace", action="store_true", help="replace FILE, whole, when it is there already")
    parser.add_argument(
        "--incomplete", action="store_true", help="also when there are results of grids that the queue does not know"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = Paths.of(args.home)  # not made where there is none: there would be nothing to back up
    _step_back()
    with _ended_in_good_order():
        if args.file == "-":
            return _tell(_to_stdout(paths, args), "standard output")
        target = Path(os.path.abspath(args.file))  # noqa: PTH100 - links on the way stay what they are
        wanted = {"logs": args.logs, "models": args.models, "incomplete": args.incomplete}
        return _tell(create(paths, target, replace=args.replace, **wanted), args.file)


def _to_stdout(paths: Paths, args: argparse.Namespace) -> Backup:
    if sys.stdout.isatty():
        raise UserError("a backup is no text for a terminal: > FILE, | ssh ... or name a FILE")
    with tempfile.TemporaryDirectory(prefix="overnight-backup-") as folder:
        scratch = Path(folder) / "queue.db"
        backup = Backup(paths, scratch, logs=args.logs, models=args.models, incomplete=args.incomplete)
        for piece in packed(backup.pieces(), ".tar"):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        remove_scratch(scratch)
    return backup


def _tell(backup: Backup, where: str) -> int:
    """On standard error, which is not the archive. 1 when something could not be read."""
    told, queue = backup.told, backup.queue
    assert queue is not None  # noqa: S101 - a complete backup has one
    cells = sum(queue.cells.values())
    print(f"{where}: {cells} cells of {len(queue.grids)} grids, {told.files} files", file=sys.stderr)
    if told.changing:
        print(f"{told.changing} files of commands under way changed while they were copied", file=sys.stderr)
    _list("left out", told.left_out, told.left_out_count)
    _list("CANNOT BE READ", told.unread, told.unread_count)
    return 1 if told.unread_count else 0


def _list(what: str, names: list[str], count: int) -> None:
    for name in names[:_SHOWN]:
        print(text.harmless(f"{what}: {name}", newlines=False), file=sys.stderr)
    if count > _SHOWN:
        print(f"{what}: and {count - _SHOWN} more", file=sys.stderr)


@contextmanager
def _ended_in_good_order() -> Iterator[None]:
    """A timer's SIGTERM and a terminal that is closed end it as Ctrl-C does: nothing half made is left behind. Who
    ignores one of them (nohup) goes on ignoring it."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _step_back() -> None:
    """Others come first, at the processor and at the disk."""
    with suppress(OSError, psutil.Error):
        os.nice(10)
        psutil.Process().ionice(psutil.IOPRIO_CLASS_BE, 7)

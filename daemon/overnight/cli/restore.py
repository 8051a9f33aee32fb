"""`overnight restore FILE`: bring a backup back into an empty home, or only check it."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

from overnight.backup import restore
from overnight.backup.layout import BadBackup
from overnight.backup.reader import open_archive, unpacked
from overnight.cli import text
from overnight.paths import Paths

_SHOWN = 20


def add(commands: Any) -> None:
    parser = commands.add_parser("restore", help="bring a backup back into an empty home (--home DIR), or check it")
    parser.add_argument("file", metavar="FILE", help="what `overnight backup` made; - reads standard input")
    parser.add_argument("--check", action="store_true", help="read and compare everything, and bring nothing back")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        with _opened(args.file) as stream:
            found = restore.check(stream) if args.check else restore.restore(stream, paths := Paths.of(args.home))
    except BadBackup as error:
        raise BadBackup(text.harmless(f"{args.file}: {error}", newlines=False)) from None
    cells = found.about["cells"]
    counts = ", ".join(f"{count} {status}" for status, count in cells.items() if count)
    print(f"{args.file}: made {found.about['made_at']}, {found.about['grids']} grids ({counts or 'no cells'})")
    _list("not in the backup, it could not be read: ", found.end.get("unread", []))
    _list("", found.untrue)
    if args.check:
        print("the backup is whole" + (", but see above" if found.untrue else ""))
        return 1 if found.untrue else 0
    for name in found.kept:
        print(text.harmless(f"what was in the way is now {name}", newlines=False))
    if missing := [model["name"] for model in found.about["models"] if not found.about["models_included"]]:
        names = text.harmless(", ".join(missing), newlines=False)
        print(f"models are not in it: add again what is still needed (overnight models add): {names}")
    print(f"restored to {paths.home}; `overnight --home {paths.home} up` goes on")
    return 0


def _opened(file: str) -> BinaryIO:
    return unpacked(cast("io.BufferedReader", sys.stdin.buffer)) if file == "-" else open_archive(Path(file))


def _list(lead: str, sentences: list[str]) -> None:
    for sentence in sentences[:_SHOWN]:
        print(text.harmless(f"{lead}{sentence}", newlines=False))
    if len(sentences) > _SHOWN:
        print(f"{lead}and {len(sentences) - _SHOWN} more")

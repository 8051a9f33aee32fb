"""`overnight tail CELL`: the conversation, turn by turn, or what a command prints; live with -f."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from overnight.cells.command_streams import LOGS_KEPT
from overnight.cells.transcript import unseal
from overnight.cli import common, text
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.states import ENDED
from overnight.queue.store import CellRow

_LOOK_S = 0.3
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST_BYTES = 2**20
"""A line that a rotation has cut is put together again, up to this length."""


def add(commands: Any) -> None:
    parser = commands.add_parser("tail", help="the conversation, turn by turn; of a command its output")
    parser.add_argument("cell", metavar="CELL", help="KEY, GRID/KEY or '#ID'")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the cell has ended")
    parser.add_argument(
        "-n", "--turns", type=common.positive, metavar="N", help="begin with the last N turns (or lines)"
    )
    parser.add_argument("--stderr", action="store_true", help="a command's stderr.log instead of its stdout.log")
    parser.add_argument("--grid", metavar="G", help="where to look for CELL")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args, looks=True)
    with common.open_queue(paths) as queue:
        row = common.select_cells(queue, [args.cell], args.grid)[0]
        kind = queue.cell_spec(row.id)["kind"]
        is_command = kind == "command"
        if args.stderr and not is_command:
            raise UserError(f"--stderr is for commands, and {row.grid}/{row.key} is an idle loop; leave it out")
        log = "stderr.log" if args.stderr else "stdout.log"
        path = paths.cell_results(row.grid, row.key) / log if is_command else paths.transcript(row.grid, row.key)
        if kind == specs.IMPORTED:
            _print_imported(paths, row, args.turns)
            return 0
        if not path.exists() and not args.follow:
            hope = "" if row.status in ENDED else " yet; -f waits for it"
            missing = f"has no {log}" if is_command else "has no transcript"
            raise UserError(f"{row.grid}/{row.key} is {row.status} and {missing}{hope}")
        try:
            _tail(
                path,
                args,
                _Lines() if is_command else _Turns(),
                lambda: queue.find_cell(f"#{row.id}")[0].status in ENDED,
            )
        except KeyboardInterrupt:
            print()
    return 0


def _print_imported(paths: Paths, row: CellRow, last: int | None) -> None:
    """An imported conversation, which is whole: there is nothing to follow."""
    from overnight.analysis import conversation

    found = conversation.of_cell(paths, row)
    if found is None:
        raise UserError(f"{row.grid}/{row.key} was imported, and has no conversation")
    print(text.harmless(f"== {row.key}: imported\n{found.system}".rstrip()))
    for turn in found.turns[-(last or len(found.turns)) :]:
        thought = f"(thinking) {turn.reasoning.strip()}\n" if turn.reasoning.strip() else ""
        print(text.harmless(f"\n-- turn {turn.number}: {turn.message}\n{thought}{turn.text}"), flush=True)


class _Turns:
    """Lines of a transcript."""

    header_lines = 1

    def __init__(self) -> None:
        self._head: str | None = None

    def show(self, line: bytes) -> None:
        self._head = _print(line, self._head)


class _Lines:
    """Lines of a command's output."""

    header_lines = 0

    def show(self, line: bytes) -> None:
        print(text.harmless(line.decode(errors="replace").rstrip("\n")), flush=True)


def _tail(path: Path, args: argparse.Namespace, of: _Turns | _Lines, ended: Callable[[], bool]) -> None:
    while (stream := _open(path)) is None:
        if not args.follow or ended():
            return
        time.sleep(_LOOK_S)
    try:
        if args.turns is not None:
            _skip(stream, args.turns, of.header_lines)
        cut, over = b"", False
        while True:
            cut = _whole_lines(stream, of, cut)
            newer = _newer(path, stream) if args.follow else None
            if newer is not None:
                cut = _rest(stream, of, cut)  # what was written before it was moved
                stream.close()
                stream, over = newer, False
            elif args.follow and os.fstat(stream.fileno()).st_size < stream.tell():
                stream.seek(0)  # somebody emptied it
                cut = b""
            elif over or not args.follow:
                _rest_is_last(of, cut + stream.read())
                return
            else:
                over = ended()  # then one more look: the last turn may have been written since
                if not over:
                    time.sleep(_LOOK_S)
    finally:
        stream.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _whole_lines(stream: BinaryIO, of: _Turns | _Lines, cut: bytes) -> bytes:
    """Show what there is, and leave the stream at the beginning of a line that is not whole yet.

    cut: what the log before this one ended with, in the middle of a line. Returns it while that line is not whole."""
    while True:
        at = stream.tell()
        line = stream.readline()
        if not line.endswith(b"\n"):
            stream.seek(at)
            return cut
        of.show(cut + line)
        cut = b""


def _rest(stream: BinaryIO, of: _Turns | _Lines, cut: bytes) -> bytes:
    """Show what is left of a log to which nothing is added any more. Returns its last line, if that is not whole."""
    cut = _whole_lines(stream, of, cut) + stream.read()
    if len(cut) > _LONGEST_BYTES:
        of.show(cut)
        return b""
    return cut


def _rest_is_last(of: _Turns | _Lines, line: bytes) -> None:
    if line and isinstance(of, _Lines):
        of.show(line)  # a last line without its end


def _newer(path: Path, stream: BinaryIO) -> BinaryIO | None:
    """The log that came after the open one, when that was moved away; None while it is still the one at `path`.

    A quick command may have rotated more than once since the last look: then it is the next one that is left."""
    names = [path, *(path.with_name(f"{path.name}.{n + 1}") for n in range(LOGS_KEPT))]
    found: BinaryIO | None = None
    for log in map(_open, names):  # from the newest to the oldest
        if log is None:
            continue
        if os.path.sameopenfile(log.fileno(), stream.fileno()):
            log.close()
            break
        if found is not None:
            found.close()
        found = log
    return found


def _skip(stream: BinaryIO, turns: int, header_lines: int) -> None:
    """Leave the stream at the last `turns` whole lines; the header counts as none."""
    offsets: list[int] = []
    for _ in range(header_lines):
        stream.readline()
    while True:
        at = stream.tell()
        if not stream.readline().endswith(b"\n"):
            break
        offsets = [*offsets, at][-turns:]
    stream.seek(offsets[0] if offsets else at)


def _print(line: bytes, head: str | None) -> str | None:
    """Print one turn. Lines are checked as far as the chain is known; `verify` is for more."""
    opened = unseal(line, head) if head is not None else None
    try:
        record = opened[0] if opened else json.loads(line)
        words = _header(record) if record.get("kind") == "header" else _turn(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        print("(a line that cannot be read: see `overnight verify`)")
        return None
    print(text.harmless(words), flush=True)
    return opened[1] if opened else _hash(record.get("h"))


def _hash(found: Any) -> str | None:
    """Of a line that could not be checked: what the next one has to follow, when it can be that."""
    return found if isinstance(found, str) and _HASH.fullmatch(found) else None


def _header(record: dict[str, Any]) -> str:
    spec = record["spec"]
    return f"== {spec['key']}: {spec['engine']} {spec['model']['name']}, seed {spec['seed']}\n{spec['system']}"


def _turn(record: dict[str, Any]) -> str:
    cut = " [cut at the token limit]" if record["stop"] == "length" else ""
    return f"\n-- turn {record['turn']}: {record['message']}\n{record['reply']}{cut}"

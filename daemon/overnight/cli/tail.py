"""`overnight tail CELL`: the conversation, turn by turn, or what a command prints; live with -f."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from overnight.cells.transcript import unseal
from overnight.cli import common, text
from overnight.errors import UserError
from overnight.queue.states import ENDED

_LOOK_S = 0.3


def add(commands: Any) -> None:
    parser = commands.add_parser("tail", help="the conversation, turn by turn; of a command its output")
    parser.add_argument("cell", metavar="CELL", help="KEY, GRID/KEY or '#ID'")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the cell has ended")
    parser.add_argument(
        "-n", "--turns", type=common.positive, metavar="N", help="begin with the last N turns (or lines)"
    )
    parser.add_argument("--grid", metavar="G", help="where to look for CELL")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    with common.open_queue(paths) as queue:
        row = common.select_cells(queue, [args.cell], args.grid)[0]
        is_command = queue.cell_spec(row.id)["kind"] == "command"
        path = (
            paths.cell_results(row.grid, row.key) / "stdout.log" if is_command else paths.transcript(row.grid, row.key)
        )
        if not path.exists() and not args.follow:
            hope = "" if row.status in ENDED else " yet; -f waits for it"
            missing = "has printed nothing" if is_command else "has no transcript"
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
    while args.follow and not path.exists():
        if ended():
            return
        time.sleep(_LOOK_S)
    with path.open("rb") as stream:
        if args.turns is not None:
            _skip(stream, args.turns, of.header_lines)
        over = False
        while True:
            at = stream.tell()
            line = stream.readline()
            if line.endswith(b"\n"):
                of.show(line)
                continue
            if over or not args.follow:
                if line and isinstance(of, _Lines):
                    of.show(line)  # a last line without its end
                return
            stream.seek(at)
            over = ended()  # then one more look: the last turn may have been written since
            if not over:
                time.sleep(_LOOK_S)


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
    except (ValueError, KeyError, TypeError, AttributeError):
        print("(a line that cannot be read: see `overnight verify`)")
        return None
    print(text.harmless(words), flush=True)
    return opened[1] if opened else str(record.get("h", ""))


def _header(record: dict[str, Any]) -> str:
    spec = record["spec"]
    return f"== {spec['key']}: {spec['engine']} {spec['model']['name']}, seed {spec['seed']}\n{spec['system']}"


def _turn(record: dict[str, Any]) -> str:
    cut = " [cut at the token limit]" if record["stop"] == "length" else ""
    return f"\n-- turn {record['turn']}: {record['message']}\n{record['reply']}{cut}"

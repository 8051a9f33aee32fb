"""The command line: `overnight [--home DIR] COMMAND ...`. One file a command; each has `add` and `run`."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from overnight import __version__, interrupts, private
from overnight.cli import screen, text
from overnight.errors import UserError
from overnight.line import clear

COMMANDS = (
    *("run", "up", "down", "submit", "status", "cells", "show", "tail", "cancel", "retry", "reset", "verify"),
    *("repair", "backup", "restore", "import", "export", "audit", "analyze", "report", "mlflow", "models", "doctor"),
    "daemon",
)
"""Each is a module of `overnight.cli`. Only what was asked for is imported: half of a command's time was the others."""

_MODULES = {"import": "import_cells"}
"""Of commands that are called like a word of Python's own."""


class _Parser(argparse.ArgumentParser):
    """Bad input gets one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {clear(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(UserError.exit_code)


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The whole grammar, or that of some commands; `tests` compare it with the documentation."""
    top = _Parser(
        prog="overnight",
        description="Experiment grids that are still there in the morning.",
        epilog="`overnight COMMAND --help` explains a command.",
    )
    top.add_argument(
        "--home",
        metavar="DIR",
        help="root with its own etc/ and var/, made on first use (default: $OVERNIGHT_HOME, else the checkout, "
        "else ~/.local/state/overnight)",
    )
    top.add_argument("--version", action="version", version=f"overnight {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(f"overnight.cli.{_MODULES.get(name, name)}").add(commands)
    return top


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0 fine, 1 the answer is no, 2 bad input (one line, no traceback)."""
    if sys.stdout is None:
        # Started with stdout closed: say nothing, but do the work.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it stays open as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only is no reason to fail
    # Whichever of them is the command, and not a folder or a cell of that name, it is among these.
    args = parser([name for name in COMMANDS if name in argv] or COMMANDS).parse_args(argv)
    try:
        interrupts.heed()
        code: int = args.run(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"overnight: {text.harmless(str(error), newlines=False)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # `overnight cells | head`: the reader has what it wanted; the interpreter must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except UnicodeEncodeError as error:
        print(f"overnight: {ascii(error.object)[:80]}: not valid text; UTF-8 is expected", file=sys.stderr)
        return UserError.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"overnight: {where}{error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered may be what cannot be written
        return UserError.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def entry() -> None:
    """What `__main__` comes to. Before and after the command Ctrl-C ends the process silently."""
    interrupts.end_silently()
    private.tighten_umask()
    with screen.guarded():
        code = main(sys.argv[1:])
        interrupts.end_silently()
    sys.exit(code)

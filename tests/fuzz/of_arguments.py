"""Command lines: the whole grammar of both programs, and the grid of `submit --command ... --axis ...`."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from fuzz.of_grids import check_plan
from fuzz.target import Case, Target, Wrong, check_line, expect, printed
from overnight.cli import command_options, main, submit
from overnight.grid.loader import load_grid
from overnight_watchdog import __main__ as watchdog

_TOKENS = (
    *(
        b"\0",
        b"--",
        b"--home",
        b"--axis\0",
        b"--command\0",
        b"--only\0run=1",
        b"--runs\0",
        b"=",
        b",",
        b"1..5",
        b"..",
        b"{lr}",
    ),
    *(
        b"{",
        b"}}",
        b"--json",
        b"-n\0",
        b"--shell",
        b"--env\0A=b",
        b"--keep\0",
        b"--cwd\0",
        b"--memory\0",
        b"--timeout\0",
        b"#1",
    ),
    *(
        b"--grid\0",
        b"\xff",
        b"'",
        b'"',
        b"\\",
        b"$(id)",
        b"~root",
        b"%s",
        b"-",
        b"--threads\0",
        b"--tries\0",
        b"--name\0",
    ),
)


def arguments(data: bytes) -> list[str]:
    """As the interpreter decodes them; NUL stands between them, as in /proc/PID/cmdline."""
    return [os.fsdecode(part) for part in data.split(b"\0")][:200]


class Submit(Target):
    """`overnight submit ...` up to the point where cells are queued, through the program's own `main`."""

    name = "submit's options"
    tokens = _TOKENS
    share = 0.4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._grid = folder / "g.yaml"
        self._grid.write_text(
            "name: g\nruns: 2\nmodels: [{name: m, engine: scripted}]\nscaffolds: [1, 2]\n"
            "axes: {temperature: [0.5, 1]}\n"
        )
        self._parser = main.parser()

    def seeds(self) -> Sequence[bytes]:
        file = os.fsencode(self._grid)
        lines = [
            [
                b"--command",
                b"python3 train.py --lr {lr} --seed {seed}",
                b"--axis",
                b"lr=0.1,0.01",
                b"--axis",
                b"n=1..5",
            ],
            [b"--command", b"echo '{a}' | tee {cell}", b"--shell", b"--axis", b"a=x,y,true,null", b"--runs", b"3"],
            [
                b"--command",
                b"run",
                b"--env",
                b"A=1",
                b"--cwd",
                b"/",
                b"--keep",
                b"out/*",
                b"--memory",
                b"2GiB",
                b"--tries",
            ],
            [b"--command", b"run", b"--timeout", b"2h", b"--grace", b"30s", b"--threads", b"2", b"--name", b"mine"],
            [file, b"--only", b"temperature=0.5,1.0", b"--scaffold", b"1", b"--runs", b"2", b"--only", b"run=1"],
            [file, b"--engine", b"scripted", b"--model", b"m", b"--replace"],
        ]
        return [b"\0".join(line) for line in lines]

    def read(self, case: Case) -> str:
        given = arguments(case.data)
        with self._tried(), printed() as said:
            try:
                code = main.main(["submit", *given])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        return judged(code, said.getvalue())

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        def plan(_paths: object, args: argparse.Namespace) -> tuple[str, str]:
            if command_options.given(args):
                grid = command_options.grid(args)
            elif "g.yaml" in args.file:
                grid = load_grid(self._grid)
            else:
                grid = load_grid(self.folder / "nothing.yaml")
            if args.runs is not None:
                grid = grid.model_copy(update={"runs": args.runs})
            return grid.name, f"{check_plan(grid, submit._filters(args))} cells"

        with (
            mock.patch.object(submit, "submit", plan),
            mock.patch.object(submit.common, "home", lambda args: None),
            mock.patch.object(main, "parser", lambda names=(): self._parser),
        ):
            yield


class Overnight(Target):
    """The grammar of every command."""

    name = "overnight's arguments"
    tokens = _TOKENS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._parser = main.parser()

    def seeds(self) -> Sequence[bytes]:
        return [
            b"--home\0/tmp/x\0status\0--json",
            b"run\0g.yaml\0--only\0run=1",
            b"tail\0g/k\0-f\0-n\x003",
            b"show\0#12\0--grid\0g",
            b"cells\0g\0--status\0done",
            b"cancel\0--grid\0g",
            b"reset\0k",
            b"verify\0g\0--json",
            b"models\0add\0x.gguf\0--dtype\0float16\0--name\0m",
            b"doctor",
            b"up\0--foreground",
            b"retry\0k\0--accept-conditions",
        ]

    def read(self, case: Case) -> str:
        return parsed(self._parser, arguments(case.data))


class Watchdog(Target):
    """The grammar of the watchdog's program."""

    name = "the watchdog's arguments"
    tokens = (*_TOKENS, b"--budget\0", b"--interval\0", b"--once", b"guard\0--\0")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._parser = watchdog._parser()

    def seeds(self) -> Sequence[bytes]:
        return [
            b"--home\0/tmp/x\0--interval\x000.5\0--budget\x001.5GiB",
            b"--once\0--json",
            b"--budget\x002GiB\0guard\0--\0ls\0-l",
            b"--dry-run",
        ]

    def read(self, case: Case) -> str:
        return parsed(self._parser, arguments(case.data))


def parsed(parser: argparse.ArgumentParser, given: Sequence[str]) -> str:
    with printed() as said:
        try:
            parser.parse_args(given)
        except SystemExit as end:
            return judged(end.code if isinstance(end.code, int) else 1, said.getvalue())
    return "taken"


def judged(code: int, said: str) -> str:
    """What was said must fit the exit code: 2 and one line for whoever wrote it wrong."""
    if code == 0:
        return "fine"
    expect(code == 2, f"exit code {code}")
    line, end, rest = said.partition("\n")
    expect(end == "\n" and not rest, f"not one line: {ascii(said)[:300]}")
    if "Traceback" in line:
        raise Wrong(f"a traceback: {line}")
    return check_line(line)

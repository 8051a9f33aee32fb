"""Cells on a disk that fails: an idle loop in this process, a command in a runner of its own.

Each try: an attempt that meets the fault, then one that does not. What is to be seen after both is the same as without
a fault, and on the disk for certain.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaigns.base import Finding, Violation
from helpers.command_cell import CommandCell
from helpers.disk_faults import Fault
from helpers.fault_fs import Call, FaultFs
from helpers.fault_fs.rules import UNSEEN
from helpers.specs import scripted_spec, warm_of
from overnight import durable
from overnight.cells import idle_loop, transcript
from overnight.cells.idle_loop import Finished
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import CellError

TURNS = 3
_numbers = itertools.count()


@dataclass
class Attempt:
    """outcome and code as the queue would hold them; told: the finished turns that were reported."""

    outcome: str
    code: str = ""
    told: list[int] = field(default_factory=list)


@dataclass
class IdleLoop:
    """Cells of one specification on `fs`, each try in a folder of its own."""

    fs: FaultFs
    name = "idle loop"
    unseen = UNSEEN

    def __post_init__(self) -> None:
        self.spec = scripted_spec(turns=TURNS, reply_tokens=9)
        self.home = "reference"
        assert self.attempt().outcome == "completed"
        self.calls = _within(self, self.fs.calls(forget=True))
        self.reference = self.files()

    def fresh(self) -> None:
        """The next try is in another folder."""
        self.home = f"n{next(_numbers)}"

    @property
    def folder(self) -> Path:
        return self.fs.point / self.home / "results" / "night" / "cell"

    def attempt(self, tell: Callable[[int], object] = lambda turn: None) -> Attempt:
        _make_home(self.fs, self.home)
        told: list[int] = []

        def report(event: str, **fields: Any) -> None:
            if event == "turn":
                told.append(fields["turn"])
                tell(fields["turn"])

        engine = ScriptedEngine(warm_of(self.spec), "")
        try:
            finished = idle_loop.run(engine, self.spec, self.folder, report=report)
        except CellError as error:
            return Attempt(error.outcome, error.reason_code, told)
        assert isinstance(finished, Finished)
        return Attempt("completed", told=told)

    def killed_attempt(self) -> Attempt:
        """In a process of its own, that the fault ends."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.attempt(tell=lambda turn: os.write(writer, bytes([turn])))
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            told = list(stream.read())
        os.waitpid(pid, 0)
        return Attempt("killed", told=told)

    def files(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in ("transcript.jsonl", "result.json")}

    def after(self, attempt: Attempt, finding: Finding, what: str, *, torn: bool) -> None:
        """After an attempt that met the fault: whole lines, and on the disk for certain all that were told. torn: the
        disk has refused to cut half a line off, too; the next attempt does that."""
        path = f"{self.home}/results/night/cell/transcript.jsonl"
        seen = self.fs.point / path
        data = seen.read_bytes() if seen.exists() else b""
        if data and (fault := transcript.check(seen).fault) is not None:
            finding.expect(
                torn and fault.torn_tail, f"{what}: after the failure its transcript has a bad line: {fault}"
            )
            data = data[: fault.offset]
        whole = self.reference["transcript.jsonl"]
        finding.expect(whole.startswith(data), f"{what}: after the failure its transcript is another one")
        sure = self.fs.sure_bytes(path) or b""
        turns = max(attempt.told, default=0)
        lines = whole.splitlines(keepends=True)[: turns + 1] if turns else []
        finding.expect(sure.startswith(b"".join(lines)), f"{what}: turn {turns} was told and a power cut can take it")


SHELL = """printf kept > out.txt; printf 'some words\n' >&2; printf 'some words\n{{"score": 4}}\n'"""


@dataclass
class Command:
    """The same for a command that says something, leaves a result and a file to be kept."""

    fs: FaultFs
    name = "command"
    unseen = (*UNSEEN, "*/work/out.txt")
    """What the command itself writes: a fault there is the experiment's own."""

    def __post_init__(self) -> None:
        self.home = "reference"
        assert self.attempt().outcome == "completed"
        self.calls = _within(self, self.fs.calls(forget=True, unseen=self.unseen))
        self.reference = self.files()

    def fresh(self) -> None:
        self.home = f"n{next(_numbers)}"

    @property
    def folder(self) -> Path:
        return self.fs.point / self.home / "results" / "g" / "a1"

    def attempt(self) -> Attempt:
        _make_home(self.fs, self.home)
        with redirect_stderr(io.StringIO()):  # of the runner, which tells of each error that it was made to meet
            cell = CommandCell(self.fs.point / self.home, SHELL, keep=["*.txt"])
        try:
            ending = cell.ended()
        finally:
            cell.end()
        return Attempt(ending.outcome, ending.reason_code)

    def files(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in ("result.json", "files/out.txt")}

    def after(self, attempt: Attempt, finding: Finding, what: str, *, torn: bool) -> None:
        """A result is whole or not there."""
        del attempt, torn
        result = self.folder / "result.json"
        if result.exists():
            finding.expect(json.loads(result.read_bytes())["result"] == {"score": 4}, f"{what}: half a result")


Cells = IdleLoop | Command


def _make_home(fs: FaultFs, name: str) -> None:
    (fs.point / name).mkdir(exist_ok=True)
    durable.sync_folder(fs.point)


def _within(cells: Cells, calls: list[Call]) -> list[Call]:
    return [call for call in calls if call.path.startswith(f"{cells.home}/")]


def try_fault(cells: Cells, fault: Fault, nth: int, finding: Finding) -> None:
    """One cell with the fault at its nth call, then without."""
    cells.fresh()
    what = f"{cells.name}, {fault.name} at call {nth}"
    fault.set(cells.fs, nth, f"{cells.home}/*", unseen=cells.unseen)
    killed = fault.does.startswith("kill")
    first = cells.killed_attempt() if killed and isinstance(cells, IdleLoop) else cells.attempt()
    if not cells.fs.lift():
        raise Violation(f"{what}: the fault was not met: the undisturbed run made more calls")
    finding.count("kills at a call" if killed else "failed calls")
    if first.outcome not in ("completed", "killed"):
        finding.expect(
            (first.outcome, first.code) == ("yielded", fault.code),
            f"{what}: it ended as {first.outcome} ({first.code}), not as yielded ({fault.code})",
        )
    cells.after(first, finding, what, torn=fault.lasting or killed)
    second = first if first.outcome == "completed" else cells.attempt()
    if second.outcome != "completed":
        raise Violation(f"{what}: without the fault it ended as {second.outcome} ({second.code})")
    finding.expect(cells.files() == cells.reference, f"{what}: it ended with other bytes")
    for name, data in cells.reference.items():
        path = str((cells.folder / name).relative_to(cells.fs.point))
        sure = cells.fs.sure_bytes(path)
        finding.expect(sure == data, f"{what}: it is done, and a power cut can take its {name}")
    shutil.rmtree(cells.fs.point / cells.home)

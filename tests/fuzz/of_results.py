"""result.json as `verify` reads it, and what a command left as its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fuzz.of_transcripts import _written
from fuzz.target import Case, Target, check_harmless, check_line, expect
from overnight.cells import command_result
from overnight.cli import text
from overnight.cli.verify import check_cell, check_command
from overnight.paths import Paths
from overnight.queue.states import Status

_TOKENS = (b'"files":', b'"name":"../../x"', b'"sha256":', b'"name_bytes":"ff"', b'"result":', b"\\ud800", b"Infinity")


class CommandResult(Target):
    """result.json of a command, with the files that it names."""

    name = "result.json (command)"
    tokens = _TOKENS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._paths = Paths(folder)
        self._cell = self._paths.cell_results("g", "k")
        (self._cell / "files" / "out").mkdir(parents=True)
        (self._cell / "files" / "out" / "a.png").write_bytes(b"picture")
        file = {"name": "out/a.png", "bytes": 7, "sha256": hashlib.sha256(b"picture").hexdigest()}
        self._spec = {"key": "k", "coords": {"lr": 0.1, "run": 2}, "seed": 7}
        command_result.write(self._spec, self._cell, command_result.Result({"loss": 0.5, "steps": [1, 2]}), [file])
        self._seed = self._paths.result("g", "k").read_bytes()
        self._recorded = hashlib.sha256(self._seed).hexdigest()

    def seeds(self) -> Sequence[bytes]:
        return [self._seed]

    def documents(self) -> Sequence[Any]:
        return [json.loads(self._seed)]

    def read(self, case: Case) -> str:
        """Damage has another hash than the queue recorded; whoever changed both is only kept from doing harm."""
        self._paths.result("g", "k").write_bytes(case.data)
        found = ""
        for recorded in (self._recorded, hashlib.sha256(case.data).hexdigest()):
            row: Any = SimpleNamespace(grid="g", key="k", status=Status.DONE, transcript_sha256=recorded, turns=0)
            said = check_command(self._paths, row)
            if said is not None:
                check_harmless(text.harmless(said, newlines=False))
            found = said or "whole"
            if recorded == self._recorded:
                expect((said is None) == (case.data == self._seed), "a changed result passed for whole")
        return found


class CellResult(Target):
    """result.json of an idle loop, beside a whole transcript."""

    name = "result.json (idle loop)"
    tokens = (b'"turns":', b'"transcript_sha256":', b'"end_reason":')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._paths = Paths(folder)
        self._cell = self._paths.cell_results("g", "k")
        _written(self._cell, turns=2)
        self._seed = self._paths.result("g", "k").read_bytes()
        self._told = json.loads(self._seed)

    def seeds(self) -> Sequence[bytes]:
        return [self._seed]

    def documents(self) -> Sequence[Any]:
        return [json.loads(self._seed)]

    def read(self, case: Case) -> str:
        self._paths.result("g", "k").write_bytes(case.data)
        told = self._told
        row: Any = SimpleNamespace(
            grid="g", key="k", coords=told["coords"], status=Status.DONE, turns=told["turns"],
            end_reason=told["end_reason"], transcript_sha256=told["transcript_sha256"],
            output_tokens=told["output_tokens"],
        )  # fmt: skip
        said = check_cell(self._paths, row)
        if said is None:
            found = json.loads(case.data)
            keys = ("turns", "transcript_sha256", "end_reason")
            expect(all(found[key] == told[key] for key in keys), "another result passed for the recorded one")
            return "whole"
        return check_line(text.harmless(said, newlines=False))


class UserResult(Target):
    """result.user.json, or the last line of stdout: a JSON object that can be written down, or a note."""

    name = "result.user.json"
    tokens = _TOKENS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cell = folder / "k"
        self._cell.mkdir()

    def documents(self) -> Sequence[Any]:
        return [
            {"loss": 0.25, "steps": [1, 2, 3], "name": "r\u00e9sum\u00e9", "nested": {"a": {"b": None}}, "ok": True}
        ]

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each, indent=indent).encode() for each in self.documents() for indent in (None, 2)]

    def read(self, case: Case) -> str:
        (self._cell / command_result.RESULT_FILE).write_bytes(case.data)
        found = command_result.read(self._cell, None)
        (self._cell / command_result.RESULT_FILE).unlink()
        line = command_result.read(self._cell, case.data.split(b"\n")[0])
        for each in (found, line):
            expect("memory cap" not in each.note, "it took more memory than it may")
            if each.note:
                check_line(each.note)
            if each.value is not None:
                command_result.write({"key": "k", "coords": {}, "seed": 1}, self._cell, each, [])
                again = json.loads(self._paths_result().read_bytes())["result"]
                expect(again == each.value, "what was written is not what was read")
        return found.note or "taken"

    def _paths_result(self) -> Path:
        return self._cell / "result.json"

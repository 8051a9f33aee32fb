"""Transcripts: the streaming reader, the one writer's opening, the resuming idle loop, and `overnight tail`."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz import documents
from fuzz.target import Case, Target, check_harmless, expect, printed
from helpers.specs import scripted_spec, warm_of
from overnight.cells import idle_loop, transcript
from overnight.cli import tail
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import CellError

_TOKENS = (
    *(b'"h":"', b'{"kind":"turn","turn":', b'{"kind":"header","v":1}', b',"h":"' + b"0" * 64 + b'"}', b'"}\n', b"\n\n"),
    *(b'"turn":1', b'"reply_ids":[]', b'"conditions":{}', b"\0" * 512),
)


def _written(folder: Path, **options: Any) -> bytes:
    """By the idle loop itself."""
    spec = scripted_spec(**options)
    idle_loop.run(ScriptedEngine(warm_of(spec), ""), spec, folder, report=lambda event, **fields: None)
    return (folder / "transcript.jsonl").read_bytes()


def _sealed(records: Sequence[Any]) -> bytes:
    """Lines with a chain that fits, whatever they hold."""
    lines, head = [], ""
    for record in records:
        text = documents.dump(record)
        body = text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(head.encode() + b"\n" + body).hexdigest()
        lines.append(body[:-1] + f',"h":"{digest}"}}\n'.encode())
        head = digest
    return b"".join(lines)


class Transcript(Target):
    """`Reader`, `check`, the opening by a writer (which cuts a torn tail off) and a look after that."""

    name = "transcript"
    clear = (CellError,)
    tokens = _TOKENS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seeds = [
            _written(folder / "a", turns=3),
            _written(folder / "b", turns=6, reply_tokens=3),
            _written(folder / "c", turns=1, key="k" * 90, seed=2**63 - 1),
        ]
        self._path = folder / "transcript.jsonl"

    def seeds(self) -> Sequence[bytes]:
        return self._seeds

    def documents(self) -> Sequence[Any]:
        found = []
        for seed in self._seeds:
            records = [json.loads(line) for line in seed.splitlines()]
            found.append([{name: value for name, value in one.items() if name != "h"} for one in records])
        return found

    def render(self, document: Any) -> bytes:
        return _sealed(document if isinstance(document, list) else [document])

    def read(self, case: Case) -> str:
        reader = transcript.Reader(io.BytesIO(case.data))
        records = list(reader)
        good, fault = case.data[: reader.good_bytes], reader.fault
        expect(fault is not None or len(good) == len(case.data), "whole, though not all of it was read")
        expect(max(0, len(records) - 1) == reader.turns, "turns are counted wrong")
        if not case.crafted:
            # Nothing but a prefix of what was written may pass for whole.
            expect(any(seed.startswith(good) for seed in self._seeds), "a changed byte passed for whole")
        for record in records:
            json.dumps(record)
        self._path.write_bytes(case.data)
        seen = transcript.check(self._path)
        expect((seen.turns, seen.fault) == (reader.turns, fault), "two readings of the same bytes differ")
        return self._opened(case.data, good, fault)

    def _opened(self, data: bytes, good: bytes, fault: transcript.Fault | None) -> str:
        """The writer's opening."""
        for old in self.folder.glob("transcript.jsonl.cut-*"):
            old.unlink()
        opened = transcript.Transcript.open(self._path, wait_s=1.0)
        try:
            opened.last_conditions()
            for _ in opened.records():
                pass
        except CellError:
            expect(fault is not None and not fault.torn_tail, "refused, though it is whole but for its tail")
            expect(self._path.read_bytes() == data, "a corrupt transcript was changed")
            raise
        finally:
            opened.close()
        expect(self._path.read_bytes() == good, "what is left is not what was whole")
        cuts = [path.read_bytes() for path in self.folder.glob("transcript.jsonl.cut-*")]
        expect(cuts == ([data[len(good) :]] if len(good) < len(data) else []), "what was cut off is lost")
        return "whole" if fault is None else "cut"


class Resume(Transcript):
    """The idle loop on a transcript of its own specification: goes on to the same bytes, or refuses it as a cell."""

    name = "transcript, resumed"
    share = 0.25

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._spec = scripted_spec(turns=3)
        self._engine = ScriptedEngine(warm_of(self._spec), "")
        self._result = (folder / "a" / "result.json").read_bytes()
        self._seeds = self._seeds[:1]

    def read(self, case: Case) -> str:
        for old in self.folder.glob("transcript.jsonl.cut-*"):
            old.unlink()
        self._path.write_bytes(case.data)
        idle_loop.run(self._engine, self._spec, self.folder, report=lambda event, **fields: None)
        written = self._path.read_bytes()
        if not case.crafted:
            expect(written == self._seeds[0], "a damaged transcript was gone on with, and other bytes came out")
            expect((self.folder / "result.json").read_bytes() == self._result, "another result")
        return "completed"


class Tail(Transcript):
    """`overnight tail`, for a transcript and for a command's log."""

    name = "tail"

    def read(self, case: Case) -> str:
        self._path.write_bytes(case.data)
        for turns in (None, 2):
            args = argparse.Namespace(follow=False, turns=turns)
            with printed() as said:
                tail._tail(self._path, args, tail._Turns(), lambda: True)
            check_harmless(said.getvalue())
            with printed() as said:
                tail._tail(self._path, args, tail._Lines(), lambda: True)
            check_harmless(said.getvalue())
        return "shown"

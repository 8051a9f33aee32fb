"""Transcripts with a torn last line or a flipped bit, and what must become of each.

The rule is read from docs/architecture.md ("Transcripts") and written down here a second time: a bad last line is cut
off, kept beside and made anew; a bad line with a sealed record behind it is refused and nothing is touched.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns.base import Finding
from helpers.specs import scripted_spec, warm_of
from overnight.cells import idle_loop, transcript
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import TranscriptCorrupt

PAGE_BYTES = 4096
_SEAL = re.compile(rb',"h":"[0-9a-f]{64}"\}')


@dataclass(frozen=True)
class Whole:
    """An undisturbed cell: its specification and the bytes of its files."""

    spec: dict[str, Any]
    lines: tuple[bytes, ...]
    result: bytes

    @property
    def data(self) -> bytes:
        return b"".join(self.lines)

    @classmethod
    def made(cls, folder: Path, **spec: Any) -> Whole:
        specification = scripted_spec(**spec)
        go_on(specification, folder)
        data = (folder / "transcript.jsonl").read_bytes()
        found = cls(specification, tuple(data.splitlines(keepends=True)), (folder / "result.json").read_bytes())
        shutil.rmtree(folder)
        return found


def go_on(spec: dict[str, Any], folder: Path) -> None:
    """Run the cell to its end from what is on disk. Raises CellError."""
    folder.mkdir(exist_ok=True)
    idle_loop.run(ScriptedEngine(warm_of(spec), ""), spec, folder, report=lambda event, **fields: None)


def tails(whole: Whole, other: Whole, dice: random.Random) -> Iterator[tuple[str, int, bytes]]:
    """(kind, offset, bytes from the last line's beginning on) of a last line that is torn at each of its bytes."""
    line, before = whole.lines[-1], b"".join(whole.lines[:-1])
    for at in range(len(line)):
        torn = line[:at]
        old = len(line) - at
        to_page = -(len(before) + at) % PAGE_BYTES or PAGE_BYTES
        yield "cut", at, torn
        yield "cut, newline", at, torn + b"\n"
        yield "NULs to its length", at, torn + b"\0" * old
        yield "NULs to the page's end", at, torn + b"\0" * to_page
        yield "stale, of this transcript", at, torn + _piece(before or line, old, dice)
        yield "stale page, of this transcript", at, torn + _piece(whole.data, to_page, dice)
        yield "stale page, of another transcript", at, torn + _piece(other.data, to_page, dice)
        yield "stale whole line of another", at, torn + b"\n" + dice.choice(other.lines[1:])


def _piece(data: bytes, size: int, dice: random.Random) -> bytes:
    """`size` bytes from somewhere in `data`, gone round at its end."""
    start = dice.randrange(len(data))
    return (data[start:] + data * (size // len(data) + 1))[:size]


def continue_torn(whole: Whole, tail: bytes, folder: Path) -> Finding:
    """Go on with the last line replaced by `tail`: cut off and made anew, or refused and untouched, by the rule."""
    found = Finding()
    good = b"".join(whole.lines[:-1])
    # What a page held before may happen to be the very line: then nothing of it is bad.
    kept = whole.lines[-1] if tail.startswith(whole.lines[-1]) else b""
    bad = tail[len(kept) :]
    refuse = is_damage(bad)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "transcript.jsonl"
    path.write_bytes(good + tail)
    what = f"the last line of {len(whole.lines)} as {len(tail)} bytes that end in {tail[-120:]!r}"
    try:
        go_on(whole.spec, folder)
    except TranscriptCorrupt:
        found.count("refused as damage, untouched")
        found.expect(refuse, f"{what}: refused, though nothing behind it is a record")
        found.expect(path.read_bytes() == good + tail, f"{what}: refused, but the file was changed")
        found.expect(sorted(file.name for file in folder.iterdir()) == [path.name], f"{what}: refused, but left files")
        return found
    found.count("cut off and made anew" if bad else "nothing was torn")
    found.expect(not refuse, f"{what}: built upon, though a sealed record stands behind the bad line")
    found.expect(path.read_bytes() == whole.data, f"{what}: it ended with other bytes")
    found.expect((folder / "result.json").read_bytes() == whole.result, f"{what}: another result.json")
    cut = [file.read_bytes() for file in sorted(folder.glob("transcript.jsonl.cut-*"))]
    found.expect(cut == ([bad] if bad else []), f"{what}: what was cut off is not kept as it was")
    return found


def is_damage(bad: bytes) -> bool:
    """Does a sealed record stand behind the first bad line, or two of them in it?"""
    first, *rest = bad.split(b"\n")
    return len(_SEAL.findall(first)) > 1 or any(_SEAL.search(line) for line in rest)


def region(whole: Whole, at: int) -> str:
    """Where in a transcript a byte lies: `header`, `turn`, `hash`, `newline`, each of the last line by that name."""
    start = 0
    for number, line in enumerate(whole.lines):
        if at < start + len(line):
            place = at - start
            last = "last line's " if number == len(whole.lines) - 1 else ""
            if place == len(line) - 1:
                return f"{last}newline"
            if place >= len(line) - 67:
                return f"{last}hash"
            return f"{last}turn" if number else "header"
        start += len(line)
    raise ValueError(at)


def continue_flipped(whole: Whole, at: int, bit: int, folder: Path) -> Finding:
    """Check and go on with one bit flipped: found; refused and untouched, or in the last line cut and made anew."""
    found = Finding()
    data = bytearray(whole.data)
    data[at] ^= 1 << bit
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "transcript.jsonl"
    path.write_bytes(data)
    what = f"bit {bit} of byte {at} ({region(whole, at)})"
    found.expect(transcript.check(path).fault is not None, f"{what}: not seen")
    torn = at >= len(whole.data) - len(whole.lines[-1])
    try:
        go_on(whole.spec, folder)
    except TranscriptCorrupt as error:
        found.count(f"flipped in the {region(whole, at)}: refused")
        found.expect(not torn, f"{what}: refused, though it is the last line")
        found.expect(idle_loop.explain(error)[:2] == ("corrupt", "transcript_corrupt"), f"{what}: another outcome")
        found.expect(path.read_bytes() == data, f"{what}: refused, but the file was changed")
        found.expect(sorted(file.name for file in folder.iterdir()) == [path.name], f"{what}: refused, but left files")
        return found
    found.count(f"flipped in the {region(whole, at)}: made anew")
    found.expect(torn, f"{what}: built upon")
    found.expect(path.read_bytes() == whole.data, f"{what}: it ended with other bytes")
    found.expect((folder / "result.json").read_bytes() == whole.result, f"{what}: another result.json")
    return found

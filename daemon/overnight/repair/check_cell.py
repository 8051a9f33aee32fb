"""One cell's files against its row in the queue: of an idle loop, of a command, of one that was imported. Changes
nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overnight.cells import command_result
from overnight.cells.idle_loop import result_bytes
from overnight.paths import IMPORTED as IMPORTED_FILE
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.rows import CellRow
from overnight.queue.states import Status
from overnight.repair import check_transcript
from overnight.repair.check_transcript import Scan

_READ_BYTES = 2**20
RESULT_BYTES = 64 * 2**20
"""More than the result of any cell takes: its value is at most 16 MiB."""

_IDLE_FILES = re.compile(r"transcript\.jsonl(\.cut-\d+)?|result\.json")
_IMPORTED_FILES = re.compile(re.escape(IMPORTED_FILE))
_NO_FILES = re.compile(r"(?!)")
_COMMAND_FILES = re.compile(r"lock|std(out|err)\.log(\.\d+)?|result\.json|result\.user\.json|checkpoint|work|files")
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@dataclass(frozen=True)
class Seen:
    """problems: sentences about what the queue knows of; strange: about what should not be there; notes: for
    information. scan: of an idle loop whose transcript can be read."""

    problems: tuple[str, ...]
    strange: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scan: Scan | None = None
    files: int = 0


def check(paths: Paths, row: CellRow, spec: dict[str, Any]) -> Seen:
    """Look at a cell's folder."""
    folder = paths.cell_results(row.grid, row.key)
    match spec["kind"]:
        case "command":
            seen, known = _command(folder, row, spec), _COMMAND_FILES
        case specs.IMPORTED:
            seen, known = _imported(folder, row), _IMPORTED_FILES if row.transcript_sha256 else _NO_FILES
        case _:
            seen, known = _idle_loop(paths, row, spec), _IDLE_FILES
    strange, notes = _strangers(folder, known, row)
    return replace(seen, strange=(*seen.strange, *strange), notes=(*seen.notes, *notes))


def wrong_conversation(folder: Path, row: CellRow) -> str | None:
    """What is wrong with an imported conversation, or None. A cell may have none: then only its figures are known."""
    if row.transcript_sha256 is None:
        return None
    try:
        same = _facts(folder / IMPORTED_FILE)[1] == row.transcript_sha256
    except FileNotFoundError:
        return f"imported, but its {IMPORTED_FILE} is missing"
    except OSError as error:
        return f"its {IMPORTED_FILE} cannot be read: {error.strerror}"
    return None if same else f"its {IMPORTED_FILE} is not the one that was imported"


def _imported(folder: Path, row: CellRow) -> Seen:
    problem = wrong_conversation(folder, row)
    return Seen(() if problem is None else (problem,), files=int(row.transcript_sha256 is not None))


def _idle_loop(paths: Paths, row: CellRow, spec: dict[str, Any]) -> Seen:
    try:
        scan = check_transcript.scan(paths.transcript(row.grid, row.key), spec)
    except FileNotFoundError:
        known = row.status is Status.DONE or row.turns > 0
        lost = f"{row.status} with {row.turns} turns, but its transcript is missing"
        return Seen((lost,) if known else ())
    except OSError as error:
        return Seen((f"its transcript cannot be read: {error.strerror}",))
    except (KeyError, TypeError, ValueError) as error:
        return Seen((f"its specification cannot be used ({type(error).__name__}: {error})",))
    problems, notes = list(scan.problems), list[str]()
    if (fault := scan.fault) is not None:
        said = f"line {fault.line_number} (byte {fault.offset}): {fault.what}"
        under_way = row.status in (Status.RUNNING, Status.PENDING) and fault.torn_tail
        (notes if under_way else problems).append(
            f"torn last line (byte {fault.offset}); it is cut off when the cell goes on" if under_way else said
        )
    if row.status is Status.DONE:
        problems.extend(_done(paths, row, spec, scan))
    elif scan.turns < row.turns:
        problems.append(f"{scan.turns} whole turns, but the queue knows {row.turns}")
    return Seen(tuple(problems), notes=tuple(notes), scan=scan, files=1)


def _done(paths: Paths, row: CellRow, spec: dict[str, Any], scan: Scan) -> Iterator[str]:
    if (scan.turns, scan.sha256) != (row.turns, row.transcript_sha256):
        yield (
            f"{scan.turns} turns with hash {scan.sha256[:12]}, "
            f"but the queue knows {row.turns} with {(row.transcript_sha256 or 'none')[:12]}"
        )
        return
    if scan.output_tokens != row.output_tokens:
        yield f"{scan.output_tokens} output tokens, but the queue knows {row.output_tokens}"
    finished = scan.finished(spec, row.end_reason)
    if finished is None or finished.end_reason != row.end_reason:
        end = "it has turns to go" if finished is None else f"it ended by {finished.end_reason}"
        yield f"done by {row.end_reason}, but by its limits {end}"
        return
    if (problem := wrong_result(paths, row, result_bytes(spec, finished))) is not None:
        yield problem


def wrong_result(paths: Paths, row: CellRow, expected: bytes) -> str | None:
    """What is wrong with a result.json that is expected to be these bytes, or None."""
    try:
        with paths.result(row.grid, row.key).open("rb") as stream:
            found = stream.read(len(expected) + 1)
    except FileNotFoundError:
        return "done, but its result.json is missing"
    except OSError as error:
        return f"its result.json cannot be read: {error.strerror}"
    return None if found == expected else "its result.json is not what its transcript says"


def _command(folder: Path, row: CellRow, spec: dict[str, Any]) -> Seen:
    if row.status is not Status.DONE:
        return Seen(())
    problems, strange = list[str](), list[str]()
    count = 0
    try:
        with (folder / "result.json").open("rb") as stream:
            data = stream.read(RESULT_BYTES + 1)
        if hashlib.sha256(data).hexdigest() != row.transcript_sha256:
            return Seen(("its result.json is not the one that was recorded",))
        result = json.loads(data)
        for name in ("key", "coords", "seed"):
            if result[name] != spec[name]:
                strange.append(f"its result.json is of another {name} than the queue's")
        kept = set()
        for file in result["files"]:
            path = command_result.kept_path(folder, file)
            kept.add(path)
            if _facts(path) != (file["bytes"], file["sha256"]):
                problems.append(f"files/{file['name']} is not the one that was kept")
            count += 1
        for path in (folder / command_result.KEPT_FOLDER).rglob("*"):
            if path not in kept and not path.is_dir():
                shown = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
                strange.append(f"{shown} is there, and was not kept; move it away")
    except OSError as error:
        missing = os.fsencode(error.filename or folder).decode(errors="backslashreplace")
        problems.append(f"done, but {missing} cannot be read: {error.strerror}")
    except (ValueError, KeyError, TypeError, RecursionError):
        problems.append("its result.json cannot be understood")
    return Seen(tuple(problems), tuple(strange), files=count + 1)


def _facts(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _strangers(folder: Path, known: re.Pattern[str], row: CellRow) -> tuple[list[str], list[str]]:
    """Files that do not belong into a cell's folder; and, for information, what interruptions left there."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names, not objects
    except OSError:
        return [], []
    strange, notes = [], []
    for name in names:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        if TEMPORARY.fullmatch(name):
            if row.status is not Status.RUNNING:
                notes.append(f"{shown} is left over; it is removed when the cell runs again")
        elif not known.fullmatch(name):
            strange.append(f"{shown} does not belong there; move it away")
        elif ".cut-" in name:
            notes.append(f"{shown} was cut off after an interruption")
    return strange, notes

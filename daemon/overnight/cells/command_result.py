"""What a command leaves behind: its result, the files to keep, result.json.

result.json holds nothing that varies from run to run: the same result gives the same bytes. Its `files` are
{name, bytes, sha256}; where a name is no UTF-8, `name` has \\xNN for the bytes that are none, and `name_bytes` is the
name itself in hex.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from overnight import durable
from overnight.cells import placeholders
from overnight.cells.command_start import RESULT_FILE, remove
from overnight.errors import CellError
from overnight.masking import NOTHING, MaskedStream, Masks

RESULT_BYTES = 16 * 2**20
KEPT_FOLDER = "files"
_COPY_BYTES = 2**20


@dataclass(frozen=True)
class Result:
    """value: the JSON object that it left, or None; note: why a value that was meant as one is not taken, or ""."""

    value: dict[str, Any] | None = None
    note: str = ""


def read(folder: Path, last_line: bytes | None, masks: Masks = NOTHING) -> Result:
    """From $OVERNIGHT_RESULT if it was written, else from the last line of stdout (None: that was too long)."""
    path = folder / RESULT_FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _of_line(last_line, masks)
    except OSError as error:
        return Result(note=f"$OVERNIGHT_RESULT cannot be read: {error.strerror}")
    try:
        with os.fdopen(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return Result(note="$OVERNIGHT_RESULT is no regular file")
            data = stream.read(RESULT_BYTES + 1)
    except OSError as error:
        return Result(note=f"$OVERNIGHT_RESULT cannot be read: {error.strerror}")
    if len(data) > RESULT_BYTES:
        return Result(note=f"$OVERNIGHT_RESULT is larger than {RESULT_BYTES // 2**20} MiB")
    return parse(data, "$OVERNIGHT_RESULT", masks)


def _of_line(line: bytes | None, masks: Masks) -> Result:
    if line is None:
        return Result(note="the last line of stdout is too long to be a result")
    return parse(line, "the last line of stdout", masks) if line.startswith(b"{") else Result()


def parse(data: bytes, where: str, masks: Masks = NOTHING) -> Result:
    """A JSON object that can be written down as it was read, but for secrets: no NaN, no infinity, no lone
    surrogates."""
    try:
        value = json.loads(data, parse_constant=_refuse)
        if not isinstance(value, dict):
            return Result(note=f"{where} holds no JSON object")
        value = masks.value(value)
        written = durable.canonical(value).encode()
    except (ValueError, RecursionError) as error:
        return Result(note=f"{where} holds no JSON object: {str(error)[:200]}")
    except MemoryError:
        return Result(note=f"{where} is too large to be read under the memory cap")
    if masks.found(written):  # made of several values, or of the signs between them
        return Result(note=f"{where} holds the value of a secret")
    return Result(value)


def withdraw(folder: Path, masks: Masks) -> bool:
    """Remove what the command has left at $OVERNIGHT_RESULT when a secret is in it: result.json has it masked. True
    when there was one. Raises OSError."""
    path = folder / RESULT_FILE
    if not masks or not _holds(path, masks):
        return False
    path.unlink()
    return True


def clear_beside(folder: Path) -> None:
    """Remove what has the name of $OVERNIGHT_RESULT and something more: of a result that was being written when the
    command ended, so nobody's, and perhaps with half of a secret in it. Raises OSError."""
    for name in os.listdir(folder):  # noqa: PTH208 - a pattern would be compiled in each child anew
        if name != RESULT_FILE and name.lstrip(".").startswith(RESULT_FILE):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)  # it may hold what even its owner cannot remove
            else:
                path.unlink(missing_ok=True)


def _holds(path: Path, masks: Masks) -> bool:
    """Is a value in this file? What is no regular file holds nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return False
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        masked = MaskedStream(masks)
        while not masked.masked and (piece := os.read(fd, _COPY_BYTES)):
            masked.feed(piece)
        masked.finish()
        return masked.masked > 0
    finally:
        os.close(fd)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class HoldsSecret(Exception):
    """A file to keep has the value of a secret in it, or in its name."""


@dataclass
class Kept:
    """files: their entries. missing: patterns that name none. refused: names of files that hold a secret."""

    files: list[dict[str, Any]]
    missing: list[str]
    refused: list[str]


def keep(spec: Mapping[str, Any], cwd: Path, folder: Path, masks: Masks = NOTHING) -> Kept:
    """Copy what `keep:` names into folder/files, durably; but no file that holds the value of a secret. Raises
    OSError."""
    target = folder / KEPT_FOLDER
    remove(target)  # of an attempt that was interrupted just here
    values = {
        name: glob.escape(value) if isinstance(value, str) else value
        for name, value in placeholders.values_of(spec).items()
    }
    names: set[str] = set()
    kept = Kept([], [], [])
    for pattern in spec["keep"]:
        filled = placeholders.fill(pattern, values)
        found = set(matches(cwd, filled))
        names |= found
        if not found:
            kept.missing.append(filled)
    for name in sorted(names):
        try:
            kept.files.append(_copy(cwd, name, target, masks))
        except HoldsSecret:
            kept.refused.append(masks.text(_named(os.fsencode(name))["name"]))
    return kept


def matches(root: Path, pattern: str) -> Iterator[str]:
    """Names of regular files below `root`, relative to it. `**` is any number of folders; no link is followed, and
    nothing outside is named. A leading dot has to be written."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if parts and ".." not in parts and not pattern.startswith("/"):
        yield from _below(root, "", parts)


def _below(root: Path, inside: str, parts: list[str]) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _below(root, inside, rest or ["*"])
    try:
        entries = sorted(os.scandir(root / inside), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        name = f"{inside}{entry.name}"
        hidden = entry.name.startswith(".") and not part.startswith(".")
        if hidden or not (part == "**" or fnmatch.fnmatchcase(entry.name, part)):
            continue
        if entry.is_dir(follow_symlinks=False):
            deeper = parts if part == "**" else rest
            if deeper:
                yield from _below(root, f"{name}/", deeper)
        elif not rest and part != "**" and entry.is_file(follow_symlinks=False):
            yield name


def _copy(cwd: Path, name: str, target: Path, masks: Masks) -> dict[str, Any]:
    """Raises HoldsSecret, when nothing of the secret has been written; OSError."""
    digest, size = hashlib.sha256(), 0
    if masks.found(os.fsencode(name)):
        raise HoldsSecret

    def pieces() -> Iterator[bytes]:
        nonlocal size
        masked = MaskedStream(masks)
        fd = os.open(cwd / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as stream:
            while piece := stream.read(_COPY_BYTES):
                digest.update(piece)
                size += len(piece)
                yield masked.feed(piece) if masks else piece
                if masked.masked:
                    raise HoldsSecret
            yield masked.finish()
            if masked.masked:
                raise HoldsSecret

    durable.make_folders((target / name).parent)
    durable.write_atomic(target / name, pieces())
    return {**_named(os.fsencode(name)), "bytes": size, "sha256": digest.hexdigest()}


def _named(name: bytes) -> dict[str, str]:
    """Names are bytes; JSON wants text."""
    try:
        return {"name": name.decode()}
    except UnicodeDecodeError:
        return {"name": name.decode(errors="backslashreplace"), "name_bytes": name.hex()}


def kept_path(folder: Path, file: Mapping[str, Any]) -> Path:
    """Where the file of an entry of result.json is, below the folder of kept files. Raises KeyError, TypeError or
    ValueError for what is no entry."""
    name = os.fsdecode(bytes.fromhex(file["name_bytes"])) if "name_bytes" in file else file["name"]
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} is no name of a kept file")
    return folder / KEPT_FOLDER / name


def write(spec: Mapping[str, Any], folder: Path, result: Result, files: list[dict[str, Any]]) -> str:
    """result.json. Returns its SHA-256. Raises OSError."""
    record = {
        "v": 1,
        "kind": "command",
        "key": spec["key"],
        "coords": spec["coords"],
        "seed": spec["seed"],
        "exit_code": 0,
        "result": result.value,
        "files": files,
    }
    data = (durable.canonical(record) + "\n").encode()
    durable.write_atomic(folder / "result.json", data)
    return hashlib.sha256(data).hexdigest()


def disk_error(error: OSError, what: str) -> CellError:
    """As durable.as_cell_error, in the words of a command: there are no turns to go on with."""
    failed = durable.as_cell_error(error, what)
    if failed.reason_code == "no_space":
        failed.args = (f"no space left while {what}; the command is run again when there is room",)
    return failed

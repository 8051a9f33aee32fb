"""Secrets by name: where their values come from, and what is refused. Values stand in no grid, queue, log or message.

The environment comes first (an empty variable counts as none), then `etc/secrets.env`: a line `NAME=value` each, blank
lines and lines that begin with `#`. A value may stand in a pair of quotes; nothing within them is special.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from overnight.errors import UserError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FILE_BYTES = 64 * 2**10
SHORTEST_BYTES, LONGEST_BYTES = 8, 8192
"""What is shorter stands in too much that is no secret: masked, the output could not be read. What is longer would be
held back from the log for too long."""


class SecretError(UserError):
    """A secret cannot be had. `str()` is the sentence, which holds no value."""

    reason_code = "secret_refused"


class SecretMissing(SecretError):
    """It is nowhere."""

    reason_code = "secret_missing"


def look_up(names: Iterable[str], environ: Mapping[str, str], file: Path) -> dict[str, str]:
    """Name -> value, of all of them. Raises SecretError.

    The file is read only when the environment lacks one, so that a file which is refused hinders nobody else."""
    found = {name: environ[name] for name in names if environ.get(name)}
    lacking = [name for name in names if name not in found]
    if lacking:
        kept = read_file(file)
        if nowhere := [name for name in lacking if name not in kept]:
            raise SecretMissing(_nowhere(nowhere, "the daemon's environment", file))
        found |= {name: kept[name] for name in lacking}
    for name, value in found.items():
        where = file if name in lacking else "the environment"
        if (problem := _problem(value)) is not None:
            raise SecretError(f"secret {name} of {where} {problem}")
    return found


def missing(names: Iterable[str], present: Collection[str], of: str, file: Path) -> str | None:
    """One line about those of the names that are neither in an environment `of` the variables `present` nor in the
    file, or about a file that is refused; None when all is well."""
    lacking = [name for name in names if name not in present]
    if not lacking:
        return None
    try:
        kept = read_file(file)
    except SecretError as error:
        return str(error)
    lacking = [name for name in lacking if name not in kept]
    return _nowhere(lacking, of, file) if lacking else None


def read_file(file: Path) -> dict[str, str]:
    """Name -> value; nothing when there is no file. Raises SecretError for one that others may read, or is wrong."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SecretError(f"{file}: {'it is a link' if file.is_symlink() else error.strerror}; {_WANTED}") from None
    try:
        _check(file, os.fstat(fd))
        data = b""
        while len(data) <= FILE_BYTES and (piece := os.read(fd, FILE_BYTES + 1 - len(data))):
            data += piece
    except OSError as error:
        raise SecretError(f"{file}: {error.strerror}; {_WANTED}") from None
    finally:
        os.close(fd)
    if len(data) > FILE_BYTES:
        raise SecretError(f"{file}: larger than {FILE_BYTES // 2**10} KiB; {_WANTED}")
    return parse(data, file)


_WANTED = "expected a regular file of your own, of mode 0600, with lines NAME=value"


def _check(file: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SecretError(f"{file}: no regular file; {_WANTED}")
    if found.st_uid != os.geteuid():
        raise SecretError(f"{file}: it belongs to another user (uid {found.st_uid}); {_WANTED}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise SecretError(f"{file}: others may use it (mode {mode:04o}); chmod 600 {file}")


def parse(data: bytes, file: Path) -> dict[str, str]:
    """Raises SecretError that names the line, never what it holds: what looks like a name may be the second line of a
    secret that was pasted in several."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        raise SecretError(f"{file}:{at}: not valid text; UTF-8 is expected") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not (words := line.strip()) or words.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in words.partition("="))
        if not equals or NAME.fullmatch(name) is None:
            raise SecretError(f"{file}:{number}: expected NAME=value, the name of letters, digits and '_'")
        if name in found:
            raise SecretError(f"{file}:{number}: this name is there already; remove one of the two")
        if value[:1] in ("'", '"'):
            if len(value) < 2 or value[-1] != value[0]:
                raise SecretError(f"{file}:{number}: the quote is never closed")
            value = value[1:-1]
        if (problem := _problem(value)) is not None:
            raise SecretError(f"{file}:{number}: the secret {problem}")
        found[name] = value
    return found


def _problem(value: str) -> str | None:
    size = len(os.fsencode(value)) if _encodes(value) else 0
    if any(character in value for character in "\0\r\n"):
        return "has a line end or a NUL in its value; expected one line (base64 makes one of several)"
    if size < SHORTEST_BYTES:
        return f"is shorter than {SHORTEST_BYTES} bytes: it could not be masked in what a command says; use `env:`"
    if size > LONGEST_BYTES:
        return f"is longer than {LONGEST_BYTES} bytes; put it into a file of mode 0600, and name that one"
    return None


def _encodes(value: str) -> bool:
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _nowhere(names: list[str], of: str, file: Path) -> str:
    said = f"secret {names[0]} is" if len(names) == 1 else f"secrets {', '.join(names)} are"
    return f"{said} neither in {of} nor in {file}; write a line {names[0]}=... into that file, and chmod 600 it"

"""Which points this process passes, and what somebody wants to happen at one of them.

All of it is in one folder. `armed`: a line an entry, "number role point k signal". `hits.N`: a byte for each time that
entry N was passed, by whatever process, so that the k-th one is known. `struck`: "number time pid role point label" of
each entry that was used. `trace`: "P time pid role point" when a process first passes a point, "B time pid label turn"
when a turn begins, "R time pid label parent" when a cell runs. Written by single appends: several do it at once.
"""

from __future__ import annotations

import os
import signal
import time
from typing import ClassVar

ROOT = os.environ.get("OVERNIGHT_FAULT_POINTS", "")
_ACTIONS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "TERM": signal.SIGTERM}


class Self:
    """Who this process is. `child`: role and label of the one that it is about to fork."""

    role = ""
    label = "-"
    child: tuple[str, str] | None = None
    passed: ClassVar[set[str]] = set()


_Entry = tuple[str, str, str, int, str]
_armed: list[_Entry] = []
_armed_at: tuple[int, int] | None = None


def become(role: str, label: str = "-") -> None:
    """From here on this process is somebody else."""
    Self.role, Self.label, Self.child = role, label or "-", None
    Self.passed = set()


def reach(point: str) -> None:
    """This process is at a point: it may be its last."""
    entry = due(point)
    if entry is not None:
        act(entry)


def due(point: str) -> _Entry | None:
    """Note that the point is passed. The entry that is to be carried out here and now, or None."""
    if point not in Self.passed:
        Self.passed.add(point)
        append("trace", f"P {time.monotonic():.6f} {os.getpid()} {Self.role} {point}\n")
    for entry in _wanted():
        number, role, name, times, _ = entry
        if role == Self.role and name == point and append(f"hits.{number}", ".") == times:
            return entry
    return None


def act(entry: _Entry) -> None:
    number, role, name, _, action = entry
    # The line must be whole before the signal: nothing of this process may be told after it.
    append("struck", f"{number} {time.monotonic():.6f} {os.getpid()} {role} {name} {Self.label}\n")
    os.kill(os.getpid(), _ACTIONS[action])


def begun(kind: str, label: str, turn: int) -> None:
    append("trace", f"{kind} {time.monotonic():.6f} {os.getpid()} {label} {turn}\n")


def append(name: str, text: str) -> int:
    """Returns where the file ends now: with `hits`, how often. No descriptor stays open: a fork must find none."""
    try:
        fd = os.open(f"{ROOT}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        return 0  # the test is over, and has removed the folder
    try:
        os.write(fd, text.encode())
        return os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)


def _wanted() -> list[_Entry]:
    global _armed, _armed_at
    try:
        found = os.stat(f"{ROOT}/armed")  # noqa: PTH116 - some thousand times a second
    except OSError:
        _armed_at = None
        return []
    if (found.st_ino, found.st_mtime_ns) != _armed_at:
        _armed_at = (found.st_ino, found.st_mtime_ns)
        with open(f"{ROOT}/armed", encoding="ascii") as stream:  # noqa: PTH123 - pathlib is not there in every process
            lines = [line.split() for line in stream]
        _armed = [(each[0], each[1], each[2], int(each[3]), each[4]) for each in lines]
    return _armed

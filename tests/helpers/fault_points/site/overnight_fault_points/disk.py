"""`durable.calls` with a point before and after each call, named by the kind of file, and one within each write."""

from __future__ import annotations

import os
import re
from typing import Any

from overnight_fault_points import points

_TEMPORARY = re.compile(r"^\.(.+)\.\d+\.tmp$")
_KINDS = {
    "transcript.jsonl": "transcript",
    "result.json": "result",
    "daemon.json": "daemon_state",
    "grid_state.json": "grid_state",
    "lock": "lock",
}


def kind_of(path: str) -> str:
    """transcript, cut, result, kept, lock, registration, daemon_state, grid_state, folder or other."""
    folder, _, name = path.rpartition("/")
    if (temporary := _TEMPORARY.match(name)) is not None:
        name = temporary[1]
    if name in _KINDS:
        return _KINDS[name]
    if name.startswith("transcript.jsonl.cut-"):
        return "cut"
    if folder.endswith("/run/cells"):
        return "registration"
    if "/files" in folder:
        return "kept"
    return "folder" if os.path.isdir(path) else "other"  # noqa: PTH112 - at each fsync


def _kind_of(fd: int) -> str:
    return kind_of(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - at each write


def traced(calls: type) -> Any:
    """An instance of `overnight.durable.Calls`, or of what a test made of it, with points."""

    class Traced(calls):
        def open(self, path: Any, flags: int, mode: int = 0o600) -> int:
            return int(self._around("open", kind_of(os.fspath(path)), super().open, path, flags, mode))

        def write(self, fd: int, data: Any) -> int:
            kind = _kind_of(fd)
            if len(data) > 1 and (entry := points.due(f"write.{kind}.within")) is not None:
                # A short write: half of it is in the file when the end comes.
                written = super().write(fd, data[: len(data) // 2])
                points.act(entry)
                return int(written)
            return int(self._around("write", kind, super().write, fd, data))

        def fsync(self, fd: int) -> None:
            self._around("fsync", _kind_of(fd), super().fsync, fd)

        def ftruncate(self, fd: int, size: int) -> None:
            self._around("ftruncate", _kind_of(fd), super().ftruncate, fd, size)

        def replace(self, source: Any, target: Any) -> None:
            self._around("replace", kind_of(os.fspath(target)), super().replace, source, target)

        def unlink(self, path: Any) -> None:
            self._around("unlink", kind_of(os.fspath(path)), super().unlink, path)

        def mkdir(self, folder: Any) -> None:
            self._around("mkdir", "folder", super().mkdir, folder)

        @staticmethod
        def _around(what: str, kind: str, call: Any, *args: Any) -> Any:
            points.reach(f"{what}.{kind}.before")
            result = call(*args)
            points.reach(f"{what}.{kind}.after")
            return result

    return Traced()

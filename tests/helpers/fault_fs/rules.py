"""Which call fails, and how."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any

CHANGES = ("write", "truncate", "create", "mkdir", "rename", "unlink", "rmdir", "fsync", "fsyncdir")
"""The kinds of calls that change the disk."""

MAKES_ROOM = ("write", "create", "mkdir", "rename")
"""Those that a full disk refuses."""

UNSEEN = ("*-shm",)
"""Written through a mapping whenever the kernel likes: counting it would make the n-th call another one each time."""


class Killed(OSError):
    """The caller was killed before its call was applied: it never happened, and nobody hears of it."""


@dataclass
class Call:
    """One call that was to change the disk. path: below the mount; to: of a rename; failed: by an errno, else 0."""

    kind: str
    path: str
    pid: int
    to: str = ""
    offset: int = 0
    length: int = 0
    failed: int = 0


@dataclass
class Rule:
    """From the `nth` call of these kinds on a path that matches `glob` (a rename: its old or new one), what happens.

    does: `errno`; `short` (half of a write is done); `kill_before` and `kill_after` (SIGKILL for the caller, the call
    has or has not been applied). lasting: so do all such calls that follow, until it is lifted. pids: only calls of
    these processes.
    """

    does: str
    nth: int = 1
    errno: int = 0
    kinds: tuple[str, ...] = CHANGES
    glob: str = "*"
    unseen: tuple[str, ...] = UNSEEN
    lasting: bool = False
    pids: tuple[int, ...] = ()
    seen: int = field(default=0)
    fired: int = field(default=0)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Rule:
        """From JSON, where tuples are lists."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**plain)

    def hits(self, call: Call) -> bool:
        """Count a call; is it one that has to fail?"""
        if call.kind not in self.kinds or (self.pids and call.pid not in self.pids):
            return False
        paths = [call.path, *([call.to] if call.to else [])]
        if any(fnmatch.fnmatchcase(path, pattern) for path in paths for pattern in self.unseen):
            return False
        if not any(fnmatch.fnmatchcase(path, self.glob) for path in paths):
            return False
        if self.does == "short" and (call.kind != "write" or call.length < 2):
            return False
        self.seen += 1
        hit = self.seen >= self.nth if self.lasting else self.seen == self.nth
        self.fired += hit
        return hit

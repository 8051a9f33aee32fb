"""The faults that are tried at each call that changes the disk, one after the other."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers.fault_fs import CHANGES, Call, FaultFs
from helpers.fault_fs.rules import MAKES_ROOM

SYNCS = ("fsync", "fsyncdir")


@dataclass(frozen=True)
class Fault:
    """does: as in `fault_fs.Rule`. kinds: the calls that it can strike."""

    name: str
    does: str
    kinds: tuple[str, ...]
    errno: int = 0
    lasting: bool = False
    code: str = field(default="disk_error")
    """The reason code that a cell records."""

    def calls_of(self, calls: Sequence[Call]) -> int:
        """How many of these calls it can strike."""
        return sum(call.kind in self.kinds and (self.does != "short" or call.length > 1) for call in calls)

    def set(self, fs: FaultFs, nth: int, glob: str, **more: Any) -> None:
        if self.does == "short":
            fs.shorten(nth, glob, **more)
        elif self.does == "errno":
            fs.fail(nth, self.errno, self.kinds, glob, lasting=self.lasting, **more)
        else:
            fs.kill(nth, self.does.removeprefix("kill_"), self.kinds, glob, **more)


_ALL_BUT_SYNCS = tuple(kind for kind in CHANGES if kind not in SYNCS)
FULL = Fault("ENOSPC", "errno", MAKES_ROOM, errno.ENOSPC, code="no_space")
STAYS_FULL = Fault("ENOSPC from there on", "errno", MAKES_ROOM, errno.ENOSPC, lasting=True, code="no_space")
BROKEN = Fault("EIO", "errno", _ALL_BUT_SYNCS, errno.EIO)
STAYS_BROKEN = Fault("EIO from there on", "errno", CHANGES, errno.EIO, lasting=True)
UNSYNCED = Fault("EIO at fsync", "errno", SYNCS, errno.EIO)
SHORT = Fault("a short write", "short", ("write",))
KILLED_BEFORE = Fault("SIGKILL before", "kill_before", CHANGES)
KILLED_AFTER = Fault("SIGKILL after", "kill_after", CHANGES)

ERRORS = (FULL, STAYS_FULL, BROKEN, STAYS_BROKEN, UNSYNCED, SHORT)
KILLS = (KILLED_BEFORE, KILLED_AFTER)
BY_NAME = {fault.name: fault for fault in (*ERRORS, *KILLS)}

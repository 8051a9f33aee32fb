"""var/run/cells/<pid>.json: who runs what. The daemon writes, the watchdog reads, a restarted daemon cleans up.

What people register by hand is theirs: nothing here touches it while its process lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overnight import checked, durable, procfs

_MOST_BYTES = 2**16

BY = "overnight"
"""Whose registration it is. Those that people make by hand do not say this."""


@dataclass
class Registration:
    """One process under our care. Times are monotonic seconds of this boot.

    shrinks: it handles SIGUSR1 by giving memory back. freezes: stopping it for a while harms nobody. replay_s: what
    replaying its finished turns would cost if it were taken out now. cells: how many run in a warm server (those
    that wait for its load have done nothing yet). grace_s: of a command, from SIGTERM to SIGKILL; the watchdog grants
    no more than it can wait. cgroup: of the daemon, the folder of the budget's memory cgroup. by:
    the mark of a daemon's own registrations.
    """

    pid: int
    start_ticks: int
    pgid: int
    role: str  # cell | command | warm | daemon
    engine: str = ""
    cell: str = ""
    attempt: int = 0
    shrinks: bool = False
    exact: bool = True
    turn: int = 0
    last_turn_s: float | None = None
    started_s: float = 0.0
    cgroup: str | None = None
    claim_bytes: int | None = None
    cap_bytes: int | None = None
    replay_s: float = 0.0
    freezes: bool = True
    cells: int = 0
    grace_s: float | None = None
    by: str = BY


class Registry:
    """The folder of registrations. Writing raises OSError; a registration that is not on disk lets nobody begin."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, entry: Registration) -> None:
        data = durable.canonical({"v": 1, "boot_id": procfs.boot_id(), **asdict(entry)})
        durable.write_atomic(self._folder / f"{entry.pid}.json", data.encode() + b"\n", durable=False)

    def drop(self, pid: int) -> None:
        try:
            (self._folder / f"{pid}.json").unlink(missing_ok=True)
        except OSError:
            pass

    def missing(self, pid: int) -> bool:
        """Is its file gone, since somebody emptied the folder?"""
        return not (self._folder / f"{pid}.json").exists()

    def ours(self) -> Iterator[dict[str, Any]]:
        """What a daemon registered for this boot; files that are damaged or of another boot are passed over."""
        for path in sorted(self._folder.glob("*.json")):
            entry = _read(path)
            if entry is not None and entry["boot_id"] == procfs.boot_id() and entry.get("by") == BY:
                yield entry

    def clear(self) -> None:
        """Forget everybody whom a daemon registered, after their processes were seen to be gone; whoever is gone
        anyway; and half-written files."""
        for path in self._folder.iterdir():
            if path.is_file() and _is_left(path):
                path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """A registration of whatever boot; None when it is none."""
    try:
        entry = checked.json_object(checked.read_small(path, _MOST_BYTES))
        if entry["v"] != 1 or not isinstance(entry["boot_id"], str):
            return None
        # Whom it names may be ended: never init, nor what is no process.
        checked.whole(entry["pid"], 2, procfs.PID_MOST)
        checked.whole(entry["start_ticks"], 1)
    except (OSError, ValueError, KeyError):
        return None
    return entry


def _is_left(path: Path) -> bool:
    """Ours, half-written by `write_atomic`, or of a process that is gone. A file that cannot be understood is judged
    by its name: somebody may be writing it."""
    if path.name.startswith("."):
        return path.name.endswith(".tmp")
    if path.suffix != ".json":
        return False
    if (entry := _read(path)) is not None:
        ended = entry["boot_id"] != procfs.boot_id() or not procfs.alive(entry["pid"], entry["start_ticks"])
        return ended or entry.get("by") == BY
    return not (path.stem.isdecimal() and procfs.start_ticks(int(path.stem)) is not None)

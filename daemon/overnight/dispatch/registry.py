"""var/run/cells/<pid>.json: who runs what. The daemon writes, the watchdog reads, a restarted daemon cleans up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overnight import durable, procfs


@dataclass
class Registration:
    """One process under our care. Times are monotonic seconds of this boot.

    shrinks: it handles SIGUSR1 by giving memory back. freezes: stopping it for a while harms nobody. replay_s: what
    replaying its finished turns would cost if it were taken out now. cells: how many run in a warm server. cgroup: of
    the daemon, the folder of the budget's memory cgroup.
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

    def entries(self) -> Iterator[dict[str, Any]]:
        """What is registered for this boot; files that are damaged or of another boot are passed over."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = json.loads(path.read_bytes())
                if entry["v"] == 1 and entry["boot_id"] == procfs.boot_id():
                    entry["pid"], entry["start_ticks"] = int(entry["pid"]), int(entry["start_ticks"])
                    yield entry
            except (OSError, ValueError, KeyError, TypeError):
                continue

    def clear(self) -> None:
        """Forget everybody (and half-written files): after their processes were seen to be gone."""
        for path in self._folder.iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)

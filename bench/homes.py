"""A fresh Overnight home for a benchmark: daemon and watchdog under supervisord, in a memory cgroup when one is given.

    with Home.made(settings, cgroup) as home:
        home("submit", "--command", "/bin/true", "--name", "g")
        home.wait("g", 60)

It lives in the temporary folder, and nothing of it is left afterwards.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from helpers.memory_cgroup import MemoryCgroup
from overnight.paths import Paths

POLL_S = 0.1


class Home:
    """Calling it runs a command of `overnight` on it and returns what that printed."""

    def __init__(self, paths: Paths, cgroup: MemoryCgroup | None) -> None:
        self.paths, self._cgroup = paths, cgroup

    @classmethod
    @contextmanager
    def made(cls, settings: str, cgroup: MemoryCgroup | None = None, *, models: Path | None = None) -> Iterator[Home]:
        """The daemon is up. settings: the text of etc/overnight.toml. models: a model store to share."""
        with tempfile.TemporaryDirectory(prefix="on-", dir="/tmp") as scratch:  # a socket's name has to be short
            home = cls(Paths.of(Path(scratch) / "h").ensure(), cgroup)
            home.paths.config.write_text(settings)
            if models is not None:
                home.paths.models.rmdir()
                home.paths.models.symlink_to(models)
            try:
                home("up")
                yield home
            finally:
                home("down")

    def __call__(self, *args: str) -> str:
        command = [sys.executable, "-m", "overnight", "--home", str(self.paths.home), *args]
        inside = self._cgroup is not None and args[0] in ("up", "daemon")
        done = subprocess.run(
            self._cgroup.join(*command) if self._cgroup is not None and inside else command,
            capture_output=True,
            text=True,
            check=False,
            env=without_supervisor(),
        )
        if done.returncode:
            raise SystemExit(
                f"overnight {' '.join(args)[:200]} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done.stdout

    def wait(self, grid: str, seconds: float) -> None:
        """Until all of its cells have ended. Raises SystemExit when they have not in time."""
        deadline = time.monotonic() + seconds
        while open_cells := self.open_cells(grid):
            if time.monotonic() > deadline:
                raise SystemExit(f"{open_cells} cells of {grid} are not done after {seconds:.0f} s\n{self('status')}")
            time.sleep(POLL_S)

    def open_cells(self, grid: str) -> int:
        counts = self.rows(
            "SELECT sum(n) AS n FROM grid_counts JOIN grids ON grids.id = grid_id"
            " WHERE name = ? AND status IN ('pending', 'running')",
            grid,
        )
        return counts[0]["n"] or 0

    def attempts(self, grid: str) -> list[dict[str, Any]]:
        """In the order of their start, with the cell's key and coords (a dict)."""
        found = self.rows(
            "SELECT attempts.*, cells.key, cells.coords, cells.status, name AS grid"
            " FROM attempts JOIN cells ON cells.id = cell_id JOIN grids ON grids.id = grid_id"
            " WHERE name = ? ORDER BY attempts.id",
            grid,
        )
        return [row | {"coords": json.loads(row["coords"])} for row in found]

    def outcomes(self, grid: str) -> dict[str, int]:
        """Outcome and reason -> attempts."""
        found = Counter(f"{row['outcome']} {row['reason_code']}".strip() for row in self.attempts(grid))
        return dict(found.most_common())

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """The queue's rows, read as anybody may."""
        with closing(sqlite3.connect(f"file:{self.paths.queue}?mode=ro", uri=True, timeout=10)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(statement, values)]

    def pressure(self) -> dict[str, Any]:
        """What the watchdog said last, {} when it says nothing."""
        try:
            found: dict[str, Any] = json.loads(self.paths.pressure.read_bytes())
        except (OSError, ValueError):
            return {}
        return found


def without_supervisor() -> dict[str, str]:
    """The environment, without a supervisord around us."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")}

"""What the campaign of kills found, each by itself."""

from __future__ import annotations

import os

from helpers.fault_points import FaultPoints
from helpers.home import Home
from helpers.waiting import until


def test_half_written_files_of_a_killed_daemon_are_removed_at_the_next_start(home: Home) -> None:
    home.submit()
    points = FaultPoints(home.paths.home / "points")
    for name in ("grid_state", "daemon_state"):
        number = points.arm("daemon", f"write.{name}.within")
        home("daemon", code=-9, env=points.environment())
        assert number in points.struck()
    left = [*home.paths.run.glob(".daemon.json.*.tmp"), *home.paths.results.glob("*/.grid_state.json.*.tmp")]
    assert left, "the second one has removed what the first one left, and left its own"
    living = home.paths.run / f".daemon.json.{os.getpid()}.tmp"
    living.touch()  # as of `overnight status --write-grid-state`, which may be writing
    home.start()
    until(lambda: not any(path.exists() for path in left))
    assert living.exists()
    home.wait_done()

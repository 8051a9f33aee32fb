"""In a budget that is too small: a watchdog that is killed while it keeps a cell frozen, and a daemon that hangs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from campaigns.too_small import MIB, UNCAPPED, watchdog_log
from helpers.home import Home
from helpers.waiting import until
from overnight.dispatch.signals import Handle

pytestmark = pytest.mark.alone


@pytest.fixture
def make_home(tmp_path: Path) -> Iterator[Callable[..., Home]]:
    homes: list[Home] = []

    def make(name: str, **options: Any) -> Home:
        homes.append(Home(tmp_path / name, **options))
        return homes[-1]

    yield make
    for home in homes:
        home.end()


def undisturbed(home: Home, grid: dict[str, Any]) -> dict[str, bytes]:
    home.submit(**grid)
    home.start()
    home.wait_done(240)
    home.stop()
    return home.transcripts()


def test_a_killed_watchdog_leaves_nobody_frozen(make_home: Callable[..., Home]) -> None:
    """The cell runs again within 6 s, whoever thaws it, and goes on to the same bytes."""
    options = {"delay_s": 0.03, "grow_bytes": 3 * MIB}  # small steps, so that none jumps over the level
    grid = {"options": options, "limits": {"max_iterations": 160}, "scaffolds": [1]}
    wanted = undisturbed(make_home("quiet"), grid)
    home = make_home("tight", slots=1, watchdog=True, settings=UNCAPPED)
    home.submit(**grid)
    home("up")
    (line,) = until(lambda: watchdog_log(home, "frozen"), 60, "a frozen cell")[:1]
    holder = json.loads((home.paths.run / "watchdog.lock").read_bytes())
    watchdog = Handle.open(holder["pid"], holder["start_ticks"])
    cell = Handle.open(line["pid"])
    assert watchdog is not None and cell is not None
    watchdog.kill()
    killed_s = time.monotonic()
    until(lambda: _state(line["pid"]) != "T", 6.0, "a thawed cell")
    print(f"\nthawed {time.monotonic() - killed_s:.2f} s after its watchdog was killed")
    home.wait_done(120)
    assert home.transcripts() == wanted


def test_a_silent_daemon_is_restarted_and_nothing_is_lost(make_home: Callable[..., Home]) -> None:
    grid = {"options": {"delay_s": 0.3}, "limits": {"max_iterations": 80}, "scaffolds": [1]}
    quiet, home = make_home("quiet"), make_home("hung", watchdog=True)
    for each in (quiet, home):
        each.submit(**grid)
    quiet.start()
    home("up")
    until(lambda: home.cells()[0]["status"] == "running", 30)
    (entry,) = home.registrations("daemon")
    daemon = Handle.open(entry["pid"], entry["start_ticks"])
    assert daemon is not None
    _stop(daemon)
    until(daemon.ended, 45, "the end of a daemon that hangs")
    (line,) = watchdog_log(home, "daemon_restarted")
    assert (line["pid"], line["trigger"], line["asked_supervisord"]) == (entry["pid"], "silent", True)
    for each in (quiet, home):
        each.wait_done(120)
    assert home.transcripts() == quiet.transcripts()
    assert home.cells()[0]["tries_used"] == 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "gone"


def _stop(handle: Handle) -> None:
    os.kill(handle.pid, signal.SIGSTOP)

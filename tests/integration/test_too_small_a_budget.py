"""The whole of it under supervisord, in a budget that is too small: cells are taken out, and the grid still finishes,
with the very bytes of an undisturbed run, while no counter of the kernel's OOM killer moves."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.home import Home
from helpers.waiting import until
from overnight.cli.submit import ensure_model
from overnight.dispatch import budget_cgroup
from overnight.dispatch.signals import Handle
from overnight.paths import Paths

pytestmark = pytest.mark.alone

MIB = 2**20
UNCAPPED = "[memory]\nbudget = '400MiB'\nprior = '16MiB'\ncaps = 'none'\n"
LEAKY = {"delay_s": 0.08, "grow_bytes": 12 * MIB, "cache_bytes": 6 * MIB}
MODEL = "smollm2-135m-instruct"
REAL = [{"name": "135m", "engine": "transformers", "source": MODEL, "sampling": {"temperature": 1.0, "top_p": 0.98}}]
"""30 turns of 12 MiB are as much as the budget, so no two cells fit to their end."""


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


def watchdog_log(home: Home, *events: str) -> list[dict[str, Any]]:
    lines = (home.paths.log / "watchdog.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] in events]


def oom_kills(home: Home) -> dict[str, int]:
    """What the kernel's OOM killer has done: on the machine, in our own cgroup and above, in the budget's."""
    counts = {"machine": _count(Path("/proc/vmstat"), "oom_kill")}
    try:
        own = budget_cgroup.find_own()
    except budget_cgroup.Missing:
        return counts
    inside = own.folder / budget_cgroup.name_of(home.paths.home)
    for folder in (inside, own.folder, *own.folder.parents):
        for name in ("memory.oom_control", "memory.events"):
            if (folder / name).is_file():
                counts[str(folder)] = _count(folder / name, "oom_kill")
    return counts


def _count(path: Path, name: str) -> int:
    fields = dict(line.split()[:2] for line in path.read_text().splitlines())
    return int(fields.get(name, 0))


def tell_what_shrinking_gave(home: Home) -> int:
    freed = [line["freed_bytes"] for line in home.log("cell_shrunk")]
    print(f"\nshrink gave back {sum(freed) / MIB:.1f} MiB in {len(freed)} times")
    return sum(freed)


def check_every_eviction(home: Home) -> int:
    """Each has its verdict, and `overnight show` explains it in a sentence. Returns how many there were."""
    evictions = 0
    for cell in home.cells():
        shown = home.json("show", f"{cell['grid']}/{cell['key']}")
        printed = home("show", f"{cell['grid']}/{cell['key']}").stdout
        assert [a["outcome"] for a in shown["attempts"]][-1] == "completed"
        for attempt in shown["attempts"]:
            if attempt["outcome"] == "evicted":
                evictions += 1
                assert attempt["reason"].startswith("the watchdog took ")
                assert attempt["reason"] in printed
                assert attempt["reason_code"] == "memory_pressure"
    return evictions


def test_a_grid_that_does_not_fit_finishes_with_the_same_bytes(make_home: Callable[..., Home]) -> None:
    grid = {"options": LEAKY, "limits": {"max_iterations": 32}, "runs": 3}  # each is too large even alone
    wanted = undisturbed(make_home("quiet", slots=6), grid)
    assert len(wanted) == 6
    # Nobody knows what they will need, and nothing caps them: the watchdog is all there is.
    home = make_home("tight", slots=3, watchdog=True, settings=UNCAPPED)
    path = home.grid(**grid)
    home("up")
    before = oom_kills(home)
    home("run", str(path), timeout=240)
    after = oom_kills(home)
    assert {name: count - before.get(name, 0) for name, count in after.items()} == dict.fromkeys(after, 0)
    assert home.transcripts() == wanted
    assert check_every_eviction(home) >= 5
    assert tell_what_shrinking_gave(home) > 0
    assert all(cell["tries_used"] == 0 for cell in home.cells())
    assert len(watchdog_log(home, "victim_gone")) == len(watchdog_log(home, "evicted"))


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


@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_model_in_too_small_a_budget(make_home: Callable[..., Home], repository_paths: Paths) -> None:
    """Weights of 540 MB that are loaded once, and three cells beside them where one fits."""
    ensure_model(repository_paths, MODEL, "float32")
    grid = {
        "models": REAL,
        "scaffolds": [1, 2, 3],
        "runs": 2,
        "seed": 11,
        "limits": {"max_iterations": 6, "target_output_tokens": None, "token_limit": 120},
    }
    homes = [
        make_home("quiet", slots=2),
        make_home("tight", slots=3, watchdog=True, settings='[memory]\nbudget = "1000MiB"\n'),
    ]
    for home in homes:
        home.paths.models.rmdir()
        home.paths.models.symlink_to(repository_paths.models)
        (home.paths.home / "night.yaml").write_text(yaml.safe_dump({"name": "night", **grid}))
    quiet, home = homes
    quiet("submit", str(quiet.paths.home / "night.yaml"))
    quiet.start()
    quiet.wait_done(900)
    quiet.stop()
    home("up")
    before = oom_kills(home)
    home("run", str(home.paths.home / "night.yaml"), timeout=1800)
    after = oom_kills(home)
    assert {name: count - before.get(name, 0) for name, count in after.items()} == dict.fromkeys(after, 0)
    assert home.transcripts() == quiet.transcripts()
    evictions = check_every_eviction(home)
    tell_what_shrinking_gave(home)
    print(f"{evictions} evictions")
    assert evictions >= 5


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "gone"


def _stop(handle: Handle) -> None:
    os.kill(handle.pid, signal.SIGSTOP)

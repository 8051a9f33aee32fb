"""`overnight-watchdog --once`: what it sees and whom it would take first; it writes nothing and touches nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.arena import boot_id, environment, start_ticks

DEADLINE_S = 30.0
FIELDS = {
    "level": str,
    "limit_bytes": int,
    "limit_source": str,
    "usage_bytes": int,
    "headroom_bytes": int,
    "headroom_source": str,
    "firm_headroom_bytes": int,
    "slow_bytes": int,
    "swap_bytes": int,
    "slope_bytes_per_s": (int, type(None)),
    "exhaustion_s": (float, int, type(None)),
    "bounds": list,
    "victims": list,
    "acts": bool,
    "abilities": dict,
}
BOUND = {"source": str, "limit_bytes": int, "usage_bytes": int, "headroom_bytes": int, "firm_headroom_bytes": int}
VICTIM = {
    "pid": int,
    "role": str,
    "cell": str,
    "own_bytes": int,
    "loss_s": float,
    "slope_bytes_per_s": int,
    "shrinks": bool,
}
ABILITIES = {
    *("mlock", "oom_score_adj", "pidfd", "process_mrelease", "psi", "psi_trigger", "cgroup_counters"),
    "budget_cgroup",
}
HOLDS = "import sys, time; held = b'x' * (int(sys.argv[1]) << 20); print('ready', flush=True); time.sleep(600)"


class Home:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.cells = folder / "var" / "run" / "cells"
        self.cells.mkdir(parents=True)

    def process(self, mib: int, **registration: Any) -> int:
        """A registered process that holds so much; its pid."""
        process = subprocess.Popen([sys.executable, "-S", "-E", "-c", HOLDS, str(mib)], stdout=subprocess.PIPE)
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        entry = {
            "v": 1,
            "boot_id": boot_id(),
            "pid": process.pid,
            "start_ticks": start_ticks(process.pid),
            "role": "cell",
            "cell": f"night/{mib}",
            "started_s": time.monotonic(),
            **registration,
        }
        (self.cells / f"{process.pid}.json").write_text(json.dumps(entry))
        return process.pid

    def files(self) -> dict[str, tuple[int, float]]:
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.is_file() or path.is_dir()
        }

    def once(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "overnight_watchdog", "--home", str(self.folder), "--once", *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def view(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.once("--json", *arguments))
        return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with ExitStack() as stack:
        yield Home(tmp_path / "h", stack)


def is_a(record: dict[str, Any], schema: dict[str, Any]) -> None:
    """Exactly these fields, each of its type."""
    assert set(record) == set(schema)
    for name, kind in schema.items():
        assert isinstance(record[name], kind), (name, record[name])


def test_every_field_is_there_and_of_its_type(home: Home) -> None:
    home.process(20)
    view = home.view()
    is_a(view, FIELDS)
    assert view["bounds"] and view["victims"]
    for bound in view["bounds"]:
        is_a(bound, BOUND)
    for victim in view["victims"]:
        is_a(victim, VICTIM)
    assert set(view["abilities"]) == ABILITIES
    for ability in view["abilities"].values():
        is_a(ability, {"ok": bool, "detail": str})
    assert view["acts"] is True
    assert view["level"] in ("ok", "hold", "shrink", "freeze", "evict", "kill")


def test_the_figures_belong_together(home: Home) -> None:
    view = home.view("--budget", "1TiB")
    limits = [bound["limit_bytes"] for bound in view["bounds"]]
    assert limits == sorted(limits)
    assert (view["limit_bytes"], view["limit_source"]) == (limits[0], view["bounds"][0]["source"])
    assert {"budget", "machine"} <= {bound["source"] for bound in view["bounds"]}
    for bound in view["bounds"]:
        assert 0 <= bound["headroom_bytes"] <= bound["firm_headroom_bytes"] <= bound["limit_bytes"]
    assert view["headroom_source"] in [bound["source"] for bound in view["bounds"]]
    total = int(Path("/proc/meminfo").read_text().split("SwapTotal:")[1].split()[0]) * 1024
    assert view["swap_bytes"] == total


def test_the_victims_are_in_the_order_in_which_they_would_be_taken(home: Home) -> None:
    now_s = time.monotonic()
    costly = home.process(60, last_turn_s=now_s - 500)
    cheap = home.process(61, last_turn_s=now_s, shrinks=True)
    replayed = home.process(62, last_turn_s=now_s, replay_s=90.0)
    idle = home.process(30, role="warm", cell="", cells=0)
    busy = home.process(90, role="warm", cell="", cells=2)
    home.process(40, role="daemon", cell="")
    (home.cells / f"{os.getpid()}.json").write_text(
        json.dumps({"v": 1, "boot_id": boot_id(), "pid": os.getpid(), "start_ticks": 1, "role": "cell"})
    )
    victims = home.view()["victims"]
    assert [victim["pid"] for victim in victims] == [idle, cheap, replayed, costly, busy]
    by_pid = {victim["pid"]: victim for victim in victims}
    assert 61 * 2**20 <= by_pid[cheap]["own_bytes"] < 80 * 2**20
    assert 500 <= by_pid[costly]["loss_s"] < 520 and 90 <= by_pid[replayed]["loss_s"] < 110
    assert by_pid[cheap]["shrinks"] is True and by_pid[costly]["shrinks"] is False
    assert by_pid[cheap]["cell"] == "night/61"


def test_under_pressure_it_still_touches_nobody_and_writes_nothing(home: Home) -> None:
    """A budget that is exceeded by far: the level says kill, and that is all."""
    pid = home.process(60)
    (home.folder / "var" / "run" / "supervisord.pid").write_text(str(pid))
    before = home.files()
    view = home.view("--budget", "20MiB")
    assert (view["level"], view["limit_source"], view["headroom_bytes"]) == ("kill", "budget", 0)
    assert view["usage_bytes"] >= 60 * 2**20
    assert [victim["pid"] for victim in view["victims"]] == [pid]
    assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "SR"
    assert home.files() == before


def test_for_people(home: Home) -> None:
    pid = home.process(60)
    shown = home.once("--budget", "1TiB")
    lines = shown.splitlines()
    assert lines[0].startswith("limit ") and " MiB" in lines[0]
    assert any(line.split()[0] == "level" for line in lines)
    (victim,) = [line for line in lines if line.startswith("victim 1")]
    assert f"night/60 (pid {pid})" in victim and "of work would be lost" in victim


def test_a_stopped_process_is_shown_and_not_continued(home: Home) -> None:
    """Only a watchdog that stays thaws what it finds."""
    pid = home.process(30)
    os.kill(pid, 19)
    assert [victim["pid"] for victim in home.view()["victims"]] == [pid]
    assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.parametrize(
    "arguments", [["--json"], ["--once", "--home", "/nowhere/at/all"], ["--once", "--budget", "x"]]
)
def test_bad_input_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "overnight_watchdog", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("overnight-watchdog: ") and done.stderr.count("\n") == 1

"""The loop under a fake clock and fake samples; the limits it reads; what it never imports and never does."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import overnight_watchdog
from overnight_watchdog.assess import Thresholds
from overnight_watchdog.journal import EventLog, PressureFile, read_pressure
from overnight_watchdog.loop import SUMMARY_S, Eye, Watchdog
from overnight_watchdog.sample import Sample, SampleError

LIMIT = 1000 * 2**20
PACKAGE = Path(overnight_watchdog.__path__[0])


class World:
    """A watchdog whose looks, clock and disk are ours. percent: the headroom, None = nothing is seen."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.now_s = 1000.0
        self.percent: float | None = 50.0
        self.watchdog = Watchdog(
            look=self.look,
            heartbeat=PressureFile(home / "var" / "run" / "pressure.json"),
            log=EventLog(home / "var" / "log" / "watchdog.jsonl"),
            identity={"boot_id": "b", "pid": 7, "start_ticks": 9},
            clock=lambda: self.now_s,
        )

    def look(self) -> Sample:
        if self.percent is None:
            raise SampleError("nothing to be seen")
        headroom = round(LIMIT * self.percent / 100)
        return Sample(self.now_s, LIMIT, "machine", LIMIT - headroom, headroom, "machine")

    def step(self, percent: float | None, after_s: float = 1.0) -> None:
        self.percent = percent
        self.watchdog.step()
        self.now_s += after_s

    @property
    def heartbeat(self) -> dict[str, Any]:
        return read_pressure(self.home / "var" / "run" / "pressure.json")

    @property
    def events(self) -> list[dict[str, Any]]:
        path = self.home / "var" / "log" / "watchdog.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_heartbeat_holds_the_contracts_fields(world: World) -> None:
    world.step(50)
    first = world.heartbeat
    assert list(first) == sorted(first)
    assert {name: value for name, value in first.items() if name != "checksum"} == {
        "v": 1,
        "boot_id": "b",
        "pid": 7,
        "start_ticks": 9,
        "level": "ok",
        "limit_bytes": LIMIT,
        "limit_source": "machine",
        "headroom_bytes": LIMIT // 2,
        "usage_bytes": LIMIT // 2,
        "slope_bytes_per_s": None,
        "exhaustion_s": None,
        "sequence": 1,
        "monotonic_s": 1000.0,
    }
    world.step(40)
    second = world.heartbeat
    assert (second["sequence"], second["slope_bytes_per_s"]) == (2, LIMIT // 10)


def test_every_change_of_level_is_one_line_and_a_sample_is_none(world: World) -> None:
    for percent in (50, 50, 19, 19, 21, 23, 14, 4):
        world.step(percent)
    assert [(e["event"], e["level"], e["from"], e["to"]) for e in world.events] == [
        ("pressure_changed", "warning", "ok", "hold"),
        ("pressure_changed", "info", "hold", "ok"),
        ("pressure_changed", "warning", "ok", "shrink"),
        ("pressure_changed", "warning", "shrink", "kill"),
    ]
    assert world.events[0]["headroom_bytes"] == LIMIT * 19 // 100
    assert world.heartbeat["level"] == "kill"


def test_a_summary_a_minute(world: World) -> None:
    for second in range(int(3 * SUMMARY_S) + 1):
        world.step(30 if second == 70 else 50)
    summaries = world.events
    assert [event["event"] for event in summaries] == ["pressure_sampled"] * 3
    assert [event["sequence"] for event in summaries] == [61, 121, 181]
    assert [event["lowest_headroom_bytes"] for event in summaries] == [
        LIMIT // 2,
        LIMIT * 3 // 10,
        LIMIT // 2,
    ]
    assert all(event["own_rss_bytes"] > 2**20 for event in summaries)
    assert all(event["pressure"] == "ok" and event["level"] == "info" for event in summaries)


def test_blindness_publishes_nothing_and_is_told_once_a_minute(world: World) -> None:
    world.step(50)
    before = world.heartbeat
    for _ in range(int(SUMMARY_S) + 1):
        world.step(None)
    assert world.heartbeat == before
    assert [(event["event"], event["level"]) for event in world.events] == [("sampling_failed", "error")] * 2
    world.step(10)
    assert world.heartbeat["sequence"] == 2
    assert world.heartbeat["slope_bytes_per_s"] is None  # no slope across the gap


def test_a_disk_that_refuses_everything_does_not_stop_it(world: World) -> None:
    (world.home / "var").write_text("a file where the folder should be")
    for _ in range(int(SUMMARY_S) + 1):
        world.step(15)
    (world.home / "var").unlink()
    world.step(15, after_s=SUMMARY_S)
    assert world.heartbeat["sequence"] == SUMMARY_S + 2
    world.step(15)
    assert world.events[-1]["heartbeats_lost"] == SUMMARY_S + 1
    assert world.events[-1]["lines_lost"] == 2


def test_run_tells_of_its_start_and_its_end(world: World) -> None:
    reasons: Iterator[str | None] = iter([None, None, "SIGTERM"])
    world.watchdog.run(lambda: next(reasons), limit_bytes=LIMIT)
    started, stopped = world.events
    assert (started["event"], started["acts"], started["limit_bytes"]) == ("watchdog_started", False, LIMIT)
    assert started["thresholds"]["hold_percent"] == Thresholds().hold_percent
    assert (stopped["event"], stopped["reason"], stopped["sequence"]) == ("watchdog_stopped", "SIGTERM", 3)


def test_the_eye_finds_its_cgroups_once_a_minute_and_reads_limits_each_time(tmp_path: Path) -> None:
    proc, sys_root = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/a\n")
    for name, limit in (("a", 2**24), ("b", 2**23)):
        (sys_root / "fs" / "cgroup" / name).mkdir(parents=True)
        (sys_root / "fs" / "cgroup" / name / "memory.max").write_text(f"{limit}\n")
        (sys_root / "fs" / "cgroup" / name / "memory.current").write_text(f"{2**20}\n")
    now = [0.0]
    eye = Eye(budget_bytes=None, tree_root=lambda: None, clock=lambda: now[0], proc_root=proc, sys_root=sys_root)
    assert (eye.look().limit_bytes, eye.look().headroom_bytes) == (2**24, 2**24 - 2**20)
    (sys_root / "fs" / "cgroup" / "a" / "memory.max").write_text(f"{2**22}\n")
    assert eye.look().limit_bytes == 2**22
    (proc / "self" / "cgroup").write_text("0::/b\n")
    assert eye.look().limit_bytes == 2**22
    now[0] = SUMMARY_S
    assert eye.look().limit_bytes == 2**23


@pytest.mark.parametrize(("root", "used"), [(os.getpid, True), (lambda: None, False)])
def test_a_budget_counts_the_tree_only(root: Callable[[], int | None], used: bool) -> None:
    eye = Eye(budget_bytes=2**20, tree_root=root)
    sample = eye.look()
    assert (sample.limit_bytes, sample.limit_source) == (2**20, "budget")
    assert (sample.usage_bytes > 2**20) is used
    assert (sample.headroom_bytes == 0) is used


def test_it_imports_nothing_heavy_and_nothing_of_the_daemon() -> None:
    """A subprocess of its own, since this one has imported everything."""
    modules = ", ".join(f"overnight_watchdog.{file.stem}" for file in PACKAGE.glob("[a-z_]*.py"))
    code = f"import sys, {modules}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    loaded = {name.split(".")[0] for name in shown.stdout.split()}
    assert "overnight_watchdog" in loaded
    foreign = {"overnight", "torch", "structlog", "logging", "pydantic", "yaml", "supervisor", "numpy"}
    assert loaded & foreign == set()


def test_only_the_standard_library_and_psutil_are_imported() -> None:
    allowed = set(sys.stdlib_module_names) | {"psutil", "overnight_watchdog"}
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file


def test_nothing_in_this_version_signals_anybody() -> None:
    """It says so; a call that could signal would make it a lie."""
    calls = {
        "kill",
        "killpg",
        "pidfd_open",
        "pidfd_send_signal",
        "send_signal",
        "terminate",
        "suspend",
        "resume",
    }
    for file in PACKAGE.glob("*.py"):
        used = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert used & calls == set(), file

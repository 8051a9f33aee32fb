"""Daemon and watchdog from the daemon's side: thawing, evictions and their sentence, beats, shrinks, the budget."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.home import Home, environment
from helpers.verdict_ring import verdict, write_ring
from helpers.waiting import until
from overnight import procfs
from overnight.cells.command_tree import descendants
from overnight.dispatch import budget_cgroup, records
from overnight.dispatch.beat import BEAT_BYTES
from overnight.dispatch.signals import Handle

KEY = "baseline_script_run1"
GRID: dict[str, Any] = {"scaffolds": [1], "limits": {"max_iterations": 30}, "options": {"delay_s": 0.05}}


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    quiet = Home(tmp_path / "quiet")
    try:
        quiet.submit(**GRID)
        quiet.start()
        quiet.wait_done()
        return quiet.transcripts()
    finally:
        quiet.end()


def running_cell(home: Home, turns: int = 2) -> Handle:
    """The one cell, once it has so many turns on disk."""
    until(lambda: any(data.count(b"\n") > turns for data in home.transcripts().values()))
    (handle,) = until(lambda: home.registered("cell"))
    return handle


@contextmanager
def watched(home: Home, **changes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that only beats, twenty times a second: it stands for a watchdog that froze a cell."""
    program = (
        "import os, sys, time\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from helpers.verdict_ring import heartbeat\n"
        f"fd = os.open({str(home.paths.pressure)!r}, os.O_WRONLY | os.O_CREAT)\n"
        "while True:\n"
        f"    os.pwrite(fd, heartbeat(os.getpid(), **{changes!r}), 0)\n"
        "    time.sleep(0.05)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        until(lambda: home.paths.pressure.exists() and records.whole(home.paths.pressure.read_bytes()))
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("says_so", [True, False])
def test_a_frozen_cell_outlives_its_watchdog_and_ends_with_the_same_bytes(
    home: Home, undisturbed: dict[str, bytes], how: signal.Signals, says_so: bool
) -> None:
    """Within 6 s, also when the heartbeat does not tell of the freeze yet."""
    home.submit(**GRID)
    home.start()
    cell = running_cell(home)
    # A pressure of `freeze` admits nobody: the cell is there before it.
    with watched(home, frozen=int(says_so), level="freeze" if says_so else "ok") as watchdog:
        os.kill(cell.pid, signal.SIGSTOP)
        until(lambda: procfs.stopped(cell.pid))
        time.sleep(1.2)
        assert procfs.stopped(cell.pid), "a living watchdog's freeze is its own business"
        os.kill(watchdog.pid, how)
        began = time.monotonic()
        until(lambda: not procfs.stopped(cell.pid), 7.0)
        assert time.monotonic() - began < 6.0
        home.wait_done()
    assert home.transcripts() == undisturbed
    assert home.log("cells_thawed")[0]["cells"] == [f"night/{KEY}"]
    assert {cell["attempts"] for cell in home.cells()} == {1}


WORKS = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
for step in range(30):
    print(step, flush=True)
    time.sleep(0.05)
child.kill()
"""


def running_command(home: Home) -> tuple[Handle, Path]:
    """The one command's runner, once it works, and its stdout. It takes 1.5 s, and has no more than 4 s."""
    program = f"{sys.executable} -S -E -c {shlex.quote(WORKS)}"
    home("submit", "--command", program, "--name", "work", "--timeout", "4s", "--tries", "1", cwd=home.paths.home)
    home.start()
    log = home.paths.cell_results("work", "command") / "stdout.log"
    until(lambda: log.exists() and "2" in log.read_text())
    (runner,) = until(lambda: home.registered("command"))
    return runner, log


def freeze_tree(runner: Handle) -> list[int]:
    """As the watchdog does: the runner first, then everybody below it."""
    pids = [runner.pid, *(member.pid for member in descendants(runner.pid))]
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: all(procfs.stopped(pid) for pid in pids))
    return pids


def worked_on(home: Home, log: Path) -> None:
    """It has run to its end, in its first attempt, within its time limit."""
    home.wait_done()
    assert home.cells()[0]["attempts"] == 1
    assert log.read_text().split() == [str(step) for step in range(30)]
    assert home.log("cells_thawed")[0]["cells"] == ["work/command"]


def test_without_a_watchdog_a_frozen_command_runs_again_within_seconds(home: Home) -> None:
    runner, log = running_command(home)
    daemon = json.loads(home.paths.daemon_state.read_bytes())["pid"]
    os.kill(daemon, signal.SIGSTOP)  # or it may thaw the first before the last was seen to stand
    try:
        pids = freeze_tree(runner)
    finally:
        os.kill(daemon, signal.SIGCONT)
    until(lambda: not any(procfs.stopped(pid) for pid in pids), 5.0)
    worked_on(home, log)


def test_without_a_watchdog_a_frozen_commands_time_limit_waits(home: Home) -> None:
    """The daemon stands still as well (a locked queue, a machine that stalls), so the freeze lasts beyond the limit."""
    runner, log = running_command(home)
    daemon = json.loads(home.paths.daemon_state.read_bytes())["pid"]
    os.kill(daemon, signal.SIGSTOP)
    pids = freeze_tree(runner)
    time.sleep(4.5)
    assert all(procfs.stopped(pid) for pid in pids)
    os.kill(daemon, signal.SIGCONT)
    until(lambda: not any(procfs.stopped(pid) for pid in pids), 5.0)
    worked_on(home, log)


def test_a_command_that_outlives_its_watchdog_has_its_whole_time(home: Home) -> None:
    runner, log = running_command(home)
    with watched(home, frozen=1, level="freeze") as watchdog:
        pids = freeze_tree(runner)
        time.sleep(4.5)
        assert all(procfs.stopped(pid) for pid in pids), "a living watchdog's freeze is its own business"
        watchdog.kill()
        until(lambda: not any(procfs.stopped(pid) for pid in pids), 5.0)
    worked_on(home, log)


def test_an_eviction_is_told_in_a_sentence_and_costs_no_try(home: Home, undisturbed: dict[str, bytes]) -> None:
    home.submit(**GRID)
    home.start()
    cell = running_cell(home)
    write_ring(home.paths.verdicts, verdict(cell.pid, cell.start_ticks))
    cell.kill()
    (ended,) = until(lambda: home.log("cell_ended"))
    assert (ended["outcome"], ended["status"], ended["reason_code"]) == ("evicted", "pending", "memory_pressure")
    assert (ended["level"], ended["pressure"], ended["own_bytes"]) == ("warning", "evict", 310 << 20)
    sentence = (
        "the watchdog took it out: 181.2 MiB of 2.0 GiB (budget) were left and going at 52.3 MiB/s; "
        "it held 310.0 MiB alone, and 1.2 s of work were lost"
    )
    assert sentence in home("show", KEY).stdout
    home.wait_done()
    assert home.transcripts() == undisturbed
    assert home.cells()[0]["tries_used"] == 0
    first = home.json("show", KEY)["attempts"][0]
    assert (first["outcome"], first["evidence"]["headroom_bytes"]) == ("evicted", 190_000_000)


def test_cells_of_an_evicted_warm_server_are_evicted(home: Home, undisturbed: dict[str, bytes]) -> None:
    home.submit(**GRID)
    home.start()
    running_cell(home)
    (warm,) = home.registered("warm")
    write_ring(home.paths.verdicts, verdict(warm.pid, warm.start_ticks, role="warm", trigger="thrash"))
    warm.kill()
    (ended,) = until(lambda: home.log("cell_ended"))
    assert (ended["outcome"], ended["reason_code"]) == ("evicted", "thrashing")
    assert "took out its warm server" in home("show", KEY).stdout
    home.wait_done()
    assert home.transcripts() == undisturbed


def test_a_warm_server_that_is_evicted_while_it_loads_is_no_broken_model(home: Home) -> None:
    home.submit(**GRID | {"options": {"load_s": 60.0}})
    home.start()
    seen: set[int] = set()
    for _ in range(6):  # five deaths while loading, in a row, would be the model's own fault

        def another() -> Handle | None:
            return next((one for one in home.registered("warm") if one.pid not in seen), None)

        warm = until(another)
        assert warm is not None
        seen.add(warm.pid)
        write_ring(home.paths.verdicts, verdict(warm.pid, warm.start_ticks, role="warm"))
        warm.kill()
    until(lambda: len(home.log("cell_ended")) == 6)
    assert {line["outcome"] for line in home.log("cell_ended")} == {"evicted"}
    # ... and from the third on it is slowed down.
    assert [line["delay_s"] for line in home.log("cell_ended")] == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0]


def test_a_verdict_about_somebody_else_is_none(home: Home) -> None:
    home.submit(**GRID)
    home.start()
    cell = running_cell(home)
    write_ring(home.paths.verdicts, verdict(cell.pid, cell.start_ticks - 1), verdict(cell.pid + 1, cell.start_ticks))
    cell.kill()
    (ended,) = until(lambda: home.log("cell_ended"))
    assert (ended["outcome"], ended["reason_code"]) == ("lost", "killed")


def test_asked_to_shrink_it_says_how_much_came_back(home: Home, undisturbed: dict[str, bytes]) -> None:
    grid = GRID | {"options": {"delay_s": 0.05, "cache_bytes": "48MiB"}}
    home.submit(**grid)
    home.start()
    cell = running_cell(home)
    (entry,) = home.registrations("cell")
    assert entry["shrinks"] is True
    (warm,) = home.registered("warm")
    for pid in (cell.pid, warm.pid):
        os.kill(pid, signal.SIGUSR1)
    (shrunk,) = until(lambda: home.log("cell_shrunk"))
    assert shrunk["cell"] == KEY
    assert shrunk["freed_bytes"] >= 47 << 20
    until(lambda: home.log("warm_shrunk"))
    home.wait_done()
    assert {cell["attempts"] for cell in home.cells()} == {1}
    turns = [data.splitlines()[1:] for data in home.transcripts().values()]
    assert [len(lines) for lines in turns] == [30]
    # The header names the option; what was said is the same as without it.
    said = [[json.loads(line)["reply_ids"] for line in lines] for lines in turns]
    quiet = [[json.loads(line)["reply_ids"] for line in data.splitlines()[1:]] for data in undisturbed.values()]
    assert said == quiet


# -- the beat -----------------------------------------------------------------------------------------------------


def beat(home: Home) -> dict[str, Any] | None:
    try:
        data = home.paths.beat.read_bytes()
    except FileNotFoundError:
        return None
    assert len(data) == BEAT_BYTES
    return records.whole(data)


def beats(home: Home, pid: int, count: int = 2) -> None:
    """Wait until the daemon has beaten so many times more."""
    first = until(lambda: beat(home))
    assert first is not None
    assert (first["pid"], first["start_ticks"], first["stopping"]) == (pid, procfs.start_ticks(pid), False)
    until(lambda: (beat(home) or first)["sequence"] >= first["sequence"] + count, 10)
    last = beat(home)
    assert last is not None
    assert time.monotonic() - last["monotonic_s"] < 3.0


def test_the_daemon_beats_while_it_works_and_says_when_it_stops(home: Home) -> None:
    home.submit(**GRID)
    daemon = home.start()
    beats(home, daemon.pid)
    assert home.stop() == 0
    last = beat(home)
    assert last is not None
    assert last["stopping"] is True


def test_it_beats_all_through_a_long_stop(home: Home) -> None:
    """A warm server that hangs keeps the daemon waiting: it says all the time that it is stopping."""
    home.paths.config.write_text(home.paths.config.read_text().replace("stop_grace_s = 2.0", "stop_grace_s = 4.0"))
    home.submit(**GRID | {"limits": {"max_iterations": 1000}})
    daemon = home.start()
    running_cell(home)
    os.kill(home.registered("warm")[0].pid, signal.SIGSTOP)
    daemon.terminate()
    until(lambda: (beat(home) or {}).get("stopping"))
    first = beat(home)
    assert first is not None
    until(lambda: (beat(home) or first)["sequence"] >= first["sequence"] + 2, 3.9)
    assert daemon.poll() is None
    assert home.stop() == 0


@pytest.mark.root
def test_a_full_disk_does_not_make_the_daemon_look_silent(tmp_path: Path) -> None:
    var = tmp_path / "h" / "var"
    var.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(var)], check=True)
    home = Home(tmp_path / "h")
    try:
        home.submit(**GRID | {"limits": {"max_iterations": 10_000}})
        daemon = home.start()
        beats(home, daemon.pid, 1)
        running_cell(home)
        with (var / "ballast").open("ab", buffering=0) as stream:
            size = 2**16
            while size:
                try:
                    stream.write(b"x" * size)
                except OSError:
                    size //= 4
        assert os.statvfs(var).f_bavail == 0
        seen = home.paths.daemon_state.read_bytes()
        beats(home, daemon.pid, 3)
        assert home.paths.daemon_state.read_bytes() == seen  # the other heartbeat is silenced by it
    finally:
        home.end()
        subprocess.run(["umount", "-l", str(var)], check=True)


# -- the budget ---------------------------------------------------------------------------------------------------


@pytest.fixture
def budget_home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path / "h", settings='[memory]\nbudget = "512MiB"\n')
    try:
        yield found
    finally:
        found.end()


def cgroup_of(home: Home) -> Path:
    """The folder that the daemon registered; skips where it can have none."""
    until(lambda: home.log("budget_cgroup_joined") or home.log("budget_cgroup_missing"))
    if missing := home.log("budget_cgroup_missing"):
        assert home.registrations("daemon")[0]["cgroup"] is None
        pytest.skip(missing[0]["why"])
    (entry,) = until(lambda: home.registrations("daemon"))
    return Path(entry["cgroup"])


def members(folder: Path) -> set[int]:
    return {int(line) for file in folder.rglob("cgroup.procs") for line in file.read_text().split()}


@pytest.mark.root
def test_a_budget_is_a_cgroup_around_all_that_the_daemon_starts(budget_home: Home) -> None:
    budget_home.submit(**GRID)
    daemon = budget_home.start()
    folder = cgroup_of(budget_home)
    assert folder.name == budget_cgroup.name_of(budget_home.paths.home)
    limits = [folder / name for name in ("memory.limit_in_bytes", "memory.max")]
    assert [path.read_text().strip() for path in limits if path.exists()] == [str(512 << 20)]
    cell = running_cell(budget_home)
    (warm,) = budget_home.registered("warm")
    assert {daemon.pid, warm.pid, cell.pid} <= members(folder)
    budget_home.kill()
    assert folder.is_dir()
    second = budget_home.start()
    until(lambda: second.pid in members(folder))
    budget_home.wait_done()
    assert budget_home.stop() == 0
    assert not folder.exists()


@pytest.mark.root
def test_without_the_right_to_make_one_everything_works(budget_home: Home) -> None:
    """The daemon runs in a mount namespace whose cgroup file systems are read-only."""
    command = [sys.executable, "-m", "overnight", "--home", str(budget_home.paths.home), "daemon"]
    read_only = (
        "import subprocess, sys\n"
        "lines = open('/proc/self/mountinfo').read().splitlines()\n"
        "for line in lines:\n"
        "    if line.split(' - ')[1].split()[0].startswith('cgroup'):\n"
        "        subprocess.run(['mount', '-o', 'remount,bind,ro', line.split()[4]], check=True)\n"
    )
    inside = f'{sys.executable} -c "$0" && exec "$@"'
    budget_home.submit(**GRID)
    daemon = subprocess.Popen(["unshare", "--mount", "sh", "-c", inside, read_only, *command])
    try:
        (line,) = until(lambda: budget_home.log("budget_cgroup_missing"))
        assert "Read-only" in line["why"]
        assert line["level"] == "info"
        (entry,) = until(lambda: budget_home.registrations("daemon"))
        assert entry["cgroup"] is None
        budget_home.wait_done()
    finally:
        daemon.terminate()
        assert daemon.wait(30) == 0


# -- a watchdog that hangs, under the real supervisord --------------------------------------------------------------


def supervised_pid(home: Home, name: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(home.paths.supervisord_conf), "pid", name],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    return int(done.stdout) if done.stdout.strip().isdigit() else 0


def test_a_hanging_watchdog_is_restarted_and_its_frozen_cell_runs(tmp_path: Path) -> None:
    home = Home(tmp_path / "h", watchdog=True)
    try:
        home.submit(**GRID | {"limits": {"max_iterations": 160}})
        home("up")
        cell = running_cell(home)
        watchdog = supervised_pid(home, "watchdog")
        os.kill(watchdog, signal.SIGSTOP)
        os.kill(cell.pid, signal.SIGSTOP)
        began = time.monotonic()
        until(lambda: not procfs.stopped(cell.pid), 6.5)
        assert time.monotonic() - began < 6.0
        until(lambda: supervised_pid(home, "watchdog") not in (0, watchdog), 20)
        steps = [line["step"] for line in home.log("watchdog_restarted")]
        assert steps == ["TERM", "KILL"]  # a stopped process hears no SIGTERM
        assert home.log("watchdog_restarted")[0]["supervisord_answered"] is True
        until(lambda: home.log("watchdog_back"), 10)
        assert len(home.log("watchdog_silent")) == 1
        home.wait_done()
    finally:
        home.end()

"""Under the real supervisord: up, heal, down, as a user does it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.home import Home, environment
from helpers.waiting import until
from overnight import procfs
from overnight.dispatch.signals import Handle


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "h", watchdog=True)


@pytest.fixture(autouse=True)
def _nothing_left(home: Home) -> object:
    yield
    home.end()


def supervisorctl(home: Home, *args: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(home.paths.supervisord_conf), *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        check=False,
    )
    return done.stdout


def program(home: Home, name: str) -> Handle:
    """The process of a supervised program."""
    line = next(line for line in supervisorctl(home, "status").splitlines() if line.startswith(name))
    assert "RUNNING" in line, line
    handle = Handle.open(int(line.split("pid ")[1].split(",")[0]))
    assert handle is not None
    return handle


def test_run_to_the_end_and_down(home: Home) -> None:
    grid = home.grid(options={"delay_s": 0.05})
    done = home("run", str(grid))
    assert "2 of 2 cells done" in done.stdout
    assert "watchdog" in supervisorctl(home, "status", cwd=Path("/"))
    daemon = program(home, "daemon")
    supervisord = int(home.paths.supervisor_pid.read_text())
    home("down")
    assert daemon.ended()
    assert procfs.start_ticks(supervisord) is None
    assert "not running" in home("down").stdout


def test_run_says_no_when_a_cell_fails(home: Home) -> None:
    grid = home.grid(options={"fail_at_turn": 2}, tries=1)
    done = home("run", str(grid), code=1)
    assert "0 of 2 cells done" in done.stdout
    assert "failed" in done.stdout


def test_killed_programs_come_back(home: Home) -> None:
    home.submit(limits={"max_iterations": 260})
    home("up")
    for name in ("daemon", "watchdog"):
        until(lambda: home.statuses().get("running") == 2)
        victim = program(home, name)
        victim.kill()
        assert victim.wait(5)

        def back(name: str = name, old: int = victim.pid) -> bool:
            return "RUNNING" in supervisorctl(home, "status", name) and program(home, name).pid != old

        until(back)
    home.wait_done()


def test_killed_supervisord_is_healed_by_up_and_leaves_no_orphan(home: Home) -> None:
    home.submit(limits={"max_iterations": 60})
    home("up")
    until(lambda: home.statuses().get("running") == 2)
    left = [program(home, "daemon"), program(home, "watchdog"), *home.registered("cell"), *home.registered("warm")]
    os.kill(int(home.paths.supervisor_pid.read_text()), signal.SIGKILL)
    for handle in left:
        assert handle.wait(5)
    assert "supervisord started" in home("up").stdout
    home.wait_done()
    assert "0 with a problem" in home("verify").stdout


def test_up_twice_changes_nothing(home: Home) -> None:
    home("up")
    daemon = program(home, "daemon")
    assert "already up" in home("up").stdout
    assert program(home, "daemon").pid == daemon.pid


def test_stopped_program_is_started_by_up(home: Home) -> None:
    home("up")
    supervisorctl(home, "stop", "daemon")
    assert "daemon started" in home("up").stdout


def test_ctrl_c_detaches_and_the_work_goes_on(home: Home) -> None:
    grid = home.grid(limits={"max_iterations": 40})
    follower = subprocess.Popen(
        [sys.executable, "-m", "overnight", "--home", str(home.paths.home), "run", str(grid)],
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: home.paths.queue.exists() and home.statuses().get("running") == 2)
    follower.send_signal(signal.SIGINT)
    said, _ = follower.communicate(timeout=20)
    assert follower.returncode == 0
    assert "the work goes on" in said
    home.wait_done()


def test_the_socket_is_private(home: Home) -> None:
    home("up")
    mode = home.paths.supervisor_socket.stat().st_mode & 0o777
    assert mode == 0o700
    assert home.paths.var.stat().st_mode & 0o077 == 0


def test_status_tells_of_everything(home: Home) -> None:
    home.submit(options={"delay_s": 1.0})
    home("up")
    until(lambda: len(home.registered("cell")) == 2)

    def complete() -> dict[str, Any] | None:
        seen: dict[str, Any] = home.json("status")
        return seen if len(seen["running"]) == 2 and all(row["pid"] for row in seen["running"]) else None

    found = until(complete)
    assert found["daemon"]["slots"] == 2
    assert found["watchdog"]["level"] in ("ok", "hold")
    assert found["grids"][0]["total"] == 2
    until(lambda: home.json("status")["grids"][0]["eta_s"])  # before any cell is done
    assert found["warm"][0]["pss_bytes"] > 0
    assert all(row["uss_bytes"] > 0 for row in found["running"])
    shown = home("status").stdout
    for words in ("daemon    running", "watchdog  pressure", "warm server", "PSS"):
        assert words in shown


def test_several_homes_live_side_by_side(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other", watchdog=True)
    try:
        for one in (home, other):
            one.submit()
            one("up")
        for one in (home, other):
            one.wait_done()
        assert home.transcripts() == other.transcripts()
        other("down")
        assert home.json("status")["daemon"] is not None
    finally:
        other.end()


def test_logs_are_json_lines(home: Home) -> None:
    home("run", str(home.grid()))
    for name in ("daemon.jsonl", "watchdog.jsonl"):
        lines = (home.paths.log / name).read_text().splitlines()
        assert lines
        for line in lines:
            record = json.loads(line)
            assert list(record)[:3] == ["ts", "level", "event"]
            assert record["ts"].endswith("Z")


def test_up_beside_a_daemon_started_by_hand_says_so(home: Home) -> None:
    by_hand = home.start()
    until(lambda: home.paths.daemon_state.exists())
    assert f"pid {by_hand.pid}, not started by this supervisord" in home("up", code=2).stderr


def test_two_at_once_start_one(home: Home) -> None:
    home.submit(limits={"max_iterations": 20})
    command = [sys.executable, "-m", "overnight", "--home", str(home.paths.home), "up"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    home.wait_done()


def test_a_stopped_supervisord_is_named_and_not_waited_for(home: Home) -> None:
    home("up")
    pid = int(home.paths.supervisor_pid.read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "does not answer" in home("up", code=2).stderr
    finally:
        os.kill(pid, signal.SIGCONT)


def test_up_and_down_while_it_is_stopping(home: Home) -> None:
    home("up")
    command = [sys.executable, "-m", "overnight", "--home", str(home.paths.home)]
    first = subprocess.Popen([*command, "down"])
    assert subprocess.run([*command, "down"], check=False).returncode == 0
    assert first.wait(60) == 0
    home("up")


def supervised_processes(home: Home) -> list[str]:
    """Which of supervisord, daemon and watchdog are alive for this home."""
    names = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(home.paths.home) in words:
            names += [name for name in ("supervisord", "overnight-watchdog", " daemon") if name in words]
    return sorted(names)


@pytest.mark.parametrize("gone", ["var/run", pytest.param("socket", marks=pytest.mark.slow)])
def test_an_emptied_run_folder_never_makes_two(home: Home, gone: str) -> None:
    home.submit(limits={"max_iterations": 200})
    home("up")
    until(lambda: home.statuses().get("running") == 2)
    if gone == "socket":
        home.paths.supervisor_socket.unlink()
    else:
        # At one stroke: the heartbeats are made anew while their folder is being emptied.
        shutil.rmtree(home.paths.run.rename(home.paths.var / "gone"))
    assert "had lost its socket and was stopped" in home("up").stdout
    assert supervised_processes(home) == [" daemon", "overnight-watchdog", "supervisord"]
    home.wait_done()
    assert "0 with a problem" in home("verify").stdout
    home.paths.supervisor_socket.unlink()
    assert "stopped" in home("down").stdout
    until(lambda: supervised_processes(home) == [])


@pytest.mark.slow  # each of them hanging alone is tried in every run: test_guarding.py, test_frozen_and_silent.py
def test_both_hang_and_up_restarts_the_daemon_which_restarts_the_watchdog(home: Home) -> None:
    """One of them alone is restarted by the other one; with both stopped it takes somebody from outside."""
    home.submit(limits={"max_iterations": 100})
    home("up")
    until(lambda: home.statuses().get("running") == 2)
    watchdog = program(home, "watchdog")
    os.kill(watchdog.pid, signal.SIGSTOP)
    os.kill(program(home, "daemon").pid, signal.SIGSTOP)
    until(lambda: home.json("status")["daemon"]["heartbeat_age_s"] > 15, 40)
    assert "silent for" in home("status").stdout
    assert "was restarted" in home("up").stdout
    assert watchdog.wait(20)
    home.wait_done()

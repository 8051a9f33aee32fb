"""Command cells through the daemon: what a user's program does, and what becomes of its cell."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.home import Home
from helpers.waiting import until
from overnight.dispatch import leftovers

PYTHON = f"{sys.executable} -S -E -c"
SETTINGS = "[memory]\nprior = '32MiB'\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "h", slots=4, settings=SETTINGS)
    yield home
    home.end()


def submit(home: Home, program: str, *args: str, name: str = "sweep") -> None:
    home("submit", "--command", program, "--name", name, *args, cwd=home.paths.home)


def python(program: str) -> str:
    return f"{PYTHON} {shlex.quote(program)}"


def wait_ended(home: Home, deadline_s: float = 40.0) -> dict[str, dict[str, Any]]:
    """Until nothing is pending or running. Key -> cell."""
    until(lambda: not {"pending", "running"} & home.statuses().keys(), deadline_s, "the end of all cells")
    return {cell["key"]: cell for cell in home.cells()}


def test_a_sweep_ends_with_results_and_kept_files(home: Home) -> None:
    program = (
        "import json; open('weights.bin', 'w').write('{lr}'); print('step 1'); print(json.dumps({{'loss': {lr} * 2}}))"
    )
    submit(home, python(program), "--axis", "lr=0.5,0.25", "--axis", "seed=1..2", "--cwd", "scratch", "--keep", "*.bin")
    home.start()
    cells = wait_ended(home)
    assert {key: (cell["status"], cell["attempts"]) for key, cell in cells.items()} == dict.fromkeys(
        ["lr0.5_seed1", "lr0.5_seed2", "lr0.25_seed1", "lr0.25_seed2"], ("done", 1)
    )
    folder = home.paths.cell_results("sweep", "lr0.5_seed2")
    result = json.loads((folder / "result.json").read_text())
    assert result["result"] == {"loss": 1.0}
    assert (folder / "files" / "weights.bin").read_text() == "0.5"
    assert "0 with a problem" in home("verify").stdout
    assert home("tail", "lr0.5_seed2", "-n", "2").stdout.splitlines()[0] == "step 1"
    (folder / "files" / "weights.bin").write_text("0.6")
    assert "files/weights.bin is not the one that was kept" in home("verify", code=1).stdout
    shown = home("show", "lr0.5_seed2").stdout
    assert "claim" in shown
    assert "learned" in shown


def test_each_trouble_ends_as_a_user_would_expect(home: Home) -> None:
    submit(home, "no-such-program --x {x}", "--axis", "x=1", "--tries", "1", name="missing")
    submit(home, python("import sys; sys.exit('it went wrong')"), "--tries", "3", name="dies")
    submit(home, python("import time; time.sleep(600)"), "--timeout", "1s", "--tries", "1", name="slow")
    home.start()
    until(lambda: not {"pending", "running"} & home.statuses().keys(), 40)
    by_grid = {cell["grid"]: cell for cell in home.cells()}
    assert by_grid["missing"]["status"] == by_grid["dies"]["status"] == by_grid["slow"]["status"] == "failed"
    assert "no-such-program" in by_grid["missing"]["reason"]
    assert (by_grid["dies"]["attempts"], by_grid["dies"]["reason_code"]) == (3, "exit_status")
    assert "it went wrong" in by_grid["dies"]["reason"]
    assert by_grid["slow"]["reason_code"] == "timeout"
    assert all("\n" not in cell["reason"] for cell in by_grid.values())


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_one_that_ignores_sigterm_is_killed_after_its_grace(home: Home) -> None:
    submit(home, python(STUBBORN), "--grace", "1s")
    home.start()
    log = home.paths.cell_results("sweep", "command") / "stdout.log"
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    pid = int(log.read_text())
    home("cancel", "command")
    cell = wait_ended(home)["command"]
    assert cell["status"] == "cancelled"
    assert not psutil.pid_exists(pid)


ASIDE = """
import os, subprocess, sys, time
# A daemon of its own: a new session, nobody's child, no environment.
subprocess.Popen(["env", "-i", "setsid", "sh", "-c", "sleep 1000 & echo $! > {cwd}/aside.pid; sleep 1000"])
while not (os.path.exists("{cwd}/aside.pid") and open("{cwd}/aside.pid").read().strip()): time.sleep(0.01)
print("ready", flush=True)
if os.path.exists("{cwd}/go"): sys.exit(0)
time.sleep(600)
"""


@pytest.mark.root
def test_nothing_is_left_of_a_daemon_that_was_killed(home: Home) -> None:
    """What a command has put aside survives its parents' deaths, but not the next daemon's start."""
    submit(home, python(ASIDE.replace("{cwd}", str(home.paths.home))))
    home.start()
    aside = home.paths.home / "aside.pid"
    log = home.paths.cell_results("sweep", "command") / "stdout.log"
    until(lambda: log.exists() and "ready" in log.read_text())
    left = psutil.Process(int(aside.read_text()))
    home.kill()
    (home.paths.home / "go").touch()
    home.start()
    cell = wait_ended(home)["command"]
    assert (cell["status"], cell["attempts"]) == ("done", 2)
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert {line["outcome"] for line in home.json("show", "command")["attempts"]} == {"lost", "completed"}


@pytest.mark.parametrize("caps", [pytest.param("auto", marks=pytest.mark.root), "rlimit"])
def test_a_runner_that_is_killed_takes_its_whole_tree_with_it(home: Home, caps: str) -> None:
    """With a cgroup of the cell's own its members are found; without one they become its warm server's children."""
    with home.paths.config.open("a") as settings:
        settings.write(f"caps = '{caps}'\n")
    submit(home, python(ASIDE.replace("{cwd}", str(home.paths.home))))
    home.start()
    log = home.paths.cell_results("sweep", "command") / "stdout.log"
    until(lambda: log.exists() and "ready" in log.read_text())
    left = psutil.Process(int((home.paths.home / "aside.pid").read_text()))
    (home.paths.home / "go").touch()
    (runner,) = home.registered("command")
    os.kill(runner.pid, signal.SIGKILL)
    cell = wait_ended(home)["command"]
    assert (cell["status"], cell["attempts"]) == ("done", 2)
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    first = home.json("show", "command")["attempts"][0]
    assert first["outcome"] == "lost"
    assert first["evidence"]["confidence"] == ("certain" if caps == "auto" else "inferred")
    assert leftovers.find(leftovers.token(home.paths.home)) == []


CHECKPOINTS = """
import os, signal, sys, time
path = os.path.join(os.environ["OVERNIGHT_CHECKPOINT_DIR"], "step")
step = int(open(path).read()) if os.path.exists(path) else 0
def leave(*_):
    open(path, "w").write(str(step)); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("from", step, flush=True)
while step < 40:
    step += 1; time.sleep(0.05)
"""


def test_a_command_with_checkpoints_goes_on_after_an_orderly_stop(home: Home) -> None:
    submit(home, python(CHECKPOINTS))
    home.start()
    log = home.paths.cell_results("sweep", "command") / "stdout.log"
    until(lambda: log.exists() and "from 0" in log.read_text())
    assert home.stop() == 0
    assert home.statuses() == {"pending": 1}
    home.start()
    cell = wait_ended(home)["command"]
    assert (cell["status"], cell["attempts"], cell["tries_used"]) == ("done", 2, 0)
    assert "from 0" not in log.read_text().splitlines()[1]


HIDES_ITS_DEATH = """
import subprocess, sys
worker = "import mmap; m = mmap.mmap(-1, 600 << 20, flags=2 | 32); m[::4096] = b'x' * len(m[::4096])"
subprocess.run([sys.executable, "-S", "-E", "-c", worker])
print("fine")
"""


@pytest.mark.root
def test_a_worker_that_met_the_cap_is_not_hidden_by_an_exit_status_of_0(home: Home) -> None:
    with home.paths.config.open("a") as settings:
        settings.write("budget = '400MiB'\n")
    submit(home, python(HIDES_ITS_DEATH), "--memory", "100MiB")
    home.start()
    cell = wait_ended(home)["command"]
    assert (cell["status"], cell["reason_code"]) == ("quarantined", "too_large")
    attempts = home.json("show", "command")["attempts"]
    assert {attempt["outcome"] for attempt in attempts} == {"over_cap"}
    assert {attempt["evidence"]["confidence"] for attempt in attempts} == {"inferred"}
    assert attempts[0]["evidence"]["exit_code"] == 0
    assert attempts[0]["evidence"]["oom_kills"] >= 1


def test_one_that_always_kills_itself_fails_in_the_end(home: Home) -> None:
    submit(home, "sh -c 'kill -9 $$'", "--tries", "1")
    home.start()
    cell = wait_ended(home)["command"]
    assert (cell["status"], cell["reason_code"], cell["attempts"]) == ("failed", "killed_repeated", 5)


def test_what_went_wrong_beside_the_outcome_is_shown(home: Home) -> None:
    program = "import json, os; print('x'); open(os.environ['OVERNIGHT_RESULT'], 'w').write(json.dumps(float('nan')))"
    submit(home, python(program), "--keep", "*.bin")
    home.start()
    assert wait_ended(home)["command"]["status"] == "done"
    shown = home("show", "command").stdout
    assert "note       no result was recorded: " in shown
    assert "nothing to keep for *.bin" in shown

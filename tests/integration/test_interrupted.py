"""Ctrl-C, however early: silence, and the status that a shell expects."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

INTERRUPTED_WHILE_IMPORTING = """
import os, runpy, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            {act}

if sys.argv.pop(1) == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.meta_path.insert(0, Interrupts())
sys.argv[0] = "overnight"
runpy.run_module("overnight", run_name="__main__", alter_sys=True)
"""


def started(home: Path, module: str, act: str, *, handler: str = "default") -> subprocess.Popen[str]:
    program = INTERRUPTED_WHILE_IMPORTING.format(module=module, act=act)
    return subprocess.Popen(
        [sys.executable, "-c", program, handler, "--home", str(home), "status"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "module",
    [
        *("overnight.cli.main", "overnight.private", "overnight.cli.screen", "overnight.errors"),
        *("overnight.cli.status", "overnight.queue.store", "sqlite3"),
    ],
)
def test_while_modules_are_imported(tmp_path: Path, module: str) -> None:
    process = started(tmp_path / "h", module, "os.kill(os.getpid(), signal.SIGINT)")
    said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("delay_s", [0, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 0.5])
def test_a_little_later(tmp_path: Path, delay_s: float) -> None:
    """From the first of our modules on; what Python says before that cannot be helped."""
    process = started(tmp_path / "h", "overnight.cli.main", 'os.write(1, b"begun\\n")')
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (-signal.SIGINT, 130, 0)


def test_what_was_started_deaf_to_it_stays_deaf(tmp_path: Path) -> None:
    """As `overnight ... &` in a script."""
    process = started(tmp_path / "h", "overnight.cli.main", "os.kill(os.getpid(), signal.SIGINT)", handler="ignored")
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_command_that_runs_can_tidy_up() -> None:
    """The signal is an exception there, as everywhere in Python."""
    program = (
        "import os, signal, sys; from overnight.cli import main, status\n"
        "def run(args): os.kill(os.getpid(), signal.SIGINT); return 0\n"
        "status.run = run\n"
        "main.entry()"
    )
    done = subprocess.run([sys.executable, "-c", program, "status"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

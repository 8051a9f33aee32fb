"""Under the real supervisord: pid files that name somebody else, and a stop that comes between a fork and its exec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.home import Home
from helpers.waiting import until
from overnight import procfs
from overnight.cli import supervise
from overnight.dispatch.signals import Handle


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path / "h", watchdog=True)
    yield found
    found.paths.supervisor_pid.unlink(missing_ok=True)
    found.end()


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_pid_file_that_names_somebody_else_harms_nobody(home: Home, innocent: subprocess.Popen[bytes]) -> None:
    home.paths.supervisor_pid.write_text(str(innocent.pid))
    assert "not running" in home("down").stdout
    home("up")
    daemon = home.json("status")["daemon"]["pid"]
    supervisord = home.paths.supervisor_pid.read_text()
    home.paths.supervisor_pid.write_text(str(innocent.pid))
    os.kill(daemon, signal.SIGKILL)
    until(lambda: (home.json("status")["daemon"] or {}).get("pid") not in (None, daemon), what="the daemon is back")
    assert "stopped" in home("down", timeout=60).stdout
    assert not procfs.is_supervisord(int(supervisord))
    assert innocent.poll() is None


def test_a_signal_that_a_program_forgot_is_sent_once_more(home: Home) -> None:
    """A child between fork and exec takes SIGTERM with supervisord's own handler: here one ignores the first."""
    program = (
        "import signal, sys, time\n"
        "def first(*_): signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGTERM, first)\n"
        "while True: time.sleep(0.05)\n"
    )
    forgetful = home.paths.home / "forgetful.py"
    forgetful.write_text(program)
    conf = home.paths.supervisord_conf
    text = conf.read_text()
    command = 'command=overnight --home "%(here)s/.." daemon'
    assert command in text
    conf.write_text(text.replace(command, f"command={sys.executable} {forgetful} daemon"))
    supervise.start(home.paths)
    found = supervise.find(home.paths)
    assert found is not None
    pid = found.pid
    until(lambda: supervise.all_running(supervise.rpc(home.paths)), what="both run")
    home.paths.supervisor_socket.unlink()
    assert supervise.end(found, 30.0), "it would have waited for 330 s"
    assert Handle.open(pid) is None


def test_only_the_children_of_a_supervisord_are_reminded(innocent: subprocess.Popen[bytes]) -> None:
    supervise.remind(os.getpid())
    supervise.remind(innocent.pid)
    assert innocent.poll() is None
    assert not procfs.is_supervisord(os.getpid())

"""`overnight up`: start supervisord, and with it the daemon and the watchdog; heal what died."""

from __future__ import annotations

import argparse
import http.client
import os
import time
from typing import Any
from xmlrpc.client import Fault

import psutil

from overnight.cli import common, supervise
from overnight.config import load_config
from overnight.dispatch.signals import Handle
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.repair import unknown_grids

_WAIT_S = 30.0
_SILENT_S = 15.0
"""A daemon beats once a second; even a slow disk does not keep it silent for so long."""


def add(commands: Any) -> None:
    parser = commands.add_parser("up", help="start supervisord with the daemon and the watchdog, or heal them")
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground (for systemd)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    if args.foreground:
        for line in _check(paths):
            print(line, flush=True)
        if supervise.rpc(paths) is not None:
            raise UserError(f"supervisord is already running on {paths.home}; stop it with `overnight down`")
        command = supervise.command(paths, foreground=True)
        os.execve(command[0], command, supervise.environment())  # noqa: S606 - the same interpreter, no shell
    for line in ensure(paths):
        print(line)
    return 0


def ensure(paths: Paths) -> list[str]:
    """Have supervisord, daemon and watchdog running; says what was done. Raises UserError."""
    warnings = _check(paths)
    try:
        return [*_ensure(paths), *warnings]
    except (Fault, http.client.HTTPException, ConnectionError):
        raise UserError("supervisord stopped meanwhile; was that not on purpose: `overnight up` again") from None


def _ensure(paths: Paths) -> list[str]:
    said = []
    supervisor = supervise.rpc(paths)
    if supervisor is None:
        if (lost := supervise.find(paths)) is not None:
            # Its socket is gone (somebody emptied var/run?): nobody can talk to it, and two would be one too many.
            if not supervise.end(lost):
                raise UserError(f"a supervisord without a socket does not stop: pid {lost.pid}; end it by hand")
            said.append(f"supervisord (pid {lost.pid}) had lost its socket and was stopped")
        supervise.start(paths)
        supervisor = _wait_for(lambda: supervise.rpc(paths), paths, "supervisord does not answer")
        said.append(f"supervisord started (pid {supervisor.getPID()})")
    for name in supervise.start_programs(supervisor):
        said.append(f"{name} started")
    if silent := _end_silent_daemon(paths, supervisor):
        said.append(silent)
    daemon = _wait_for(lambda: _daemon(paths, supervisor), paths, "the daemon does not come up")
    return said or [f"already up (supervisord pid {supervisor.getPID()}, daemon pid {daemon})"]


def _check(paths: Paths) -> list[str]:
    """Warnings, a line each. Raises UserError for what has to be mended first."""
    supervise.check(paths)
    load_config(paths.config)
    folders = unknown_grids.folders(paths)
    with common.open_queue(paths, check=True) as queue:
        lost = unknown_grids.unknown(paths, {grid.name for grid in queue.grids()}, folders)
    return [f"warning: {unknown_grids.told(lost)}"] if lost else []


def _end_silent_daemon(paths: Paths, supervisor: Any) -> str | None:
    """SIGKILL for a daemon of ours that hangs, so that supervisord starts another; nothing is lost by that."""
    state = common.daemon_state(paths)
    if state is None or state["age_s"] < _SILENT_S:
        return None
    ours = any(info["name"] == "daemon" and info["pid"] == state["pid"] for info in supervisor.getAllProcessInfo())
    handle = Handle.open(state["pid"], state["start_ticks"]) if ours else None
    if handle is None:
        return None
    handle.kill()
    handle.wait(5.0)
    handle.close()
    return f"the daemon (pid {state['pid']}) had been silent for {state['age_s']:.0f} s and was restarted"


def _daemon(paths: Paths, supervisor: Any) -> int | None:
    """Pid of supervisord's daemon once it works and supervisord counts all our programs as running.

    Raises UserError when another daemon holds the lock, since supervisord's own will never get it."""
    state = common.daemon_state(paths)
    if state is None or state["age_s"] > 5.0 or state["stopping"]:
        return None
    pids = {info["name"]: info["pid"] for info in supervisor.getAllProcessInfo() if info["statename"] == "RUNNING"}
    if pids.get("daemon") == state["pid"]:
        return int(state["pid"]) if supervise.all_running(supervisor) else None
    parent = psutil.Process(state["pid"]).ppid() if psutil.pid_exists(state["pid"]) else supervisor.getPID()
    if parent != supervisor.getPID():
        raise UserError(
            f"another daemon runs on {paths.home}: pid {state['pid']}, not started by this supervisord; "
            f"stop it (kill {state['pid']}), then `overnight up` again"
        )
    return None


def _wait_for(look: Any, paths: Paths, complaint: str) -> Any:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise UserError(
        f"{complaint} within {_WAIT_S:.0f} s: see {paths.log / 'supervisord.log'} and {paths.log / 'daemon.out'}"
    )

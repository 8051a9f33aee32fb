"""`overnight up`: start supervisord, and with it the daemon and the watchdog; heal what died."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from overnight.cli import common, supervise
from overnight.config import load_config
from overnight.errors import UserError
from overnight.paths import Paths

_WAIT_S = 30.0


def add(commands: Any) -> None:
    parser = commands.add_parser("up", help="start supervisord with the daemon and the watchdog, or heal them")
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground (for systemd)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    if args.foreground:
        _check(paths)
        if supervise.rpc(paths) is not None:
            raise UserError(f"supervisord is already running on {paths.home}; stop it with `overnight down`")
        command = supervise.command(paths, foreground=True)
        os.execve(command[0], command, supervise.environment())  # noqa: S606 - the same interpreter, no shell
    for line in ensure(paths):
        print(line)
    return 0


def ensure(paths: Paths) -> list[str]:
    """Have supervisord, daemon and watchdog running; says what was done. Raises UserError."""
    _check(paths)
    said = []
    supervisor = supervise.rpc(paths)
    if supervisor is None:
        supervise.start(paths)
        supervisor = _wait_for(lambda: supervise.rpc(paths), paths, "supervisord does not answer")
        said.append(f"supervisord started (pid {supervisor.getPID()})")
    for name in supervise.start_programs(supervisor):
        said.append(f"{name} started")
    state = _wait_for(lambda: _fresh(paths), paths, "the daemon does not come up")
    _wait_for(lambda: supervise.all_running(supervisor), paths, "the daemon or the watchdog does not stay up")
    return said or [f"already up (supervisord pid {supervisor.getPID()}, daemon pid {state['pid']})"]


def _check(paths: Paths) -> None:
    supervise.check(paths)
    load_config(paths.config)
    common.open_queue(paths).close()


def _fresh(paths: Paths) -> dict[str, Any] | None:
    state = common.daemon_state(paths)
    return state if state is not None and state["age_s"] < 5.0 and not state["stopping"] else None


def _wait_for(look: Any, paths: Paths, complaint: str) -> Any:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise UserError(
        f"{complaint} within {_WAIT_S:.0f} s: see {paths.log / 'supervisord.log'} and {paths.log / 'daemon.out'}"
    )

"""`overnight down`: an orderly stop of everything; cells go back to the queue and lose no finished turn."""

from __future__ import annotations

import argparse
import http.client
from typing import Any
from xmlrpc.client import Fault

from overnight.cli import common, supervise
from overnight.errors import UserError

_WAIT_S = 60.0


def add(commands: Any) -> None:
    parser = commands.add_parser("down", help="stop supervisord, the daemon and the watchdog in good order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    pid = supervise.recorded_pid(paths)
    supervisor = supervise.rpc(paths)
    if supervisor is None:
        print("not running")
        return 0
    try:
        supervisor.shutdown()
    except (Fault, OSError, http.client.HTTPException):
        pass  # somebody else's `down` was quicker
    if not supervise.wait_gone(paths, pid, _WAIT_S):
        raise UserError(f"supervisord (pid {pid}) is still stopping after {_WAIT_S:.0f} s: see {paths.log}")
    print("stopped; cells that were running are back in the queue")
    return 0

"""`overnight down`: an orderly stop of everything; cells go back to the queue and lose no finished turn."""

from __future__ import annotations

import argparse
from typing import Any

from overnight.cli import common, supervise
from overnight.errors import UserError

_WAIT_S = 60.0


def add(commands: Any) -> None:
    parser = commands.add_parser("down", help="stop supervisord, the daemon and the watchdog in good order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    supervisor = supervise.rpc(paths)
    if supervisor is None:
        print("not running")
        return 0
    pid = supervisor.getPID()
    supervisor.shutdown()
    if not supervise.wait_gone(paths, pid, _WAIT_S):
        raise UserError(f"supervisord (pid {pid}) is still stopping after {_WAIT_S:.0f} s: see {paths.log}")
    print("stopped; cells that were running are back in the queue")
    return 0

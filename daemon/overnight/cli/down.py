"""`overnight down`: an orderly stop of everything; cells go back to the queue and lose no finished turn."""

from __future__ import annotations

import argparse
import http.client
import sys
from typing import Any
from xmlrpc.client import Fault

from overnight.cli import common, supervise
from overnight.dispatch import leftovers
from overnight.dispatch.signals import Handle
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.states import Status

_QUICK_S, _WAIT_S = 5.0, 360.0
"""Commands may take their grace to leave, five minutes at most; supervisord ends the daemon soon after that."""


def add(commands: Any) -> None:
    parser = commands.add_parser("down", help="stop supervisord, the daemon and the watchdog in good order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args)
    pid = supervise.recorded_pid(paths)
    supervisor = supervise.rpc(paths)
    if supervisor is None:
        if (lost := supervise.find(paths)) is None:
            print("not running" + _sweep(paths))
            return 0
        if not supervise.end(lost):
            raise UserError(f"a supervisord without a socket does not stop: pid {lost.pid}; end it by hand")
        return _stopped(paths)
    try:
        pid = int(supervisor.getPID())  # the pid file may be anybody's by now
        supervisor.shutdown()
    except (Fault, OSError, http.client.HTTPException):
        pass  # somebody else's `down` was quicker
    if not supervise.wait_gone(paths, pid, _QUICK_S):
        print("waiting for cells to leave ...", file=sys.stderr, flush=True)
    if not supervise.wait_gone(paths, pid, _WAIT_S):
        raise UserError(f"supervisord (pid {pid}) is still stopping after {_WAIT_S:.0f} s: see {paths.log}")
    return _stopped(paths)


def _sweep(paths: Paths) -> str:
    """What commands have put aside outlives everything else that is killed at once. Not while a daemon lives."""
    if common.daemon_state(paths) is not None:
        return ""
    ended = 0
    for pid, ticks in leftovers.find(leftovers.token(paths.home)):
        if (handle := Handle.open(pid, ticks)) is not None:
            ended += handle.kill()
            handle.close()
    return f"; {ended} processes that commands had left behind were ended" if ended else ""


def _stopped(paths: Paths) -> int:
    """Say what is true: a daemon that had to be killed leaves its cells `running` until the next start."""
    try:
        with common.open_queue(paths) as queue:
            counts, never = queue.counts(), queue.never_run()
    except UserError as error:
        print(f"stopped; but {error}")
        return 0
    waiting, cut = counts[Status.PENDING] - never, counts[Status.RUNNING]
    cells = f"; {waiting} cells wait in the queue" if waiting else ""
    print(f"stopped{cells}" + (f"; {cut} were cut off and go on at the next start" if cut else ""))
    return 0

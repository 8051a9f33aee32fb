"""`overnight daemon`: the dispatcher itself, in the foreground. supervisord runs it; people seldom do."""

from __future__ import annotations

import argparse
import gc
import os
import signal
from typing import Any

from overnight import procfs
from overnight.cli import common
from overnight.config import load_config
from overnight.errors import UserError
from overnight.paths import Paths


def add(commands: Any) -> None:
    parser = commands.add_parser("daemon", help="run the dispatcher in the foreground (supervisord does this)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from overnight.dispatch.dispatcher import Dispatcher
    from overnight.dispatch.lock import DaemonLock
    from overnight.dispatch.stopping import StopSignal
    from overnight.logs import open_log
    from overnight.queue.store import Queue, QueueUnavailable

    parent = os.getppid()
    paths = common.home(args)
    config = load_config(paths.config)
    supervised = bool(os.environ.get("SUPERVISOR_ENABLED"))
    if supervised:
        _refuse_to_be_an_orphan(paths, parent)
    with DaemonLock(paths.lock) as lock:
        if supervised:
            # A killed supervisord must not leave a daemon behind that holds the lock.
            procfs.die_with_parent(parent, signal.SIGKILL)
        stop = StopSignal()
        stop.install()
        log = open_log(paths.log / "daemon.jsonl")
        while not stop.requested:
            try:
                # A submit of a million cells holds the write lock for many seconds: the loop must not stand still.
                with Queue.open(paths.queue, check=True, busy_timeout_s=1.0) as queue:
                    log.info("daemon_started", pid=os.getpid(), home=str(paths.home))
                    gc.collect()
                    Dispatcher(paths, config, queue, log, stop, lock).run()
            except QueueUnavailable as error:
                # A full disk at start: wait for room instead of dying and being restarted for ever.
                log.error("queue_unavailable", error=str(error))
                stop.wait(1.0)
            except BaseException as error:
                log.critical("daemon_failed", error=f"{type(error).__name__}: {error}")
                raise
    return 0


def _refuse_to_be_an_orphan(paths: Paths, parent: int) -> None:
    """supervisord may have died while this interpreter was starting: then our parent is somebody else by now."""
    try:
        supervisord = int(paths.supervisor_pid.read_text())
    except (OSError, ValueError):
        return
    if supervisord != parent:
        raise UserError(f"started by a supervisord that is gone: its pid is {supervisord}, the parent's is {parent}")

"""`overnight daemon`: the dispatcher itself, in the foreground. supervisord runs it; people seldom do."""

from __future__ import annotations

import argparse
import gc
import os
import signal
from typing import TYPE_CHECKING, Any

from overnight import procfs
from overnight.cli import common
from overnight.config import Config, load_config
from overnight.errors import UserError
from overnight.paths import Paths

if TYPE_CHECKING:
    from overnight.dispatch.budget_cgroup import BudgetCgroup
    from overnight.dispatch.cell_cgroups import CellCgroups


def add(commands: Any) -> None:
    parser = commands.add_parser("daemon", help="run the dispatcher in the foreground (supervisord does this)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from overnight.dispatch.beat import Beat
    from overnight.dispatch.dispatcher import Dispatcher
    from overnight.dispatch.lock import DaemonLock
    from overnight.dispatch.recover import forget_half_written
    from overnight.dispatch.stopping import StopSignal
    from overnight.logs import open_log
    from overnight.queue.store import Queue, QueueUnavailable
    from overnight.repair import unknown_grids

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
        forget_half_written(paths)
        log = open_log(paths.log / "daemon.jsonl")
        beat = Beat(paths.beat)
        cgroup = _join_budget(paths, config, log)
        cgroups = _cell_cgroups(paths, config, log)
        started = False
        while not stop.requested:
            try:
                folders = unknown_grids.folders(paths)
                # A submit of a million cells holds the write lock for many seconds: the loop must not stand still.
                with Queue.open(paths.queue, check=True, busy_timeout_s=1.0) as queue:
                    if not started:
                        log.info("daemon_started", pid=os.getpid(), home=str(paths.home))
                        if lost := unknown_grids.unknown(paths, {grid.name for grid in queue.grids()}, folders):
                            log.warning("results_unknown", grids=lost, todo=unknown_grids.TODO)
                    started = True
                    gc.collect()
                    Dispatcher(
                        paths,
                        config,
                        queue,
                        log,
                        stop=stop,
                        lock=lock,
                        beat=beat,
                        cgroup=None if cgroup is None else str(cgroup.folder),
                        cgroups=cgroups,
                        supervised=supervised,
                    ).run()
            except QueueUnavailable as error:
                # A full disk at start: wait for room instead of dying and being restarted for ever.
                log.error("queue_unavailable", error=str(error))
                beat.strike()
                stop.wait(1.0)
            except BaseException as error:
                log.critical("daemon_failed", error=f"{type(error).__name__}: {error}")
                raise
        beat.strike(stopping=True)
        if cgroups is not None and (why := cgroups.close()) is not None:
            log.warning("cell_cgroups_stay", folder=str(cgroups.folder), why=why)
        if cgroup is not None and (why := cgroup.leave()) is not None:
            log.warning("budget_cgroup_stays", folder=str(cgroup.folder), why=why)
    return 0


def _join_budget(paths: Paths, config: Config, log: Any) -> BudgetCgroup | None:
    """Before anything is forked: what a process forks is born into its cgroup."""
    from overnight.dispatch import budget_cgroup

    if (budget := config.memory.budget) is None:
        return None
    try:
        found = budget_cgroup.join(paths.home, budget)
    except budget_cgroup.Missing as why:
        log.info("budget_cgroup_missing", why=str(why))
        return None
    log.info("budget_cgroup_joined", folder=str(found.folder), limit_bytes=budget)
    return found


def _cell_cgroups(paths: Paths, config: Config, log: Any) -> CellCgroups | None:
    """Where each cell gets a memory cgroup of its own; without one its cap is a limit on its data."""
    from overnight.dispatch.budget_cgroup import Missing
    from overnight.dispatch.cell_cgroups import CellCgroups

    if config.memory.caps == "rlimit":
        return None
    try:
        return CellCgroups.open(paths.home)
    except Missing as why:
        log.info("cell_cgroups_missing", why=str(why))
        return None


def _refuse_to_be_an_orphan(paths: Paths, parent: int) -> None:
    """supervisord may have died while this interpreter was starting: then our parent is somebody else by now. The pid
    file alone proves nothing: it may be of another time, or mended by hand."""
    supervisord = procfs.read_pid(paths.supervisor_pid)
    if supervisord is not None and supervisord != parent and not procfs.is_supervisord(parent):
        raise UserError(f"started by a supervisord that is gone: its pid is {supervisord}, the parent's is {parent}")

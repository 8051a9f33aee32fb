"""`overnight-watchdog`: watches memory under the limit that really bounds us, and acts before the kernel does.

It samples memory, forecasts, and climbs a ladder: hold (nothing new begins), shrink (SIGUSR1), freeze (SIGSTOP, for
seconds), evict (SIGTERM), kill (SIGKILL). Whom it may touch is registered in var/run/cells; what it did, to whom and
why is in var/log/watchdog.jsonl and, for the daemon, in var/run/verdicts.ring. `guard -- COMMAND` needs none of these.

Exit codes: 0 stopped in good order; 1 the supervisord that started it is gone; 2 bad input, or another one
guards this home already. `guard` exits as its command does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from overnight_watchdog.act import Actor, LinuxKernel
from overnight_watchdog.config import ConfigError, configured_budget
from overnight_watchdog.daemon_watch import DaemonWatch, Supervisor
from overnight_watchdog.gauges import Eye, StallGauge
from overnight_watchdog.journal import EventLog, PressureFile
from overnight_watchdog.kernel_files import whole_number
from overnight_watchdog.limits import PROC, parse_size
from overnight_watchdog.lock import Held, Lock
from overnight_watchdog.loop import Watchdog
from overnight_watchdog.plain import plain
from overnight_watchdog.report import Heartbeat, Log, Reporter
from overnight_watchdog.roster import PID_MOST, Roster, read_small
from overnight_watchdog.sample import SampleError
from overnight_watchdog.scribe import LaterHeartbeat, LaterLog, PatientRing, Scribe
from overnight_watchdog.survive import settle, tie_to_parent
from overnight_watchdog.tree import start_ticks, stat_of
from overnight_watchdog.verdicts import VerdictRing
from overnight_watchdog.wake import Waker

_INTERVAL_S = (0.01, 4.0)
_LONGEST = 700
"""Characters of a complaint about arguments, which it quotes."""
"""A heartbeat older than 5 s counts as a dead watchdog's: a longer interval would look like one."""
LAST_WORDS_S = 2.0
"""A disk that stands still is not waited for any longer at the end."""
_NOWHERE = Path(os.devnull) / "nowhere"
"""A folder that is never there: `guard` has no registrations, and its verdicts are told on stderr."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, wire the parts together, and run. Returns the exit code."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.json and not asked.once:
        parser.error("--json goes with --once")
    if asked.verb == "guard" and asked.once:
        parser.error("--once shows what is seen, guard runs a command: one of them")
    if asked.verb == "guard":
        return _guard(parser, asked)
    home: Path = asked.home.expanduser().absolute()
    if not home.is_dir():
        return _refuse(f"{home}: no such folder; `overnight --home {home} up` makes it")
    try:
        budget = asked.budget if asked.budget is not None else configured_budget(home / "etc" / "overnight.toml")
    except ConfigError as error:
        return _refuse(str(error))
    supervised = "SUPERVISOR_ENABLED" in os.environ
    eye = Eye(budget_bytes=budget, tree_root=_tree_root(home, supervised=supervised))
    if asked.once:
        return _once(home, eye, as_json=asked.json)
    if supervised and not _tied():
        _say("the supervisord that started this watchdog is gone; so is it")
        return 1
    return _watch(home, eye, asked, supervised=supervised, budget_bytes=budget)


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


class _Parts:
    """A watchdog and what it is made of."""

    def __init__(
        self,
        eye: Eye,
        heartbeat: Heartbeat,
        log: Log,
        *,
        run: Path = _NOWHERE,
        supervised: bool = False,
        dry_run: bool = False,
        longest_s: float = 2.0,
        scribe: Scribe | None = None,
    ) -> None:
        """scribe: writes verdicts for us, so that none has to wait for a disk."""
        self.boot_id = _boot_id()
        self.identity = _identity()
        kernel = LinuxKernel()
        self.ring = VerdictRing(run / "verdicts.ring", self.boot_id)
        ring = self.ring if scribe is None else PatientRing(self.ring, scribe)
        self.actor = Actor(kernel, ring, dry_run=dry_run)
        self.roster = Roster(run / "cells", kernel, self.boot_id)
        daemon = None
        if supervised:
            supervisor = Supervisor(run / "supervisor.sock")
            daemon = DaemonWatch(
                run / "daemon.beat",
                supervisor,
                kernel,
                self.boot_id,
                _teller(log),
                ours=_is_sibling,
                began_s=time.monotonic(),
            )
        self.watchdog = Watchdog(
            eye=eye,
            roster=self.roster,
            actor=self.actor,
            reporter=Reporter(heartbeat, log, self.identity),
            daemon=daemon,
            stalls=StallGauge(),
            longest_s=longest_s,
        )


def _watch(home: Path, eye: Eye, asked: argparse.Namespace, *, supervised: bool, budget_bytes: int | None) -> int:
    os.umask(0o077)  # what it writes is the user's alone; `guard` leaves its command the umask that it has
    run, cells = home / "var" / "run", home / "var" / "run" / "cells"
    waker = Waker()
    waker.install()  # before anything is held
    lock = Lock(run / "watchdog.lock")
    try:
        lock.acquire({"v": 1, **_identity()})
    except Held as held:
        return _refuse(str(held))
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}; watching without a lock")
    scribe = Scribe()
    heartbeat, log = PressureFile(run / "pressure.json"), EventLog(home / "var" / "log" / "watchdog.jsonl")
    parts = _Parts(
        eye,
        LaterHeartbeat(heartbeat, scribe),
        LaterLog(log, scribe),
        run=run,
        supervised=supervised,
        dry_run=asked.dry_run,
        longest_s=asked.interval,
        scribe=scribe,
    )
    scribe.do(heartbeat.allocate, wait_s=1.0)  # first: the ring is a hundred times as large
    scribe.do(parts.ring.open, wait_s=1.0)
    try:
        cells.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError:
        pass
    waker.watch_pressure(PROC / "pressure" / "memory")
    found = eye.bounds()
    parts.actor.rehearse(_rehearsed(parts))
    settled = settle()
    watchdog = parts.watchdog
    watchdog.started(
        pid=os.getpid(),
        limit_bytes=found[0].limit_bytes,
        limit_source=found[0].source,
        bounds=[{"source": bound.source, "limit_bytes": bound.limit_bytes} for bound in found],
        budget_bytes=budget_bytes,
        interval_s=asked.interval,
        **{name: asdict(ability) for name, ability in settled.items()},
    )
    while waker.stop is None:
        waker.watch_folder(cells)
        if (bound := eye.limit_cgroup()) is not None and bound.folder is not None:
            waker.watch_cgroup(bound.kind, bound.folder, bound.limit_bytes)
        watchdog.step()
        waker.wait(watchdog.pause_s())
    watchdog.stopped(waker.stop)
    if scribe.finish(LAST_WORDS_S):
        heartbeat.close()
        log.close()
    lock.release()
    return 0


def _guard(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> int:
    from overnight_watchdog import guard

    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        parser.error("guard: name a command, such as: overnight-watchdog guard -- python train.py")

    scribes: list[Scribe] = []

    def prepare(pid: int) -> tuple[Watchdog, Roster, Actor]:
        scribes.append(Scribe())  # only after the fork; a terminal that takes nothing must not hold us up
        eye = Eye(budget_bytes=asked.budget, tree_root=lambda: pid)
        log = guard.GuardLog(lambda line: scribes[0].put(lambda: _say(line)))
        parts = _Parts(eye, guard.Silent(), log, dry_run=asked.dry_run, longest_s=asked.interval)
        parts.actor.rehearse(_rehearsed(parts))
        settle()
        return parts.watchdog, parts.roster, parts.actor

    status = guard.run(command, prepare=prepare, say=_say, boot_id=_boot_id())
    for scribe in scribes:
        scribe.finish(LAST_WORDS_S)
    return status


def _once(home: Path, eye: Eye, *, as_json: bool) -> int:
    """Print what is seen, write nothing."""
    from overnight_watchdog import guard, view

    parts = _Parts(eye, guard.Silent(), guard.Deaf(), run=home / "var" / "run", dry_run=True)
    try:
        view.print_view(view.collect(parts.watchdog, eye), as_json=as_json)
    except (SampleError, OSError) as error:
        return _refuse(str(error))
    return 0


def _rehearsed(parts: _Parts) -> dict[str, Any]:
    """A verdict like a real one, for the rehearsal."""
    names = ("own_bytes", "peak_bytes", "headroom_bytes", "limit_bytes", "slope_bytes_per_s")
    return {**parts.identity, "cell": "rehearsal", "limit_source": "machine", **dict.fromkeys(names, 2**40)}


def _teller(log: Log) -> Callable[..., None]:
    def tell(event: str, **fields: Any) -> None:
        log.write("error", event, **fields)

    return tell


def _tree_root(home: Path, *, supervised: bool) -> Callable[[], int | None]:
    """Whose memory a budget counts: supervisord's tree. Started by hand, its pid comes from var/run."""
    if supervised:
        return os.getppid
    read_s, known = float("-inf"), None

    def from_pid_file() -> int | None:
        nonlocal read_s, known
        if time.monotonic() - read_s >= 1.0:
            read_s = time.monotonic()
            found = whole_number(read_small(home / "var" / "run" / "supervisord.pid", 64).strip())
            known = found if found is not None and 0 < found <= PID_MOST else None
        return known

    return from_pid_file


def _tied() -> bool:
    try:
        return tie_to_parent()
    except OSError as error:
        _say(f"prctl(PR_SET_PDEATHSIG): {error.strerror}; a dead supervisord goes unnoticed")
        return True


def _is_sibling(pid: int) -> bool:
    """Was it started by the supervisord that has started us?"""
    found = stat_of(pid)
    return found is not None and found.parent == os.getppid()


def _identity() -> dict[str, Any]:
    return {"boot_id": _boot_id(), "pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}


def _boot_id() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


class _Parser(argparse.ArgumentParser):
    """Bad input gets one line."""

    def error(self, message: str) -> NoReturn:
        _say(f"{message if len(message) <= _LONGEST else message[:_LONGEST] + '...'} (see {self.prog} --help)")
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="overnight-watchdog",
        description="Watches memory under the limit that really bounds us, and acts before the kernel does.",
        epilog="overnight-watchdog [--budget SIZE] guard -- COMMAND...  runs one command under the same ladder.",
    )
    parser.add_argument("--home", type=Path, default=_default_home(), metavar="DIR", help="folder with etc/ and var/")
    parser.add_argument("--interval", type=_interval, default=2.0, metavar="S", help="the longest sleep (default 2)")
    parser.add_argument("--budget", type=_size, metavar="SIZE", help="pretend to have only this much, such as 2GiB")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and touch nobody")
    parser.add_argument("--once", action="store_true", help="print what is seen now, and exit")
    parser.add_argument("--json", action="store_true", help="with --once: as JSON")
    parser.add_argument("verb", nargs="?", choices=["guard"], help="guard -- COMMAND...: run one command under it")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _default_home() -> Path:
    """OVERNIGHT_HOME, else the checkout that this file is in, else the current folder."""
    if named := os.environ.get("OVERNIGHT_HOME"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def _interval(text: str) -> float:
    low, high = _INTERVAL_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not low <= seconds <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds between {low:g} and {high:g}")
    return seconds


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _refuse(line: str) -> int:
    _say(line)
    return 2


def _say(line: str) -> None:
    """To stderr, unless nobody listens there any more."""
    try:
        print(plain(f"overnight-watchdog: {line}"), file=sys.stderr, flush=True)
    except OSError:
        pass


if __name__ == "__main__":
    entry()

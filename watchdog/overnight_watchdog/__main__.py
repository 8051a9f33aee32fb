"""`overnight-watchdog`: watches memory and says how it stands.

What this version does: it finds the limit that really bounds us (machine, cgroups, budget), measures what is
left of it once a second, and publishes level and figures in var/run/pressure.json, by which the daemon admits
cells or holds them back. It journals every change of level in var/log/watchdog.jsonl.

What it does not do: it forecasts nothing, chooses no victim and signals nobody. Nothing in this package calls
kill, opens a pidfd or talks to supervisord; the kernel's OOM killer can still strike a cell that grows too
fast.

Exit codes: 0 stopped in good order; 1 the supervisord that started it is gone; 2 bad input, or another one
guards this home already.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from overnight_watchdog.assess import Level, Thresholds, assess
from overnight_watchdog.config import ConfigError, configured_budget
from overnight_watchdog.journal import EventLog, PressureFile
from overnight_watchdog.limits import PROC, parse_size
from overnight_watchdog.lock import Held, Lock
from overnight_watchdog.loop import Eye, Watchdog
from overnight_watchdog.sample import SampleError
from overnight_watchdog.tree import start_ticks

_PR_SET_PDEATHSIG = 1
_INTERVAL_S = (0.01, 4.0)
"""A heartbeat older than 5 s counts as a dead watchdog's: a longer interval would look like one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, wire the parts together, and run. Returns the exit code."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.json and not asked.once:
        parser.error("--json goes with --once")
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
        return _once(eye, as_json=asked.json)
    if supervised and not _tie_to_parent():
        _say("the supervisord that started this watchdog is gone; so is it")
        return 1
    return _watch(home, eye, interval_s=asked.interval, budget_bytes=budget)


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


def _watch(home: Path, eye: Eye, *, interval_s: float, budget_bytes: int | None) -> int:
    # Blocked before anything is held, and then waited for: no handler runs between two statements of the
    # loop.
    stop = _stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    run = home / "var" / "run"
    identity = {"boot_id": _boot_id(), "pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    lock = Lock(run / "watchdog.lock")
    try:
        lock.acquire({"v": 1, **identity})
    except Held as held:
        return _refuse(str(held))
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}; watching without a lock")
    watchdog = Watchdog(
        look=eye.look,
        heartbeat=PressureFile(run / "pressure.json"),
        log=EventLog(home / "var" / "log" / "watchdog.jsonl"),
        identity=identity,
    )
    found = eye.bounds()
    watchdog.run(
        lambda: _wait(stop, interval_s),
        pid=os.getpid(),
        limit_bytes=found[0].limit_bytes,
        limit_source=found[0].source,
        bounds=[{"source": bound.source, "limit_bytes": bound.limit_bytes} for bound in found],
        budget_bytes=budget_bytes,
        interval_s=interval_s,
    )
    lock.release()
    return 0


def _stop_signals() -> list[signal.Signals]:
    """What asks for an orderly stop, except what nohup or a shell's `&` has had ignored."""
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return [each for each in asked if signal.getsignal(each) is not signal.SIG_IGN]


def _wait(stop: list[signal.Signals], interval_s: float) -> str | None:
    """Sleep for the interval; the name of the signal that asked to stop, or None."""
    received = signal.sigtimedwait(stop, interval_s)
    return None if received is None else signal.Signals(received.si_signo).name


def _once(eye: Eye, *, as_json: bool) -> int:
    """Print what is seen, write nothing."""
    try:
        sample, found = eye.look(), eye.bounds()
    except (SampleError, OSError) as error:
        return _refuse(str(error))
    level = assess(sample.headroom_bytes, sample.limit_bytes, None, Level.OK, Thresholds())
    view: dict[str, Any] = {
        "level": level.label,
        "limit_bytes": sample.limit_bytes,
        "limit_source": sample.limit_source,
        "usage_bytes": sample.usage_bytes,
        "headroom_bytes": sample.headroom_bytes,
        "headroom_source": sample.headroom_source,
        "bounds": [{"source": bound.source, "limit_bytes": bound.limit_bytes} for bound in found],
        "acts": False,
    }
    if as_json:
        print(json.dumps(view))
        return 0
    for name in ("limit", "usage", "headroom"):
        source = view.get(f"{name}_source")
        print(f"{name:<9}{view[f'{name}_bytes'] / 2**20:>12.1f} MiB" + (f"  {source}" if source else ""))
    print(f"{'level':<9}{level.label:>12}      this version watches and signals nobody")
    return 0


def _tree_root(home: Path, *, supervised: bool) -> Callable[[], int | None]:
    """Whose memory a budget counts: supervisord's tree. Started by hand, its pid comes from var/run."""
    if supervised:
        return os.getppid

    def from_pid_file() -> int | None:
        try:
            return int((home / "var" / "run" / "supervisord.pid").read_text())
        except (OSError, ValueError):
            return None

    return from_pid_file


def _tie_to_parent() -> bool:
    """Have the kernel kill this process when supervisord dies, so that no orphan holds the lock.

    False when it is dead already. It may have died before the first getppid(): supervisord's children are in
    its session, while whoever adopts an orphan (init, a subreaper) leads or lives in another.
    """
    import ctypes  # half a MiB; only here

    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        _say(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}; a dead supervisord goes unnoticed")
    try:
        return os.getppid() == parent and os.getsid(parent) == os.getsid(0)
    except ProcessLookupError:
        return False


def _boot_id() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="overnight-watchdog",
        description="Watches memory under the limit that really bounds us, and publishes how it stands.",
    )
    parser.add_argument("--home", type=Path, default=_default_home(), metavar="DIR", help="folder with etc/ and var/")
    parser.add_argument("--interval", type=_interval, default=1.0, metavar="S", help="seconds between two samples")
    parser.add_argument("--budget", type=_size, metavar="SIZE", help="pretend to have only this much, such as 2GiB")
    parser.add_argument("--once", action="store_true", help="print what is seen now, and exit")
    parser.add_argument("--json", action="store_true", help="with --once: as JSON")
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
        print(f"overnight-watchdog: {line}", file=sys.stderr, flush=True)
    except OSError:
        pass


if __name__ == "__main__":
    entry()

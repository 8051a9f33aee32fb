"""Who keeps the kernel's OOM killer away, at what price, and whose work is lost? Against the usual guards, in one run.

    python bench/watchdog.py [--fetch] [--repeats 3] [--only NAME ...] [--quick]

Peers: earlyoom, superlance's memmon, and the classic bash loop that looks every 5 s and kills at 85 %; what each of
them can see is told in bench/guards.py. Ones that are not installed are left out; --fetch gets them into a temporary
folder first. Everything runs in memory cgroups with a limit of 2 GiB and in a PID namespace, so that a guard which
looks at the whole machine can hit nothing else. Needs root.

ramps     leaks of 100, 200 and 500 MiB/s in 2 GiB, 500 and 1024 in 512 MiB. Kernel kills; breach-to-signal: from the
          moment when usage passes the level at which the guard says that it acts, to the last growth of the leak
          (never, if the kernel killed it); and headroom wasted: the share of the limit that was still free then.
          Ours may not freeze here, as no peer can.
work      a steady process of 55 % that has finished no turn for ten minutes, and a leak that finishes one each second.
          Lost: the seconds since the last finished turn of all that died until the leak was gone.
cost      memory, wake-ups and processor time with one registered process: 2 % of 16 GiB used (idle), 30 % of 2 GiB
          (watching), and near the edge (armed): at 88 % for ours, at 83 % for those who would kill somebody there.

Prints tables and one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from guards import Guard, Loads, Ours, guards

from helpers.arena import GIB, MIB, Arena, Watched, crossed_s
from helpers.memory_cgroup import MemoryCgroup, Unavailable
from helpers.ramp import percentile
from helpers.waiting import until

LIMIT = 2 * GIB
LEAKS = ((100, LIMIT), (200, LIMIT), (500, LIMIT), (500, LIMIT // 4), (1024, LIMIT // 4))
"""MiB/s, limit. Each begins with half of the limit."""

UNSAVED_S = 600.0
TICKS_S = 5.0
"""The slowest period of a guard: a leak begins at a random place in it."""

INSIDE = "OVERNIGHT_BENCH_INSIDE"


@dataclass(frozen=True)
class Fall:
    """One leak's end. late_s: breach to signal, None when the kernel was quicker."""

    rate_mib_s: float
    limit_bytes: int
    oom_kills: int
    late_s: float | None
    wasted: float | None


@contextmanager
def staged(guard: Guard, loads: Loads, limit_bytes: int = LIMIT) -> Iterator[tuple[Arena, dict[str, Watched]]]:
    """The loads behind their gates, the guard looking at them; nothing is left afterwards."""
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch, Arena.made(limit_bytes, Path(scratch) / "h") as arena:
        watched = guard.start(arena, loads)
        try:
            yield arena, watched
        finally:
            guard.stop()


def fall(guard: Guard, rate_mib_s: float, limit_bytes: int, phase_s: float) -> Fall:
    half = limit_bytes // 2
    with staged(guard, {"leak": ("--prefill", half, "ramp", rate_mib_s)}, limit_bytes) as (arena, watched):
        leak, cache = watched["leak"], arena.cgroup.file_bytes()
        time.sleep(phase_s)
        guard.go("leak")
        leak.wait(half / MIB / rate_mib_s + 30)
        entries, killed = leak.entries(), arena.cgroup.oom_kills()
        if killed:
            return Fall(rate_mib_s, limit_bytes, killed, None, None)
        breach = crossed_s(entries, int(limit_bytes * guard.acts_at) + cache)
        late = entries[-1].monotonic_s - breach if breach is not None else 0.0  # it was quicker than its threshold
        peak = max(entry.charged_bytes for entry in entries) - cache
        return Fall(rate_mib_s, limit_bytes, 0, max(0.0, late), 1 - peak / limit_bytes)


def work_lost_s(guard: Guard, phase_s: float) -> dict[str, Any]:
    """Seconds of work lost in total, and who died."""
    now_s = time.monotonic()
    turns = {"steady": now_s - UNSAVED_S, "leak": now_s}
    if isinstance(guard, Ours):
        guard.registration = {
            "steady": {"last_turn_s": turns["steady"], "started_s": turns["steady"], "freezes": True},
            "leak": {"freezes": True},
        }
    loads: Loads = {"steady": ("--prefill", int(0.55 * LIMIT), "plateau", 0), "leak": ("ramp", 60)}
    with staged(guard, loads) as (arena, watched):
        guard.go("steady")
        time.sleep(phase_s)
        guard.go("leak")
        deadline = time.monotonic() + LIMIT / MIB / 60 + 30
        while watched["leak"].alive() and time.monotonic() < deadline:
            turns["leak"] = time.monotonic()  # it has just finished one
            if isinstance(guard, Ours):
                arena.register(watched["leak"].pid, cell="leak", turn=int(turns["leak"]), started_s=now_s)
            until(lambda: not watched["leak"].alive() or time.monotonic() > turns["leak"] + 1.0, what="a second")
        time.sleep(0.2)
        died = {name: each.died_s for name, each in watched.items() if each.died_s is not None}
        if isinstance(guard, Ours):
            guard.registration = {}
        return {
            "died": sorted(died),
            "lost_s": round(sum(moment - min(moment, turns[name]) for name, moment in died.items()), 1),
            "oom_kills": arena.cgroup.oom_kills(),
        }


def cost(guard: Guard, seconds: float) -> dict[str, float]:
    """RSS in MiB, wake-ups a second and percent of a core: idle, watching and armed."""
    found: dict[str, float] = {}
    armed = 0.88 if isinstance(guard, Ours) else 0.83
    for state, limit, share in (("idle", 8 * LIMIT, 0.02), ("watching", LIMIT, 0.3), ("armed", LIMIT, armed)):
        flat = ("--prefill", int(share * limit) - 30 * MIB, "plateau", 0)
        with staged(guard, {"flat": flat}, limit) as (_, watched):
            guard.go("flat")
            time.sleep(5.0)
            before, since = spent(guard.pid()), time.monotonic()
            time.sleep(seconds)
            after, took = spent(guard.pid()), time.monotonic() - since
            if not watched["flat"].alive():
                print(f"{guard.name} killed a flat {share:.0%}: its costs are those of an empty cgroup")
            found |= {
                f"{state}_cpu_percent": (after[0] - before[0]) / took * 100,
                f"{state}_wakeups_per_s": (after[1] - before[1]) / took,
                f"{state}_rss_mib": after[2] / MIB,
            }
    return {name: round(value, 3) for name, value in found.items()}


def spent(pid: int) -> tuple[float, int, int]:
    """Seconds of processor time (finished children included), voluntary switches, RSS in bytes of a process."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    own = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    status = [(thread / "status").read_text() for thread in threads]
    switches = sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in status)
    rss = int(status[0].split("\nVmRSS:")[1].split()[0]) * 1024
    return own + children, switches, rss


def measure(guard: Guard, phases: list[float], *, quick: bool) -> dict[str, Any]:
    falls = []
    for phase_s, (rate, limit) in zip(phases, itertools.cycle(LEAKS), strict=False):
        falls.append(fall(guard, rate, limit, phase_s))
        print(f"  {guard.name:10} {falls[-1]}", file=sys.stderr, flush=True)
    late = [each.late_s for each in falls if each.late_s is not None]
    wasted = [each.wasted for each in falls if each.wasted is not None]
    return {
        "leaks": len(falls),
        "kernel_kills": sum(each.oom_kills > 0 for each in falls),
        "breach_to_signal_p50_ms": round(percentile(late, 0.5) * 1000, 1) if late else None,
        "breach_to_signal_p99_ms": round(percentile(late, 0.99) * 1000, 1) if late else None,
        "headroom_wasted_percent": round(sum(wasted) / len(wasted) * 100, 1) if wasted else None,
        **work_lost_s(guard, phases[0]),
        **cost(guard, 5.0 if quick else 20.0),
    }


ROWS = (
    ("leaks", "leaks"),
    ("of these killed by the kernel", "kernel_kills"),
    ("breach to signal, p50, ms", "breach_to_signal_p50_ms"),
    ("breach to signal, p99, ms", "breach_to_signal_p99_ms"),
    ("headroom wasted, %", "headroom_wasted_percent"),
    ("work lost, s", "lost_s"),
    ("who died", "died"),
    ("RSS, MiB", "armed_rss_mib"),
    ("idle: wake-ups a second", "idle_wakeups_per_s"),
    ("idle: % of a core", "idle_cpu_percent"),
    ("watching: wake-ups a second", "watching_wakeups_per_s"),
    ("watching: % of a core", "watching_cpu_percent"),
    ("armed: wake-ups a second", "armed_wakeups_per_s"),
    ("armed: % of a core", "armed_cpu_percent"),
)


def report(results: dict[str, dict[str, Any]]) -> None:
    print(f"{'':32}" + "".join(f"{name:>14}" for name in results))
    for title, field in ROWS:
        shown = (
            value if not isinstance(value, list) else "+".join(value) for value in (r[field] for r in results.values())
        )
        print(f"{title:32}" + "".join(f"{'-' if value is None else value!s:>14}" for value in shown))
    ours = results.get(Ours.name)
    ratios = {}
    for name, peer in results.items():
        if ours is None or peer is ours:
            continue
        ratios[name] = {
            "work_lost": ratio(peer["lost_s"], max(0.1, ours["lost_s"])),
            "breach_to_signal_p99": ratio(peer["breach_to_signal_p99_ms"], ours["breach_to_signal_p99_ms"]),
        }
        print(
            f"{name}: {peer['kernel_kills']} of {peer['leaks']} leaks met the kernel, with ours {ours['kernel_kills']};"
            f" {ratios[name]['work_lost'] or 'no'} times ours in work lost"
        )
    print(json.dumps({"bench": "watchdog", "limit_mib": LIMIT // MIB, "guards": results, "peer_to_ours": ratios}))


def ratio(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or not ours else round(theirs / ours, 1)


def enter_namespace() -> None:
    """Run this program again in a PID namespace of its own. Does not return."""
    if shutil.which("unshare") is None:
        leave("unshare is missing, and without a PID namespace earlyoom and the loop could kill anybody")
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, *sys.argv]
    sys.exit(subprocess.run(command, env=os.environ | {INSIDE: "1"}, check=False).returncode)


def leave(why: str) -> None:
    print(f"bench/watchdog.py measures nothing here: {why}")
    print(json.dumps({"bench": "watchdog", "skipped": why}))
    sys.exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fetch", action="store_true", help="get missing peers from Debian and PyPI, for this run")
    parser.add_argument("--repeats", type=int, default=3, help="of each ramp")
    parser.add_argument("--only", action="append", metavar="NAME", help="a guard to measure; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one repeat and short measurements")
    args = parser.parse_args()
    try:
        with MemoryCgroup.made(LIMIT):
            pass
    except Unavailable as reason:
        leave(str(reason))
    if INSIDE not in os.environ:
        enter_namespace()
    order = random.Random(7)
    count = len(LEAKS) * (1 if args.quick else args.repeats)
    phases = [order.uniform(0, TICKS_S) for _ in range(count)]  # the same for every guard
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        found = guards(Path(scratch), fetch=args.fetch, tell=print)
        results = {
            guard.name: measure(guard, phases, quick=args.quick)
            for guard in found
            if not args.only or guard.name in args.only
        }
    report(results)


if __name__ == "__main__":
    main()

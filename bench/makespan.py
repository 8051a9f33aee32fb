"""Sixty programs whose memory nobody foretold, under a budget of 4 GiB: who is done first, and whose work is lost?

    python bench/makespan.py [--fetch] [--quick] [--slots 8] [--seeds 10] [--only NAME ...]

The cells are bench/curves.py: six kinds (flat, small, ramp to a plateau, late spike, saw teeth, stairs) by ten seeds,
0.1 to 1.2 GiB at their peak for 2 to 8 s, in a mixed order that is the same for all. Each contestant runs them in a
memory cgroup of its own with a limit of 4 GiB, one after another; what a kernel out of memory kills is in there. None
is told what a cell needs. A cell that died begins again from nothing.

  overnight     a fresh home with that budget and `--slots`, watchdog on; daemon and watchdog live in the cgroup too
  one by one    a loop
  parallel      GNU parallel -j SLOTS --memfree 1G --retries 100. It looks at /proc/meminfo, which is the machine's in
                a plain container; here it sees the cgroup in it, as with lxcfs (tests/helpers and bench/guards.py)
  pool xN       a process pool with N workers, which starts again what died: as many as cores, and as many as slots

The bound is for anybody who reserves peaks, and knows them all: the largest of the longest cell, sum(peak x duration) /
budget, and sum(duration) / slots; below it the same with what we must leave free (our reserve) taken off the budget,
and what a list schedule with perfect knowledge makes of it. Anybody who shares memory in time can go below, down to the
area below the curves.

makespan    from the start (of `overnight submit`, of the loop, ...) to the end of the last cell; daemons are up
oom kills   memory.oom_control of the cgroup and of those in it
lost        runs that did not come to their end, and the seconds that they had run (as the cells' own files tell)

Prints a table and one JSON line. Needs root. A contestant takes 1 to 6 minutes, with --quick (4 seeds, half the time)
about one at most.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from curves import KINDS, Curve
from guards import Mirror
from homes import Home
from peers import Peers

from helpers.memory_cgroup import MemoryCgroup, Unavailable

BUDGET = 4 * 2**30
GIB = 2**30
PROGRAM = [sys.executable, "-I", "-S", str(Path(__file__).with_name("curves.py"))]
DEADLINE_S = 1800.0
FREE = "1G"
"""GNU parallel's --memfree: what a user may think of who knows no more than that 1 GiB is a lot in 4."""

POOL = """
import json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

def run(command):
    while subprocess.run(command).returncode:
        pass

with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    list(pool.map(run, json.load(open(sys.argv[2]))))
"""


class Plan:
    """What is to be run: the cells in their order, and where each run keeps its file."""

    def __init__(self, seeds: int, scale: float, slots: int) -> None:
        self.seeds, self.scale, self.slots = seeds, scale, slots
        self.cells = [Curve(kind, seed, scale) for seed in range(1, seeds + 1) for kind in KINDS]

    def command(self, kind: object, seed: object, runs: Path) -> list[str]:
        return [*PROGRAM, str(kind), str(seed), str(self.scale), str(runs)]


class Contestant(Protocol):
    name: str

    def run(self, plan: Plan, cgroup: MemoryCgroup, scratch: Path, runs: Path) -> dict[str, Any]:
        """Run all cells. Returns `began_s` (monotonic) and what else there is to say."""
        ...


class Ours:
    name = "overnight"

    def run(self, plan: Plan, cgroup: MemoryCgroup, scratch: Path, runs: Path) -> dict[str, Any]:
        settings = f"[daemon]\nslots = {plan.slots}\n[memory]\nbudget = {BUDGET}\n"
        command = " ".join((*map(shlex.quote, PROGRAM), "{kind}", "{seed}", str(plan.scale), shlex.quote(str(runs))))
        axes = ("--axis", f"seed=1..{plan.seeds}", "--axis", f"kind={','.join(KINDS)}")
        with Home.made(settings, cgroup) as home:
            own = cgroup.firm_bytes()
            began_s = time.monotonic()
            home("submit", "--command", command, *axes, "--name", "makespan", "--tries", "9", "--cwd", str(scratch))
            home.wait("makespan", DEADLINE_S)
            return {
                "began_s": began_s,
                "oom_kills": oom_kills(cgroup),  # before the cells' own cgroups are removed
                "own_mib": own >> 20,
                "hold_mib": (home.pressure().get("hold_bytes") or 0) >> 20,
                "outcomes": home.outcomes("makespan"),
                "claims": claims(home.attempts("makespan")),
            }


class Pool:
    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.name = f"pool x{workers}" if workers > 1 else "one by one"

    def run(self, plan: Plan, cgroup: MemoryCgroup, scratch: Path, runs: Path) -> dict[str, Any]:
        work = scratch / "work.json"
        work.write_text(json.dumps([plan.command(cell.kind, cell.seed, runs) for cell in plan.cells]))
        began_s = time.monotonic()
        command = cgroup.join(sys.executable, "-c", POOL, str(self.workers), str(work))
        subprocess.run(command, check=False, timeout=DEADLINE_S)
        return {"began_s": began_s}


class Parallel:
    name = "parallel"

    def __init__(self, program: list[str]) -> None:
        self._program = program

    def run(self, plan: Plan, cgroup: MemoryCgroup, scratch: Path, runs: Path) -> dict[str, Any]:
        options = ["-j", str(plan.slots), "--memfree", FREE, "--retries", "100", "--joblog", str(scratch / "joblog")]
        seeds = [str(seed) for seed in range(1, plan.seeds + 1)]
        command = [*self._program, *options, *plan.command("{2}", "{1}", runs), ":::", *seeds, ":::", *KINDS]
        mirrored = [sys.executable, __file__, "--mirror", str(cgroup.folder), cgroup.kind]
        began_s = time.monotonic()
        with (scratch / "parallel.err").open("wb") as said:
            subprocess.run(
                ["unshare", "--mount", *mirrored, *command], check=False, timeout=DEADLINE_S, stderr=said, stdout=said
            )
        return {"began_s": began_s}


def mirror_main(folder: str, kind: str, *command: str) -> None:
    """Run the command in the cgroup, in a mount namespace of ours where /proc/meminfo shows the cgroup."""
    cgroup = MemoryCgroup(Path(folder), kind, BUDGET)
    mirror = Mirror(cgroup)
    try:
        subprocess.run(cgroup.join(*command), check=False)
    finally:
        mirror.end()


@contextmanager
def contest_cgroup() -> Iterator[MemoryCgroup]:
    """With whatever is made in it removed at the end."""
    with MemoryCgroup.made(BUDGET) as cgroup:
        try:
            yield cgroup
        finally:
            for inner in sorted((path for path in cgroup.folder.rglob("*") if path.is_dir()), reverse=True):
                MemoryCgroup(inner, cgroup.kind, BUDGET).end()


def oom_kills(cgroup: MemoryCgroup) -> int:
    """In the cgroup and all below it: on v1 a kill counts where its victim was, and nowhere else."""
    inner = [path for path in cgroup.folder.rglob("*") if path.is_dir()] if cgroup.kind == "cgroup1" else []
    return sum(MemoryCgroup(path, cgroup.kind, BUDGET).oom_kills() for path in (cgroup.folder, *inner))


class Usage:
    """How full the cgroup is while something runs: `mean_mib`, `most_mib`."""

    def __init__(self, cgroup: MemoryCgroup) -> None:
        self._cgroup, self._found, self._ended = cgroup, [0], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Usage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self._found.append(self._cgroup.firm_bytes())

    def figures(self) -> dict[str, int]:
        return {"mean_mib": sum(self._found) // len(self._found) >> 20, "most_mib": max(self._found) >> 20}


def claims(attempts: list[dict[str, Any]]) -> dict[str, int]:
    """Where the claims came from, and how many attempts were given each."""
    sources = [str(row.get("claim_source")) for row in attempts]
    return {source: sources.count(source) for source in dict.fromkeys(sources)}


def contest(who: Contestant, plan: Plan) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="overnight-makespan-", dir="/tmp") as name, contest_cgroup() as cgroup:
        scratch = Path(name)
        runs = scratch / "runs"
        runs.mkdir()
        with Usage(cgroup) as usage:
            found = who.run(plan, cgroup, scratch, runs)
        found = {"oom_kills": oom_kills(cgroup)} | found
        return tally(plan, runs, found.pop("began_s")) | found | usage.figures()


def tally(plan: Plan, runs: Path, began_s: float) -> dict[str, Any]:
    """From the files of the runs."""
    done: set[str] = set()
    ended_s, lost_s, lost, started = began_s, 0.0, 0, 0
    for file in runs.iterdir():
        fields = file.read_text().split()
        started += 1
        if fields[2:] == ["1"]:
            done.add(file.name.split(".")[0])
            ended_s = max(ended_s, float(fields[1]))
        else:
            lost += 1
            lost_s += float(fields[1]) - float(fields[0]) if fields else 0.0
    return {
        "makespan_s": round(ended_s - began_s, 2),
        "done": len(done),
        "cells": len(plan.cells),
        "runs": started,
        "lost_runs": lost,
        "lost_s": round(lost_s, 1),
    }


def bounds(plan: Plan, budget: int) -> dict[str, float]:
    """Seconds, for whoever has so much memory. See the module."""
    longest = max(cell.duration_s for cell in plan.cells)
    slots = sum(cell.duration_s for cell in plan.cells) / plan.slots
    peaks = sum(cell.duration_s * cell.peak_bytes for cell in plan.cells) / budget
    area = sum(cell.byte_seconds() for cell in plan.cells) / budget
    return {
        "longest_s": longest,
        "slots_s": slots,
        "peaks_s": peaks,
        "area_s": area,
        "bound_s": max(longest, slots, peaks),
        "list_s": listed(plan, budget),
    }


def listed(plan: Plan, budget: int) -> float:
    """Makespan of a list schedule that knows the peaks: whenever a cell ends, the first ones in order that fit."""
    waiting, now_s = list(plan.cells), 0.0
    running: list[tuple[float, int]] = []  # (end, peak)
    while waiting or running:
        for cell in list(waiting):
            if len(running) < plan.slots and sum(peak for _, peak in running) + cell.peak_bytes <= budget:
                waiting.remove(cell)
                running.append((now_s + cell.duration_s, cell.peak_bytes))
        now_s = min(running)[0]
        running = [(end_s, peak) for end_s, peak in running if end_s > now_s]
    return now_s


def report(plan: Plan, results: dict[str, dict[str, Any]]) -> None:
    whole = bounds(plan, BUDGET)
    bound = whole["bound_s"]
    reserve = results.get(Ours.name, {}).get("hold_mib", 0) << 20
    print(f"\n{len(plan.cells)} cells, {plan.slots} slots, {BUDGET / GIB:g} GiB; seconds")
    print(f"{'bounds':34}{'longest':>9}{'slots':>9}{'peaks':>9}{'largest':>9}{'list':>9}{'area':>9}")
    for title, budget in (("the whole budget", BUDGET), (f"less our reserve, {reserve >> 20} MiB", BUDGET - reserve)):
        found = bounds(plan, budget)
        shown = [found[key] for key in ("longest_s", "slots_s", "peaks_s", "bound_s", "list_s", "area_s")]
        print(f"{title:34}" + "".join(f"{value:9.1f}" for value in shown))
        if not reserve:
            break
    ours = results.get(Ours.name)
    titles = (
        "makespan",
        "/ bound",
        "/ ours",
        "oom kills",
        "runs",
        "lost runs",
        "lost s",
        "done",
        "mean MiB",
        "most MiB",
    )
    print(f"\n{'':12}" + "".join(f"{title:>10}" for title in titles))
    for name, each in results.items():
        each["to_bound"] = round(each["makespan_s"] / bound, 3)
        to_ours = f"{each['makespan_s'] / ours['makespan_s']:.2f}" if ours else "-"
        keys = ("oom_kills", "runs", "lost_runs", "lost_s", "done", "mean_mib", "most_mib")
        row = (each["makespan_s"], each["to_bound"], to_ours, *(each[key] for key in keys))
        print(f"{name:12}" + "".join(f"{value!s:>10}" for value in row))
    if ours:
        left = bounds(plan, BUDGET - reserve)["bound_s"]
        print(
            f"\novernight: {ours['to_bound']:.2f} x the bound, {ours['makespan_s'] / left:.2f} x the one less its"
            f" reserve;\n  {ours['oom_kills']} kernel OOM kills, {ours['lost_s']} s of work lost in {ours['lost_runs']}"
            f" runs; its own processes held {ours['own_mib']} MiB\n"
            f"  attempts: {ours['outcomes']}\n  claims: {ours['claims']}"
        )
    print(json.dumps({"bench": "makespan", "slots": plan.slots, "bounds": whole, "contestants": results}))


def leave(why: str) -> None:
    print(f"bench/makespan.py measures nothing here: {why}")
    print(json.dumps({"bench": "makespan", "skipped": why}))
    sys.exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fetch", action="store_true", help="get GNU parallel from Debian when it is not installed")
    parser.add_argument("--quick", action="store_true", help="4 seeds and half the time")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", metavar="NAME", help="a contestant; may be repeated")
    args = parser.parse_args()
    try:
        with MemoryCgroup.made(BUDGET):
            pass
    except Unavailable as reason:
        leave(str(reason))
    plan = Plan(4, 0.5, args.slots) if args.quick else Plan(args.seeds, 1.0, args.slots)
    workers = dict.fromkeys((1, os.cpu_count() or 1, plan.slots))
    contestants: list[Contestant] = [Ours(), *(Pool(count) for count in workers)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    with Peers.made(fetch=args.fetch) as peers:
        if (not args.only or Parallel.name in args.only) and (program := peers.parallel()) is not None:
            if shutil.which("unshare") is None:
                print("GNU parallel is left out: unshare is missing, so it could not see the cgroup")
            else:
                contestants.append(Parallel(program))
        results = {}
        for who in contestants:
            if args.only and who.name not in args.only:
                continue
            results[who.name] = contest(who, plan)
            print(f"  {who.name}: {results[who.name]}", file=sys.stderr, flush=True)
    report(plan, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--mirror"]:
        mirror_main(*sys.argv[2:])
    else:
        main()

"""What does a cell cost beside its program? 500 times /bin/true, two at a time, against the usual runners.

    python bench/overhead.py [--fetch] [--cells 500] [--only NAME ...]

  overnight      `overnight submit --command /bin/true --axis seed=1..500` on a daemon that is up and warm (its command
                 server has run a cell), 2 slots, watchdog on, memory cgroups where they may be made. Durable: queue
                 (write-ahead log, synchronous=FULL) and result.json are on the disk before a cell counts as done
  parallel       GNU parallel -j 2 --joblog: a line a job, written but never fsynced
  task-spooler   tsp with 2 slots: a call of `tsp` for each job. Nothing of it outlives its server
  submitit       its local executor (each job a fresh Python, pickles and logs on disk), two at a time, of which a tenth
                 of the cells is run and the time for one told
  fork + exec    the floor: a loop of two processes that does nothing but start and wait

all        from the start of the command that submits to the end of the last cell, per cell
after      from when all is submitted (overnight: the command has returned. task-spooler: behind two jobs that wait)
running    from the start of the first cell to the end of the last: without anybody's start-up

The disk's part is told beside: how long a small write and its fdatasync take here. Prints a table with ratios and one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from homes import Home
from peers import Peers

JOB = "/bin/true"
AT_ONCE = 2
DEADLINE_S = 900.0
SETTINGS = f"[daemon]\nslots = {AT_ONCE}\n"

SUBMITIT = """
import sys, time, submitit, logging
logging.disable(logging.CRITICAL)
executor = submitit.LocalExecutor(folder=sys.argv[1])
true = submitit.helpers.CommandFunction([sys.argv[2]], verbose=False)
left, running = int(sys.argv[3]), []
began = time.monotonic()
while left or running:
    while left and len(running) < int(sys.argv[4]):
        running.append(executor.submit(true)); left -= 1
    running = [job for job in running if not job.done()]
    time.sleep(0.005)
print(time.monotonic() - began)
"""


def overnight(cells: int, _: list[str]) -> dict[str, float]:
    with Home.made(SETTINGS) as home:
        home("submit", "--command", JOB, "--axis", "seed=1..4", "--name", "warm-up")
        home.wait("warm-up", 60)
        began = time.time()
        home("submit", "--command", JOB, "--axis", f"seed=1..{cells}", "--name", "overhead")
        submitted = time.time()
        home.wait("overhead", DEADLINE_S)
        attempts = home.attempts("overhead")
    if {row["outcome"] for row in attempts} != {"completed"} or len(attempts) != cells:
        raise SystemExit(f"not every cell completed at once: {len(attempts)} attempts")
    ended = max(row["ended_at"] for row in attempts)
    first = min(row["claimed_at"] for row in attempts)
    # It begins before the submitting command has gone: what is left then is what is told as `after`.
    return {"all": ended - began, "after": ended - submitted, "running": ended - first}


def gnu_parallel(cells: int, program: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="overnight-bench-", dir="/tmp") as folder:
        log = Path(folder) / "joblog"
        began = time.monotonic()
        names = "\n".join(map(str, range(cells))).encode()
        command = [*program, "-j", str(AT_ONCE), "--joblog", str(log), JOB, "#", "{}"]
        subprocess.run(command, input=names, check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - began
        rows = [line.split("\t") for line in log.read_text().splitlines()[1:]]
    assert len(rows) == cells, f"{len(rows)} jobs in the joblog"
    starts = [float(row[2]) for row in rows]
    return {"all": took, "running": max(float(row[2]) + float(row[3]) for row in rows) - min(starts)}


def task_spooler(cells: int, program: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="on-", dir="/tmp") as folder:
        gate = Path(folder) / "gate"
        os.mkfifo(gate)
        # Its server keeps only so many finished jobs; all of them, since the last ones are asked for.
        settings = {"TS_SOCKET": f"{folder}/socket", "TS_SLOTS": str(AT_ONCE), "TS_MAXFINISHED": str(2 * cells)}
        environment = os.environ | settings | {"TMPDIR": folder}

        def spool(*arguments: str) -> str:
            done = subprocess.run([*program, *arguments], env=environment, check=True, capture_output=True, text=True)
            return done.stdout

        try:
            began = time.monotonic()
            for _ in range(AT_ONCE):
                spool("-n", "cat", str(gate))
            for _ in range(cells):
                spool("-n", JOB)
            submitted = time.monotonic()
            with gate.open("w"):
                pass  # both readers see its end
            while any(word in (found := spool()) for word in (" running ", " queued ")):
                time.sleep(0.02)
            ended = time.monotonic()
            assert found.count(" finished ") == cells + AT_ONCE, found[-500:]
        finally:
            spool("-K")
    return {"all": ended - began, "after": ended - submitted, "running": ended - submitted}


def submitit(cells: int, program: list[str]) -> dict[str, float]:
    some = max(1, cells // 10)
    with tempfile.TemporaryDirectory(prefix="overnight-bench-", dir="/tmp") as folder:
        began = time.monotonic()
        done = subprocess.run(
            [*program, "-c", SUBMITIT, folder, JOB, str(some), str(AT_ONCE)], check=True, capture_output=True, text=True
        )
        took = time.monotonic() - began
    return {"all": took * cells / some, "running": float(done.stdout) * cells / some}


def floor(cells: int, _: list[str]) -> dict[str, float]:
    began, running, left = time.monotonic(), 0, cells
    while left or running:
        while left and running < AT_ONCE:
            os.posix_spawn(JOB, [JOB], os.environ)
            left, running = left - 1, running + 1
        os.wait()
        running -= 1
    took = time.monotonic() - began
    return {"all": took, "running": took}


def sync_ms(times: int = 200) -> float:
    """Median of a small append and its fdatasync."""
    with tempfile.TemporaryFile(prefix="overnight-bench-", dir="/tmp") as file:
        found = []
        for _ in range(times):
            began = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - began)
    return statistics.median(found) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fetch", action="store_true", help="get missing peers from Debian and PyPI, for this run")
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=1, help="of everybody but submitit; the best counts")
    parser.add_argument("--only", action="append", metavar="NAME", help="a runner; may be repeated")
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with Peers.made(fetch=args.fetch) as peers:
        runners: dict[str, tuple[Callable[[int, list[str]], dict[str, float]], list[str] | None]] = {
            "overnight": (overnight, []),
            "parallel": (gnu_parallel, peers.parallel()),
            "task-spooler": (task_spooler, peers.task_spooler()),
            "fork + exec": (floor, []),
        }
        if not args.only or "submitit" in args.only:
            python = peers.submitit()
            runners["submitit"] = (submitit, [str(python)] if python else None)
        syncs = [sync_ms()]
        for turn in range(args.repeats):
            for name, (run, program) in runners.items():
                if program is None or (args.only and name not in args.only) or (turn and name == "submitit"):
                    continue
                found = run(args.cells, program)
                print(f"  {name}: {found}", file=sys.stderr, flush=True)
                if name not in results or found["all"] < results[name]["all"]:
                    results[name] = found
        syncs.append(sync_ms())
    report(args.cells, results, syncs)


def report(cells: int, results: dict[str, dict[str, float]], syncs: list[float]) -> None:
    per_cell: dict[str, Any] = {
        name: {what: round(seconds / cells * 1000, 2) for what, seconds in found.items()}
        for name, found in results.items()
    }
    peer = per_cell.get("parallel")
    title = f"{cells} x {JOB}, {AT_ONCE} at a time; ms a cell"
    print(f"\n{title:50}" + "".join(f"{head:>12}" for head in ("all", "after", "running", "x parallel")))
    for name, found in per_cell.items():
        shown = [str(found.get(what, "-")) for what in ("all", "after", "running")]
        ratio = f"{found['all'] / peer['all']:.2f}" if peer else "-"
        print(f"{name:50}" + "".join(f"{value:>12}" for value in (*shown, ratio)))
    print(f"a write and its fdatasync: {syncs[0]:.2f} ms before, {syncs[1]:.2f} ms after")
    print(json.dumps({"bench": "overhead", "cells": cells, "ms_per_cell": per_cell, "fdatasync_ms": syncs}))


if __name__ == "__main__":
    main()

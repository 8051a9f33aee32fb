"""A dispatcher that has nothing to do: its memory and its CPU, with one warm server, against its peers in the same run.

    python bench/idle.py [--seconds 60] [--engine transformers|scripted]

Peers: supervisord itself, and a plain process that has imported what a runner in one process would have to import.
PSS counts a page shared by n processes as 1/n. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from overnight.cli import supervise
from overnight.paths import Paths

RUNNER = "import torch, transformers; from transformers import AutoModelForCausalLM; print(); input()"


def run(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "overnight", "--home", str(home), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def pss(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", default="transformers", choices=["transformers", "scripted"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        paths = Paths.of(Path(scratch) / "h").ensure()
        if args.engine == "transformers":
            # The model store of the checkout, so that nothing is converted twice.
            paths.models.rmdir()
            paths.models.symlink_to(Paths.of().models)
        extra = ["--engine", "scripted"] if args.engine == "scripted" else []
        try:
            run(paths.home, "run", str(paths.grids / "minimal.yaml"), "--scaffold", "1", *extra)
            report(paths, args.seconds, args.engine)
        finally:
            run(paths.home, "down")


def report(paths: Paths, seconds: float, engine: str) -> None:
    state: dict[str, Any] = json.loads(run(paths.home, "status", "--json").stdout)
    daemon = psutil.Process(state["daemon"]["pid"])
    (warm,) = state["warm"]
    supervisor = supervise.rpc(paths)
    supervisord = psutil.Process(supervisor.getPID())
    watchdog = psutil.Process(next(i["pid"] for i in supervisor.getAllProcessInfo() if i["name"] == "watchdog"))
    runner = subprocess.Popen([sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if runner.stdout is not None:
            runner.stdout.readline()
        watched = {"dispatcher": daemon, "watchdog": watchdog, "supervisord": supervisord}
        before = {name: cpu_s(process) for name, process in watched.items()}
        time.sleep(seconds)
        cpu = {name: (cpu_s(process) - before[name]) / seconds for name, process in watched.items()}
        rows = {name: pss(process) for name, process in watched.items()}
        rows["warm server"] = pss(psutil.Process(warm["pid"]))
        rows["importing runner"] = pss(psutil.Process(runner.pid))
    finally:
        runner.kill()
        runner.wait()
    for name, size in rows.items():
        used = f"{cpu[name] * 100:7.3f} % of a core" if name in cpu else ""
        print(f"{name:18} PSS {size / 2**20:8.1f} MiB  {used}")
    ratio = rows["importing runner"] / rows["dispatcher"]
    print(f"the dispatcher takes 1/{ratio:.1f} of what a runner pays for its imports alone")
    print(
        json.dumps(
            {
                "bench": "idle",
                "engine": engine,
                "seconds": seconds,
                "dispatcher_pss_mib": round(rows["dispatcher"] / 2**20, 1),
                "dispatcher_cpu": round(cpu["dispatcher"], 5),
                "runner_to_dispatcher": round(ratio, 1),
            }
        )
    )


if __name__ == "__main__":
    main()

"""From launch to the start of the first prefill: a cold process against a child forked from a warm server.

    python bench/cell_start.py [--repeat 5] [--engine transformers|scripted]

Cold: a fresh interpreter that imports, loads tokenizer and model, opens the cell and begins. Warm: what the daemon
does, gate and registration messages included. Same model, same cell, one run. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from overnight.cells import idle_loop
from overnight.engines import registry
from overnight.grid.expand import expand
from overnight.grid.loader import load_grid
from overnight.paths import Paths
from overnight.queue import specs
from overnight.warm.client import WarmServer


def cell(engine: str) -> dict[str, Any]:
    """The first cell of the minimal grid, of one turn and one token: nothing after the start matters."""
    grid = load_grid(Path(__file__).parents[1] / "grids" / "minimal.yaml")
    planned = next(iter(expand(grid, engine=None if engine == "transformers" else engine)))
    limits = {**planned.template["limits"], "max_iterations": 1, "token_limit": 1}
    template = {**planned.template, "limits": limits}
    return specs.full(template, planned.key, planned.coords, planned.seed)


def cold_main(argv: list[str]) -> None:
    """The cold process: says when its first prefill begins."""
    spec, store, folder = json.loads(argv[0]), argv[1], argv[2]
    engine = registry.make(specs.warm_specification(spec), store)
    engine.load()

    def report(event: str, **_: Any) -> None:
        if event == "first_prefill":
            print(time.monotonic(), flush=True)

    idle_loop.run(engine, spec, Path(folder), report=report)


def cold_s(spec: dict[str, Any], store: Path, folder: Path) -> float:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--cold", json.dumps(spec), str(store), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[0]) - began


def warm_s(server: WarmServer, attempt: int, spec: dict[str, Any], folder: Path) -> float:
    began = time.monotonic()
    server.fork(attempt, spec, folder, accept_conditions=False)
    started = None
    while True:
        message = server.channel.receive()
        if message is None:
            continue
        if message["kind"] == "forked":
            server.let_go(attempt)
        elif message["kind"] == "first_prefill":
            started = time.monotonic() - began
        elif message["kind"] == "exited":
            if started is None:
                raise SystemExit(f"the cell did not begin: {message}")
            return started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--engine", default="transformers", choices=["transformers", "scripted"])
    args = parser.parse_args()
    spec, store = cell(args.engine), Paths.of().models
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        server = WarmServer("bench", specs.warm_specification(spec), store, folder / "warm.err")
        loaded = server.channel.receive() or {}
        if loaded.get("kind") != "loaded":
            raise SystemExit(f"the warm server did not load: {loaded.get('error')}")
        warm_s(server, 0, spec, folder / "first")
        warm = [warm_s(server, n + 1, spec, folder / f"warm{n}") for n in range(args.repeat * 2)]
        cold = [cold_s(spec, store, folder / f"cold{n}") for n in range(args.repeat)]
        server.kill()
        server.wait(10)
        server.close()
    ratio = statistics.median(cold) / statistics.median(warm)
    print(f"cold process   median {statistics.median(cold) * 1000:9.1f} ms  (of {len(cold)})")
    print(f"warm fork      median {statistics.median(warm) * 1000:9.1f} ms  (of {len(warm)})")
    print(f"ratio          {ratio:.0f} x")
    print(json.dumps({"bench": "cell_start", "engine": args.engine, "ratio": round(ratio, 1)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cold"]:
        cold_main(sys.argv[2:])
    else:
        main()

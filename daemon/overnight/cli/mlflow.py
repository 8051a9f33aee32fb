"""`overnight mlflow GRID`: its cells as runs of MLflow, one a cell. Running it again writes only what changed."""

from __future__ import annotations

import argparse
import os
from typing import Any

from overnight.cli import common, text
from overnight.queue.store import GridRow

_SHOWN = 10


def add(commands: Any) -> None:
    parser = commands.add_parser("mlflow", help="a grid's cells as runs of MLflow; again, only what changed")
    parser.add_argument("grid", metavar="GRID")
    parser.add_argument(
        "--store",
        metavar="URI",
        help="sqlite:///FILE, another database, or http(s)://SERVER (default: $MLFLOW_TRACKING_URI, else "
        "var/mlflow/mlflow.db)",
    )
    parser.add_argument("--experiment", metavar="NAME", help="where the runs belong (default: the grid's name)")
    parser.add_argument("--backend", choices=["tfidf", "embedding"], help="whose figures (default: as the grid says)")
    parser.add_argument("--method", choices=["absolute", "profile"], help="whose figures (default: as the grid says)")
    parser.add_argument(
        "--timeseries",
        choices=["off", "tfidf", "embedding"],
        help="whose figures of each turn (default: as the grid says, else as --backend)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from overnight.report import mlflow_export, mlflow_store

    paths = common.home(args)
    place = mlflow_store.place(args.store, paths)
    os.nice(10)  # cells come first
    with common.open_queue(paths) as queue:
        choice = _choice(queue.grid(args.grid), args)
        done = mlflow_export.export(paths, queue, args.grid, place, choice, args.experiment or "")
    if args.json:
        common.print_json(asdict(done))
        return 0
    counts = [f"{_counted(done.added, 'run', 'runs')} added", f"{done.updated} updated", f"{done.replaced} replaced"]
    print(text.harmless(f"{done.experiment}: {', '.join(counts)}, {done.unchanged} unchanged", newlines=False))
    if done.not_ended:
        print(f"  {_counted(done.not_ended, 'cell has', 'cells have')} not ended, without a run so far")
    if done.under_way:
        cells = _counted(done.under_way, "cell has", "cells have")
        print(f"  {cells} not ended, and a run of before that stays until then (its tag overnight.status says so)")
    if done.not_analysed:
        how = f"--backend {choice.backend} --method {choice.method}"
        cells = _counted(done.not_analysed, "conversation has", "conversations have")
        print(f"  {cells} no analysis that holds: overnight analyze {args.grid} {how}")
    for sentence in done.said[:_SHOWN]:
        print(text.harmless(f"  {sentence}", newlines=False))
    if len(done.said) > _SHOWN:
        print(f"  and {len(done.said) - _SHOWN} more (--json says all)")
    print(f"  {done.store}")
    return 0


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _choice(grid: GridRow, args: argparse.Namespace) -> Any:
    """What was asked for, else what the grid says. A grid's `timeseries: off` is about what is computed after each
    cell; the series of the analysis that is told are there anyway."""
    from overnight.report.mlflow_export import Choice

    found = grid.spec.get("analysis")
    said = found if isinstance(found, dict) else {}
    backend = args.backend or said.get("backend") or "tfidf"
    series = said.get("timeseries") or "off"
    series = args.timeseries or (backend if series == "off" else series)
    return Choice(backend, args.method or said.get("method") or "absolute", series)

"""`overnight status`: is it running, what is it doing, how long will it take."""

from __future__ import annotations

import argparse
import time
from typing import Any

from overnight.cli import common, text
from overnight.dispatch import pressure
from overnight.dispatch.grid_state import write_grid_state
from overnight.paths import Paths
from overnight.queue import follow, specs
from overnight.queue.states import Status
from overnight.queue.store import GridRow, Queue

_SILENT_S = 10.0
_FALLING_BYTES_PER_S = 2**20
"""Less than this is an idle machine's noise."""


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="daemon, queue counts, each grid's progress and ETA")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--write-grid-state",
        metavar="GRID",
        help="write GRID's grid_state.json now, however large the grid is",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args, looks=not args.write_grid_state)
    with common.open_queue(paths) as queue:
        if args.write_grid_state:
            write_grid_state(paths, queue, queue.grid(args.write_grid_state), {})
            print(paths.grid_state(args.write_grid_state))
            return 0
        found = collect(paths, queue)
    if args.json:
        common.print_json(found)
    else:
        _show(found)
    return 0


def collect(paths: Paths, queue: Queue) -> dict[str, Any]:
    """Everything that `status` shows, as JSON values."""
    state = common.daemon_state(paths)
    all_grids = queue.grids()
    grids, analyses = follow.apart(all_grids)
    commands = {grid.name for grid in all_grids if grid.spec.get("kind") == "command"}
    now = pressure.read(paths.pressure)
    slots = state["slots"] if state else 1
    running = state["running"] if state else []
    for row in running:
        row.update(_memory(row["pid"]))
        row["kind"] = "command" if row["grid"] in commands else "idle_loop"
    warm = state["warm"] if state else []
    for server in warm:
        server.update(_memory(server["pid"]))
    return {
        "home": str(paths.home),
        "daemon": None
        if state is None
        else {
            "pid": state["pid"],
            "heartbeat_age_s": round(state["age_s"], 1),
            "holding": state["holding"],
            "slots": slots,
        },
        "memory": None if state is None else state.get("memory"),
        "watchdog": None
        if now is None
        else {
            "level": now.level,
            "limit_bytes": now.limit_bytes,
            "headroom_bytes": now.headroom_bytes,
            "frozen": now.frozen,
            "slope_bytes_per_s": now.slope_bytes_per_s,
            "exhaustion_s": now.exhaustion_s,
        },
        "cells": {str(status): sum(grid.counts[status] for grid in grids) for status in Status},
        "next_ready_s": None if (ready_at := queue.next_ready_at()) is None else max(0.0, ready_at - time.time()),
        "grids": [
            {**_grid(queue, grid, slots, running), "analysis": _analysis(analyses.get(grid.name))} for grid in grids
        ],
        "running": running,
        "warm": warm,
    }


def _grid(queue: Queue, grid: GridRow, slots: int, running: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(grid.counts.values())
    left = grid.counts.get(Status.PENDING, 0) + grid.counts.get(Status.RUNNING, 0)
    pace = queue.pace(grid.id)
    mine = [row for row in running if row["grid"] == grid.name]
    mean_s = pace.mean_seconds if pace.mean_seconds is not None else _guess(grid, mine)
    spent_s = sum(row["seconds"] for row in mine)
    imported = grid.spec.get("kind") == specs.IMPORTED  # its pending cells are what its files say: nothing runs them
    if imported:
        mean_s = None
    eta_s = None if mean_s is None or not left else max(0.0, left * mean_s - spent_s) / max(1, min(slots, left))
    return {
        "grid": grid.name,
        "imported": imported,
        "cells": {str(status): count for status, count in grid.counts.items()},
        "done": grid.counts.get(Status.DONE, 0),
        "total": total,
        "mean_cell_s": mean_s,
        "eta_s": eta_s,
    }


def _analysis(grid: GridRow | None) -> dict[str, int] | None:
    """The jobs that follow a grid's cells, by status; None where nothing follows them."""
    return None if grid is None else {str(status): count for status, count in grid.counts.items()}


def _analysed(counts: dict[str, int] | None) -> str:
    """`10/12`, and what went wrong."""
    if counts is None or not any(counts.values()):
        return ""
    wrong = [f"{counts[name]} {name}" for name in ("failed", "quarantined", "cancelled") if counts[name]]
    return f"{counts['done']}/{sum(counts.values())}" + (f" ({', '.join(wrong)})" if wrong else "")


def _guess(grid: GridRow, running: list[dict[str, Any]]) -> float | None:
    """Seconds a cell may take, before any is done: from the turns of this attempt so far, to the most there can be."""
    most = grid.spec.get("limits", {}).get("max_iterations")
    paces = [row["seconds"] / row["new_turns"] for row in running if row["new_turns"] > 0]
    return None if most is None or not paces else float(most) * sum(paces) / len(paces)


def _memory(pid: int | None) -> dict[str, int | None]:
    """PSS counts shared pages once over all who share them; USS is what a process alone holds."""
    import psutil

    if pid is None:
        return {"pss_bytes": None, "uss_bytes": None}
    try:
        info = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return {"pss_bytes": None, "uss_bytes": None}
    return {"pss_bytes": info.pss, "uss_bytes": info.uss}


def _trend(watchdog: dict[str, Any]) -> str:
    """What is frozen, how fast the headroom goes and until when; "" when there is nothing to say."""
    said = []
    if frozen := watchdog["frozen"]:
        said.append(f"{frozen} {'process' if frozen == 1 else 'processes'} frozen")
    slope, exhaustion = watchdog["slope_bytes_per_s"], watchdog["exhaustion_s"]
    if slope is not None and (slope >= _FALLING_BYTES_PER_S or (slope > 0 and exhaustion is not None)):
        said.append(f"falling by {text.size(slope)}/s")
    if exhaustion is not None:
        said.append(f"full in {text.duration(exhaustion)}")
    return ", ".join(said)


def _show(found: dict[str, Any]) -> None:
    daemon, watchdog = found["daemon"], found["watchdog"]
    print(f"home      {found['home']}")
    if daemon is None:
        cut = found["cells"].get("running", 0)
        print("daemon    not running (start it with `overnight up`" + (f"; {cut} cells were cut off)" if cut else ")"))
    elif daemon["heartbeat_age_s"] > _SILENT_S:
        print(
            f"daemon    silent for {daemon['heartbeat_age_s']:.0f} s, pid {daemon['pid']} (`overnight up` restarts it)"
        )
    else:
        hold = f", waiting: {daemon['holding']}" if daemon["holding"] else ""
        print(f"daemon    running, pid {daemon['pid']}, {daemon['slots']} slots{hold}")
    if watchdog is None:
        print("watchdog  silent")
    else:
        room = f"{text.size(watchdog['headroom_bytes'])} of {text.size(watchdog['limit_bytes'])} free"
        print(f"watchdog  pressure {watchdog['level']}, {room}")
        if more := _trend(watchdog):
            print(f"          {more}")
    if (memory := found["memory"]) is not None:
        claimed = f"{text.size(memory['claimed_bytes'])} by cells, {text.size(memory['warm_bytes'])} by warm servers"
        most = memory.get("most_bytes", memory["limit_bytes"] - memory["reserve_bytes"])
        print(f"claimed   {claimed}")
        others = memory.get("others_bytes")
        also = "" if others is None else f", {text.size(others)} are held by others"
        print(f"          of {text.size(most)}; {text.size(memory['reserve_bytes'])} are kept free{also}")
    counts = ", ".join(f"{count} {status}" for status, count in found["cells"].items() if count)
    print(f"cells     {counts or 'none; submit a grid: overnight submit FILE'}")
    if found["next_ready_s"]:
        print(
            f"          all that are pending wait to be tried again, the next in {text.duration(found['next_ready_s'])}"
        )
    if found["grids"]:
        heads = (
            "grid",
            "done",
            "cells",
            "pending",
            "running",
            "failed",
            "quarantined",
            "cancelled",
            "analysed",
            "a cell",
            "left",
        )
        rows = [
            (
                grid["grid"],
                grid["done"],
                grid["total"],
                *(grid["cells"].get(name, 0) for name in heads[3:8]),
                _analysed(grid["analysis"]),
                text.duration(grid["mean_cell_s"]),
                text.duration(grid["eta_s"]),
            )
            for grid in found["grids"]
        ]
        print("\n" + text.table(heads, rows, optional=("failed", "quarantined", "cancelled", "analysed")))
    if imported := [grid for grid in found["grids"] if grid["imported"]]:
        pending = sum(grid["cells"].get("pending", 0) for grid in imported)
        names = text.shortened(", ".join(grid["grid"] for grid in imported), 200)
        print(f"imported: {names}" + (f"; nothing runs the {pending} pending cells there" if pending else ""))
    if found["running"]:
        commands = [row["kind"] == "command" for row in found["running"]]
        rows = [
            (
                f"{row['grid']}/{row['cell']}",
                row["phase"],
                None if is_command else row["turn"],
                None if is_command else row["output_tokens"],
                text.duration(row["seconds"]),
                row["pid"],
                text.size(row["bytes"]),
                text.size(row["claim_bytes"]),
                text.size(row["peak_bytes"]),
            )
            for row, is_command in zip(found["running"], commands, strict=True)
        ]
        columns = ("running", "phase", "turn", "tokens", "since", "pid", "holds", "claim", "peak")
        print("\n" + text.table(columns, rows, optional=("turn", "tokens") if all(commands) else ()))
    if found["warm"]:
        rows = [
            (
                row["model"],
                row["state"],
                row["cells"],
                text.duration(row["load_s"]),
                row["pid"],
                text.size(row["pss_bytes"]),
            )
            for row in found["warm"]
        ]
        print("\n" + text.table(("warm server", "state", "cells", "loaded in", "pid", "PSS"), rows))

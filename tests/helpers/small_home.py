"""A small home without a daemon: a few cells of an idle loop and of a command, run in this process, in every status.

What a daemon would do with its cells, `run` does in milliseconds: claim, run, record. So a home can be damaged,
repaired and run to its end hundreds of times.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.queue_cells import Cell
from helpers.specs import scripted_spec, warm_of
from overnight.cells import command_result, command_start, idle_loop
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import CellError
from overnight.paths import Paths
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Claimed, Queue

TURNS = 5
POLICY = {"timeout_s": None, "tries": 1, "memory_bytes": None, "grace_s": 10.0, "cap": "auto"}


class Interrupted(Exception):
    """Raised between two turns, as a kill would end them."""


def cells(runs: int = 6) -> list[Cell]:
    whole = scripted_spec(turns=TURNS, reply_tokens=[3, 9])
    template = {name: value for name, value in whole.items() if name not in ("key", "coords", "seed")}
    return [
        Cell(f"baseline_script_run{n}", {"scaffold": "baseline", "model": "script", "run": n}, template, 1000 + n)
        for n in range(1, runs + 1)
    ]


def commands(count: int = 3) -> list[Cell]:
    template = {
        "v": 1, "kind": "command", "command": ["echo", "{x}"], "shell": False, "env": {}, "cwd": "scratch",
        "keep": ["*.txt"], "threads": 1,
    }  # fmt: skip
    return [Cell(f"x{n}", {"x": n}, template, 50 + n) for n in range(1, count + 1)]


def submit(paths: Paths) -> None:
    with Queue.open(paths.queue) as queue:
        queue.enqueue("night", cells=cells(), spec={"name": "night"}, policy=POLICY)
        queue.enqueue("sweep", cells=commands(), spec={"name": "sweep"}, policy=POLICY)


def build(folder: Path) -> Paths:
    """Cells 1 to 3 are done, 4 is pending with two turns, 5 failed at its second, 6 was cancelled with one; of the
    commands, two are done."""
    paths = Paths.of(folder).ensure()
    submit(paths)
    with Queue.open(paths.queue) as queue:
        for _ in range(3):
            attempt(paths, queue)
        attempt(paths, queue, key="baseline_script_run4", stop_at=2, outcome=Outcome.YIELDED)
        attempt(paths, queue, key="baseline_script_run5", stop_at=2, outcome=Outcome.FAILED)
        attempt(paths, queue, key="baseline_script_run6", stop_at=1, outcome=Outcome.LOST)
        queue.cancel([row.id for row in queue.find_cell("baseline_script_run6")])
        for key in ("x1", "x2"):
            attempt(paths, queue, key=key)
    return paths


def run(paths: Paths) -> None:
    """Run all that is pending to its end."""
    with Queue.open(paths.queue, check=True) as queue:
        queue.recover()
        while attempt(paths, queue):
            pass


def attempt(
    paths: Paths, queue: Queue, *, key: str | None = None, stop_at: int | None = None, outcome: Outcome | None = None
) -> bool:
    """One attempt at the next cell, or at that one. stop_at: end it after so many turns, as `outcome`."""
    chosen = None if key is None else queue.find_cell(key)[0].id
    claimed = queue.claim(boot_id="boot", daemon="d1", cell_id=chosen)
    if claimed is None:
        return False
    folder = paths.cell_results(claimed.grid, claimed.cell.key)
    folder.mkdir(parents=True, exist_ok=True)
    if claimed.spec["kind"] == "command":
        _run_command(queue, claimed, folder)
    else:
        _run_idle_loop(queue, claimed, folder, stop_at, outcome)
    return True


def _run_idle_loop(queue: Queue, claimed: Claimed, folder: Path, stop_at: int | None, outcome: Outcome | None) -> None:
    seen = {"turns": claimed.cell.turns, "output_tokens": claimed.cell.output_tokens}

    def report(event: str, **fields: Any) -> None:
        if event == "turn":
            seen.update(turns=fields["turn"], output_tokens=fields["output_tokens"])
            if fields["turn"] == stop_at:
                raise Interrupted

    try:
        finished = idle_loop.run(ScriptedEngine(warm_of(claimed.spec), ""), claimed.spec, folder, report=report)
    except Interrupted:
        assert outcome is not None
        queue.finish(claimed.attempt_id, outcome, run_s=1.0, **seen)
    except CellError as error:
        ended, code, reason = idle_loop.explain(error)
        queue.finish(claimed.attempt_id, Outcome(ended), reason_code=code, reason=reason, run_s=1.0)
    else:
        queue.finish(
            claimed.attempt_id,
            Outcome.COMPLETED,
            turns=finished.turns,
            output_tokens=finished.output_tokens,
            end_reason=finished.end_reason,
            transcript_sha256=finished.transcript_sha256,
            run_s=1.0,
        )


def _run_command(queue: Queue, claimed: Claimed, folder: Path) -> None:
    """What `echo` would leave, with a file that is kept."""
    (folder / "lock").touch()
    (folder / "stdout.log").write_text("said\n")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    (work / "kept.txt").write_text(claimed.cell.key * 100)
    files = command_result.keep(claimed.spec, work, folder).files
    command_start.remove(work)
    sha256 = command_result.write(claimed.spec, folder, command_result.Result({"x": 1}), files)
    queue.finish(claimed.attempt_id, Outcome.COMPLETED, turns=0, output_tokens=0, transcript_sha256=sha256, run_s=1.0)


def results(paths: Paths) -> dict[str, bytes]:
    """What the cells produced: GRID/KEY/name -> bytes."""
    found = {}
    for name in ("transcript.jsonl", "result.json", "files/kept.txt"):
        for path in paths.results.glob(f"*/*/{name}"):
            found[str(path.relative_to(paths.results))] = path.read_bytes()
    return found


def tree(folder: Path, *, without: Callable[[Path], bool] = lambda path: False) -> dict[str, str]:
    """Every file below a folder, with the hash of its bytes, and every folder and link."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if without(path):
            continue
        name = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def statuses(paths: Paths) -> dict[str, Status]:
    with Queue.open(paths.queue, check=True) as queue:
        return {f"{row.grid}/{row.key}": row.status for row in queue.cells()}

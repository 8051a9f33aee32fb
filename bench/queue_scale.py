"""Does the queue stay quick when it is large and nearly done? Against the usual table, in the same run.

    python bench/queue_scale.py [--cells 1000000]

The peer is what one writes first: one table, the whole specification in each row, no index but that of the keys; claim
is `WHERE status = 'pending' ORDER BY id LIMIT 1`, status is `GROUP BY status`. Both are equally durable (write-ahead
log, synchronous=FULL, the same attempt and event rows). The first 90 % are made done by SQL statements in
both, as a run of nine tenths would leave them. A dispatch is what the daemon does for each cell: look at the next 64
with their whole specifications, claim one of them that is not the first, finish it with the peak that it taught.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from overnight.queue.states import Outcome
from overnight.queue.store import Peak, Queue

TEMPLATE: dict[str, Any] = {
    "v": 1,
    "kind": "idle_loop",
    "engine": "scripted",
    "model": {"name": "135m", "source": "smollm2-135m-instruct", "dtype": "float32", "device": "cpu", "options": {}},
    "sampling": {"temperature": 0.8, "top_p": 1.0, "top_k": 0},
    "system": "You have nothing to do for the next ten hours. " * 20,
    "limits": {"max_iterations": 50, "target_output_tokens": 6000, "token_limit": 2000, "shift_hours": 10.0},
    "threads": 1,
}


WINDOW = 64
"""Cells that the dispatcher looks at when it chooses the next one."""

PEAK = Peak("0123456789abcdef", "fedcba9876543210", 90 << 20, whole=True)


@dataclass(frozen=True)
class Cell:
    key: str
    coords: dict[str, Any]
    template: dict[str, Any]
    seed: int


def cells(count: int) -> Iterator[Cell]:
    for run in range(1, count + 1):
        coords = {"scaffold": "baseline", "model": "135m", "run": run}
        yield Cell(f"baseline_135m_run{run}", coords, TEMPLATE, run * 7919)


class Store(Protocol):
    def enqueue(self, count: int) -> None: ...
    def claim_and_finish(self) -> None: ...
    def look(self) -> list[int]: ...
    def dispatch(self) -> None: ...
    def status(self) -> None: ...
    def finish_most(self) -> None: ...
    def close(self) -> None: ...


class Ours:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.queue = Queue.open(path)

    def enqueue(self, count: int) -> None:
        self.queue.enqueue("bench", cells=cells(count), spec={}, policy={"tries": 3})

    def claim_and_finish(self) -> None:
        claimed = self.queue.claim(boot_id="boot", daemon="bench")
        assert claimed is not None
        self.queue.finish(claimed.attempt_id, Outcome.COMPLETED, turns=50, output_tokens=6000)

    def look(self) -> list[int]:
        return [ready.cell_id for ready in self.queue.next_ready_many(WINDOW) if ready.spec["seed"]]

    def dispatch(self) -> None:
        chosen = self.look()[WINDOW // 2]
        claimed = self.queue.claim(boot_id="boot", daemon="bench", cell_id=chosen, claim_bytes=1 << 20)
        assert claimed is not None
        self.queue.finish(claimed.attempt_id, Outcome.COMPLETED, turns=50, peak_bytes=PEAK.bytes, learn=PEAK)

    def status(self) -> None:
        self.queue.grids()
        self.queue.counts()

    def finish_most(self) -> None:
        db = sqlite3.connect(self.path)
        chosen = "FROM cells WHERE status = 'pending' AND id <= (SELECT max(id) * 9 / 10 FROM cells)"
        db.execute(
            "INSERT INTO attempts (cell_id, generation, number, boot_id, daemon, claimed_at, ended_at, outcome)"
            f" SELECT id, 0, 1, 'boot', 'bench', 1, 2, 'completed' {chosen}"
        )
        for kind in ("claimed", "finished"):
            db.execute(f"INSERT INTO events (at, kind, grid_id, cell_id) SELECT 1, '{kind}', grid_id, id {chosen}")
        db.execute(f"UPDATE cells SET status = 'done', attempts = 1 WHERE id IN (SELECT id {chosen})")
        db.commit()
        db.close()

    def close(self) -> None:
        self.queue.close()


class Peer:
    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -2048;"
            "CREATE TABLE cells (id INTEGER PRIMARY KEY, key TEXT UNIQUE, status TEXT, spec TEXT);"
            "CREATE TABLE attempts (id INTEGER PRIMARY KEY, cell_id INTEGER, claimed_at REAL, ended_at REAL,"
            " outcome TEXT);"
            "CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL, kind TEXT, cell_id INTEGER);"
        )

    def enqueue(self, count: int) -> None:
        rows = (
            (cell.key, "pending", json.dumps({**TEMPLATE, "key": cell.key, "coords": cell.coords, "seed": cell.seed}))
            for cell in cells(count)
        )
        self.db.execute("BEGIN")
        self.db.executemany("INSERT INTO cells (key, status, spec) VALUES (?, ?, ?)", rows)
        self.db.execute("COMMIT")

    def claim_and_finish(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        (cell,) = self.db.execute("SELECT id FROM cells WHERE status = 'pending' ORDER BY id LIMIT 1").fetchone()
        self._run(cell)

    def look(self) -> list[int]:
        rows = self.db.execute("SELECT id, spec FROM cells WHERE status = 'pending' ORDER BY id LIMIT ?", (WINDOW,))
        return [cell for cell, spec in rows if json.loads(spec)["seed"]]

    def dispatch(self) -> None:
        chosen = self.look()[WINDOW // 2]
        self.db.execute("BEGIN IMMEDIATE")
        self._run(chosen)

    def _run(self, cell: int) -> None:
        db = self.db
        db.execute("UPDATE cells SET status = 'running' WHERE id = ?", (cell,))
        attempt = db.execute("INSERT INTO attempts (cell_id, claimed_at) VALUES (?, 1)", (cell,)).lastrowid
        db.execute("INSERT INTO events (at, kind, cell_id) VALUES (1, 'claimed', ?)", (cell,))
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE attempts SET outcome = 'completed', ended_at = 2 WHERE id = ?", (attempt,))
        db.execute("UPDATE cells SET status = 'done' WHERE id = ?", (cell,))
        db.execute("INSERT INTO events (at, kind, cell_id) VALUES (1, 'finished', ?)", (cell,))
        db.execute("COMMIT")

    def status(self) -> None:
        self.db.execute("SELECT status, count(*) FROM cells GROUP BY status").fetchall()

    def finish_most(self) -> None:
        self.db.execute("UPDATE cells SET status = 'done' WHERE id <= (SELECT max(id) * 9 / 10 FROM cells)")

    def close(self) -> None:
        self.db.close()


def bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".db")


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Mean seconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def measure(store: Store, folder: Path, count: int, rounds: int) -> dict[str, float]:
    found = {"enqueue_s": seconds(lambda: store.enqueue(count))}
    for when in ("start", "late"):
        found[f"cell_{when}_s"] = seconds(store.claim_and_finish, rounds)
        found[f"look_{when}_s"] = seconds(store.look, rounds)
        found[f"dispatch_{when}_s"] = seconds(store.dispatch, rounds)
        found[f"status_{when}_s"] = seconds(store.status, 5)
        found[f"bytes_{when}"] = bytes_on_disk(folder) / count
        if when == "start":
            store.finish_most()
    store.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=300, help="cells claimed and finished for each figure")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    args = parser.parse_args()
    results = []
    for kind in (Ours, Peer):
        with tempfile.TemporaryDirectory(prefix="overnight-bench-", dir=args.folder) as folder:
            results.append(measure(kind(Path(folder) / "queue.db"), Path(folder), args.cells, args.rounds))
    ours, peer = results
    rows = [
        ("enqueued, cells/s", args.cells / ours["enqueue_s"], args.cells / peer["enqueue_s"]),
        ("on disk at the start, bytes/cell", ours["bytes_start"], peer["bytes_start"]),
        ("on disk at 90 % done, bytes/cell", ours["bytes_late"], peer["bytes_late"]),
        ("claim + finish at the start, 1/s", 1 / ours["cell_start_s"], 1 / peer["cell_start_s"]),
        ("claim + finish at 90 % done, 1/s", 1 / ours["cell_late_s"], 1 / peer["cell_late_s"]),
        ("  late / start", ours["cell_start_s"] / ours["cell_late_s"], peer["cell_start_s"] / peer["cell_late_s"]),
        ("look at 64 at the start, ms", 1e3 * ours["look_start_s"], 1e3 * peer["look_start_s"]),
        ("look at 64 at 90 % done, ms", 1e3 * ours["look_late_s"], 1e3 * peer["look_late_s"]),
        ("dispatch at the start, 1/s", 1 / ours["dispatch_start_s"], 1 / peer["dispatch_start_s"]),
        ("dispatch at 90 % done, 1/s", 1 / ours["dispatch_late_s"], 1 / peer["dispatch_late_s"]),
        (
            "  late / start",
            ours["dispatch_start_s"] / ours["dispatch_late_s"],
            peer["dispatch_start_s"] / peer["dispatch_late_s"],
        ),
        ("status at the start, ms", 1e3 * ours["status_start_s"], 1e3 * peer["status_start_s"]),
        ("status at 90 % done, ms", 1e3 * ours["status_late_s"], 1e3 * peer["status_late_s"]),
    ]
    print(f"{args.cells} cells{'':24} {'overnight':>12} {'plain table':>12} {'ratio':>10}")
    for name, mine, other in rows:
        print(f"{name:36} {mine:12.2f} {other:12.2f} {mine / other:10.3f}")


if __name__ == "__main__":
    main()

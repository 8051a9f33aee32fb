"""Marks of a soak: what daemon, watchdog and warm servers hold between two batches, and whether any of it grows."""

from __future__ import annotations

import itertools
import json
import sqlite3
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns.base import Finding
from helpers import growth, vitals
from helpers.home import Home
from helpers.vitals import KIB, Vitals
from helpers.waiting import until
from overnight.warm.client import OUTPUT_MOST_BYTES

WAL_MOST_BYTES = 8 * 2**20
"""`journal_size_limit` of queue.db."""
LOG_FILE_MOST_BYTES, LOG_FILES_MOST = 10 * 2**20, 6
"""Of each log, with its older files (`logs.py`; the watchdog's are smaller and fewer)."""
FILES_A_SLOT = 4
SLOWER = 1.5
"""A claim that takes so much longer at the end, and longer from quarter to quarter, is no noise."""
STEADY_S = 0.3


@dataclass(frozen=True)
class Mark:
    """What was seen when a batch was over and nothing ran.

    processes: by name. registrations: files in var/run/cells beside those of the daemon and its warm servers.
    slots: memory cgroups for cells. attempt: the last one's id.
    """

    cells: int
    at_s: float
    processes: dict[str, Vitals]
    registrations: int
    slots: int
    database_bytes: int
    wal_bytes: int
    run_bytes: int
    attempt: int


def take(home: Home, cells: int) -> Mark:
    """Now, once the daemon has told of an empty house and nobody opens or closes anything any more."""
    state = until(lambda: _idle(home), 30, "the daemon says that nothing runs")
    pids = _pids(home, state)
    _settle(list(pids.values()))
    folder = home.registrations("daemon")[0]["cgroup"]
    with closing(sqlite3.connect(f"{home.paths.queue.as_uri()}?mode=ro", uri=True)) as db:
        (attempt,) = db.execute("SELECT max(id) FROM attempts").fetchone()
    return Mark(
        cells=cells,
        at_s=time.monotonic(),
        processes={name: vitals.look(pid) for name, pid in pids.items()},
        registrations=len(list(home.paths.registry.iterdir())) - 1 - len(state["warm"]),
        slots=0 if folder is None else len(list(Path(folder).glob("cell-*"))),
        database_bytes=home.paths.queue.stat().st_size,
        wal_bytes=_size(home.paths.queue.with_name("queue.db-wal")),
        run_bytes=sum(_size(each) for each in home.paths.run.rglob("*")),
        attempt=attempt,
    )


def servers(home: Home) -> dict[str, int]:
    """Pids of warm servers, by the model that they say they have."""
    return {server["model"]: server["pid"] for server in daemon_state(home)["warm"]}


def daemon_state(home: Home) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(home.paths.daemon_state.read_bytes())
    return state


def _idle(home: Home) -> dict[str, Any]:
    """What the daemon says, or nothing while it has something to do."""
    state = daemon_state(home)
    ready = all(server["state"] == "ready" for server in state["warm"])
    return state if ready and not state["running"] else {}


def _pids(home: Home, state: dict[str, Any]) -> dict[str, int]:
    watchdog = json.loads(home.paths.pressure.read_bytes())["pid"]
    warm = {f"warm server of {server['model']}": server["pid"] for server in state["warm"]}
    return {"daemon": state["pid"], "watchdog": watchdog, **warm}


def _settle(pids: Sequence[int], deadline_s: float = 10.0) -> None:
    """Until the number of everybody's descriptors has stood still for STEADY_S."""
    seen: list[tuple[float, tuple[int, ...]]] = []

    def steady() -> bool:
        now = (time.monotonic(), tuple(map(vitals.descriptors, pids)))
        if seen and seen[0][1] != now[1]:
            seen.clear()
        seen.append(now)
        return now[0] - seen[0][0] >= STEADY_S

    until(steady, deadline_s, "descriptors stand still")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# -- judging --------------------------------------------------------------------------------------------------


def judge(found: Finding, marks: Sequence[Mark], *, most_kib: int) -> None:
    """marks: those since the end of the warm-up."""
    for name in marks[0].processes:
        each = [mark.processes[name] for mark in marks if name in mark.processes]
        _judge_process(found, name, each, slots=growth.growth([mark.slots for mark in marks]), most_kib=most_kib)
    first, last = marks[0], marks[-1]
    cells, wall_s = last.cells - first.cells, last.at_s - first.at_s
    found.figures["queue.db, bytes a cell"] = round((last.database_bytes - first.database_bytes) / cells)
    for name in ("daemon", "watchdog"):
        spent_s = last.processes[name].cpu_s - first.processes[name].cpu_s
        found.figures[f"{name}: CPU, ms a cell"] = round(1000 * spent_s / cells, 2)
        found.figures[f"{name}: CPU, percent"] = round(100 * spent_s / wall_s, 1)
    found.figures["queue.db-wal, most KiB"] = max(mark.wal_bytes for mark in marks) // KIB
    found.figures["var/run, most KiB"] = max(mark.run_bytes for mark in marks) // KIB
    found.figures["memory cgroups for cells, most"] = max(mark.slots for mark in marks)
    left = max(mark.registrations for mark in marks)
    found.expect(left == 0, f"{left} files were left in var/run/cells when nothing ran")
    most = max(mark.wal_bytes for mark in marks)
    found.expect(most <= WAL_MOST_BYTES, f"queue.db-wal came to {most} bytes, the bound is {WAL_MOST_BYTES}")
    grown = growth.growth([mark.run_bytes for mark in marks])
    found.expect(grown < 4 * KIB, f"var/run has grown by {grown:.0f} bytes in {cells} cells")


def _judge_process(found: Finding, name: str, each: Sequence[Vitals], *, slots: float, most_kib: int) -> None:
    story = f"; seen at the marks: {{}}, pids {sorted({one.pid for one in each})}"
    if len({one.pid for one in each}) == 1:
        for what in ("pss", "held"):
            kib = [getattr(one, f"{what}_bytes") // KIB for one in each]
            word = "" if what == "pss" else " without mapped files"
            found.figures[f"{name}: growth of its PSS{word}, KiB"] = growth.growth(kib)
        grown = growth.growth(kib)
        found.expect(grown < most_kib, f"{name}: what it holds has grown by {grown:.0f} KiB{story.format(kib)}")
    elif not name.startswith("warm"):
        found.violations.append(f"{name}: it was started again{story.format('')}")
    if len(each) < 2:
        return
    files = [one.descriptors for one in each]
    grown, allowed = growth.growth(files), FILES_A_SLOT * max(0.0, slots) if name == "daemon" else 0
    found.figures[f"{name}: growth of its descriptors"] = grown
    found.expect(grown <= allowed, f"{name}: {grown:g} more descriptors than at first{story.format(files)}")
    threads = {one.threads for one in each}
    found.expect(len(threads) == 1, f"{name}: the number of its threads changed{story.format(sorted(threads))}")
    zombies = max(one.zombies for one in each)
    found.expect(zombies == 0, f"{name}: {zombies} of its children are dead and not waited for")


def judge_logs(found: Finding, folder: Path) -> None:
    printed = _size(folder / "warm.err")
    found.expect(printed <= 2 * OUTPUT_MOST_BYTES, f"warm.err has {printed} bytes, the bound is {OUTPUT_MOST_BYTES}")
    for log in ("daemon.jsonl", "watchdog.jsonl"):
        sizes = [each.stat().st_size for each in folder.glob(f"{log}*")]
        found.figures[f"{log}, files"] = len(sizes)
        found.expect(len(sizes) <= LOG_FILES_MOST, f"{log}: {len(sizes)} files, the bound is {LOG_FILES_MOST}")
        large = max(sizes, default=0)
        bound = f"the bound is {LOG_FILE_MOST_BYTES}"
        found.expect(large <= LOG_FILE_MOST_BYTES, f"{log}: a file of {large} bytes, {bound}")


def judge_claims(found: Finding, queue: Path, marks: Sequence[Mark]) -> None:
    """How long a claim took, batch by batch: from the end (or the claim) right before it, which the same round of the
    dispatcher's loop has told the queue of."""
    medians = [statistics.median(waits) for waits in claims(queue, [mark.attempt for mark in marks]) if waits]
    found.seconds["claim, median of a batch"] = [round(each, 6) for each in medians]
    times = growth.ratio(medians)
    found.figures["latency of a claim, last to first"] = round(times, 3)
    slower = times > SLOWER and growth.rises(medians)
    told = [round(each * 1000, 2) for each in medians]
    found.expect(not slower, f"a claim takes {times:.2f} times as long as at first; medians of batches in ms: {told}")


def claims(queue: Path, last_attempts: Sequence[int]) -> Iterator[list[float]]:
    """Latencies of the batches that end with these attempts, but for the first of them."""
    with closing(sqlite3.connect(f"{queue.as_uri()}?mode=ro", uri=True)) as db:
        for before, last in itertools.pairwise(last_attempts):
            rows = db.execute("SELECT claimed_at, ended_at FROM attempts WHERE id > ? AND id <= ?", (before, last))
            events = sorted(event for row in rows for event in ((row[0], "claimed"), (row[1], "ended")))
            pairs = itertools.pairwise(events)
            yield [now - then for (then, _), (now, what) in pairs if what == "claimed"]

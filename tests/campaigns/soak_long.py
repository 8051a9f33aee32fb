"""The soak's long cell: it is watched while it runs undisturbed, then killed at turns that are ever further on."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from typing import Any

import psutil

from campaigns.base import Finding, Violation
from helpers import growth, vitals
from helpers.home import Home
from helpers.vitals import KIB
from helpers.waiting import until

TURN_LEAST_S = 0.003
"""So that there is time to look, however quick the machine is."""
TURN_S = 0.1
"""Deadline of a turn, on the average; it takes a millisecond or two."""
KILLED_AT = (0.2, 0.4, 0.6, 0.8)
"""As parts of its turns; each time twice, and the quicker resume counts."""
LINEAR = 2.0
_LINES_BYTES = 64 * 1024


class LongCell:
    """The only cell of its grid."""

    def __init__(self, home: Home, grid: str, turns: int) -> None:
        self.home, self.turns = home, turns
        options = {"delay_s": TURN_LEAST_S, "reply_tokens": 8, "context_tokens": 10**9}
        home.submit(grid, scaffolds=[1], options=options, limits={"max_iterations": turns, "token_limit": 16})
        (row,) = (each for each in home.cells() if each["grid"] == grid)
        self._id, self._transcript = row["id"], home.paths.transcript(grid, row["key"])

    def turn(self) -> int:
        """The last one that is on disk."""
        try:
            with self._transcript.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LINES_BYTES))
                line = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        except FileNotFoundError:
            return 0
        return int(json.loads(line).get("turn", 0)) if line else 0

    def process(self) -> psutil.Process | None:
        for entry in self.home.registrations("cell"):
            with contextlib.suppress(psutil.NoSuchProcess):
                return psutil.Process(entry["pid"])
        return None

    def done(self) -> bool:
        return any(row["id"] == self._id and row["status"] == "done" for row in self.home.cells())

    def wait_done(self) -> None:
        until(self.done, self.turns * TURN_S, f"{self.turns} turns")

    def kill_at(self, turn: int) -> int:
        """SIGKILL once so many turns are on disk; returns how many there are."""
        until(lambda: self.turn() >= turn and self.process(), self.turns * TURN_S, f"turn {turn}")
        victim = self.process()
        if victim is None or self.done():
            raise Violation(f"the cell came to its end before it could be killed at turn {turn}")
        victim.kill()
        until(lambda: not victim.is_running(), 30, f"the killed cell, pid {victim.pid}, is gone")
        return self.turn()


def run(home: Home, *, turns: int, most_kib: int) -> Finding:
    """Memory of an undisturbed cell, and what resuming takes the further a killed one is."""
    found = Finding()
    undisturbed = LongCell(home, "undisturbed", turns)
    home("up")
    _watch(undisturbed, found, most_kib)
    killed = LongCell(home, "killed", turns)
    at = 0
    for part in KILLED_AT:
        for _ in range(2):
            at = killed.kill_at(max(int(part * turns), at + 1))
            found.count("cells killed")
    killed.wait_done()
    found.count("turns", sum(row["turns"] for row in home.cells()))
    found.count("cells", 2)
    _judge_resumes(home, found)
    home("down")
    return found


def _watch(cell: LongCell, found: Finding, most_kib: int) -> None:
    daemon = int(_daemon_state(cell.home)["pid"])
    seen: dict[str, list[int]] = {"long cell": [], "daemon": []}
    deadline_s = time.monotonic() + cell.turns * TURN_S
    while not cell.done():
        if time.monotonic() > deadline_s:
            raise Violation(f"{cell.turns} turns took longer than {cell.turns * TURN_S:.0f} s; at turn {cell.turn()}")
        process = cell.process() if cell.turn() >= cell.turns // 20 else None
        with contextlib.suppress(OSError, psutil.Error):  # it has just ended
            if process is not None:
                seen["long cell"].append(vitals.look(process.pid).private_bytes // KIB)
                seen["daemon"].append(vitals.look(daemon).held_bytes // KIB)
        time.sleep(0.1)
    for who, kib in seen.items():
        if len(kib) < 2 * growth.ENDS:
            raise Violation(f"{cell.turns} turns were over before anything could be measured: {kib}")
        grown = growth.growth(kib)
        found.figures[f"{who}: growth in {cell.turns:,} turns, KiB"] = grown
        found.expect(grown < most_kib, f"the {who} has grown by {grown} KiB in {cell.turns} turns: {kib}")


def _daemon_state(home: Home) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(home.paths.daemon_state.read_bytes())
    return state


def _judge_resumes(home: Home, found: Finding) -> None:
    """Seconds a turn that is replayed: the same, however many there are."""
    resumed = sorted((line["turn"], line["replay_s"]) for line in home.log("cell_resumed"))
    found.seconds["resume of the long cell"] = [replay_s for _, replay_s in resumed]
    paces = [1000 * replay_s / turn for turn, replay_s in resumed]
    times = min(paces[-2:]) / min(paces[:2])
    found.figures["long cell: resume, ms a turn"] = round(statistics.median(paces), 4)
    found.figures["long cell: resume, ms a turn, last to first"] = round(times, 3)
    told = f"(turns, seconds): {resumed}"
    found.expect(times < LINEAR, f"a replayed turn takes {times:.2f} times as long the more there are; {told}")

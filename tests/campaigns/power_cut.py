"""The power is cut at random moments of a run, and what the disk would hold then is started again."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from campaigns.base import Campaign, Finding, Round, Violation
from helpers.fault_fs import why_not
from helpers.power import Cut, Results, Running, restart, results, running

_GRIDS = ("night1", "work1", "night2", "work2", "night3", "work3")
_AT_ONCE = 2
_END_S = 120.0
_LONGEST_PAUSE_S = 0.08
_EARLY, _AT_WORK = 0.04, 0.5
"""How likely a cut is at each look: before the first turn there is little to be lost."""


class PowerCut(Campaign):
    name = "power_cut"
    tries = (
        "a daemon with idle loops, commands and submits at work on a file system that knows what an fsync has made "
        "durable; its disk as a power cut at a random moment would leave it (what was not synced kept, lost, torn or "
        "out of order) is checked against all that was told by then, started again and run to the end"
    )
    proves = ("1", "2", "6")

    def missing(self) -> str | None:
        return why_not()

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        if quick:
            return [Round("4 cuts", {"cuts": 4, "grids": 2, "seed": seed})]
        return [Round(f"run {n}", {"cuts": 20, "grids": len(_GRIDS), "seed": seed * 1000 + n}) for n in range(1, 12)]

    def run(self, one: Round, folder: Path) -> Finding:
        dice = random.Random(one.arguments["seed"])
        with running(folder, dice) as run:
            cuts = _cuts(run, one.arguments["cuts"], _GRIDS[: one.arguments["grids"]], dice)
            whole = results(run.home)
        return _restarted(cuts, whole)


def _cuts(run: Running, most: int, grids: Sequence[str], dice: random.Random) -> list[Cut]:
    """Let it run to its end, and cut the power up to `most` times meanwhile, without its noticing."""
    cuts: list[Cut] = []
    waiting = list(grids)
    for _ in range(2):
        run.submit(waiting.pop(0))
    run.home.start()
    until_s = time.monotonic() + _END_S
    while not run.finished() or waiting:
        if time.monotonic() > until_s:
            raise Violation(f"the undisturbed run did not end: {run.home.statuses()}")
        if waiting and dice.random() < 0.1:
            run.submit(waiting.pop(0))
        time.sleep(dice.uniform(0, _LONGEST_PAUSE_S))
        if len(cuts) < most and dice.random() < (_AT_WORK if run.told.turns else _EARLY):
            cuts.append(run.cut(len(cuts)))
    if len(cuts) < most:
        cuts.append(run.cut(len(cuts)))
    return cuts


def _restarted(cuts: Sequence[Cut], whole: Results) -> Finding:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return Finding().add(pool.map(lambda cut: restart(cut, whole), cuts))

"""The whole stack under supervisord, in a budget that is too small: cells are taken out, and the grid still finishes,
with the very bytes of an undisturbed run, while no counter of the kernel's OOM killer moves."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from campaigns.base import Campaign, Finding, Round, Violation
from helpers.home import Home
from overnight.dispatch import budget_cgroup

MIB = 2**20
UNCAPPED = "[memory]\nbudget = '400MiB'\nprior = '16MiB'\ncaps = 'none'\n"
"""Nobody knows what the cells will need, and nothing caps them: the watchdog is all there is."""


class TooSmall(Campaign):
    name = "too_small"
    tries = "a grid of which no two cells fit at their end, uncapped, in a budget of 400 MiB"
    proves = ("10", "2", "3")
    alone = True

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        dice = random.Random(seed)
        found = []
        for number in range(1 if quick else 2):
            leak = {"grow_mib": 12 if quick else dice.choice((8, 12, 16)), "cache_mib": 6}
            found.append(Round(f"leaks {number}", {"seed": seed + number, **leak}))
        return found

    def run(self, one: Round, folder: Path) -> Finding:
        quiet = Home(folder / "quiet", slots=6)
        tight = Home(folder / "tight", slots=3, watchdog=True, settings=UNCAPPED)
        try:
            return self._compare(quiet, tight, _leaky(**one.arguments), one.arguments["seed"])
        finally:
            quiet.end()
            tight.end()

    def _compare(self, quiet: Home, tight: Home, grid: dict[str, Any], seed: int) -> Finding:
        for home in (quiet, tight):
            (home.paths.home / "night.yaml").write_text(yaml.safe_dump({"name": "night", "seed": seed, **grid}))
        quiet("submit", str(quiet.paths.home / "night.yaml"))
        quiet.start()
        quiet.wait_done(900)
        quiet.stop()
        tight("up")
        before = oom_kills(tight)
        tight("run", str(tight.paths.home / "night.yaml"), timeout=1800)
        struck = {name: count - before.get(name, 0) for name, count in oom_kills(tight).items()}
        finding = Finding()
        finding.count("cells", len(tight.cells()))
        finding.count("evictions", check_every_eviction(tight, finding))
        finding.count("OOM kills", sum(struck.values()))
        finding.expect(not any(struck.values()), f"the kernel's OOM killer struck: {struck}")
        finding.expect(tight.transcripts() == quiet.transcripts(), "transcripts differ from the undisturbed ones")
        finding.expect(finding.counts["evictions"] >= 5, "hardly anybody had to leave: it proves nothing")
        finding.expect(all(cell["tries_used"] == 0 for cell in tight.cells()), "an eviction used a try")
        gone = {line["pid"] for line in watchdog_log(tight, "victim_gone")}
        taken = {line["pid"] for line in watchdog_log(tight, "evicted", "killed")}
        finding.expect(gone == taken, f"{sorted(taken)} were taken out, {sorted(gone)} are gone")
        freed = sum(line["freed_bytes"] for line in tight.log("cell_shrunk"))
        finding.count("MiB given back when asked", freed // MIB)
        return finding


def _leaky(*, grow_mib: int, cache_mib: int, seed: int) -> dict[str, Any]:
    """Six cells that each fill most of the budget in the end, or all of it."""
    del seed
    options = {"delay_s": 0.08, "grow_bytes": grow_mib * MIB, "cache_bytes": cache_mib * MIB}
    return {
        "models": [{"name": "script", "engine": "scripted", "source": "scripted", "options": options}],
        "scaffolds": [1, 2],
        "runs": 3,
        "limits": {"max_iterations": 384 // grow_mib, "target_output_tokens": None, "token_limit": 30},
    }


def watchdog_log(home: Home, *events: str) -> list[dict[str, Any]]:
    lines = (home.paths.log / "watchdog.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] in events]


def oom_kills(home: Home) -> dict[str, int]:
    """What the kernel's OOM killer has done to us, by the cgroup that its victims were in: the budget's, or our
    own. Without cgroups on the whole machine, where it may have been somebody else's doing."""
    try:
        own = budget_cgroup.find_own()
    except budget_cgroup.Missing:
        return {"machine": _count(Path("/proc/vmstat"), "oom_kill")}
    counts = {}
    inside = own.folder / budget_cgroup.name_of(home.paths.home)
    for folder in (inside, own.folder):
        for name in ("memory.oom_control", "memory.events"):
            if (folder / name).is_file():
                counts[str(folder)] = _count(folder / name, "oom_kill")
    return counts


def _count(path: Path, name: str) -> int:
    fields = dict(line.split()[:2] for line in path.read_text().splitlines())
    return int(fields.get(name, 0))


def check_every_eviction(home: Home, finding: Finding) -> int:
    """Each has its verdict, and `overnight show` explains it in a sentence. Returns how many there were."""
    evictions = 0
    for cell in home.cells():
        name = f"{cell['grid']}/{cell['key']}"
        attempts = home.json("show", name)["attempts"]
        printed = home("show", name).stdout
        if attempts[-1]["outcome"] != "completed":
            raise Violation(f"{name} did not complete: {attempts[-1]}")
        for attempt in attempts:
            if attempt["outcome"] == "evicted":
                evictions += 1
                told = attempt["reason"].startswith("the watchdog took ") and attempt["reason"] in printed
                finding.expect(told and attempt["reason_code"] == "memory_pressure", f"{name}: no verdict: {attempt}")
    return evictions

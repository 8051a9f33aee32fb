"""The report of a campaign: `NAME.json`, written whole after every round."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from campaigns.base import Campaign, Finding
from overnight import durable

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("daemon", "watchdog", "etc", "tests/campaigns", "tests/helpers")


def code() -> str:
    """Which code is tried: the commit, and `+changes` where the checkout differs from it; `unknown` without git."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def sources() -> str:
    """SHA-256 over what is tried and what tries it: a change of the documentation makes no finding stale."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(REPOSITORY)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


class Report:
    """Findings by round. Those of the same campaign, seed, plan and sources are taken over, all others begin anew."""

    def __init__(self, path: Path, campaign: Campaign, seed: int, *, quick: bool, fresh: bool = False) -> None:
        self.path = path
        self._head = {
            "v": 1,
            "campaign": campaign.name,
            "tries": campaign.tries,
            "proves": list(campaign.proves),
            "seed": seed,
            "quick": quick,
            "sources": sources(),
            "machine": {"python": platform.python_version(), "kernel": platform.release(), "cpu": platform.machine()},
        }
        self._code = code()
        self.rounds: dict[str, dict[str, Any]] = {}
        self.planned = 0
        if not fresh:
            self.rounds = self._before()

    def _before(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        same = isinstance(found, dict) and {key: found.get(key) for key in self._head} == self._head
        return dict(found["rounds"]) if same else {}

    def record(self, key: str, finding: Finding, took_s: float) -> None:
        self.rounds[key] = {**asdict(finding), "took_s": round(took_s, 3)}
        self.write()

    def total(self) -> Finding:
        names = ("counts", "seconds", "figures", "violations")
        return Finding().add(Finding(**{name: one[name] for name in names}) for one in self.rounds.values())

    def summary(self) -> dict[str, Any]:
        """What the table shows: all but the single rounds."""
        total = self.total()
        return {
            **self._head,
            "code": self._code,
            "planned_rounds": self.planned,
            "finished_rounds": len(self.rounds),
            "took_s": round(sum(one["took_s"] for one in self.rounds.values()), 1),
            "counts": total.counts,
            "seconds": {what: _percentiles(taken) for what, taken in total.seconds.items()},
            "figures": total.figures,
            "violations": total.violations,
        }

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = {**self.summary(), "written": datetime.now(UTC).isoformat(timespec="seconds"), "rounds": self.rounds}
        durable.write_atomic(self.path, json.dumps(written, indent=1, sort_keys=True).encode())


def _percentiles(taken: Sequence[float]) -> dict[str, float]:
    """Nearest-rank percentiles: each of them is a value that was measured."""
    ordered = sorted(taken)

    def at(share: float) -> float:
        return round(ordered[max(0, math.ceil(len(ordered) * share) - 1)], 3)

    return {"n": len(ordered), "p50": at(0.5), "p99": at(0.99), "most": round(ordered[-1], 3)} if ordered else {"n": 0}

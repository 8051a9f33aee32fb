"""What `overnight-watchdog --once --json` sees: it alone knows the limit, so that two programs never differ on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight.checked import number

_ANSWER_S = 5.0
"""It takes a third of a second; a machine on which it takes longer than this is in trouble."""


@dataclass(frozen=True, slots=True)
class View:
    """Its answer, of which any part may be missing or of the wrong kind; `complaint` where there is no answer."""

    said: dict[str, Any] = field(default_factory=dict)
    complaint: str = ""

    def whole(self, name: str) -> int | None:
        """A number of the answer, to the unit."""
        return _whole(self.said.get(name))

    def text(self, name: str) -> str | None:
        found = self.said.get(name)
        return found if isinstance(found, str) and found else None

    def bounds(self) -> list[tuple[str, int]]:
        """(source, limit in bytes) of everything that bounds us."""
        found = self.said.get("bounds")
        entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        pairs = [(entry.get("source"), _whole(entry.get("limit_bytes"))) for entry in entries]
        return [(source, limit) for source, limit in pairs if isinstance(source, str) and limit is not None]

    def ability(self, name: str) -> tuple[bool, str] | None:
        """Has it, and the detail; None when this watchdog does not say."""
        found = self.said.get("abilities")
        entry = found.get(name) if isinstance(found, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("ok"), bool):
            return None
        detail = entry.get("detail")
        return entry["ok"], detail if isinstance(detail, str) else ""


def _whole(value: object) -> int | None:
    try:
        return int(number(value))
    except ValueError:
        return None


def ask(home: Path, command: list[str] | None = None, timeout_s: float = _ANSWER_S) -> View:
    """Have the watchdog look once, in a process of its own. Never raises.

    It signals nobody and writes no file of the home. To see what it may do it makes a memory cgroup and removes it, and
    puts its own oom_score_adj back where it was."""
    command = command or [sys.executable, "-m", "overnight_watchdog", "--home", str(home), "--once", "--json"]
    # Inside a program of supervisord it would count another tree than the daemon's.
    environment = {name: value for name, value in os.environ.items() if name != "SUPERVISOR_ENABLED"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return View(complaint=f"no answer within {timeout_s:g} s")
    except (OSError, ValueError) as error:
        return View(complaint=str(error))
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return View(complaint=f"exit status {done.returncode}: {lines[-1].removeprefix('overnight-watchdog: ')}")
    return understand(done.stdout)


def understand(answer: str) -> View:
    """The text of an answer -> View."""
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return View(complaint=f"its answer is no JSON: {answer.strip()[:60]!r}")
    return View(said) if isinstance(said, dict) else View(complaint=f"its answer is no object: {str(said)[:60]!r}")

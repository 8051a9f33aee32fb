"""Every reader of files, packets and command lines, fed with damage and with hostile documents (`tests/fuzz/`)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from campaigns.base import Campaign, Finding, Round
from fuzz.child import CURRENT
from fuzz.readers import READERS

BYTE_LEVEL, STRUCTURAL = 7_000, 1_700
"""Executions of a reader in a whole round, before its share."""

QUICK_BYTE_LEVEL, QUICK_STRUCTURAL, QUICK_ROUNDS = 60, 30, 2
_TESTS = Path(__file__).resolve().parents[1]
_ROUND_S = 900.0
_GROWN_BYTES = 400 * 2**20
_SHOWN = 700


class Fuzz(Campaign):
    """A round is some readers in a process of its own, which may hang, die or meet its memory limit."""

    name: ClassVar[str] = "fuzz"
    tries: ClassVar[str] = "every reader fed with damaged bytes and with hostile documents: no crash, no hang, one line"
    proves: ClassVar[tuple[str, ...]] = ("7", "13")

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        names = [reader.name for reader in READERS]
        if not quick:
            how = {"byte_level": BYTE_LEVEL, "structural": STRUCTURAL, "seed": seed}
            return [Round(name, {"readers": [name], **how}) for name in names]
        how = {"byte_level": QUICK_BYTE_LEVEL, "structural": QUICK_STRUCTURAL, "seed": seed}
        parts = [names[number::QUICK_ROUNDS] for number in range(QUICK_ROUNDS)]
        return [Round(f"part {number}", {"readers": part, **how}) for number, part in enumerate(parts, 1)]

    def run(self, one: Round, folder: Path) -> Finding:
        given = one.arguments
        (folder / CURRENT).touch()
        counts = [str(given[name]) for name in ("seed", "byte_level", "structural")]
        command = [sys.executable, "-m", "fuzz.child", str(folder), *counts, *given["readers"]]
        path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Sets are walked in an order of their own, and hypothesis keeps things in the working folder.
        own = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **own},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ROUND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Finding(violations=[f"not through after {_ROUND_S:.0f} s; last of all {_current(folder)}"])
        finding = Finding()
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for reader in told:
            _note(reader, finding)
        if done.returncode != 0 or [reader["reader"] for reader in told] != given["readers"]:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
            finding.expect(False, f"the process ended with {done.returncode} ({last}); last of all {_current(folder)}")
        return finding


def _note(reader: dict[str, Any], finding: Finding) -> None:
    finding.count("executions", reader["executions"])
    finding.count(f"of {reader['reader']}", reader["executions"])
    finding.took("processor time of the slowest execution of a reader", reader["slowest_s"])
    finding.violations += reader["complaints"]
    grown = reader["grown_bytes"]
    finding.expect(grown < _GROWN_BYTES, f"{reader['reader']}: the process grew by {grown // 2**20} MiB")


def _current(folder: Path) -> str:
    """The input that was under way."""
    name, _, rest = (folder / CURRENT).read_bytes().partition(b"\n")
    data = rest[8 : 8 + int.from_bytes(rest[:8], "big")]
    shown = base64.b85encode(zlib.compress(data, 9)).decode()
    return f"{name.decode()}: input (zlib, base85) {shown[:_SHOWN]}{'...' if len(shown) > _SHOWN else ''}"

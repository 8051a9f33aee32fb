"""The side of the test: which points are armed, which were used, which turns began."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SITE = Path(__file__).resolve().parent / "site"
SIGNALS = ("KILL", "TERM", "STOP")


@dataclass(frozen=True)
class Struck:
    """An armed point that was used. monotonic_s: when; label: GRID/CELL where it was a cell's process, else "-"."""

    number: int
    monotonic_s: float
    pid: int
    role: str
    point: str
    label: str


@dataclass(frozen=True)
class Passed:
    """A line of the trace. kind: P a point (what = "role point"), B a turn that begins, R a cell that runs (what =
    GRID/CELL). number: the turn that begins, the parent of the cell that runs."""

    kind: str
    monotonic_s: float
    pid: int
    what: str
    number: int


class FaultPoints:
    """One folder, for the processes of one home."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._armed: dict[int, str] = {}
        self._number = 0

    def environment(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """For a process whose points, and those of all below it, are to be there."""
        path = [str(SITE), *filter(None, [base.get("PYTHONPATH")])]
        return {**base, "OVERNIGHT_FAULT_POINTS": str(self.folder), "PYTHONPATH": os.pathsep.join(path)}

    def arm(self, role: str, point: str, *, times: int = 1, signal: str = "KILL") -> int:
        """The process of this role that comes to this point for the `times`-th time sends itself a signal of SIGNALS.
        Returns the number by which `struck` names it."""
        assert signal in SIGNALS, signal
        self._number += 1
        self._armed[self._number] = f"{self._number} {role} {point} {times} {signal}\n"
        self._write()
        return self._number

    def disarm(self, number: int | None = None) -> None:
        """This entry, or all of them."""
        for each in list(self._armed) if number is None else [number]:
            self._armed.pop(each, None)
        self._write()

    def _write(self) -> None:
        beside = self.folder / "armed.new"
        beside.write_text("".join(self._armed.values()))
        beside.replace(self.folder / "armed")

    def struck(self) -> dict[int, Struck]:
        """By number."""
        found = [line.split() for line in self._lines("struck")]
        each = [Struck(int(one[0]), float(one[1]), int(one[2]), *one[3:6]) for one in found]
        return {one.number: one for one in each}

    def trace(self) -> list[Passed]:
        found = []
        for line in self._lines("trace"):
            kind, at, pid, *what = line.split()
            if kind == "P":
                found.append(Passed(kind, float(at), int(pid), " ".join(what), 0))
            else:
                found.append(Passed(kind, float(at), int(pid), what[0], int(what[1])))
        return found

    def points(self) -> set[tuple[str, str]]:
        """(role, point) of all that was passed."""
        found = [one.what.split() for one in self.trace() if one.kind == "P"]
        return {(each[0], each[1]) for each in found}

    def begun(self) -> Counter[tuple[str, int]]:
        """(GRID/CELL, turn) -> how often it began: more than once where it was done again."""
        return Counter((one.what, one.number) for one in self.trace() if one.kind == "B")

    def _lines(self, name: str) -> list[str]:
        """Whole lines only: the last one may be on its way."""
        try:
            text = (self.folder / name).read_text()
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

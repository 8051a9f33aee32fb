"""A home whose disk may lose its power: what it had told by then, and what a start from there must still know."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from campaigns.base import Finding, Violation
from helpers.fault_fs import FaultFs
from helpers.home import Home
from helpers.queue_checks import assert_sound
from helpers.waiting import until
from overnight.cells import transcript
from overnight.queue.store import Queue

SETTINGS = "[warm]\nservers = 2\n[memory]\nprior = '32MiB'\n"
SLOTS = 4
UNNEEDED = ("run/*", "log/*", "models/*")
"""Left out of the images. var/run need not survive; and what it registers are processes that still live here."""

_END_S = 120.0
_SHELL = "sleep 0.0{n}; echo kept {n} > out.txt; printf '{{\"n\": %d}}\\n' {n}"


@dataclass
class Told:
    """What anybody could have been told before the power was cut. turns: of each grid/cell; events: of the queue, all
    that there were; submitted: grids whose `submit` had returned."""

    turns: dict[str, int] = field(default_factory=dict)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    submitted: set[str] = field(default_factory=set)


@dataclass
class Cut:
    """folder: a home to be, with its var/ as the disk might hold it. how: as in `FaultFs.power_cut`."""

    folder: Path
    told: Told
    how: str
    at_s: float


Results = dict[str, dict[str, bytes]]
"""grid/cell -> file -> bytes."""


class Running:
    """A home on a file system that can lose its power, at work."""

    def __init__(self, fs: FaultFs, folder: Path, dice: random.Random) -> None:
        self.fs, self._folder, self._dice = fs, folder, dice
        self.home = Home(folder / "h", slots=SLOTS, settings=SETTINGS)
        self.told = Told()
        self._submits: dict[str, subprocess.Popen[bytes]] = {}
        self._log_read = 0
        self._queue: Queue | None = None
        self._began_s = time.monotonic()

    def submit(self, name: str) -> None:
        """Begin to submit a grid; whether it was told of is seen later."""
        kind = name.rstrip("0123456789")
        file = _idle_loops(self.home, name) if kind == "night" else _commands(self.home, name)
        command = [sys.executable, "-m", "overnight", "--home", str(self.home.paths.home), "submit", str(file)]
        self._submits[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def hear(self) -> Told:
        """All that was told by now."""
        for name, process in self._submits.items():
            if process.poll() is not None:
                if process.returncode != 0:
                    raise Violation(f"submitting {name} gave {process.returncode}")
                self.told.submitted.add(name)
        self._read_log()
        if self._queue is None and self.told.submitted:
            self._queue = Queue.open(self.home.paths.queue)
        if self._queue is not None:
            self.told.events = [_event(row) for row in self._queue.events(limit=100_000)]
            self.told.done = {f"{row.grid}/{row.key}" for row in self._queue.cells(status="done")}
        return Told(dict(self.told.turns), self.told.events, self.told.done, set(self.told.submitted))

    def _read_log(self) -> None:
        path = self.home.paths.log / "daemon.jsonl"
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[self._log_read : data.rfind(b"\n") + 1]
        self._log_read += len(whole)
        for line in map(json.loads, whole.splitlines()):
            if line["event"] == "turn_done":
                self.told.turns[f"{line['grid']}/{line['cell']}"] = line["turn"]

    def cut(self, number: int) -> Cut:
        keep = "some" if self._dice.random() < 0.7 else self._dice.choice(("none", "all"))
        seed, folder = self._dice.randrange(2**31), self._folder / f"c{number}"
        folder.mkdir()
        told = self.hear()
        at_s = time.monotonic() - self._began_s
        self.fs.power_cut(folder / "var", keep, seed=seed, without=UNNEEDED)
        return Cut(folder, told, f"cut {number}, {keep} kept, seed {seed}, after {at_s:.2f} s", at_s)

    def finished(self) -> bool:
        """Nothing is left to do."""
        self.hear()
        idle = not {"pending", "running"} & self.home.statuses().keys()
        return idle and self.told.submitted == self._submits.keys()

    def end(self) -> None:
        if self._queue is not None:
            self._queue.close()
        for process in self._submits.values():
            process.kill()
            process.wait()
        self.home.end()


@contextmanager
def running(folder: Path, dice: random.Random) -> Iterator[Running]:
    """A home below `folder` whose var/ can lose its power; nothing of it is left running or mounted."""
    with FaultFs.mounted(folder / "disk", folder / "h" / "var") as fs:
        found = Running(fs, folder, dice)
        try:
            yield found
        finally:
            found.end()


def results(home: Home) -> Results:
    """What must be the same however often it was interrupted."""
    found: Results = defaultdict(dict)
    for path in home.paths.results.glob("*/*/**/*"):
        grid, cell, *rest = path.relative_to(home.paths.results).parts
        if path.is_file() and (rest in (["transcript.jsonl"], ["result.json"]) or rest[:1] == ["files"]):
            found[f"{grid}/{cell}"]["/".join(rest)] = path.read_bytes()
    return dict(found)


def restart(cut: Cut, whole: Results) -> Finding:
    """Look at what a power cut has left, then start from there and run to the end."""
    finding = Finding()
    home = Home(cut.folder, slots=SLOTS, settings=SETTINGS)
    try:
        _check_transcripts(home, cut, whole, finding)
        if _check_queue(home, cut, finding):
            checked = home("verify", "--json", code=None)
            if checked.returncode != 0:
                finding.violations.append(f"{cut.how}: verify: {checked.stdout.strip()[:500]}{checked.stderr[:300]}")
            _finish(home, cut, whole, finding)
    finally:
        home.end()
    finding.count("power cuts")
    shutil.rmtree(cut.folder, ignore_errors=True)
    return finding


def _check_transcripts(home: Home, cut: Cut, whole: Results, finding: Finding) -> None:
    for cell, turns in cut.told.turns.items():
        path = home.paths.results / cell / "transcript.jsonl"
        if not path.exists():
            finding.violations.append(f"{cut.how}: {cell}: turn {turns} was told, the transcript is gone")
            continue
        seen, data = transcript.check(path), path.read_bytes()
        finding.expect(seen.turns >= turns, f"{cut.how}: {cell}: turn {turns} was told, {seen.turns} are there")
        if seen.fault is not None:
            finding.expect(seen.fault.torn_tail, f"{cut.how}: {cell}: damaged: {seen.fault}")
            data = data[: seen.fault.offset]
            finding.count("torn tails")
        same = whole[cell]["transcript.jsonl"].startswith(data)
        finding.expect(same, f"{cut.how}: {cell}: its turns are not those of the whole run")
    finding.count("told turns looked for", sum(cut.told.turns.values()))


def _check_queue(home: Home, cut: Cut, finding: Finding) -> bool:
    """Is there a queue to go on with?"""
    path = home.paths.queue
    if not path.exists() and not cut.told.submitted:
        finding.count("cuts before there was a queue")
        return False
    try:
        with Queue.open(path, check=True) as queue:
            events = {_event(row) for row in queue.events(limit=100_000)}
            done = {f"{row.grid}/{row.key}" for row in queue.cells(status="done")}
            grids = {grid.name for grid in queue.grids()}
        assert_sound(path)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what is looked for
        finding.violations.append(f"{cut.how}: the queue: {type(error).__name__}: {error}")
        return False
    lost = [event for event in cut.told.events if event not in events]
    finding.expect(not lost, f"{cut.how}: {len(lost)} events were told and are lost, such as {lost[:1]}")
    finding.expect(cut.told.done <= done, f"{cut.how}: {sorted(cut.told.done - done)} was done and is not")
    finding.expect(cut.told.submitted <= grids, f"{cut.how}: {sorted(cut.told.submitted - grids)} was submitted")
    finding.count("told events looked for", len(cut.told.events))
    return bool(grids)


def _finish(home: Home, cut: Cut, whole: Results, finding: Finding) -> None:
    began_s = time.monotonic()
    daemon = home.start()
    until(
        lambda: daemon.poll() is not None or not {"pending", "running"} & home.statuses().keys(),
        _END_S,
        f"{cut.how}: the end",
    )
    if daemon.poll() is not None:
        raise Violation(f"{cut.how}: the daemon does not start: {_last_words(home)}")
    finding.took("from the power cut to the end", time.monotonic() - began_s)
    cells = {f"{cell['grid']}/{cell['key']}": cell["status"] for cell in home.cells()}
    wrong = {cell: str(status) for cell, status in cells.items() if status != "done"}
    finding.expect(not wrong, f"{cut.how}: not done: {wrong}")
    found = results(home)
    differ = [cell for cell in cells if found.get(cell) != whole[cell]]
    finding.expect(not differ, f"{cut.how}: other results than without a power cut: {differ}")
    finding.count("cells run to their end", len(cells))


def _last_words(home: Home) -> str:
    return (home.paths.log / "daemon.out").read_text(errors="replace")[-500:]


def _event(row: Any) -> tuple[Any, ...]:
    return row.id, row.kind, row.cell_id, row.attempt_id, str(row.old), str(row.new)


def _idle_loops(home: Home, name: str) -> Path:
    return home.grid(name, options={"delay_s": 0.05}, limits={"max_iterations": 10}, scaffolds=[1, 2, 3])


def _commands(home: Home, name: str) -> Path:
    grid = {
        "name": name,
        "kind": "command",
        "seed": 7,
        "axes": {"n": [1, 2, 3]},
        "command": _SHELL,
        "shell": True,
        "cwd": "scratch",
        "keep": ["*.txt"],
    }
    path = home.paths.home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path

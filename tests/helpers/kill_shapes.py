"""What the campaigns of kills run: grids whose results are known from an undisturbed run, made once a shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from helpers.command_cell import python
from helpers.home import Home

PROGRAM = """
import json, os, signal, sys, time
cell, steps = int(sys.argv[1]), int(sys.argv[2])
checkpoint = os.environ["OVERNIGHT_CHECKPOINT_DIR"]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
try:
    with open(os.path.join(checkpoint, "state")) as stream:
        done, total = map(int, stream.read().split())
except FileNotFoundError:
    done, total = 0, cell
for step in range(done + 1, steps + 1):
    with open(os.path.join(checkpoint, "begun"), "a") as stream:
        stream.write(str(step) + chr(10))
    time.sleep(0.05)
    total = (total * 31 + step) % 1000003
    with open(os.path.join(checkpoint, "new"), "w") as stream:
        stream.write(str(step) + " " + str(total))
    os.replace(os.path.join(checkpoint, "new"), os.path.join(checkpoint, "state"))
    if asked and step < steps:
        sys.exit(75)
with open("total.txt", "w") as stream:
    stream.write(str(total))
print(json.dumps({"total": total}))
"""
"""Counts, keeps each step in its checkpoint, and asks to be put back when it has to leave."""


@dataclass(frozen=True)
class Shape:
    """idle: cells of the grid of idle loops, in two scaffolds; turns, delay_s: of each. commands: cells of the grid of
    commands, of `steps` steps."""

    idle: int
    turns: int
    delay_s: float
    commands: int
    steps: int

    def write(self, home: Home, number: int) -> list[Path]:
        """The grid files of one helping: equal but for their names, so that equal results are expected of all."""
        files = []
        if self.idle:
            limits = {"max_iterations": self.turns}
            options = {"delay_s": self.delay_s}
            files.append(home.grid(f"idle{number}", limits=limits, options=options, runs=self.idle // 2))
        if self.commands:
            grid = {
                "name": f"work{number}",
                "kind": "command",
                "seed": 7,
                "axes": {"n": f"1..{self.commands}"},
                "command": [*python(PROGRAM), "{n}", str(self.steps)],
                "cwd": "scratch",
                "keep": ["*.txt"],
                "memory": "32MiB",
                "grace": "2s",
            }
            path = home.paths.home / f"work{number}.yaml"
            path.write_text(yaml.safe_dump(grid, sort_keys=False))
            files.append(path)
        return files


Expected = dict[str, bytes]
"""Cell key -> the bytes of its transcript, or of its result.json where it is a command."""


def results(home: Home) -> dict[str, bytes]:
    """GRID/CELL -> the same of every cell of a home, as far as it is there."""
    found = {}
    for name in ("result.json", "transcript.jsonl"):  # a transcript counts for more
        for path in home.paths.results.glob(f"*/*/{name}"):
            try:
                found["/".join(path.parts[-3:-1])] = path.read_bytes()
            except FileNotFoundError:
                continue  # a reset, or a temporary
    return found


def undisturbed(shape: Shape, folder: Path) -> Expected:
    """Run one helping without any disturbance, all cells at once."""
    home = Home(folder, slots=max(2, shape.idle + shape.commands), settings="[warm]\nservers = 2\n")
    try:
        for file in shape.write(home, 0):
            home("submit", str(file))
        home.start()
        home.wait_done(180)
        home.stop()
        return {name.split("/")[1]: data for name, data in results(home).items()}
    finally:
        home.end()

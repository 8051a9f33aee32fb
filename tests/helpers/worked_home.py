"""A home whose cells are run in this very process, turn by turn: any state of queue and files can be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.queue_cells import Cell
from helpers.specs import scripted_spec
from overnight.backup.create import Backup
from overnight.cells import idle_loop
from overnight.cli.common import Aside
from overnight.engines.scripted import ScriptedEngine
from overnight.paths import Paths
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Claimed, Queue

TURNS = 5


class Stop(Exception):
    """Stands for a kill between two turns."""


class WorkedHome:
    """Use `close` at the end; no plain `open` of its queue.db meanwhile, which would drop SQLite's locks."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths.of(folder).ensure()
        self.queue = Queue.open(self.paths.queue)

    def close(self) -> None:
        self.queue.close()

    def submit(self, grid: str = "night", cells: int = 4, *, seed: int = 7, replace: bool = False) -> None:
        template = scripted_spec(turns=TURNS)
        del template["key"], template["coords"], template["seed"]
        planned = [Cell(f"c{n}", {"run": n}, template, seed * 100 + n) for n in range(1, cells + 1)]
        aside = Aside(self.paths, grid)
        self.queue.enqueue(grid, cells=planned, spec={}, policy={"tries": 3}, replace=replace, aside=aside)

    def reset(self, grid: str = "night") -> None:
        self.queue.reset(grid, aside=Aside(self.paths, grid))

    def claim(self) -> Claimed | None:
        return self.queue.claim(boot_id="boot", daemon="d1")

    def work(self, claimed: Claimed, *, stop_after: int | None = None) -> idle_loop.Finished:
        """The cell's part: turns and the result. Raises Stop."""

        def report(event: str, **fields: Any) -> None:
            if event == "turn" and fields["turn"] == stop_after:
                raise Stop

        folder = self.paths.cell_results(claimed.grid, claimed.cell.key)
        return idle_loop.run(ScriptedEngine(claimed.warm, ""), claimed.spec, folder, report=report)

    def finish(self, claimed: Claimed, done: idle_loop.Finished) -> None:
        """The daemon's part."""
        self.queue.finish(
            claimed.attempt_id,
            Outcome.COMPLETED,
            turns=done.turns,
            output_tokens=done.output_tokens,
            end_reason=done.end_reason,
            transcript_sha256=done.transcript_sha256,
        )

    def run_one(self) -> bool:
        if (claimed := self.claim()) is None:
            return False
        self.finish(claimed, self.work(claimed))
        return True

    def run_all(self) -> None:
        """As a new daemon would: what was under way goes on."""
        self.queue.recover()
        while self.run_one():
            pass
        assert set(self.statuses()) <= {Status.DONE}, [(row.key, row.status, row.reason) for row in self.queue.cells()]

    def statuses(self) -> list[Status]:
        return [row.status for row in self.queue.cells()]

    def files(self) -> dict[str, bytes]:
        """Name -> bytes, of every transcript and result that is not aside."""
        found = (
            path for name in ("transcript.jsonl", "result.json") for path in self.paths.results.glob(f"*/*/{name}")
        )
        return {str(path.relative_to(self.paths.results)): path.read_bytes() for path in found}

    def old_files(self) -> set[tuple[str, bytes]]:
        """(key, bytes) of the transcripts that were moved aside."""
        return {(p.parent.name, p.read_bytes()) for p in self.paths.results.glob("*/.aside/*/*/transcript.jsonl")}

    def backup(self, scratch: Path) -> Backup:
        return Backup(self.paths, scratch)

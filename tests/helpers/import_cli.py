"""The command line on one home, asked in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.small_home import tree
from overnight.analysis import conversation
from overnight.analysis.conversation import Conversation
from overnight.cli.main import main
from overnight.paths import Paths
from overnight.queue.store import Queue


class Cli:
    """One home, asked in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.paths, self._capsys = Paths.of(folder), capsys
        self.error = ""

    def __call__(self, *args: str | Path, code: int = 0) -> str:
        found = main(["--home", str(self.paths.home), *map(str, args)])
        told = self._capsys.readouterr()
        self.error = told.err
        assert found == code, told
        return told.out

    def statuses(self) -> dict[str, str]:
        with Queue.open(self.paths.queue, check=True) as queue:
            return {row.key: str(row.status) for row in queue.cells()}

    def conversations(self, grid: str) -> dict[str, Conversation]:
        with Queue.open(self.paths.queue) as queue:
            return {each.key: each for each in conversation.of_grid(self.paths, queue, grid)}

    def state(self) -> dict[str, str]:
        """Everything on disk but what reading a queue leaves beside it."""
        return tree(self.paths.var, without=lambda path: path.name.startswith("queue.db-") or "run" in path.parts)

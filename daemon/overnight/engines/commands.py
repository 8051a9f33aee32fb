"""No model at all: what a warm server has loaded that forks the runners of command cells."""

from __future__ import annotations

from typing import Any

from overnight.engines.base import Promise, Session
from overnight.errors import ExperimentFailed


class Commands:
    """Implements `engines.base.Engine` as far as a command needs it."""

    name = "commands"
    promise: Promise = "continued"  # a command resumes from its own checkpoints, if it makes any
    shrinks = False
    freezes = True

    def load(self) -> None:
        """Nothing: the runner was imported with the server."""

    def conditions(self, *, threads: int) -> dict[str, Any]:
        return {"engine": self.name, "threads": threads}

    def open(self, spec: dict[str, Any], *, threads: int) -> Session:
        raise ExperimentFailed(f"{spec['key']} is a command: it has no conversation (asked for {threads} threads)")

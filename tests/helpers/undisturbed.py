"""What the cells of a home would write if nothing ever happened to them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from helpers.home import Home
from helpers.specs import warm_of
from overnight.cells import idle_loop
from overnight.engines.scripted import ScriptedEngine, ScriptedSession
from overnight.queue.store import Queue


class _Hurried(ScriptedEngine):
    """Without the delays, which are in the specification and change no result."""

    def open(self, spec: dict[str, Any], *, threads: int) -> ScriptedSession:
        session = super().open(spec, threads=threads)
        session._pass = lambda delay_s: None  # type: ignore[method-assign]
        return session


def transcripts(home: Home) -> dict[str, bytes]:
    """Key -> bytes, as `Home.transcripts` gives those that were written."""
    with Queue.open(home.paths.queue) as queue:
        specs = [queue.cell_spec(cell.id) for cell in queue.cells()]
    found = {}
    for spec in specs:
        with tempfile.TemporaryDirectory() as folder:
            idle_loop.run(_Hurried(warm_of(spec), ""), spec, Path(folder), report=lambda event, **fields: None)
            found[spec["key"]] = (Path(folder) / "transcript.jsonl").read_bytes()
    return found

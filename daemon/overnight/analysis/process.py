"""Has conversations analysed by a process of its own (`jobs.py`), and takes in its answers. Loads nothing heavy itself.

A job is asked and answered before the next one: nothing is done twice when it is interrupted, and nothing waits in a
pipe.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from overnight.analysis import conversation
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue import follow
from overnight.queue.rows import CellRow, GridRow
from overnight.queue.store import Queue

_STDERR_BYTES = 4096
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


@dataclass(frozen=True)
class Job:
    """A cell whose conversation is to be analysed. sha256: of its transcript, where the queue knows it."""

    grid: str
    key: str
    coords: dict[str, Any]
    status: str
    end_reason: str
    sha256: str | None = None


@dataclass(frozen=True)
class Answer:
    """analysed: how many records were made, with each backend one; kept: how many still held. problem: why there is
    none, for one line. The figures are those of the first backend."""

    analysed: int = 0
    kept: int = 0
    turns: int = 0
    onset_turn: int | None = None
    collapsed_fraction: float = 0.0
    collapse_rate: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Options:
    """backends: the one that judges collapses first. model: of `embedding`, None = the usual one. again: also what
    still holds."""

    backends: Sequence[str] = ("tfidf",)
    method: str = "absolute"
    model: str | None = None
    again: bool = False


def options_of(grid: GridRow, *, backend: str | None = None, method: str | None = None) -> Options:
    """As the grid's file says, or the defaults; backend, method: instead of what it says."""
    found = grid.spec.get("analysis")
    said: dict[str, Any] = found if isinstance(found, dict) else {}
    series = said.get("timeseries", "off")
    wanted = [backend or said.get("backend", "tfidf"), *([series] if backend is None and series != "off" else [])]
    return Options(tuple(dict.fromkeys(wanted)), method or said.get("method", "absolute"), said.get("model"))


def has_conversations(grid: GridRow) -> bool:
    """False for a grid of commands, and so for one that holds the analysis of another."""
    return grid.spec.get("kind") != "command"


def jobs_of(paths: Paths, queue: Queue, grid: str) -> Iterator[Job]:
    """One for each cell of the grid that has a conversation, in the order of the queue. Raises QueueError."""
    for cell in conversation.cells_of(queue, grid):
        if conversation.source_of(paths, grid, cell.key) is not None:
            yield _job(cell)


def _job(cell: CellRow) -> Job:
    return Job(cell.grid, cell.key, cell.coords, str(cell.status), cell.end_reason or "", cell.transcript_sha256)


def refuse_followers(grid: GridRow) -> None:
    """Raises UserError for a grid that holds the analysis of another."""
    if (of := follow.followed(grid)) is not None:
        raise UserError(f"grid {grid.name!r} holds the analysis of {of!r}, no conversations; name that one")


_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Its threads wait for each other longer than they work on matrices of a few columns: *measured* 36 s for a spectrum of
10,000 turns that takes 6 s with one."""


class Process:
    """One process; started by the first job, ended by leaving. Raises UserError when it cannot go on."""

    def __init__(self, paths: Paths, options: Options) -> None:
        self._command = [sys.executable, "-P", "-m", "overnight.analysis.jobs", "--home", str(paths.home)]
        self._command += ["--backend", *options.backends, "--method", options.method]
        self._command += ["--model", options.model] if options.model is not None else []
        self._command += ["--again"] if options.again else []
        self._running: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`

    def ask(self, job: Job) -> Answer:
        if self._running is None:
            self._running = self._start()
        assert self._running.stdin is not None  # noqa: S101 - both are pipes
        assert self._running.stdout is not None  # noqa: S101
        try:
            print(json.dumps(asdict(job)), file=self._running.stdin, flush=True)
            line = self._running.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise UserError(self._why(self._running.wait(), f" at {job.grid}/{job.key}"))
        return Answer(**json.loads(line))

    def check(self) -> None:
        """Is there all that is needed? Started without a job, it ends at once. Raises UserError where it is not."""
        with self._start() as started:
            started.communicate()
        if started.returncode != 0:
            raise UserError(self._why(started.returncode, ""))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env={**_ONE_THREAD, **os.environ},
        )

    def _why(self, status: int, where: str) -> str:
        end = self._said.seek(0, 2)
        self._said.seek(max(0, end - _STDERR_BYTES))
        said = (self._said.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        if said.startswith("overnight: "):
            return said.removeprefix("overnight: ")
        if (missing := _MISSING.fullmatch(said)) is not None:
            return f"analysis needs the package {missing[1]}: pip install 'overnight[analysis]'"
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"the analysis {how}{where}{f': {said}' if said else ''}; what was done is kept"

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._said.close()
        if self._running is not None:
            self._running.__exit__(kind, error, trace)  # closes its stdin, which ends it, and waits

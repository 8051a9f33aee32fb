"""The process that analyses conversations: short-lived, so that numpy, and an embedding model, are loaded once and
their memory is gone afterwards.

    python -m overnight.analysis.jobs --home DIR      jobs as JSON lines from stdin, one answer a line on stdout
    python -m overnight.analysis.jobs --after-cell    one job: the command cell that follows a cell (grid/after_each.py)

It opens no queue: what it needs to know of a cell stands in the job, or in the cell's results.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overnight import checked, private
from overnight.analysis import analyze, conversation, store
from overnight.analysis.conversation import Conversation, ConversationError
from overnight.analysis.process import Answer, Job
from overnight.analysis.similarity import Backend, open_backend
from overnight.analysis.store import Wanted
from overnight.errors import UserError
from overnight.grid.after_each import SUFFIX
from overnight.line import clear
from overnight.paths import IMPORTED, Paths

OOM_SCORE_ADJ = 800
"""Like a cell's: what somebody wants to know by day must not cost the night its daemon."""
NICE = 10


class Analyst:
    """Backends are opened once. again: make records also where they hold."""

    def __init__(
        self, paths: Paths, backends: Sequence[str], method: str, *, model: str | None = None, again: bool = False
    ) -> None:
        self._paths, self._again = paths, again
        opened = [open_backend(name, model if name == "embedding" else None, paths.models) for name in backends]
        self._wanted = [(backend, _wanted(backend, method)) for backend in opened]

    def work(self, job: Job) -> Answer:
        """Never raises for what one conversation is like. Raises UserError where none can be analysed, OSError."""
        first: dict[str, Any] | None = None
        analysed = kept = 0
        read: Conversation | None = None
        for backend, wanted in self._wanted:
            path = self._paths.analysis_record(job.grid, job.key, wanted.backend, wanted.method)
            record = None if self._again else store.read(path)
            if record is not None and not wanted.of(record):
                record = None
            if record is None or job.sha256 is None or record.get("transcript_sha256") != job.sha256:
                try:
                    read = _read(self._paths, job) if read is None else read
                except ConversationError as error:
                    return Answer(analysed, kept, problem=str(error))
                if record is not None and record.get("transcript_sha256") != read.sha256:
                    record = None
            if record is None:
                assert read is not None  # noqa: S101 - it was read just above
                try:
                    record = analyze.analyze(read, backend, wanted.method)
                    store.write(path, record)
                except (ValueError, ArithmeticError, RecursionError) as error:
                    told = clear(f"{read.source}: cannot be analysed ({type(error).__name__}: {error})")
                    return Answer(analysed, kept, problem=told)
                analysed += 1
            else:
                kept += 1
                now = record | {"status": job.status, "end_reason": job.end_reason}
                if now != record:  # cancelled since, say: the same turns
                    store.write(path, record := now)
            first = first or record
        return _answer(first, analysed, kept)


def _wanted(backend: Backend, method: str) -> Wanted:
    as_read_back = json.loads(json.dumps(analyze.parameters(backend, method)))
    return Wanted(backend.name, method, backend.model, as_read_back, analyze.VERSION)


def _read(paths: Paths, job: Job) -> Conversation:
    path = conversation.source_of(paths, job.grid, job.key)
    if path is None:
        raise ConversationError(f"{paths.cell_results(job.grid, job.key)}: there is no conversation any more")
    if path.name == IMPORTED:
        return conversation.read_upstream(
            path, grid=job.grid, key=job.key, status=job.status, end_reason=job.end_reason
        )
    return conversation.read_transcript(
        path, grid=job.grid, status=job.status, end_reason=job.end_reason, coords=job.coords
    )


def _answer(record: Mapping[str, Any] | None, analysed: int, kept: int) -> Answer:
    if record is None:
        return Answer(analysed, kept)
    collapse = record["collapse"]
    return Answer(
        analysed,
        kept,
        turns=record["turns"],
        onset_turn=collapse["onset_turn"],
        collapsed_fraction=collapse["collapsed_fraction"],
        collapse_rate=collapse["collapse_rate"],
    )


def serve(analyst: Analyst) -> None:
    """Until stdin ends. Whoever asks waits for the answer before the next job: neither pipe can fill up."""
    for line in sys.stdin:
        print(json.dumps(asdict(analyst.work(Job(**json.loads(line))))), flush=True)


def of_cell(environ: Mapping[str, str]) -> tuple[Paths, Job | None]:
    """The home, and the cell that the command cell with this environment follows; None when that cell is done no
    longer: it was started afresh meanwhile, and is analysed when it is done again. Raises UserError."""
    try:
        result, grid, key = Path(environ["OVERNIGHT_RESULT"]), environ["OVERNIGHT_GRID"], environ["OVERNIGHT_CELL"]
    except KeyError as missing:
        raise UserError(f"--after-cell: {missing} is not set; this is for cells of a grid NAME{SUFFIX}") from None
    paths = Paths(result.parents[4])  # var/results/GRID/KEY/result.user.json
    grid, key = grid.removesuffix(SUFFIX), key.rpartition(".")[0]
    try:
        told = checked.json_object(checked.read_small(paths.result(grid, key)))
        figures = {"end_reason": told["end_reason"], "coords": told["coords"], "sha256": told["transcript_sha256"]}
    except FileNotFoundError:
        return paths, None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{paths.result(grid, key)} cannot be read ({error}); see `overnight verify`") from None
    return paths, Job(grid, key, status="done", **figures)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m overnight.analysis.jobs")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--home")
    where.add_argument("--after-cell", action="store_true")
    parser.add_argument("--backend", nargs="+", default=["tfidf"])
    parser.add_argument("--method", default="absolute")
    parser.add_argument("--model")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args(argv)
    if not args.after_cell:
        _step_back()
        serve(Analyst(Paths(Path(args.home)), args.backend, args.method, model=args.model, again=args.again))
        return 0
    paths, job = of_cell(os.environ)
    if job is None:
        print(json.dumps({"superseded": True}))
        return 0
    answer = Analyst(paths, args.backend, args.method, model=args.model).work(job)
    if answer.problem:
        raise UserError(answer.problem)
    print(json.dumps(asdict(answer)))
    return 0


def _step_back() -> None:
    """What runs beside cells and was not admitted as one is the first to wait, and the first to go."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for whoever asked; no traceback of ours
    os.nice(NICE)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError:
        pass


if __name__ == "__main__":
    private.tighten_umask()
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"overnight: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"overnight: {clear(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        sys.exit(1)

"""All that a report tells, read once: the queue, the analysis records, the logs, the audit, the conditions.

Each part that is not there is left out, and `missing` says which command makes it. Of an analysis record its figures
and a thinned line are kept, never the texts: a thousand cells take some megabytes.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overnight import __version__, checked
from overnight.analysis import audit, process, store
from overnight.analysis.audit_finding import Finding
from overnight.analysis.conversation import source_of
from overnight.cells.transcript import MAX_LINE_BYTES
from overnight.durable import canonical
from overnight.errors import UserError
from overnight.masking import NOTHING, Masks
from overnight.paths import Paths, checkout
from overnight.queue import specs
from overnight.queue.rows import AttemptRow, CellRow, GridRow
from overnight.queue.states import Outcome
from overnight.queue.store import Queue
from overnight.report import logs, plots
from overnight.report import masks as masking

SERIES = "sim_prev5_max"
"""What the lines over turns show: a turn that says again what any of the five before it said is near 1."""

_MARGIN_S = 90.0
"""Around the first and the last attempt: the watchdog sums up once a minute."""


@dataclass(frozen=True)
class Analysed:
    """Of one cell. record: without its series; line: thinned."""

    record: Mapping[str, Any]
    line: tuple[tuple[int, float], ...]
    spans: tuple[Mapping[str, Any], ...]

    @property
    def collapse(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.record["collapse"]
        return found

    def metric(self, name: str) -> float | None:
        value = self.record["metrics"].get(name)
        return float(value) if type(value) in (int, float) else None


@dataclass(frozen=True)
class Cell:
    """attempts: of its present generation, oldest first. analysed: of the conversation as it is now; stale: there is
    one of another conversation only, which nothing is told of."""

    row: CellRow
    attempts: tuple[AttemptRow, ...]
    analysed: Analysed | None
    source: Path | None
    stale: bool = False

    @property
    def key(self) -> str:
        return self.row.key

    @property
    def troubled(self) -> bool:
        """An attempt ended otherwise than with all turns."""
        return any(attempt.outcome not in (None, Outcome.COMPLETED) for attempt in self.attempts)


@dataclass
class Night:
    """Everything, without the values of secrets (but for conversations and records, which are read again: `masks`).
    findings, statistics: None when there are none yet. now: attempts under way have come to here; None: there are
    none."""

    paths: Paths
    grid: GridRow
    cells: list[Cell]
    start: float | None = None
    end: float | None = None
    logs: logs.Logs = field(default_factory=logs.Logs)
    findings: list[Finding] | None = None
    statistics: Any = None
    analysis: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    masks: Masks = NOTHING
    now: float | None = None

    def times(self, attempt: AttemptRow) -> tuple[float | None, float | None]:
        """Begin and end of an attempt, as far as they are known: an import puts its own time where files say none."""
        if not self.is_imported:
            return attempt.claimed_at, attempt.ended_at
        unknown = attempt.evidence.get("unknown") or ()
        began = None if "started_at" in unknown else attempt.claimed_at
        # What was lost ended, says the import, when it was found out.
        is_known = "finished_at" not in unknown and attempt.outcome is not Outcome.LOST
        return began, attempt.ended_at if is_known else None

    @property
    def is_imported(self) -> bool:
        """Another harness ran it: its files are all that is known."""
        return bool(self.grid.spec.get("kind") == specs.IMPORTED)

    @property
    def is_command(self) -> bool:
        return bool(self.grid.spec.get("kind") == "command")


def gather(
    paths: Paths,
    queue: Queue,
    grid: str,
    *,
    backend: str = "",
    method: str = "",
    daemon_lives: bool = False,
    live: Mapping[int, tuple[int, int]] | None = None,
) -> Night:
    """daemon_lives: cells that are `running` are being run. live: turns and tokens of those, by the cell's id; the
    queue counts them when an attempt ends. Raises QueueError for an unknown grid, UserError for an analysis that was
    not made, or secrets that cannot be read and so not kept back."""
    row = queue.grid(grid)
    masks = masking.of_grid(paths, queue, grid)
    rows = list(_rows(queue, grid))
    suffix = _analysis(paths, row, {each.key for each in rows}, backend, method)
    cells = []
    for each in rows:
        attempts = tuple(masking.attempt(masks, a) for a in queue.attempts(each.id) if a.generation == each.generation)
        analysed, stale = _analysed(paths, each, suffix, masks)
        turns, tokens = max((each.turns, each.output_tokens), (live or {}).get(each.id, (0, 0)))
        shown = replace(masking.row(masks, each), turns=turns, output_tokens=tokens)
        cells.append(Cell(shown, attempts, analysed, source_of(paths, grid, each.key), stale))
    night = Night(paths, row, cells, analysis=suffix, masks=masks)
    _period(night, daemon_lives=daemon_lives)
    _missing(night)
    night.statistics = _statistics(night)
    night.findings = _findings(night, queue, daemon_lives=daemon_lives)
    night.provenance = _provenance(night)
    return night


def _rows(queue: Queue, grid: str) -> Iterator[CellRow]:
    after = 0
    while page := queue.cells(grid, after_id=after):
        yield from page
        after = page[-1].id


# -- analysis ---------------------------------------------------------------------------------------------------


def record_path(paths: Paths, grid: str, key: str, suffix: str) -> Path:
    backend, _, method = suffix.partition("-")
    return paths.analysis_record(grid, key, backend, method)


def _analysis(paths: Paths, grid: GridRow, keys: set[str], backend: str, method: str) -> str:
    """BACKEND-METHOD of the records to show: as asked for, else as the grid says, else what most cells have."""
    found: Counter[str] = Counter()
    folder = paths.analysis / grid.name
    for path in folder.glob("*.json") if folder.is_dir() else ():
        key, _, suffix = path.name.removesuffix(".json").rpartition(".")
        if key in keys and suffix.count("-") == 1:
            found[suffix] += 1
    options = process.options_of(grid, backend=backend or None, method=method or None)
    usual = f"{options.backends[0]}-{options.method}"
    fitting = {
        suffix: n
        for suffix, n in found.items()
        if (not backend or suffix.split("-")[0] == backend) and (not method or suffix.split("-")[1] == method)
    }
    if usual in fitting and isinstance(grid.spec.get("analysis"), dict):
        return usual
    if fitting:
        return max(fitting, key=lambda suffix: (fitting[suffix], suffix == usual, suffix))
    if found and (backend or method):
        raise UserError(
            f"grid {grid.name} was not analysed like that; there is: {', '.join(sorted(found))} "
            "(see `overnight analyze`)"
        )
    return usual


def _whole(path: Path) -> dict[str, Any] | None:
    """An analysis record, None when there is none or it is not whole."""
    record = store.read(path)
    collapse = (record or {}).get("collapse")
    whole = isinstance(collapse, dict) and isinstance(collapse.get("spans"), list)
    return record if record is not None and whole and isinstance(record.get("metrics"), dict) else None


def read_record(night: Night, cell: Cell) -> dict[str, Any] | None:
    """The whole record of a cell that was analysed as it is now."""
    if cell.analysed is None:
        return None
    record = _whole(record_path(night.paths, cell.row.grid, cell.key, night.analysis))
    if record is None or record.get("transcript_sha256") != cell.analysed.record.get("transcript_sha256"):
        return None
    return _masked(night.masks, store.as_of_now(cell.row, record))


def _masked(masks: Masks, record: dict[str, Any]) -> dict[str, Any]:
    series = record.get("series")  # figures alone
    slim: dict[str, Any] = masking.texts(masks, {name: v for name, v in record.items() if name != "series"})
    return {**slim, "series": series}


def _analysed(paths: Paths, row: CellRow, suffix: str, masks: Masks) -> tuple[Analysed | None, bool]:
    """What is known of the cell's conversation as it is now; is there only something of another one?"""
    record = _whole(record_path(paths, row.grid, row.key, suffix))
    if record is None or not store.holds(paths, row, record):
        return None, record is not None and source_of(paths, row.grid, row.key) is not None
    record = _masked(masks, store.as_of_now(row, record))
    line = list(_line(record))
    spans = tuple(span for span in record["collapse"]["spans"] if isinstance(span, dict))
    slim = {name: value for name, value in record.items() if name != "series"}
    return Analysed(slim, tuple(plots.thinned(line)), spans), False


def _line(record: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    for item in record.get("series") or ():
        turn, value = item.get("turn"), item.get(SERIES)
        if type(turn) is int and type(value) in (int, float):
            yield turn, float(value)


def _statistics(night: Night) -> Any:
    """As `overnight.analysis.statistics.analyse` gives them; None without records or the libraries for it."""
    if not any(cell.analysed for cell in night.cells):
        return None
    try:
        from overnight.analysis.statistics import analyse
    except ImportError as error:
        night.missing["statistics"] = (
            f"Statistics need the extra `analysis` ({error.name} is not installed): pip install 'overnight[analysis]'"
        )
        return None
    records = (record for cell in night.cells if (record := read_record(night, cell)) is not None)
    try:
        return analyse(records)
    except (UserError, KeyError, TypeError) as error:
        night.missing["statistics"] = f"No statistics: {error}"
        return None


# -- the rest ---------------------------------------------------------------------------------------------------


def _period(night: Night, *, daemon_lives: bool) -> None:
    times = [night.times(attempt) for cell in night.cells for attempt in cell.attempts]
    known = [at for both in times for at in both if at is not None]
    open_cells = [cell for cell in night.cells if any(attempt.outcome is None for attempt in cell.attempts)]
    if open_cells:
        # Of what no daemon runs any more, the last turn is the last that is known.
        night.now = time.time() if daemon_lives else max([*map(_written_at, open_cells), *known])
        known.append(night.now)
    if known:
        night.start, night.end = min(known), max(known)
        found = logs.read(night.paths.log, night.start - _MARGIN_S, night.end + _MARGIN_S)
        night.logs = masking.log(night.masks, found)


def _written_at(cell: Cell) -> float:
    try:
        return cell.source.stat().st_mtime if cell.source is not None else 0.0
    except OSError:
        return 0.0


def _missing(night: Night) -> None:
    name = night.grid.name
    stale = sum(1 for cell in night.cells if cell.stale)
    without = sum(1 for cell in night.cells if cell.source is not None and cell.analysed is None) - stale
    # A program of one's own says nothing that could be analysed (its cells have no conversation, so `without` is 0).
    if without and not stale and not any(cell.analysed for cell in night.cells):
        night.missing["analysis"] = f"The conversations have not been analysed: overnight analyze {name}"
    elif without or stale:
        parts = [f"{without} not analysed"] * bool(without) + [f"{stale} changed since"] * bool(stale)
        night.missing["analysis"] = f"Of the conversations, {' and '.join(parts)}: overnight analyze {name}"
    if night.is_imported:
        night.missing["memory"] = "These cells were imported: their files say nothing of memory."
    elif night.start is not None and not night.logs.samples:
        night.missing["memory"] = (
            "No samples of memory: the watchdog sums up once a minute, and all was over before that."
            if night.end is not None and night.end - night.start < logs.SUMMARY_S and night.logs.watchdog
            else "No samples of memory from this time: the watchdog did not run, or its logs have been rotated away "
            "(var/log/watchdog.jsonl)."
        )


def _findings(night: Night, queue: Queue, *, daemon_lives: bool) -> list[Finding] | None:
    try:
        found = audit.of_grid(night.paths, queue, night.grid.name, daemon_lives=daemon_lives)
        return [masking.finding(night.masks, each) for each in found]
    except UserError as error:
        night.missing["audit"] = f"The audit could not be made: {error}"
    return None


def _provenance(night: Night) -> dict[str, Any]:
    """What was run, from the headers of the transcripts; conditions that differ within one model stand apart."""
    conditions: dict[tuple[str, str], list[str]] = {}
    scaffolds: dict[str, str] = {}
    for cell in night.cells:
        header = _header(cell.source)
        if header is None:
            continue
        spec = _object(header.get("spec"))
        model = {k: v for k, v in _object(spec.get("model")).items() if v not in (None, {}, [])}
        told = {"model": model, "sampling": spec.get("sampling"), "limits": spec.get("limits")}
        whole = canonical(masking.specification(night.masks, {**told, "conditions": header.get("conditions")}))
        conditions.setdefault((str(cell.row.coords.get("model", "")), whole), []).append(cell.key)
        system = night.masks.text(str(spec.get("system", "")))
        scaffolds.setdefault(str(cell.row.coords.get("scaffold", "")), system)
    return {
        "grid": masking.specification(night.masks, night.grid.spec),
        "policy": night.grid.policy,
        "conditions": [(model, json.loads(whole), keys) for (model, whole), keys in conditions.items()],
        "scaffolds": scaffolds,
        "overnight": __version__,
        "python": platform.python_version(),
        "git": git_state(checkout()),
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _header(path: Path | None) -> dict[str, Any] | None:
    """The first line of a transcript, None for anything else."""
    if path is None or path.name != "transcript.jsonl":
        return None
    try:
        with path.open("rb") as stream:
            return checked.json_object(stream.readline(MAX_LINE_BYTES))
    except (OSError, ValueError):
        return None


def git_state(folder: Path | None) -> dict[str, str] | None:
    """Commit and state of the checkout that this runs from, None where there is none."""
    if folder is None or not (folder / ".git").exists():
        return None
    commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit:
        return None
    files = len(changed.splitlines()) if changed is not None else None
    state = "" if files is None else "as committed" if files == 0 else f"{files} files changed since"
    return {"commit": commit, "described": _git(folder, "log", "-1", "--format=%cs %s") or "", "state": state}


def _git(folder: Path, *arguments: str) -> str | None:
    # Not as root in somebody else's repository, whose configuration could name programs to be run: git refuses that.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

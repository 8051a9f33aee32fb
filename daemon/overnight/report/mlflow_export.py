"""A grid's cells as runs of MLflow: one run a cell, found again by its tags, told only what it does not know yet.

A step after the run, in a process of its own; nothing that runs cells imports this. For each cell that has ended:

    wanted     what its run should be, and the digest of all that (mlflow_run.py)
    same       the digest stands in the run: nothing is written
    update     figures that differ are written behind the older ones, files again; a figure that is gone becomes NaN, a
               file that is gone is removed
    replace    a cell that was started afresh, or has other parameters (MLflow lets none change), gets a new run, the
               old one is deleted (MLflow keeps what is deleted until `mlflow gc`)

A cell that has not ended and has a run, of before it was reset or retried: the run's tags say where the cell is.

The digest is written last: an export that was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overnight.analysis import store as records
from overnight.analysis.conversation import cells_of, source_of
from overnight.cells.locking import open_locked
from overnight.errors import Busy, UserError
from overnight.paths import Paths
from overnight.queue.store import CellRow, Queue
from overnight.report import mlflow_store
from overnight.report.masks import of_grid
from overnight.report.mlflow_run import ENDED, RESULT, SERIES, Source, Wanted, wanted
from overnight.report.mlflow_store import Place, Store

GRID, CELL, DIGEST, NAMES = "overnight.grid", "overnight.cell", "overnight.digest", "overnight.metrics"
"""Tags: what a run is of, the digest of what was told, the names of its figures."""

GENERATION, PARAMS, FILES, STATUS = "overnight.generation", "overnight.params", "overnight.files", "overnight.status"
"""Tags: what makes another run of it, from its beginning on (which start of the cell, the digest of its parameters);
its files by name; where the cell is."""

OFF = "off"

_METRICS_BATCH, _OTHERS_BATCH, _RUNS_PAGE = 900, 90, 1000
"""What MLflow takes in one request is 1000, 100 and 50,000."""


@dataclass(frozen=True, slots=True)
class Choice:
    """backend, method: of the analysis whose figures are told. series: the backend whose series are, or `off`."""

    backend: str
    method: str
    series: str = OFF


@dataclass(slots=True)
class Exported:
    """Cells by what was done for them. not_ended: cells that have no run yet; under_way: cells that have not ended and
    whose run is of before; not_analysed: conversations whose run has no figures of an analysis; said: one sentence for
    each file that was kept back or cannot be removed, and one for runs that are there twice."""

    store: str
    experiment: str
    added: int = 0
    updated: int = 0
    replaced: int = 0
    unchanged: int = 0
    not_ended: int = 0
    under_way: int = 0
    not_analysed: int = 0
    said: list[str] = field(default_factory=list)


def export(paths: Paths, queue: Queue, grid: str, place: Place, choice: Choice, experiment: str = "") -> Exported:
    """Bring an experiment (by default of the grid's name) up to date. Raises UserError (a store that cannot be used,
    secrets that cannot be read, another export under way), QueueError."""
    queue.grid(grid)
    masks = of_grid(paths, queue, grid)
    name = masks.text(experiment or grid)
    done = Exported(str(place), name)
    with _alone(paths), mlflow_store.opened(place, name) as store:
        known = _runs(store, grid, done)
        for cell in cells_of(queue, grid):
            before = known.get(masks.text(cell.key))
            if cell.status not in ENDED:
                if before is None:
                    done.not_ended += 1
                else:
                    done.under_way += 1
                    _mark(store, before, str(cell.status))
                continue
            source = _source(paths, queue, cell, choice)
            if source.record is None and source_of(paths, grid, cell.key) is not None:
                done.not_analysed += 1
            run = wanted(source, masks)
            done.said += run.kept_back
            _bring(store, grid, masks.text(cell.key), run, before, done)
    return done


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """Two exports at once would both add the run that neither finds."""
    try:
        held = open_locked(paths.run / "mlflow.lock", wait_s=0.0)
    except Busy:
        raise UserError(f"another `overnight mlflow` works on {paths.home}; wait for it") from None
    try:
        yield
    finally:
        os.close(held)


def _source(paths: Paths, queue: Queue, cell: CellRow, choice: Choice) -> Source:
    """With the analyses that still hold."""
    attempts = queue.attempts(cell.id)
    found: dict[str, Any] = {}
    files: list[Path] = []
    for backend in dict.fromkeys([choice.backend, choice.series]):
        path = paths.analysis_record(cell.grid, cell.key, backend, choice.method)
        record = None if backend == OFF else records.read(path)
        if record is not None and records.holds(paths, cell, record):
            found[backend] = record
            files.append(path)
    of_cell = Source(paths, cell, queue.cell_spec(cell.id), found.get(choice.backend), found.get(choice.series))
    evidence = attempts[-1].evidence if attempts and attempts[-1].generation == cell.generation else {}
    return replace(of_cell, files=tuple(files), evidence=evidence)


# -- runs -------------------------------------------------------------------------------------------------------------


def _runs(store: Store, grid: str, done: Exported) -> dict[str, Any]:
    """Cell -> its run; the oldest where there are several."""
    found: dict[str, Any] = {}
    token = None
    doubles = 0
    while True:
        page = store.client.search_runs(
            [store.experiment], f"tags.`{GRID}` = '{grid}'", max_results=_RUNS_PAGE, page_token=token
        )
        for run in page:
            cell = run.data.tags.get(CELL, "")
            other = found.setdefault(cell, run)
            if other is not run:
                doubles += 1
                found[cell] = min(other, run, key=lambda each: (each.info.start_time or 0, each.info.run_id))
        if not (token := page.token):
            break
    if doubles:
        done.said.append(f"{doubles} cells have a second run in {done.experiment}, which is left alone")
    return found


def _bring(store: Store, grid: str, cell: str, run: Wanted, known: Any, done: Exported) -> None:
    if known is not None and known.data.tags.get(DIGEST) == run.digest:
        done.unchanged += 1
        return
    born = {GENERATION: str(run.generation), PARAMS: run.params_sha256}
    if known is not None and not _is_of(known, run, born):
        store.client.delete_run(known.info.run_id)
        known = None
        done.replaced += 1
    elif known is not None:
        done.updated += 1
    else:
        done.added += 1
    if known is None:
        known = store.client.create_run(
            store.experiment, start_time=run.started_ms, run_name=run.name, tags={GRID: grid, CELL: cell, **born}
        )
    _tell(store.client, known, run)
    _give(store.client, known, run, done)
    _seal(store.client, known, run)


def _is_of(known: Any, run: Wanted, born: Mapping[str, str]) -> bool:
    """Can the run that is there become this one?"""
    if any(known.data.tags.get(name) != value for name, value in born.items()):
        return False
    # What somebody else wrote into it can be in the way, too.
    return all(known.data.params.get(name, value) == value for name, value in run.params.items())


def _mark(store: Store, known: Any, status: str) -> None:
    """Without its digest: should the cell come to the same end again, the tag must say that again."""
    from mlflow.entities import RunTag

    if known.data.tags.get(STATUS) != status:
        store.client.log_batch(known.info.run_id, tags=[RunTag(DIGEST, ""), RunTag(STATUS, status)])


def _tell(client: Any, known: Any, run: Wanted) -> None:
    """All that a run does not know yet, but for its files."""
    from mlflow.entities import Metric, Param, RunTag

    run_id = known.info.run_id
    params = [Param(name, value) for name, value in run.params.items() if name not in known.data.params]
    tags = [RunTag(name, value) for name, value in run.tags.items() if known.data.tags.get(name) != value]
    metrics = [Metric(*point) for point in _points(client, known, run)]
    for some in _cut(params, _OTHERS_BATCH):
        client.log_batch(run_id, params=some)
    for some in _cut(metrics, _METRICS_BATCH):
        client.log_batch(run_id, metrics=some)
    for some in _cut(tags, _OTHERS_BATCH):
        client.log_batch(run_id, tags=some)


def _give(client: Any, known: Any, run: Wanted, done: Exported) -> None:
    """The files of a run; those of ours that it should no longer have go. Their names are noted before they come and
    until they are gone: an export may be killed between the two."""
    run_id = known.info.run_id
    noted = known.data.tags.get(FILES) or "[]"
    names = {f"{each.folder}/{each.path.name}".lstrip("/") for each in run.artifacts}
    gone = set(json.loads(noted)) - names
    if (both := json.dumps(sorted(names | gone))) != noted:
        client.set_tag(run_id, FILES, both)
    for artifact in run.artifacts:
        client.log_artifact(run_id, str(artifact.path), artifact.folder or None)
    for name in sorted(gone):
        try:
            mlflow_store.remove(client, known, name)
        except NotImplementedError:
            done.said.append(f"{run.name}: {name} is of before, and this store removes no files")
    if gone:
        client.set_tag(run_id, FILES, json.dumps(sorted(names)))


def _seal(client: Any, known: Any, run: Wanted) -> None:
    """The digest comes last."""
    from mlflow.entities import RunTag

    run_id = known.info.run_id
    client.set_terminated(run_id, run.status, run.ended_ms)
    names = json.dumps(sorted(run.metrics))
    client.log_batch(run_id, tags=[RunTag(NAMES, names if len(names) < 5000 else ""), RunTag(DIGEST, run.digest)])


def _points(client: Any, known: Any, run: Wanted) -> Iterator[tuple[str, float, int, int]]:
    """(name, value, milliseconds, step) of every figure that is not the newest of its name and step already.

    A figure cannot be taken back: one that is no longer there becomes NaN. What others have written into the run stays:
    ours are those that are wanted now, were named at the last export, or have our prefixes."""
    steps: dict[str, dict[int, float]] = {name: {0: value} for name, value in run.metrics.items()} | run.series
    ours = set(steps) | set(json.loads(known.data.tags.get(NAMES) or "[]"))
    ours |= {name for name in known.data.metrics if name.startswith((SERIES, RESULT))}
    for name in sorted(ours):
        newest: dict[int, tuple[int, float]] = {}
        for point in client.get_metric_history(known.info.run_id, name) if name in known.data.metrics else ():
            newest[point.step] = max(newest.get(point.step, (-1, 0.0)), (point.timestamp, point.value))
        values = steps.get(name, {})
        for step in sorted(values.keys() | newest.keys()):
            value = values.get(step, math.nan)
            at, before = newest.get(step, (run.ended_ms - 1, None))
            if before is None or not (value == before or (math.isnan(value) and math.isnan(before))):
                yield name, value, max(run.ended_ms, at + 1), step


def _cut(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + most] for start in range(0, len(items), most))

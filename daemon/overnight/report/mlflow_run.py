"""What MLflow is told of a cell: parameters, metrics, series, tags, files. No secret comes out.

Everything hangs on the queue and the files alone, so that the same cell always gives the same digest: an export that
finds it in a run has nothing to do there.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from overnight import checked
from overnight.analysis.conversation import source_of
from overnight.analysis.groups import OWN_AXES, figures_of
from overnight.cells.transcript import Reader
from overnight.durable import canonical
from overnight.masking import MaskedStream, Masks
from overnight.paths import Paths
from overnight.queue.rows import CellRow
from overnight.queue.specs import IMPORTED
from overnight.queue.states import Status
from overnight.report.masks import SECRETIVE

FORMAT = 1
"""Raised when the same cell is to be told otherwise: then every run is brought up to date once."""

ENDED = {
    Status.DONE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.QUARANTINED: "FAILED",
    Status.CANCELLED: "KILLED",
}
"""Status of a cell -> of its run. Cells that have not ended have no run yet."""

SERIES, RESULT = "turn/", "result/"
"""What the names of series and of a command's own figures begin with."""

_LONGEST_PARAM, _LONGEST_TAG, _LONGEST_NAME = 6000, 5000, 250
"""Characters that every MLflow 2 and 3 takes."""

_LEFT_OUT = "[left out]"
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_NO_PARAMS = ("v", "key", "coords", "seed", "env", "keep", "secrets")
_PIECE_BYTES = 2**20
_RESULT_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file, and the folder of the run's artifacts where it belongs ('' = at the top)."""

    path: Path
    folder: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run as it should be. series: name -> turn -> value. times: milliseconds. generation: of the cell."""

    name: str
    status: str
    started_ms: int
    ended_ms: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    series: dict[str, dict[int, float]]
    artifacts: tuple[Artifact, ...]
    generation: int
    kept_back: tuple[str, ...] = field(compare=False, default=())
    """Files that hold the value of a secret, or cannot be read: one sentence each."""

    @property
    def digest(self) -> str:
        told = asdict(self) | {"format": FORMAT, "kept_back": None}
        told["artifacts"] = [[each.folder, each.path.name, each.sha256] for each in self.artifacts]
        told["series"] = {name: sorted(points.items()) for name, points in self.series.items()}
        return _digest(told)

    @property
    def params_sha256(self) -> str:
        return _digest(self.params)


def _digest(told: Any) -> str:
    return hashlib.sha256(canonical(told).encode(errors="backslashreplace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Source:
    """All that a run is made of. record: the analysis whose figures are told, None when there is none that still holds;
    turns: the one whose series are told; files: those of analyses; evidence: of the last attempt, which says of an
    imported cell what its files say."""

    paths: Paths
    cell: CellRow
    spec: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    turns: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_imported(self) -> bool:
        return bool(self.spec.get("kind") == IMPORTED)


def wanted(source: Source, masks: Masks) -> Wanted:
    """The run of a cell that has ended. Raises OSError only for what is no file's fault."""
    cell = source.cell
    artifacts, kept_back = _artifacts(source, masks)
    ended = cell.finished_at or cell.started_at or 0.0
    return Wanted(
        name=masks.text(cell.key),
        status=ENDED[cell.status],
        started_ms=int(1000 * (cell.started_at or ended)),
        ended_ms=int(1000 * ended),
        params=_fitted(_params(source), masks, _LONGEST_PARAM),
        tags=_fitted(_tags(source), masks, _LONGEST_TAG),
        metrics=_figures(_metrics(source), masks),
        series=_series(source, masks),
        artifacts=tuple(artifacts),
        generation=cell.generation,
        kept_back=tuple(masks.text(f"{cell.grid}/{cell.key}: {what}") for what in kept_back),
    )


# -- parameters and tags ----------------------------------------------------------------------------------------------


def _params(source: Source) -> Iterator[tuple[str, Any]]:
    """The coordinates, then the specification, then the conditions of the transcript's header. Values of `env` stay
    here: they are where people put what they should have called a secret."""
    coords, spec = source.cell.coords, source.spec
    for name in (*OWN_AXES, *(name for name in coords if name not in OWN_AXES)):
        if name in coords:
            yield name, coords[name]
    if not source.is_imported:  # its files name none; the queue's 0 stands for that
        yield "seed", source.cell.seed
    rest = {name: value for name, value in spec.items() if name not in _NO_PARAMS}
    for name in ("model", "scaffold"):  # the name of either is a coordinate, and says it already
        if isinstance(rest.get(name), dict):
            rest[name] = {key: value for key, value in rest[name].items() if key != "name"}
    yield from _flat("", rest)
    yield from _flat("conditions", _conditions(source))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    elif prefix and value not in (None, {}):
        last = prefix.rsplit(".", 1)[-1]
        yield prefix, _LEFT_OUT if isinstance(value, str) and SECRETIVE.search(last) else value


def _conditions(source: Source) -> dict[str, Any]:
    try:
        with source.paths.transcript(source.cell.grid, source.cell.key).open("rb") as stream:
            header: dict[str, Any] = next(iter(Reader(stream)), {})
    except OSError:
        return {}
    conditions = header.get("conditions")
    return conditions if isinstance(conditions, dict) else {}


def _tags(source: Source) -> Iterator[tuple[str, Any]]:
    """All of them always, so that what is no longer so does not stay."""
    cell, record = source.cell, source.record or {}
    yield from {
        "mlflow.source.name": "imported" if source.is_imported else "overnight",
        "mlflow.source.type": "LOCAL",
        "overnight.kind": source.spec.get("kind"),
        "overnight.status": str(cell.status),
        "overnight.end_reason": cell.end_reason,
        "overnight.reason": cell.reason,
        "overnight.transcript_sha256": cell.transcript_sha256,
        "analysis.backend": record.get("backend"),
        "analysis.embedding_model": record.get("embedding_model"),
        "analysis.method": record.get("method"),
        "analysis.overnight": record.get("overnight"),
        "analysis.series": (source.turns or {}).get("backend"),
    }.items()


def _fitted(pairs: Iterable[tuple[str, Any]], masks: Masks, longest: int) -> dict[str, str]:
    """As MLflow takes them: names of its characters, values not too long, no name twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        text = masks.text(_text(value)).encode(errors="backslashreplace").decode()
        if len(text) > longest:
            digest = hashlib.sha256(text.encode()).hexdigest()
            text = f"{text[: longest - 100]}... ({len(text)} characters, sha256 {digest})"
        found[_free(key_of(masks.text(name)), found)] = text
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    return _IN_URL.sub(_LEFT_OUT, value if isinstance(value, str) else canonical(value))


def key_of(name: str) -> str:
    """A name that MLflow takes for a parameter, tag or metric."""
    fit = re.sub(r"[^\w.\- :/]", "_", name)
    if posixpath.normpath(fit) != fit or fit.startswith(("/", "..")) or fit == ".":
        fit = fit.replace("/", "_").replace("..", "_").strip(".") or "_"
    if len(fit) > _LONGEST_NAME:
        fit = f"{fit[: _LONGEST_NAME - 20]}.{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:16]}"
    return fit


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """Two names may look the same to MLflow."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}_{number}"
    return free


# -- figures ----------------------------------------------------------------------------------------------------------


def _metrics(source: Source) -> Iterator[tuple[str, Any]]:
    cell = source.cell
    found: dict[str, Any] = {"run_s": cell.run_s, "attempts": cell.attempts}
    if source.spec.get("kind") == "command":
        yield from found.items()
        yield from _result(source)
        return
    found |= {"turns": cell.turns, "output_tokens": cell.output_tokens}
    unknown = _unknown(source)
    yield from ((name, value) for name, value in found.items() if name not in unknown)
    if source.record is not None:
        figures = figures_of(source.record)
        yield from ((name, value) for name, value in figures.items() if name != "turns")


def _unknown(source: Source) -> set[str]:
    """Figures of an imported cell that no file says: the queue has 0 for them."""
    if not source.is_imported:
        return set()
    evidence = source.evidence
    places = [place for name in ("metadata", "state") if isinstance(place := evidence.get(name), dict)]
    says = {name for place in places for name, value in place.items() if value is not None}
    found = set()
    if not evidence or evidence.get("unknown"):  # its beginning or its end
        found.add("run_s")
    if "iterations" not in says and source.cell.transcript_sha256 is None:
        found.add("turns")
    if "total_tokens" not in says:
        found.add("output_tokens")
    return found


def _result(source: Source) -> Iterator[tuple[str, Any]]:
    """The numbers that a command has left, however deep."""
    try:
        path = source.paths.result(source.cell.grid, source.cell.key)
        found = checked.json_object(checked.read_small(path, _RESULT_BYTES)).get("result")
    except (OSError, ValueError):
        return
    for name, value in _flat("", found):
        yield f"{RESULT}{name}", value


def _figures(pairs: Iterable[tuple[str, Any]], masks: Masks) -> dict[str, float]:
    """Finite numbers alone, and none that a secret is in."""
    found: dict[str, float] = {}
    for name, value in pairs:
        number = masks.value(value)
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
            found[_free(key_of(masks.text(name)), found)] = float(number)
    return found


def _series(source: Source, masks: Masks) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for turn in (source.turns or {}).get("series", ()):
        for name, value in _figures(
            ((f"{SERIES}{name}", v) for name, v in turn.items() if name != "turn"), masks
        ).items():
            found.setdefault(name, {})[int(turn["turn"])] = value
    return found


# -- files ------------------------------------------------------------------------------------------------------------


def _artifacts(source: Source, masks: Masks) -> tuple[list[Artifact], list[str]]:
    grid, key = source.cell.grid, source.cell.key
    files: list[tuple[Path | None, str]] = [
        (source_of(source.paths, grid, key), ""),
        (source.paths.result(grid, key), ""),
        *((path, "analysis") for path in source.files),
    ]
    found: list[Artifact] = []
    kept_back: list[str] = []
    for path, folder in files:
        if path is None:
            continue
        try:
            sha256 = _sha256(path, masks)
        except FileNotFoundError:
            continue
        except OSError as error:
            kept_back.append(f"{path.name} cannot be read: {error.strerror}")
            continue
        if sha256 is None or masks.text(path.name) != path.name:
            kept_back.append(f"{path.name} stays here, since the value of a secret is in it")
        else:
            found.append(Artifact(path, folder, sha256))
    return found, kept_back


def _sha256(path: Path, masks: Masks) -> str | None:
    """None when a secret is in it."""
    digest, masked = hashlib.sha256(), MaskedStream(masks)
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            if masks:
                masked.feed(piece)
    masked.finish()
    return None if masked.masked else digest.hexdigest()

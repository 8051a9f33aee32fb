"""What the queue hands out: frozen records, one a row, and how each is read from its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from overnight.queue.states import Outcome, Status


@dataclass(frozen=True, slots=True)
class GridRow:
    """counts: how many cells are in each status (every status is there)."""

    id: int
    name: str
    spec: dict[str, Any]
    policy: dict[str, Any]
    created_at: float
    last_submitted_at: float
    counts: dict[Status, int]


@dataclass(frozen=True, slots=True)
class CellRow:
    """One cell. Times in unix seconds; `not_before` 0 = ready at once.

    generation: how often it was started afresh; attempts, tries_used, turns and run_s are those of this
    generation. stalled: interrupted attempts in a row without a new turn. run_s: seconds that its attempts
    took together. claim_bytes: what it claims since it met its cap or was killed for memory, None = as
    predicted. evictions: at the turn where it stands. alone: it runs only while nothing else does.
    """

    id: int
    grid_id: int
    grid: str
    key: str
    coords: dict[str, Any]
    seed: int
    status: Status
    not_before: float
    generation: int
    attempts: int
    tries_used: int
    stalled: int
    turns: int
    output_tokens: int
    run_s: float
    cancel_requested: bool
    accept_conditions: bool
    reason_code: str
    reason: str
    end_reason: str | None
    transcript_sha256: str | None
    started_at: float | None
    finished_at: float | None
    claim_bytes: int | None
    evictions: int
    alone: bool


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try. `outcome` None = under way. `evidence` is what the verdict rests on.

    claim_bytes, cap_bytes, peak_bytes: what it was admitted with, could not pass and took at most, beyond its
    warm server; None = not known, no cap. claim_source: what the claim was taken from.
    """

    id: int
    cell_id: int
    generation: int
    number: int
    boot_id: str
    daemon: str
    pid: int | None
    start_ticks: int | None
    claimed_at: float
    started_at: float | None
    ended_at: float | None
    outcome: Outcome | None
    reason_code: str
    reason: str
    evidence: dict[str, Any]
    turns: int | None
    output_tokens: int | None
    end_reason: str | None
    transcript_sha256: str | None
    load_s: float | None
    replay_s: float | None
    max_rss_bytes: int | None
    claim_bytes: int | None
    claim_source: str
    cap_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened. old and new are None where no cell's status changed."""

    id: int
    at: float
    kind: str
    grid_id: int | None
    cell_id: int | None
    attempt_id: int | None
    old: Status | None
    new: Status | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """A cell that `claim` would give: a look, not a promise. spec: its whole specification; claim_bytes,
    evictions, alone and attempts as in CellRow."""

    cell_id: int
    grid: str
    key: str
    not_before: float
    warm_key: str
    warm: dict[str, Any]
    threads: int
    spec: dict[str, Any]
    policy: dict[str, Any]
    claim_bytes: int | None
    evictions: int
    alone: bool
    attempts: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A cell that is now running. spec: its whole specification; warm: what its warm server loads; claim_bytes,
    claim_source, cap_bytes: what it was claimed with."""

    cell: CellRow
    attempt_id: int
    attempt_number: int
    spec: dict[str, Any]
    policy: dict[str, Any]
    grid: str
    warm_key: str
    warm: dict[str, Any]
    claim_bytes: int | None
    claim_source: str
    cap_bytes: int | None


@dataclass(frozen=True, slots=True)
class Peak:
    """Memory that an attempt took at most beyond its warm server, to be learned from. whole: it came to its
    end, so it would not have taken more."""

    kind: str
    family: str
    bytes: int
    whole: bool


@dataclass(frozen=True, slots=True)
class PeakRow:
    """A peak that was learned. at: unix seconds."""

    peak_bytes: int
    whole: bool
    at: float


@dataclass(frozen=True, slots=True)
class Enqueued:
    """existing: were there already, unchanged. replaced_keys: their specification changed (`--replace`)."""

    added: int
    existing: int
    replaced: int
    replaced_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """mean_seconds: what a done cell took on average, all its attempts together; None before the first."""

    done_cells: int
    done_seconds: float
    mean_seconds: float | None
    left_cells: int


CELL = (
    "SELECT c.id, c.grid_id, g.name, c.key, c.coords, c.seed, c.status, c.not_before, c.generation,"
    " c.attempts, c.tries_used, c.stalled, c.turns, c.output_tokens, c.run_ms, c.cancel_requested,"
    " c.accept_conditions, c.reason_code, c.reason, c.end_reason, c.transcript_sha256, c.started_at,"
    " c.finished_at, c.claim_bytes, c.evictions, c.alone"
    # CROSS JOIN keeps this order: the planner may not begin with the grids and look for their cells.
    " FROM cells AS c CROSS JOIN grids AS g ON g.id = c.grid_id"
)
ATTEMPT = (
    "SELECT id, cell_id, generation, number, boot_id, daemon, pid, start_ticks, claimed_at, started_at,"
    " ended_at, outcome, reason_code, reason, evidence, turns, output_tokens, end_reason, transcript_sha256,"
    " load_s, replay_s, max_rss_bytes, claim_bytes, claim_source, cap_bytes, peak_bytes FROM attempts"
)
EVENT = "SELECT id, at, kind, grid_id, cell_id, attempt_id, old_status, new_status, detail FROM events"


class DamagedRow(ValueError):
    """A stored value that nobody wrote: not JSON, or no status. `connection` makes a QueueError of it."""


def cell_row(row: Sequence[Any]) -> CellRow:
    """From the columns of `CELL`. Raises DamagedRow."""
    fields = list(row)
    with _of("cell", row[0]):
        fields[4] = json.loads(row[4])
        fields[6] = Status(row[6])
    fields[14] = row[14] / 1000
    fields[15], fields[16], fields[25] = bool(row[15]), bool(row[16]), bool(row[25])
    return CellRow(*fields)


def attempt_row(row: Sequence[Any]) -> AttemptRow:
    """From the columns of `ATTEMPT`. Raises DamagedRow."""
    fields = list(row)
    with _of("attempt", row[0]):
        fields[11] = None if row[11] is None else Outcome(row[11])
        fields[14] = json.loads(row[14])
    return AttemptRow(*fields)


def event_row(row: Sequence[Any]) -> EventRow:
    """From the columns of `EVENT`. Raises DamagedRow."""
    fields = list(row)
    with _of("event", row[0]):
        fields[6] = None if row[6] is None else Status(row[6])
        fields[7] = None if row[7] is None else Status(row[7])
        fields[8] = json.loads(row[8])
    return EventRow(*fields)


def parsed(text: str, what: str, number: int) -> dict[str, Any]:
    """A JSON object out of the row `number` of a table. Raises DamagedRow."""
    with _of(what, number):
        value: dict[str, Any] = json.loads(text)
    return value


@contextmanager
def _of(what: str, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DamagedRow(f"{what} {number}: {error}") from None

"""`overnight audit`, and the audit of a report: what was recorded of a grid, or lies in a folder, is read and checked.

    of_grid      a grid of the queue, our own cells or imported ones      of_folder     the older harness's files

Reads one conversation at a time, and changes nothing. Checks are in `audit_lost`, `audit_replies` and
`audit_alike`, what they look at in `audit_look`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight import durable
from overnight.analysis import audit_alike, audit_lost, audit_replies, conversation, upstream
from overnight.analysis.audit_finding import SEVERITIES, Finding
from overnight.analysis.audit_look import Replies, Subject, look, named_thinking
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.rows import CellRow
from overnight.queue.states import Status
from overnight.queue.store import Queue

__all__ = ["Finding", "check", "of_folder", "of_grid", "subjects_of_folder", "subjects_of_grid", "unread"]


def check(subjects: Sequence[Subject]) -> list[Finding]:
    """All findings, the gravest first."""
    checks = (*audit_lost.CHECKS, *audit_alike.CHECKS, *audit_replies.CHECKS)
    found = [finding for each in checks for finding in each(subjects)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def unread(subjects: Sequence[Subject]) -> int:
    """Cells of which only the end can be looked at: programs of one's own, whose results say nothing to an audit."""
    return sum(1 for each in subjects if not each.speaks)


def of_grid(paths: Paths, queue: Queue, grid: str, *, daemon_lives: bool = False) -> list[Finding]:
    """daemon_lives: cells that are `running` are being run. Raises QueueError for an unknown grid."""
    return check(list(subjects_of_grid(paths, queue, grid, daemon_lives=daemon_lives)))


def of_folder(folder: Path) -> list[Finding]:
    """Raises UserError where there is nothing to be read."""
    return check(list(subjects_of_folder(folder)))


def subjects_of_grid(paths: Paths, queue: Queue, grid: str, *, daemon_lives: bool = False) -> Iterator[Subject]:
    queue.grid(grid)
    alike: dict[str, Any] = {}
    for row in conversation.cells_of(queue, grid):
        spec = queue.cell_spec(row.id)
        if spec["kind"] == specs.IMPORTED:
            yield _imported(paths, queue, row)
        elif row.status is not Status.RUNNING or not daemon_lives:
            yield _own(paths, row, spec, alike)


def subjects_of_folder(folder: Path) -> Iterator[Subject]:
    broken: dict[str, str] = {}
    night = upstream.read(folder, broken=broken)
    for found in night.cells:
        facts = found.facts
        subject = Subject(
            **_named(found.key, facts.coords),
            status=str(facts.status),
            said=facts.said,
            reason=facts.error,
            claimed_turns=facts.iterations,
            claimed_tokens=facts.tokens,
            started=str(facts.raw.get("started_at") or ""),
            collapsed=bool(facts.raw.get("collapse_detected")) and found.file is not None,
            in_state=found.state is not None if night.has_state else None,
            differences=tuple(upstream.differences(found)),
        )
        replies, problem = _replies(lambda found=found: upstream.conversation(found))
        problem = problem or broken.pop(found.key, "")
        yield replace(subject, replies=replies, broken=problem)
    for name, problem in broken.items():
        yield Subject(name, "", "", 0, {}, "done", "?", broken=problem)


def _imported(paths: Paths, queue: Queue, row: CellRow) -> Subject:
    attempts = queue.attempts(row.id)
    evidence: Mapping[str, Any] = attempts[-1].evidence if attempts else {}
    raw = evidence.get("metadata") or evidence.get("state") or {}
    replies, problem = _replies(lambda: conversation.of_cell(paths, row))
    if row.transcript_sha256 is not None and replies is None and not problem:
        problem = "its file is missing"
    return Subject(
        **_named(row.key, row.coords),
        status=str(row.status),
        said=str(evidence.get("said", row.status)),
        reason=row.reason,
        claimed_turns=row.turns if raw.get("iterations") is not None else None,
        claimed_tokens=row.output_tokens if raw.get("total_tokens") is not None else None,
        started=str(raw.get("started_at") or ""),
        collapsed=bool(raw.get("collapse_detected")) and row.transcript_sha256 is not None,
        in_state=evidence.get("in_state"),
        differences=tuple(map(str, evidence.get("differences", ()))),
        replies=replies,
        broken=problem,
    )


def _own(paths: Paths, row: CellRow, spec: Mapping[str, Any], alike: dict[str, Any]) -> Subject:
    """alike: the settings of cells before it: thousands of runs share the very same ones, kept once."""
    if spec["kind"] != "idle_loop":  # a program of one's own says nothing; only its end can be looked at
        return Subject(**_named(row.key, row.coords), status=str(row.status), reason=row.reason, speaks=False)
    found: list[conversation.Conversation] = []

    def read() -> conversation.Conversation | None:
        if (each := conversation.of_cell(paths, row)) is not None:
            found.append(each)
        return each

    replies, problem = _replies(read)
    header = found[0].header if found else {}
    shared = {name: value for name, value in spec.items() if name not in ("key", "coords", "seed")}
    settings = {"specification": shared, "conditions": header.get("conditions")} if found else {}
    thinking = (spec.get("model") or {}).get("thinking")
    done = row.status is Status.DONE
    return Subject(
        **{**_named(row.key, row.coords), "thinks": thinking if thinking is not None else named_thinking(_model(row))},
        status=str(row.status),
        reason=row.reason,
        # Of a cell under way, and of one that was interrupted, the queue may know less than is on disk.
        claimed_turns=row.turns if done or replies is None else None,
        claimed_tokens=row.output_tokens if done or replies is None else replies.tokens_sum,
        greedy=(spec.get("sampling") or {}).get("temperature") == 0,
        settings=alike.setdefault(_digest(settings), settings),
        replies=replies,
        broken=problem,
    )


def _named(key: str, coords: Mapping[str, Any]) -> dict[str, Any]:
    axes = {name: value for name, value in coords.items() if name not in ("scaffold", "model", "run")}
    model = str(coords.get("model", ""))
    run = coords.get("run")
    return {
        "key": key,
        "scaffold": str(coords.get("scaffold", "")),
        "model": model,
        "run": run if type(run) is int else 0,
        "axes": axes,
        "thinks": named_thinking(model),
    }


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(durable.canonical(settings).encode()).hexdigest()


def _model(row: CellRow) -> str:
    return str(row.coords.get("model", ""))


def _replies(read: Any) -> tuple[Replies | None, str]:
    """What is kept of a conversation, or why it cannot be read."""
    try:
        found = read()
        return (None, "") if found is None else (look(found), "")
    except UserError as error:
        return None, str(error)
    except (ValueError, ArithmeticError, RecursionError) as error:
        return None, f"it cannot be looked at ({type(error).__name__}: {error})"

"""Cells that are stuck, lost, or told of in two ways. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overnight.analysis.audit_finding import Check, Finding, nothing, of, with_replies
from overnight.analysis.audit_look import Subject


def _figures(cell: Subject) -> str:
    turns, tokens = cell.claimed_turns or 0, cell.claimed_tokens or 0
    return f"{turns:,} iterations and {tokens:,} tokens"


def _after(cell: Subject) -> str:
    return f" after {cell.replies.count if cell.replies else 0:,} replies" if cell.speaks else ""


def _because(cell: Subject) -> str:
    return f": {cell.reason}" if cell.reason else ""


def _running(subjects: Sequence[Subject]) -> Iterator[Finding]:
    yield from of(
        "error",
        "left_running",
        [each for each in subjects if (each.said or each.status) == "running"],
        "1 cell was left `running`, and nothing runs it any more",
        "{} cells were left `running`, and nothing runs them any more",
        lambda cell: " ".join(filter(None, [f"since {cell.started}" if cell.started else "", _kept(cell)])),
    )


def _kept(cell: Subject) -> str:
    if cell.replies is None or not cell.replies.count:
        return "with nothing kept of it"
    return f"with {cell.replies.count:,} replies kept"


def _lost(cell: Subject) -> bool:
    """It is said to have done something, and nothing of it is here."""
    kept = cell.replies is not None and cell.replies.count > 0
    return not kept and bool(cell.claimed_turns or cell.claimed_tokens)


def _failed(subjects: Sequence[Subject]) -> Iterator[Finding]:
    ended = [each for each in subjects if each.status in ("failed", "quarantined", "cancelled")]
    lost = [each for each in ended if _lost(each)]
    yield from of(
        "error",
        "lost",
        lost,
        "1 cell failed, and what it had done is lost",
        "{} cells failed, and what they had done is lost",
        lambda cell: f"{_figures(cell)} lost{_because(cell)}",
    )
    rest = [each for each in ended if not _lost(each)]
    yield from of(
        "warning",
        "not_finished",
        rest,
        "1 cell did not come to its end",
        "{} cells did not come to their end",
        lambda cell: f"{cell.status}{_after(cell)}{_because(cell)}",
    )


def _without_conversation(subjects: Sequence[Subject]) -> Iterator[Finding]:
    done = [each for each in subjects if each.status == "done" and each.speaks and not each.broken]
    bare = [each for each in done if each.replies is None]
    yield from of(
        "warning",
        "no_conversation",
        [each for each in bare if each.imported],
        "1 cell is said to be completed, and its conversation is not here",
        "{} cells are said to be completed, and their conversations are not here",
        _figures,
    )
    yield from of(
        "error",
        "no_conversation",
        [each for each in bare if not each.imported],
        "1 cell is done, and its transcript is not there",
        "{} cells are done, and their transcripts are not there",
        nothing,
    )
    yield from of(
        "error",
        "unreadable",
        [each for each in subjects if each.broken],
        "1 conversation cannot be read",
        "{} conversations cannot be read",
        lambda cell: cell.broken,
    )


def _never_begun(subjects: Sequence[Subject]) -> Iterator[Finding]:
    waiting = [each for each in subjects if each.status == "pending" and each.said != "running"]
    yield from of(
        "warning" if any(each.imported for each in waiting) else "note",
        "pending",
        waiting,
        f"1 of {len(subjects):,} cells is still pending",
        f"{{}} of {len(subjects):,} cells are still pending",
        nothing,
    )


def _records(subjects: Sequence[Subject]) -> Iterator[Finding]:
    """What is recorded in two places, and not alike."""
    yield from of(
        "error",
        "contradiction",
        [each for each in subjects if each.differences],
        "1 cell is told of differently by grid_state.json and by its conversation",
        "{} cells are told of differently by grid_state.json and by their conversations",
        lambda cell: "; ".join(cell.differences),
    )
    said = [(each, each.claimed_turns) for each in with_replies(subjects) if each.claimed_turns is not None]
    yield from of(
        "error",
        "turns_differ",
        [each for each, turns in said if each.replies is not None and turns != each.replies.count],
        "1 conversation has another number of replies than it claims",
        "{} conversations have another number of replies than they claim",
        lambda cell: f"claims {cell.claimed_turns:,}, holds {cell.replies.count if cell.replies else 0:,}",
    )
    yield from of(
        "note",
        "not_in_state",
        [each for each in subjects if each.in_state is False],
        "1 conversation is not in grid_state.json",
        "{} conversations are not in grid_state.json",
        nothing,
    )


CHECKS: tuple[Check, ...] = (_running, _failed, _without_conversation, _records, _never_begun)

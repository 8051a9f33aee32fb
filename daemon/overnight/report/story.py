"""What happened in the night: memory, who had to leave and why, what was tried again, what the daemons went through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from overnight.dispatch.evictions import Eviction
from overnight.queue.rows import AttemptRow
from overnight.queue.states import MEMORY, Outcome
from overnight.report import logs
from overnight.report import night as drawn
from overnight.report.gather import Cell, Night
from overnight.report.words import NONE, clock, count, duration, plural, shortened, size, times, visible

MOST_RETRIED = 200
_SMALLER = {
    "shrink_asked": "asked to give memory back", "frozen": "stopped for some seconds", "thrashing": "thrashing",
    "no_victim": "nobody left who would make a difference", "daemon_restarted": "the daemon started again",
}  # fmt: skip


@dataclass
class Leaving:
    """Somebody who had to go. whose: of this grid, a cell's key; else what the log calls it."""

    at: float
    what: str
    whose: str
    href: str
    why: str
    figures: dict[str, str] = field(default_factory=dict)
    number: int = 0
    is_own: bool = False


@dataclass(frozen=True)
class Tried:
    """One attempt of a cell that needed several. left: what there is of it, in words, '' when that is not known."""

    number: int
    outcome: str
    turns: str
    left: str
    when: str
    why: str


@dataclass(frozen=True)
class Retried:
    key: str
    href: str
    status: str
    tried: list[Tried]


@dataclass(frozen=True)
class Story:
    memory: Markup | None
    lanes: Markup | None
    leavings: list[Leaving]
    nobody: str
    before: str
    retried: list[Retried]
    retried_more: int
    outcomes: list[tuple[str, str]]
    machinery: list[tuple[str, str, str]]


def tell(night: Night, href: Callable[[str], str]) -> Story:
    leavings = _leavings(night, href)
    for n, leaving in enumerate(leavings, 1):
        leaving.number = n
    troubled = sorted((cell for cell in night.cells if cell.troubled), key=lambda cell: -len(cell.attempts))
    smaller = Counter(event.event for event in night.logs.watchdog if event.event in logs.SMALLER)
    outcomes = Counter(str(a.outcome) for cell in night.cells for a in cell.attempts if a.outcome)
    memory, lanes = _pictures(night, leavings, troubled, href)
    return Story(
        memory,
        lanes,
        leavings,
        _nobody(night),
        ", ".join(f"{what} {times(smaller[name])}" for name, what in _SMALLER.items() if smaller[name]),
        [_retried(night, cell, href) for cell in troubled[:MOST_RETRIED]],
        max(0, len(troubled) - MOST_RETRIED),
        [(name, count(n)) for name, n in outcomes.most_common()],
        list(_machinery(night)),
    )


# -- who had to leave -------------------------------------------------------------------------------------------


def _nobody(night: Night) -> str:
    """What may be said when no leaving is known."""
    if night.is_imported or not any(attempt.outcome for cell in night.cells for attempt in cell.attempts):
        return ""
    return "Nobody had to leave." if night.logs.watchdog or night.logs.samples else "None of these cells had to leave."


def _leavings(night: Night, href: Callable[[str], str]) -> list[Leaving]:
    """From the watchdog's log and from the queue: one outlives the other, and each knows more of something."""
    prefix = f"{night.grid.name}/"
    attempts = {(f"{prefix}{cell.key}", a.id): (cell, a) for cell in night.cells for a in cell.attempts}
    found: dict[tuple[str, Any], Leaving] = {}
    for event in night.logs.watchdog:
        if event.event not in logs.TO_SOMEBODY:
            continue
        cell, attempt = event.text("cell"), event.fields.get("attempt")
        known = attempts.get((cell, attempt)) if type(attempt) is int else None
        which = (cell, attempt) if known else (f"pid {event.fields.get('pid')}", cell)
        if which in found:  # asked to leave first, then made to
            found[which].what = f"{found[which].what}, then {event.event}"
            continue
        why = known[1].reason if known and known[1].reason else _sentence(event)
        name = cell.removeprefix(prefix) if known else cell or event.text("role") or NONE
        found[which] = Leaving(
            event.at,
            event.event,
            name,
            href(name) if known else "",
            visible(why),
            _figures(event),
            is_own=cell.startswith(prefix),
        )
    for (cell, number), (of, attempt) in attempts.items():
        if attempt.outcome in MEMORY and (cell, number) not in found:
            at = attempt.ended_at or attempt.claimed_at
            figures = _figures(logs.Event(at, "", "", attempt.evidence))
            what = str(attempt.outcome).replace("_", " ")
            found[cell, number] = Leaving(at, what, of.key, href(of.key), visible(attempt.reason), figures, is_own=True)
    return sorted(found.values(), key=lambda leaving: leaving.at)


def _sentence(event: logs.Event) -> str:
    """As the queue would say it of one of its own."""
    try:
        return Eviction(
            step=event.text("step"),
            trigger=event.text("trigger"),
            level=event.text("pressure"),
            limit_bytes=int(event.fields["limit_bytes"]),
            limit_source=event.text("limit_source"),
            headroom_bytes=int(event.fields["headroom_bytes"]),
            slope_bytes_per_s=event.whole("slope_bytes_per_s"),
            exhaustion_s=event.number("exhaustion_s"),
            own_bytes=int(event.fields["own_bytes"]),
            peak_bytes=event.whole("peak_bytes") or 0,
            loss_s=float(event.fields["loss_s"]),
        ).sentence()
    except (KeyError, TypeError, ValueError):
        return "the log does not say why"


def _figures(event: logs.Event) -> dict[str, str]:
    held = event.whole("own_bytes") or event.whole("held_bytes") or event.whole("peak_bytes")
    left, limit = event.whole("headroom_bytes"), event.whole("limit_bytes")
    loss = event.number("loss_s")
    return {
        "level": event.text("pressure"),
        "trigger": event.text("trigger").replace("_", " "),
        "held": size(held) if held is not None else NONE,
        "left": f"{size(left)} of {size(limit)}" if left is not None and limit else NONE,
        "lost": duration(loss) if loss is not None else NONE,
    }


# -- pictures ---------------------------------------------------------------------------------------------------


def _pictures(
    night: Night, leavings: list[Leaving], troubled: list[Cell], href: Callable[[str], str]
) -> tuple[Markup | None, Markup | None]:
    if night.start is None or night.end is None:
        return None, None
    time = drawn.Time(night.start, max(night.end, night.start + 1))
    memory = None
    if night.logs.samples:
        happened = [
            drawn.Happening(event.at, "small", 0, f"{clock(event.at, seconds_too=True)} {_SMALLER[event.event]}")
            for event in night.logs.watchdog
            if event.event in logs.SMALLER
        ]
        happened += [
            drawn.Happening(
                each.at, "out", each.number, f"{clock(each.at, seconds_too=True)} {each.what}: {each.whose}. {each.why}"
            )
            for each in leavings
        ]
        memory = drawn.memory(night.logs.samples, happened, time, night.logs.holds)
    work = {cell.key: list(_work(night, cell)) for cell in night.cells}
    lanes = [
        drawn.Lane(cell.key, href(cell.key), work[cell.key])
        for cell in sorted(troubled[: drawn.MOST_LANES], key=lambda cell: cell.attempts[0].claimed_at)
        if work[cell.key]
    ]
    return memory, drawn.lanes([each for several in work.values() for each in several], lanes, time)


def _work(night: Night, cell: Cell) -> Iterator[drawn.Work]:
    """Attempts of which a time is known."""
    for attempt in cell.attempts:
        began, ended = night.times(attempt)
        until = night.now if attempt.outcome is None else ended
        start = began if began is not None else until
        if start is None:
            continue
        outcome = str(attempt.outcome or "")
        title = f"{cell.key}, attempt {attempt.number}: {outcome or 'under way'}"
        if began is not None and until is not None:
            title += f" after {duration(until - began)}"
        yield drawn.Work(start, start if until is None else until, outcome, title)


# -- tried again ------------------------------------------------------------------------------------------------


def _retried(night: Night, cell: Cell, href: Callable[[str], str]) -> Retried:
    tried = [
        Tried(
            attempt.number,
            str(attempt.outcome or "running"),
            NONE if attempt.turns is None else count(attempt.turns),
            _left(night, cell, attempt),
            clock(next((at for at in reversed(night.times(attempt)) if at is not None), None)),
            shortened(attempt.reason, 600) if attempt.reason else _plain(attempt.outcome),
        )
        for attempt in cell.attempts
    ]
    return Retried(cell.key, href(cell.key) if cell.source else "", str(cell.row.status), tried)


def _left(night: Night, cell: Cell, attempt: AttemptRow) -> str:
    if attempt.turns is None or night.is_command:
        return ""
    turns = plural(attempt.turns, "turn")
    return f" with {turns} on disk" if cell.source is not None else f" at {turns}, none kept"


def _plain(outcome: Outcome | None) -> str:
    return "" if outcome in (None, Outcome.COMPLETED) else "no reason was recorded"


def _machinery(night: Night) -> Iterator[tuple[str, str, str]]:
    """Starts, ends and troubles of daemon, watchdog and warm servers: time, event, what it says."""
    events = [e for e in night.logs.watchdog if e.event in ("watchdog_started", "watchdog_stopped", "daemon_restarted")]
    for event in sorted([*night.logs.daemon, *events], key=lambda event: event.at):
        told = [
            f"{name} {shortened(str(value), 80)}"
            for name, value in event.fields.items()
            if name not in ("thresholds", "bounds", "mlock", "oom_score_adj") and value not in (None, "", [])
        ]
        yield clock(event.at, seconds_too=True), event.event.replace("_", " "), ", ".join(told)[:400]

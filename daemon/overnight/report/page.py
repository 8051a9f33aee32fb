"""A page for one conversation: its timeline, every turn, what it thought and called, what collapsed and what happened.

A page is made anew only when something that it shows has changed: its inputs' digest stands in its head.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from overnight.analysis.audit_finding import Finding
from overnight.analysis.conversation import Conversation, ConversationError, Turn, of_cell, split_thinking
from overnight.durable import canonical
from overnight.queue.states import Outcome, Status
from overnight.report import html, masks, plots, tools
from overnight.report.gather import SERIES, Cell, Night, read_record, record_path
from overnight.report.markdown import Drawing, drawings, render
from overnight.report.overview import pairs, place_of
from overnight.report.words import count, duration, number, percent, plural, shortened, visible

_LONG_MESSAGE = 400
_MOST_BARS = 300
_HEAD_BYTES = 4096
_CUT = {"length": "cut at the token limit"}


@dataclass
class Shown:
    """One turn as the template takes it."""

    number: int
    meta: str
    message: str = ""
    message_start: str = ""
    long_message: bool = False
    reasoning: Markup | str = ""
    reasoning_words: str = ""
    text: Markup | str = ""
    nothing: str = ""
    cut: str = ""
    more: str = ""
    is_collapsed: bool = False
    tools: Sequence[tools.Call] = ()
    drawings: Sequence[Drawing] = ()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Note:
    text: str
    turn: int = 0


def write_all(night: Night, layout: html.Layout) -> Iterator[tuple[Cell, bool]]:
    """Every cell that has a conversation, and whether its page was made anew. One conversation in memory at a time."""
    shown = [cell for cell in night.cells if cell.source is not None]
    of = {cell.key: [f for f in night.findings or () if cell.key in f.cells] for cell in shown}
    for n, cell in enumerate(shown):
        around = (shown[n - 1].key if n else "", shown[n + 1].key if n + 1 < len(shown) else "")
        path = layout.page(cell.key)
        digest = _digest(night, cell, of[cell.key], around, layout)
        if _is_current(path, digest):
            yield cell, False
            continue
        html.write(path, conversation_page(night, cell, layout, of[cell.key], around, digest))
        yield cell, True


def _digest(night: Night, cell: Cell, findings: list[Finding], around: tuple[str, str], layout: html.Layout) -> str:
    """Of all that a page depends on; of the transcript its size and time, so that a thousand are not read in vain."""
    files = []
    # Of secrets, too, no value: whoever has a page could try whether a guess gives its digest.
    record = record_path(night.paths, cell.row.grid, cell.key, night.analysis)
    for path in (cell.source, record, night.paths.secrets):
        try:
            state = path.stat() if path is not None else None
        except OSError:
            state = None
        files.append([str(path), state.st_size, state.st_mtime_ns] if state else [str(path)])
    row = cell.row
    parts = [
        html.version(), files, len(night.masks.needles), [cell.analysed is not None, cell.stale],
        [str(row.status), row.reason, row.end_reason, row.generation, row.attempts],
        [[a.number, str(a.outcome), a.turns, a.reason] for a in cell.attempts],
        [[f.severity, f.code, f.title, f.detail] for f in findings], around, layout.index.name, night.grid.name,
    ]  # fmt: skip
    return hashlib.sha256(canonical(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _is_current(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as stream:
            return f'name="overnight-inputs" content="{digest}"'.encode() in stream.read(_HEAD_BYTES)
    except OSError:
        return False


def conversation_page(
    night: Night, cell: Cell, layout: html.Layout, findings: Sequence[Finding], around: tuple[str, str], digest: str
) -> bytes:
    """The whole page. A conversation that cannot be read gets one that says so."""
    try:
        conversation, problem = of_cell(night.paths, cell.row), ""
    except ConversationError as error:
        conversation, problem = None, night.masks.text(str(error))
    if conversation is not None:
        conversation = masks.conversation(night.masks, conversation)
    record = read_record(night, cell) or {}
    turns = conversation.turns if conversation else ()
    spans = [span for span in _spans(record) if span[0] <= len(turns)]
    series = {item.get("turn"): item for item in record.get("series") or () if isinstance(item, dict)}
    happened = list(_happened(cell))
    shown = [_turn(turn, series.get(turn.number, {}), happened, len(turns)) for turn in turns]
    at = place_of(night)(cell)
    before, after = ({"key": key, "href": f"{key}.html"} if key else None for key in around)
    return html.render(
        "conversation.html",
        inputs=digest,
        grid=night.grid.name,
        key=cell.key,
        name=" · ".join(part for part in (at.row, at.column, at.within) if part),
        index=layout.back,
        before=before,
        after=after,
        status=str(cell.row.status),
        reason=shortened(cell.row.reason, 300) if cell.row.status is not Status.DONE else "",
        facts=_facts(cell, conversation),
        notes=list(_notes(cell, conversation, findings, happened)),
        system=conversation.system if conversation else "",
        turns=bool(turns),
        timeline=_timeline(turns, series, spans, happened) if turns else "",
        parts=_parts(shown, spans),
        empty=problem or "No turn has been finished yet.",
        ending=_ending(cell, conversation),
        source=_source(night, cell),
        sha256=conversation.sha256 if conversation else "",
    )


def _source(night: Night, cell: Cell) -> str:
    if cell.source is None:
        return ""
    home = night.paths.home
    return str(cell.source.relative_to(home) if cell.source.is_relative_to(home) else cell.source)


def _facts(cell: Cell, conversation: Conversation | None) -> list[tuple[str, str]]:
    found = [(count(len(conversation.turns)), "turns")] if conversation else []
    if conversation and conversation.tokens_known and conversation.turns:
        found.append((count(conversation.tokens), "tokens"))
    if (analysed := cell.analysed) is not None:
        onset = analysed.collapse.get("onset_turn")
        found += [
            (percent(analysed.collapse.get("collapsed_fraction")), "of turns collapsed"),
            (f"turn {onset}" if onset else "none", "onset"),
            (number(analysed.metric("vendi_score"), 1), "Vendi score"),
        ]
    if len(cell.attempts) > 1:
        found.append((count(len(cell.attempts)), "attempts"))
    if cell.row.run_s:
        found.append((duration(cell.row.run_s), "of work"))
    return found


# -- turns ------------------------------------------------------------------------------------------------------


def _turn(turn: Turn, figures: Mapping[str, Any], happened: Sequence[Note], turns: int) -> Shown:
    # A conversation that was imported has its thinking in the text still.
    thought, said = split_thinking(turn.text)
    reasoning = "\n\n".join(part for part in (turn.reasoning, thought) if part.strip())
    calls, rest = tools.calls(turn.extra)
    meta = [] if turn.message else [_left(turn.extra.get("minutes_left"))]
    meta.append(plural(len(said.split()), "word") if said.strip() else "")
    meta.append(f"{plural(turn.tokens, 'token')}" if turn.tokens else "")
    if isinstance(alike := figures.get(SERIES), int | float):
        meta.append(f"similarity {alike:.2f}")
    message = visible(turn.message)
    return Shown(
        turn.number,
        " · ".join(part for part in meta if part),
        message=message,
        message_start=shortened(message, 120),
        long_message=len(message) > _LONG_MESSAGE or message.count("\n") > 3,
        reasoning=render(reasoning) if reasoning else "",
        reasoning_words=plural(len(reasoning.split()), "word"),
        text=render(said) if said.strip() else "",
        nothing="(nothing but reasoning)" if reasoning else "(an empty reply)",
        cut=_CUT.get(turn.stop_reason, ""),
        more=_pretty(rest),
        tools=calls,
        drawings=list(drawings(said)),
        notes=[note.text for note in happened if note.turn == turn.number]
        + (["Went on under other conditions from here."] if "conditions" in turn.extra else []),
    )


def _left(minutes: Any) -> str:
    return f"{minutes // 60} h {minutes % 60:02d} m left" if type(minutes) is int and minutes >= 0 else ""


def _pretty(extra: Mapping[str, Any]) -> str:
    if not extra:
        return ""
    return json.dumps(dict(extra), indent=2, ensure_ascii=False, default=str)[:20_000]


def _spans(record: Mapping[str, Any]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    for span in (record.get("collapse") or {}).get("spans") or ():
        for first, last in pairs([span]):
            yield first, last, span


def _parts(shown: Sequence[Shown], spans: Sequence[tuple[int, int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Turns in order, those of a span together; its first turn stays open, so that one sees what is repeated."""
    parts: list[dict[str, Any]] = []
    done = 0
    for first, last, span in sorted(spans, key=lambda each: each[:2]):
        if first <= done:
            continue
        open_to = first if last > first else first - 1
        parts.append({"span": None, "turns": shown[done:open_to]})
        for turn in shown[first - 1 : last]:
            turn.is_collapsed = True
        inside = shown[open_to:last]
        alike = span.get("similarity")
        told = [plural(len(inside), "turn"), str(span.get("kind") or "")]
        told.append(f"similarity {alike:.2f}" if isinstance(alike, int | float) else "")
        label = shortened(str(span.get("label") or ""), 120)
        of = {
            "first": inside[0].number,
            "last": inside[-1].number,
            "label": label,
            "told": " · ".join(t for t in told if t),
        }
        parts.append({"span": of, "turns": inside})
        done = last
    return [part for part in [*parts, {"span": None, "turns": shown[done:]}] if part["turns"]]


def _timeline(
    turns: Sequence[Turn],
    series: Mapping[Any, Mapping[str, Any]],
    spans: Sequence[tuple[int, int, Mapping[str, Any]]],
    happened: Sequence[Note],
) -> Markup:
    each = -(-len(turns) // _MOST_BARS)
    bars = []
    for start in range(0, len(turns), each):
        part = turns[start : start + each]
        alike = [v for turn in part if isinstance(v := series.get(turn.number, {}).get(SERIES), int | float)]
        words = max(len(turn.text.split()) for turn in part)
        bars.append(plots.Bar(part[0].number, part[-1].number, words, max(alike) if alike else None))
    marked = [(first, min(last, len(turns)), str(span.get("label") or "")) for first, last, span in spans]
    marks = [(note.turn, note.text) for note in happened if 1 <= note.turn <= len(turns)]
    return plots.timeline(plots.Timeline(bars, len(turns), marked, marks))


# -- notes ------------------------------------------------------------------------------------------------------


def _happened(cell: Cell) -> Iterator[Note]:
    """What came between two turns: where an attempt ended early, the next one went on."""
    for attempt, later in zip(cell.attempts, cell.attempts[1:], strict=False):
        if attempt.outcome in (None, Outcome.COMPLETED):
            continue
        why = f": {shortened(attempt.reason, 400)}" if attempt.reason else ""
        what = str(attempt.outcome).replace("_", " ")
        turn = (attempt.turns or 0) + 1
        yield Note(f"Attempt {attempt.number} ended here ({what}){why}. Attempt {later.number} went on.", turn)


def _notes(
    cell: Cell, conversation: Conversation | None, findings: Sequence[Finding], happened: Sequence[Note]
) -> Iterator[Note]:
    for finding in findings:
        here = _here(finding.detail, cell.key)
        yield Note(f"The audit: {finding.title}" + (f"; here: {here}" if here else ""))
    turns = conversation.turns if conversation else ()
    for note in happened:
        yield Note(note.text, note.turn if note.turn <= len(turns) else 0)
    for turn in turns:
        if "conditions" in turn.extra:
            yield Note("went on under other conditions, as asked for with --accept-conditions", turn.number)
    cut = [turn.number for turn in turns if turn.stop_reason == "length"]
    if cut:
        yield Note(f"{plural(len(cut), 'reply', 'replies')} cut at the token limit.", cut[0])
    empty = [turn.number for turn in turns if not turn.text.strip() and not turn.reasoning]
    if empty:
        yield Note(f"{plural(len(empty), 'reply', 'replies')} with nothing in it.", empty[0])
    if cell.stale:
        yield Note("The conversation has changed since it was analysed: overnight analyze " + cell.row.grid)


def _here(detail: str, key: str) -> str:
    """What the detail of a finding says of this cell: `KEY (this), OTHER (that)`. Nothing when it says it otherwise."""
    match = re.search(rf"(?<![\w.-]){re.escape(key)} \(", detail)
    if match is None:
        return ""
    depth = 1
    for at in range(match.end(), len(detail)):
        depth += {"(": 1, ")": -1}.get(detail[at], 0)
        if depth == 0:
            return detail[match.end() : at]
    return ""


def _ending(cell: Cell, conversation: Conversation | None) -> str:
    if conversation is None or not conversation.turns:
        return ""
    how = (cell.row.end_reason or "").replace("_", " ")
    return f"Ended after {plural(len(conversation.turns), 'turn')}: {how}." if how else ""

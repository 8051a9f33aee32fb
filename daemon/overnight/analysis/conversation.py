"""One conversation in the form that all analysis, reports and audits read, whatever it was recorded as.

    read_transcript    var/results/GRID/KEY/transcript.jsonl, streamed; a torn tail is left out
    read_upstream      the older harness's NAME_run1.json, `content` as a string or as fragments
    of_grid            every cell of a grid that has a conversation, one at a time

Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.cells.transcript import Reader
from overnight.errors import UserError
from overnight.paths import IMPORTED, Paths

if TYPE_CHECKING:
    from overnight.queue.rows import CellRow
    from overnight.queue.store import Queue


_PAGE_CELLS = 500
_MOST = 2**53
"""Of a count: what any program that reads JSON can hold."""
_THINKING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_OPEN_THINKING = re.compile(r"\s*<think>(.*)", re.DOTALL)
_HANDLED = frozenset(
    ("h", "kind", "turn", "message", "reply", "stop", "input_ids", "reply_ids", "prefill_digest", "decode_digest")
)
"""Of a transcript's turn: what has a field of its own, or is of use to replay alone."""

_UPSTREAM_STATUS = {"completed": "done", "failed": "failed", "running": "pending", "pending": "pending"}


class ConversationError(UserError):
    """A file that is no conversation, or cannot be read."""


@dataclass(frozen=True)
class Turn:
    """What the assistant said once, and what it was asked.

    number: 1-based. text: what was said, without the reasoning. reasoning: '' when there is none. message: what the
    user's side said before it (the clock), '' when nothing. tokens: of the reply, None = unknown. stop_reason:
    `stop`, `length`, ...; '' = unknown. message_index: 0-based place among all messages of the conversation.
    extra: tool calls and whatever else the record says, untouched.
    """

    number: int
    text: str
    reasoning: str = ""
    message: str = ""
    tokens: int | None = None
    stop_reason: str = ""
    message_index: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """A cell's conversation. status: as the queue says; end_reason: '' when it has not ended; header: of a
    transcript (specification, conditions), {} for an imported one; sha256: of the bytes that were read; source: the
    path, for people."""

    grid: str
    key: str
    scaffold: str
    model: str
    run: int
    coords: Mapping[str, Any]
    status: str
    end_reason: str
    system: str
    turns: tuple[Turn, ...]
    header: Mapping[str, Any]
    sha256: str
    source: str

    @property
    def texts(self) -> list[str]:
        """What the assistant said, turn by turn."""
        return [turn.text for turn in self.turns]

    @property
    def tokens(self) -> int:
        """Of all replies, as far as they are known."""
        return sum(turn.tokens or 0 for turn in self.turns)

    @property
    def tokens_known(self) -> bool:
        """Each turn says how many tokens it has, and none says 0 for words that are there."""
        return all(turn.tokens is not None and (turn.tokens > 0 or not turn.text) for turn in self.turns)


def split_thinking(reply: str) -> tuple[str, str]:
    """(reasoning, text) of a reply that begins with `<think>...</think>` blocks; one that was cut off inside such a
    block is reasoning alone."""
    reasoning: list[str] = []
    rest = reply
    while (block := _THINKING.match(rest)) is not None:
        reasoning.append(block.group(1).strip())
        rest = rest[block.end() :]
    if (cut := _OPEN_THINKING.match(rest)) is not None:
        reasoning.append(cut.group(1).strip())
        rest = ""
    return "\n\n".join(reasoning), rest if reasoning else reply


def read_transcript(
    path: Path, *, grid: str = "", status: str = "", end_reason: str = "", coords: Mapping[str, Any] | None = None
) -> Conversation:
    """One of our own transcripts. Its finished turns only: a torn tail, and all behind a damaged line, is left out
    (`overnight verify` speaks of those). Raises ConversationError when there is no header to be read."""
    header: dict[str, Any] = {}
    turns: list[Turn] = []
    try:
        with path.open("rb") as stream:
            reader = Reader(stream)
            for record in reader:
                if record["kind"] == "header":
                    header = {name: value for name, value in record.items() if name not in ("kind", "v")}
                else:
                    turns.append(_own_turn(record))
    except OSError as error:
        raise ConversationError(f"{path}: {error.strerror or error}") from None
    except (KeyError, TypeError) as error:
        raise ConversationError(f"{path}: turn {len(turns) + 1} is none of an idle loop ({error!r})") from None
    spec = header.get("spec")
    if not isinstance(spec, dict):
        raise ConversationError(f"{path}: it has no header that says what was run; see `overnight verify`")
    found = dict(coords if coords is not None else spec.get("coords") or {})
    return Conversation(
        grid=grid,
        key=str(spec.get("key", "")),
        scaffold=str(found.pop("scaffold", "")),
        model=str(found.pop("model", "")),
        run=_whole(found.pop("run", 0)) or 0,
        coords=found,
        status=status,
        end_reason=end_reason,
        system=str(spec.get("system", "")),
        turns=tuple(turns),
        header=header,
        sha256=reader.sha256,
        source=str(path),
    )


def _own_turn(record: Mapping[str, Any]) -> Turn:
    reasoning, text = split_thinking(record["reply"])
    number = record["turn"]
    return Turn(
        number=number,
        text=text,
        reasoning=reasoning,
        message=record["message"],
        tokens=len(record["reply_ids"]),
        stop_reason="stop" if record["stop"] == "eos" else str(record["stop"]),
        message_index=2 * number - 1,  # the user's side begins
        extra={name: value for name, value in record.items() if name not in _HANDLED},
    )


def read_upstream(
    path: Path, *, grid: str = "", key: str | None = None, status: str | None = None, end_reason: str = ""
) -> Conversation:
    """A conversation of the older harness. What the file calls content is the text and what it calls reasoning the
    reasoning, as its own analysis took them: `<think>` in the content stays there (see `split_thinking`).

    key, status: what the queue says, else what the file says. Raises ConversationError."""
    try:
        data = path.read_bytes()
        document = json.loads(data)
    except OSError as error:
        raise ConversationError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConversationError(f"{path}: not JSON ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("conversation"), list):
        raise ConversationError(f"{path}: not a conversation: expected an object with `metadata` and `conversation`")
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    scaffold, model = str(metadata.get("scaffold_name", "")), str(metadata.get("model_id", ""))
    run = _whole(metadata.get("run_num")) or 0
    said = str(metadata.get("status", ""))
    return Conversation(
        grid=grid,
        key=key if key is not None else f"{scaffold}_{model}_run{run}",
        scaffold=scaffold,
        model=model,
        run=run,
        coords={},
        status=status if status is not None else _UPSTREAM_STATUS.get(said, said),
        end_reason=end_reason,
        system=_system(document["conversation"]),
        turns=tuple(_upstream_turns(document["conversation"], path)),
        header={},
        sha256=hashlib.sha256(data).hexdigest(),
        source=str(path),
    )


def _system(messages: list[Any]) -> str:
    found = (m for m in messages if isinstance(m, dict) and m.get("role") in ("system", "developer"))
    return "\n\n".join(_fragments(message.get("content"))[0] for message in found)


def _upstream_turns(messages: list[Any], path: Path) -> Iterator[Turn]:
    asked: list[str] = []
    number = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConversationError(f"{path}: message {index} has no role")
        text, thought, others = _fragments(message.get("content"))
        if message["role"] == "user":
            asked.append(text)
        if message["role"] != "assistant":
            continue
        number += 1
        extra = {name: value for name, value in message.items() if name not in ("role", "content", "reasoning")}
        if others:
            extra["fragments"] = others
        reasoning = _fragments(message.get("reasoning"))
        yield Turn(
            number=number,
            text=text,
            reasoning="\n\n".join(part for part in (*reasoning[:2], thought) if part),
            message="\n\n".join(asked),
            tokens=_whole(message.get("tokens")),
            stop_reason=str(message.get("stop_reason") or message.get("finish_reason") or ""),
            message_index=index,
            extra=extra,
        )
        asked = []


def _fragments(content: Any) -> tuple[str, str, list[Any]]:
    """(text, reasoning, fragments of other kinds) of a content: a string, or a list of fragments."""
    if content is None:
        return "", "", []
    if isinstance(content, str):
        return content, "", []
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return "", "", [content]
    said: list[str] = []
    thought: list[str] = []
    others: list[Any] = []
    for fragment in content:
        kind = str(fragment.get("type", "text")) if isinstance(fragment, dict) else "text"
        text = fragment if isinstance(fragment, str) else None
        if isinstance(fragment, dict):
            known = (fragment.get(name) for name in ("text", "thinking", "reasoning"))
            text = next((value for value in known if isinstance(value, str)), None)
        if text is None:
            others.append(fragment)
        elif kind in ("text", "output_text", "input_text"):
            said.append(text)
        elif kind in ("thinking", "reasoning", "summary_text", "reasoning_text"):
            thought.append(text)
        else:
            others.append(fragment)
    return "\n".join(said), "\n\n".join(thought), others


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def of_grid(paths: Paths, queue: Queue, grid: str) -> Iterator[Conversation]:
    """The conversations of a grid's cells in the order of the queue, one in memory at a time; cells that have none
    (not begun, or a program of one's own) are left out. Raises QueueError for an unknown grid."""
    for cell in cells_of(queue, grid):
        found = of_cell(paths, cell)
        if found is not None:
            yield found


def cells_of(queue: Queue, grid: str) -> Iterator[CellRow]:
    """Every cell of a grid, a page at a time."""
    after = 0
    while page := queue.cells(grid, after_id=after, limit=_PAGE_CELLS):
        yield from page
        after = page[-1].id


def source_of(paths: Paths, grid: str, key: str) -> Path | None:
    """The file that holds a cell's conversation, None when there is none."""
    folder = paths.cell_results(grid, key)
    found = (folder / IMPORTED, paths.transcript(grid, key))
    return next((file for file in found if file.is_file() and file.stat().st_size), None)


def of_cell(paths: Paths, cell: CellRow) -> Conversation | None:
    """A cell's conversation, None when it has none. Raises ConversationError for one that cannot be read."""
    path = source_of(paths, cell.grid, cell.key)
    if path is None:
        return None
    status, end_reason = str(cell.status), cell.end_reason or ""
    if path.name == IMPORTED:
        return read_upstream(path, grid=cell.grid, key=cell.key, status=status, end_reason=end_reason)
    return read_transcript(path, grid=cell.grid, status=status, end_reason=end_reason, coords=cell.coords)

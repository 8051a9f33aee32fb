"""What the audit keeps of a cell: figures and digests, never the texts. A night of any size fits into memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from overnight.analysis.conversation import Conversation, Turn, split_thinking

_DIGEST_BYTES = 8
_NO_THINK = re.compile(r"(^|[^a-z])no[-_. ]?think", re.IGNORECASE)
_THINK = re.compile(r"(^|[^a-z])think", re.IGNORECASE)
_MARKS = re.compile(r"</?think(ing)?>|\[/?think(ing)?\]", re.IGNORECASE)
_OPENED = re.compile(r"<think(ing)?>|</think(ing)?>", re.IGNORECASE)


@dataclass(frozen=True)
class Replies:
    """What one conversation is made of. Counts are of replies.

    digests: 8 bytes of each reply, in one piece. thinking: with reasoning, apart or in the text; marked: whose text has
    marks of it; cut_thinking: that end inside of it; at_limit: that were cut at the token limit; unexplained: that do
    not say why they ended; echoes: that only repeat what the user's side said. tokens_sum: of those that say any;
    too_many: that count more tokens than they have bytes. changed: turns before which the conditions changed.
    messages: digest of what the user's side said, turn by turn.
    """

    count: int = 0
    digests: bytes = b""
    empty: int = 0
    only_reasoning: int = 0
    echoes: int = 0
    thinking: int = 0
    marked: int = 0
    cut_thinking: int = 0
    at_limit: int = 0
    unexplained: int = 0
    tokens_sum: int = 0
    tokens_zero: int = 0
    tokens_missing: int = 0
    too_many: int = 0
    changed: tuple[int, ...] = ()
    messages: bytes = b""

    @property
    def whole(self) -> bytes:
        """The same for two conversations that say the same."""
        return hashlib.sha256(self.digests).digest()


@dataclass(frozen=True)
class Subject:
    """One cell. axes: further coordinates. status: done, failed, ...; said: in the words of the older harness, '' for
    our own cells. claimed_turns, claimed_tokens: what is recorded, None = nothing is. thinks: was it to think, None =
    nobody says. settings: what its runs should share. broken: why its conversation cannot be read. speaks: it
    has a conversation, as programs of one's own have not."""

    key: str
    scaffold: str
    model: str
    run: int
    axes: Mapping[str, Any]
    status: str
    said: str = ""
    reason: str = ""
    claimed_turns: int | None = None
    claimed_tokens: int | None = None
    started: str = ""
    collapsed: bool = False
    in_state: bool | None = None
    differences: tuple[str, ...] = ()
    greedy: bool = False
    thinks: bool | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    replies: Replies | None = None
    broken: str = ""
    speaks: bool = True

    @property
    def imported(self) -> bool:
        return bool(self.said)

    @property
    def group(self) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
        """Cells that differ by their run alone."""
        return self.scaffold, self.model, tuple(sorted(self.axes.items()))


def named_thinking(model: str) -> bool | None:
    """Whether a model is to think, as its name says; None when it says nothing."""
    if _NO_THINK.search(model):
        return False
    return True if _THINK.search(model) else None


def look(found: Conversation) -> Replies:
    """Read one conversation."""
    turns = found.turns
    return Replies(
        count=len(turns),
        digests=b"".join(_digest(f"{turn.text}\0{turn.reasoning}") for turn in turns),
        empty=sum(not (turn.text.strip() or turn.reasoning.strip()) for turn in turns),
        only_reasoning=sum(not _said(turn) and _thinks(turn) for turn in turns),
        echoes=sum(_echoes(turn) for turn in turns),
        thinking=sum(_thinks(turn) for turn in turns),
        marked=sum(_MARKS.search(turn.text) is not None for turn in turns),
        cut_thinking=sum(_ends_thinking(turn.text) for turn in turns),
        at_limit=sum(turn.stop_reason == "length" for turn in turns),
        unexplained=sum(not turn.stop_reason for turn in turns),
        tokens_sum=sum(turn.tokens or 0 for turn in turns),
        tokens_zero=sum(turn.tokens == 0 and bool(turn.text or turn.reasoning) for turn in turns),
        tokens_missing=sum(turn.tokens is None for turn in turns),
        too_many=sum((turn.tokens or 0) > len(_bytes(f"{turn.text}{turn.reasoning}")) for turn in turns),
        changed=tuple(turn.number for turn in turns if "conditions" in turn.extra),
        messages=b"".join(_digest(turn.message) for turn in turns),
    )


def common_replies(one: Replies, other: Replies) -> int:
    """How many replies two conversations begin with in common."""
    return _common(one.digests, other.digests)


def common_messages(one: Replies, other: Replies) -> int:
    return _common(one.messages, other.messages)


def _common(one: bytes, other: bytes) -> int:
    most = min(len(one), len(other)) // _DIGEST_BYTES
    for at in range(most):
        place = slice(at * _DIGEST_BYTES, (at + 1) * _DIGEST_BYTES)
        if one[place] != other[place]:
            return at
    return most


def groups(subjects: Sequence[Subject]) -> dict[Any, list[Subject]]:
    found: dict[Any, list[Subject]] = {}
    for subject in subjects:
        found.setdefault(repr(subject.group), []).append(subject)
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(_bytes(text)).digest()[:_DIGEST_BYTES]


def _bytes(text: str) -> bytes:
    """JSON may hold halves of characters."""
    return text.encode(errors="surrogatepass")


def _said(turn: Turn) -> str:
    """What is left of a reply without its reasoning, wherever that stands."""
    return split_thinking(turn.text)[1].strip()


def _thinks(turn: Turn) -> bool:
    if turn.reasoning.strip() or split_thinking(turn.text)[0].strip():
        return True
    return _MARKS.match(turn.text.lstrip()) is not None


def _ends_thinking(text: str) -> bool:
    """Its last mark opens a block that nothing closes: it was cut off there."""
    last = None
    for last in _OPENED.finditer(text):  # noqa: B007 - the last one counts
        pass
    return last is not None and not last.group().startswith("</")


def _echoes(turn: Turn) -> bool:
    return bool(turn.message.strip()) and turn.text.strip() == turn.message.strip()

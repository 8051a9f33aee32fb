"""Repetition as it happens: how much of a turn was said in the turns just before it. Standard library only.

A text is taken as the set of its word triples, numbers all alike (so that a clock that counts down changes nothing).
The measure is the share of a turn's triples that stand in the turns of a window, too: containment of shingles (Broder
1997, On the resemblance and containment of documents). It is absolute: it does not hang on the rest of the
conversation. `Wording` measures, for `absolute` as well; `OnlineDetector` decides turn by turn, in O(window) each.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from overnight.analysis.conversation import split_thinking

REVISION = 1
"""Raised whenever `OnlineDetector` would judge the same turns otherwise: cells that stop early are bound to it."""
WINDOW_TURNS = 6
"""How far back is looked, and so the longest loop that is found."""
BEGIN_SHARE = 0.5
"""A turn repeats when at least half of its wording is not new."""
HOLD_SHARE = 0.4
"""Once it repeats, a conversation goes on repeating until less than this is not new."""
GAP_TURNS = 2
"""So many turns in a row may differ inside a span: cut replies, empty ones."""
FEW_TRIPLES = 8
"""Of fewer, no share is spoken of: a short text stands in nearly any long one. It must be like another as a whole."""
PATIENCE_TURNS = 5
"""Repeating turns, of so many and `GAP_TURNS` more, before `OnlineDetector` speaks."""

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TERM = re.compile(rf"[{_EAST_ASIAN}]|[^\W\d_{_EAST_ASIAN}]+|\d+(?:[.,:]\d+)*")


def terms(text: str) -> list[str]:
    """The words of a text in any script, lowercased; a number is `#`; East Asian scripts character by character."""
    return ["#" if term[0].isdigit() else term for term in _TERM.findall(text.lower())]


def triples(text: str) -> frozenset[str]:
    """The word triples of what a reply says, its reasoning left out; never empty: of a shorter text the whole of it."""
    said = split_thinking(text)[1]
    found = terms(said)
    if len(found) < 3:
        return frozenset([" ".join(found) or "".join(said.split())])
    return frozenset(map(" ".join, zip(found, found[1:], found[2:], strict=False)))


NOTHING = frozenset([""])
"""The triples of a reply that says nothing."""


def likeness(one: frozenset[str], other: frozenset[str], lag: int = 1) -> float:
    """How alike two texts that stand `lag` turns apart are as wholes, 0 to 1 (Dice 1945). Nothing said is like nothing
    said just before: single empty replies among others are no repetition."""
    if one == NOTHING and lag > 1:
        return 0.0
    return 2 * len(one & other) / (len(one) + len(other))


@dataclass(frozen=True)
class Measured:
    """Of one turn: share of its wording that stands in the turns before it in the window; lag: how many turns back
    the one stands that has most of it, 0 when none has any; shares: with each of them, the previous turn first."""

    share: float
    lag: int
    shares: tuple[float, ...]


class Wording:
    """Measures each turn against those before it. Keeps `window` turns and nothing else."""

    def __init__(self, window: int = WINDOW_TURNS) -> None:
        self._before: deque[frozenset[str]] = deque(maxlen=window)

    def measure(self, said: frozenset[str]) -> Measured:
        """of `triples(text)`: the turn is one of those before it from then on."""
        earlier = list(reversed(self._before))
        self._before.append(said)
        if len(said) < FEW_TRIPLES:
            shares = tuple(likeness(said, other, lag) for lag, other in enumerate(earlier, 1))
            share = max(shares, default=0.0)
        else:
            shares = tuple(len(said & other) / len(said) for other in earlier)
            share = len(said & frozenset().union(*earlier)) / len(said)
        best = max(shares, default=0.0)
        return Measured(share, shares.index(best) + 1 if best else 0, shares)


@dataclass(frozen=True)
class Verdict:
    """A conversation repeats itself. turn: 1-based, the one just added; onset_turn: the first saying of what is
    repeated since; repeating: turns since then that repeat; share: of their wording that was not new, on average."""

    turn: int
    onset_turn: int
    repeating: int
    share: float


@dataclass(frozen=True)
class _Heard:
    """A turn that was added: source: the turn that it has most from; share: of its wording that was not new."""

    source: int
    share: float


class OnlineDetector:
    """Says turn by turn whether a conversation has collapsed, of the replies alone and in O(window) each.

    It has when `patience` of its last `patience + gap` turns repeat (at least `begin` of their wording is not new), and
    is over it after more than `gap` turns in a row of which less than `hold` is not new. add() answers with a verdict
    at every turn that repeats in between.

    What it says hangs on the texts added so far and on nothing else: fed with the earlier turns of an interrupted
    conversation, a new detector goes on exactly as the old one would have.
    """

    def __init__(
        self,
        window: int = WINDOW_TURNS,
        *,
        begin: float = BEGIN_SHARE,
        hold: float = HOLD_SHARE,
        gap: int = GAP_TURNS,
        patience: int = PATIENCE_TURNS,
    ) -> None:
        if not (window >= 1 and patience >= 1 and gap >= 0 and 0 < hold <= begin <= 1):
            raise ValueError("expected window and patience of at least 1, gap of at least 0, 0 < hold <= begin <= 1")
        self._wording = Wording(window)
        self._begin, self._hold, self._gap, self._patience = begin, hold, gap, patience
        self._recent: deque[_Heard | None] = deque(maxlen=patience + gap)
        self._turn = self._onset = self._repeating = self._missed = 0
        self._shares = 0.0

    @property
    def turns(self) -> int:
        """How many were added."""
        return self._turn

    def add(self, text: str) -> Verdict | None:
        """The next reply. A verdict when the conversation has collapsed and this turn repeats."""
        self._turn += 1
        measured = self._wording.measure(triples(text))
        heard = _Heard(self._turn - measured.lag, measured.share)
        return self._go_on(heard) if self._onset else self._begin_with(heard)

    def _begin_with(self, heard: _Heard) -> Verdict | None:
        self._recent.append(heard if heard.share >= self._begin else None)
        repeating = [turn for turn in self._recent if turn is not None]
        if len(repeating) < self._patience:
            return None
        self._onset = min(turn.source for turn in repeating)
        self._repeating, self._shares = len(repeating), sum(turn.share for turn in repeating)
        self._missed = 0
        return self._verdict()

    def _go_on(self, heard: _Heard) -> Verdict | None:
        if heard.share >= self._hold:
            self._missed = 0
            self._repeating += 1
            self._shares += heard.share
            return self._verdict()
        self._missed += 1
        if self._missed > self._gap:
            self._onset = 0
            self._recent.clear()
        return None

    def _verdict(self) -> Verdict:
        return Verdict(self._turn, self._onset, self._repeating, self._shares / self._repeating)

    def feed(self, texts: Iterable[str]) -> Verdict | None:
        """Several replies; what it says after the last of them."""
        verdict = None
        for text in texts:
            verdict = self.add(text)
        return verdict

"""The labels of the shared conversations, and how a method's spans are held against the truth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.constructed import Made
from overnight.analysis.collapse import LASTING_TURNS, Span
from overnight.analysis.conversation import read_upstream

LABELS = Path(__file__).resolve().parents[1] / "data/labels"


def labelled(upstream: Path) -> list[Made]:
    """The shared conversations with the truth of each turn; `family` is the name. An identical one counts once."""
    found: dict[tuple[str, ...], Made] = {}
    for file in sorted(LABELS.glob("*.json")):
        label = json.loads(file.read_text())
        texts = tuple(read_upstream(upstream / file.name).texts)
        truth: list[bool | None] = [None] * label["turns"]
        for name, value in (("repetitive", True), ("diverse", False)):
            for span in label[name]:
                truth[span["first_turn"] - 1 : span["last_turn"]] = [value] * (
                    span["last_turn"] - span["first_turn"] + 1
                )
        found.setdefault(texts, Made(label["conversation"], texts, tuple(truth), label["collapsed"]))
    return list(found.values())


def inside(spans: Iterable[Span], turns: int) -> list[bool]:
    """Of each turn: whether it is in a span."""
    found = [False] * turns
    for span in spans:
        found[span.first_turn - 1 : span.last_turn] = [True] * span.turns
    return found


@dataclass
class Score:
    """Right and wrong decisions, over turns or over conversations. false_turns, missed_turns: of the last added."""

    hits: int = 0
    false: int = 0
    missed: int = 0
    rejected: int = 0
    false_turns: list[int] = field(default_factory=list)
    missed_turns: list[int] = field(default_factory=list)

    @property
    def precision(self) -> float:
        return self.hits / (self.hits + self.false) if self.hits + self.false else 1.0

    @property
    def recall(self) -> float:
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else 1.0

    @property
    def f1(self) -> float:
        return 2 * self.hits / (2 * self.hits + self.false + self.missed) if self.hits + self.false + self.missed else 1

    def add(self, said: Sequence[bool], truth: Sequence[bool | None]) -> Score:
        pairs = list(zip(said, truth, strict=True))
        self.hits += sum(s and t is True for s, t in pairs)
        self.false += sum(s and t is False for s, t in pairs)
        self.missed += sum(not s and t is True for s, t in pairs)
        self.rejected += sum(not s and t is False for s, t in pairs)
        self.false_turns = [turn for turn, (s, t) in enumerate(pairs, 1) if s and t is False]
        self.missed_turns = [turn for turn, (s, t) in enumerate(pairs, 1) if not s and t is True]
        return self


def collapsed(spans: Iterable[Span]) -> bool:
    """Of a conversation: whether a span lasts long enough to be more than a repeat."""
    return any(span.turns >= LASTING_TURNS for span in spans)

"""Where a conversation collapses: spans of turns that say the same again and again. Pure: texts in, spans out.

    absolute    the default: similarity against fixed bounds, so that a conversation that repeats itself from its
                first turn is found, too (`overnight.analysis.absolute`)
    profile     the older harness's windowed matrix profile, relative to the conversation (`overnight.analysis.profile`)

Each method is a module with `spans(texts, vectors) -> list[Span]` in the order of turns, not overlapping, whose
messages are filled in here, and `parameters() -> dict` of JSON values.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from overnight.analysis.similarity import Backend, Vectors

METHODS = ("absolute", "profile")


@dataclass(frozen=True)
class Span:
    """Turns that repeat. first_turn, last_turn: 1-based, inclusive. start_message, end_message: 0-based among all
    messages of the conversation, inclusive. similarity: of its turns (each method says which), 0 to 1. kind: '' |
    `full` | `late` | `loop` | `repeat` ... label: the words that mark its motif."""

    first_turn: int
    last_turn: int
    similarity: float
    start_message: int = 0
    end_message: int = 0
    kind: str = ""
    label: str = ""

    @property
    def turns(self) -> int:
        return self.last_turn - self.first_turn + 1


LASTING_TURNS = 4
"""A span of fewer turns is an episode: the conversation goes on."""


@dataclass(frozen=True)
class Collapse:
    """All spans of one conversation and what follows from them.

    A span of at least LASTING_TURNS turns is a collapse; two replies that are alike are an episode. onset_turn: where
    the first collapse begins, None without one. collapsed_fraction: share of the turns inside spans, of any length.
    collapse_rate: collapses a turn that could still collapse, i.e. collapses / (turns outside of them + collapses): the
    occurrence-exposure rate of events in survival analysis (Cox and Oakes 1984, Analysis of Survival Data, ch. 3).
    """

    spans: tuple[Span, ...]
    onset_turn: int | None
    collapsed_fraction: float
    collapse_rate: float

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        found["spans"] = [asdict(span) for span in self.spans]
        return found


class Method(Protocol):
    """What the module of a method offers."""

    def spans(self, texts: Sequence[str], vectors: Vectors) -> list[Span]: ...

    def parameters(self) -> dict[str, Any]: ...


def method_named(name: str) -> Method:
    """The module of a method. Raises UserError for a name that none has."""
    if name not in METHODS:
        from overnight.errors import UserError

        raise UserError(f"there is no method {name!r}; there are: {', '.join(METHODS)}")
    return cast(Method, importlib.import_module(f"overnight.analysis.{name}"))


def detect(
    texts: Sequence[str],
    method: str = "absolute",
    backend: Backend | None = None,
    *,
    vectors: Vectors | None = None,
    message_indices: Sequence[int] | None = None,
) -> Collapse:
    """The collapse of a conversation whose turns say `texts`.

    backend: makes the vectors, `tfidf` when None; vectors: of these texts, when they are there already.
    message_indices: where each turn stands among all messages; without them, as if there were no other messages.
    """
    found = method_named(method)
    if vectors is None:
        from overnight.analysis.similarity import open_backend

        vectors = (backend or open_backend("tfidf")).vectors(texts)
    indices = range(len(texts)) if message_indices is None else message_indices
    return summed_up([_placed(span, indices) for span in found.spans(texts, vectors)], len(texts))


def summed_up(spans: Sequence[Span], turns: int) -> Collapse:
    """What follows from the spans (in order, not overlapping) of a conversation of so many turns."""
    lasting = [span for span in spans if span.turns >= LASTING_TURNS]
    exposed = turns - sum(span.turns for span in lasting) + len(lasting)
    return Collapse(
        spans=tuple(spans),
        onset_turn=lasting[0].first_turn if lasting else None,
        collapsed_fraction=sum(span.turns for span in spans) / turns if turns else 0.0,
        collapse_rate=len(lasting) / exposed if exposed else 0.0,
    )


def _placed(span: Span, indices: Sequence[int]) -> Span:
    return replace(span, start_message=indices[span.first_turn - 1], end_message=indices[span.last_turn - 1])

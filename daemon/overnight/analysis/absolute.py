"""Collapse against fixed bounds, relative to nothing: a conversation that repeats itself throughout is found, too.

A turn repeats when at least half of its wording stands in the few turns before it, or in those after it (so the first
saying counts, too), or when its vector is nearly that of one of them: what says the same with the words in another
order, or, for embeddings, in other words. Each repeating turn is tied to the one it repeats most; turns tied to each
other make a span, with the few between them that differ. A span goes on for as long as a turn has at least
`hold_share` from before it.

    turns -> share before, share after, nearest vector -> repeating turns -> ties -> spans -> kind, label

O(turns * window) in time; one window of texts and a band of similarities in memory.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from overnight.analysis import online
from overnight.analysis.collapse import LASTING_TURNS, Span
from overnight.analysis.conversation import split_thinking
from overnight.analysis.tokens import STOP_WORDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from overnight.analysis.similarity import Vectors

NEAR = {"tfidf": 0.85, "embedding": 0.95}
"""From this cosine on a turn repeats another, whatever its wording."""
EARLY_SHARE = 0.2
"""A span that begins within this share of the conversation and lasts to its end is `full`."""
LABEL_WORDS = 4


def parameters() -> dict[str, Any]:
    """What the spans hang on, for the record."""
    return {
        "window_turns": online.WINDOW_TURNS,
        "begin_share": online.BEGIN_SHARE,
        "hold_share": online.HOLD_SHARE,
        "gap_turns": online.GAP_TURNS,
        "few_triples": online.FEW_TRIPLES,
        "near": dict(NEAR),
        "lasting_turns": LASTING_TURNS,
        "early_share": EARLY_SHARE,
    }


@dataclass
class Repetition:
    """Of each turn: before, after: share of its wording that stands in the turns before it and after it within the
    window; worded_as: index of the earlier turn that has most of it, None when none has any. near: the largest cosine
    to a turn of the window, before or after; near_before: to one before, the one at index nearest. lags: how alike it
    is to each turn before it, the previous first."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    worded_as: list[int | None] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    near_before: list[float] = field(default_factory=list)
    nearest: list[int] = field(default_factory=list)
    lags: list[tuple[float, ...]] = field(default_factory=list)


def spans(
    texts: Sequence[str],
    vectors: Vectors | None = None,
    *,
    begin: float = online.BEGIN_SHARE,
    hold: float = online.HOLD_SHARE,
    near: float | None = None,
    window: int = online.WINDOW_TURNS,
) -> list[Span]:
    """The spans of a conversation, in order, not overlapping. Without vectors, of the wording alone."""
    if vectors is not None and near is None:
        near = NEAR[vectors.backend]
    measured = repetition(texts, vectors, window)
    return [_described(first, last, texts, measured) for first, last in ranges(measured, begin, hold, near)]


def repetition(texts: Sequence[str], vectors: Vectors | None, window: int = online.WINDOW_TURNS) -> Repetition:
    """Measures all turns in one pass."""
    found = Repetition()
    wording = online.Wording(window)
    open_turns: deque[tuple[frozenset[str], set[str], list[float]]] = deque()  # said, not said again yet, likeness
    for index, text in enumerate(texts):
        said = online.triples(text)
        measured = wording.measure(said)
        found.before.append(measured.share)
        found.lags.append(measured.shares)
        found.worded_as.append(index - measured.lag if measured.lag else None)
        for earlier, left, alike in open_turns:
            left.difference_update(said)
            alike.append(online.likeness(earlier, said, len(alike) + 1))
        open_turns.append((said, set(said), []))
        if len(open_turns) > window:
            found.after.append(_said_again(*open_turns.popleft()))
    found.after += [_said_again(*turn) for turn in open_turns]
    found.near, found.near_before, found.nearest = [0.0] * len(texts), [0.0] * len(texts), [0] * len(texts)
    if vectors is not None:
        _add_vectors(found, texts, _band(vectors, window))
    return found


def _said_again(said: frozenset[str], left: set[str], alike: list[float]) -> float:
    return max(alike, default=0.0) if len(said) < online.FEW_TRIPLES else 1 - len(left) / len(said)


def _band(vectors: Vectors, window: int) -> NDArray[np.float64]:
    """Cosines to the turns before. tfidf without stop words: with them, all texts of one manner are near each other."""
    import numpy as np

    from overnight.analysis.similarity import band

    if vectors.backend == "tfidf":
        from overnight.analysis.tfidf import normalised

        return np.nan_to_num(band(normalised(vectors.motif), window))
    return np.nan_to_num(vectors.neighbours(window))


def _add_vectors(found: Repetition, texts: Sequence[str], cosines: NDArray[np.float64]) -> None:
    """Turns that say nothing are left out: what they have in common is what was thought."""
    silent = [not split_thinking(text)[1].strip() for text in texts]
    for index, row in enumerate(cosines.tolist()):
        for other in range(index - 1, max(index - len(row), 0) - 1, -1):
            if silent[index] or silent[other]:
                continue
            cosine = row[index - other - 1]
            if cosine > found.near_before[index]:
                found.near_before[index], found.nearest[index] = cosine, other
            found.near[index] = max(found.near[index], cosine)
            found.near[other] = max(found.near[other], cosine)


def ranges(found: Repetition, begin: float, hold: float, near: float | None) -> list[tuple[int, int]]:
    """The spans as (first, last) indices, inclusive."""
    count = len(found.before)
    bound = 2.0 if near is None else near  # no cosine reaches 2
    repeats = [max(found.before[i], found.after[i]) >= begin or found.near[i] >= bound for i in range(count)]
    joined: list[list[int]] = []
    for index in range(count):
        sources = [found.worded_as[index]] if found.before[index] >= begin else []
        sources += [found.nearest[index]] if found.near_before[index] >= bound else []
        tied = [
            i for i in sources if i is not None and repeats[i] and _differing(repeats, i, index) <= online.GAP_TURNS
        ]
        if tied:
            _join(joined, min(tied), index)
    for position, (first, last) in enumerate(joined):
        limit = joined[position + 1][0] if position + 1 < len(joined) else count
        while last - first + 1 >= LASTING_TURNS and last + 1 < limit and found.before[last + 1] >= hold:
            last += 1  # noqa: PLW2901 - the span grows
        joined[position][1] = last
    return [(first, last) for first, last in joined]


def _differing(repeats: Sequence[bool], first: int, last: int) -> int:
    """The longest run of turns between these two that repeat nothing."""
    longest = run = 0
    for index in range(first + 1, last):
        run = 0 if repeats[index] else run + 1
        longest = max(longest, run)
    return longest


def _join(joined: list[list[int]], first: int, last: int) -> None:
    while joined and joined[-1][1] >= first:
        first = min(first, joined.pop()[0])
    joined.append([first, last])


def _described(first: int, last: int, texts: Sequence[str], found: Repetition) -> Span:
    period = _period(first, last, found)
    scores = [max(found.before[i], found.after[i], found.near[i]) for i in range(first, last + 1)]
    poles = [range(first + pole, last + 1, period) for pole in range(period)]
    words = max(1, LABEL_WORDS // period)
    label = " / ".join(_label([texts[i] for i in pole], texts, words) for pole in poles)
    return Span(
        first_turn=first + 1,
        last_turn=last + 1,
        similarity=min(1.0, sum(scores) / len(scores)),
        kind="loop" if period > 1 else _kind(first, last, len(texts)),
        label=label,
    )


def _kind(first: int, last: int, count: int) -> str:
    if last - first + 1 < LASTING_TURNS or last + 1 < count - online.GAP_TURNS:
        return "repeat"
    return "full" if first <= max(1, EARLY_SHARE * count) else "late"


def _period(first: int, last: int, found: Repetition) -> int:
    """After how many turns the same comes again: 1, or the period of a loop whose texts differ from each other."""
    means = []
    for lag in range(1, min(online.WINDOW_TURNS, (last - first + 1) // 2) + 1):
        shares = [found.lags[i][lag - 1] for i in range(first + lag, last + 1) if len(found.lags[i]) >= lag]
        means.append(sum(shares) / len(shares) if shares else 0.0)
    if not means or means[0] >= online.BEGIN_SHARE:
        return 1
    best = max(means)
    return next(lag for lag, mean in enumerate(means, 1) if mean >= 0.9 * best) if best >= online.BEGIN_SHARE else 1


def _label(said: Sequence[str], texts: Sequence[str], words: int) -> str:
    """The words that mark these turns: in most of them, and in few others; in the order in which they are said."""
    inside = _turns_with(said)
    everywhere = _turns_with(texts) if len(said) < len(texts) else inside
    others = max(1, len(texts) - len(said))

    def marks(word: str) -> float:
        share, elsewhere = inside[word] / len(said), (everywhere[word] - inside[word]) / others
        return share - 0.5 * elsewhere

    chosen = sorted(inside, key=lambda word: (-marks(word), -len(word), word))[:words]
    typical = max(said, key=lambda text: sum(word in text.lower() for word in chosen))
    return ", ".join(sorted(chosen, key=lambda word: typical.lower().find(word))) or "(nothing said)"


def _turns_with(texts: Sequence[str]) -> Counter[str]:
    return Counter(
        word
        for text in texts
        for word in set(online.terms(split_thinking(text)[1])) - STOP_WORDS
        if len(word) >= 3 or not word.isascii()  # "ll" and "ve" are ends of words
    )

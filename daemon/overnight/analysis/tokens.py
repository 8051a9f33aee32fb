"""The words of a text, as the older harness took them (METHODS of its analysis): the figures stay comparable."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[a-zA-Z0-9]+")

STOP_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with you your"
    )
)


def words(text: str) -> list[str]:
    """Runs of ASCII letters and digits of the lowercased text, of at least 2 characters."""
    return [word for word in _WORD.findall(text.lower()) if len(word) >= 2]


def content_words(text: str) -> list[str]:
    """`words` without the stop words."""
    return [word for word in words(text) if word not in STOP_WORDS]


def motif(texts: Sequence[str]) -> str:
    """What a span of turns goes on about: the run of three content words (fewer, where turns have no three) that most
    of its turns hold; of several, the last one. '' when there are no such words."""
    for length in (3, 2, 1):
        holders: Counter[tuple[str, ...]] = Counter()
        last: dict[tuple[str, ...], int] = {}
        for text in texts:
            said = content_words(text)
            runs = [tuple(said[at : at + length]) for at in range(len(said) - length + 1)]
            holders.update(set(runs))
            last.update({run: at for at, run in enumerate(runs)})
        if holders:
            ranked = [(holders[run], last[run], run) for run in holders]
            return " ".join(max(ranked)[2])
    return ""

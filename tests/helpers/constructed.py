"""Conversations that are made, with the truth about each turn known: seeded, the same for the same seed everywhere.

Truth of a turn: True = repetitive, False = diverse, None = in between (left out of precision and recall).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


def _words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


TOPICS = {
    "sea": "harbour lighthouse gull rope tide sail anchor captain reef lantern wave net island storm deck mast",
    "garden": "rose spade hedge tomato bee compost fence apple soil seed greenhouse worm path basket ladder pear",
    "kitchen": "oven dough pepper kettle spoon onion flour apron recipe butter plate pan stew garlic knife honey",
    "city": "tram bridge market baker square tower bicycle crowd fountain museum corner roof alley poster bench",
    "sky": "comet cloud telescope moon planet orbit meteor horizon eclipse star rocket aurora balloon thunder dusk",
    "music": "violin drum choir melody rehearsal piano chord audience stage flute rhythm singer tuning applause opera",
    "forest": "oak fox mushroom owl moss stream beetle trail pine badger fern cabin axe squirrel clearing bark",
    "school": "teacher chalk notebook exam pupil bell map library question lesson pencil desk corridor atlas ruler",
}
VERBS = _words(
    "carries follows hides lifts remembers repairs watches draws loses finds crosses counts gathers opens paints "
    "measures borrows trades forgets answers circles warms breaks sells mends visits sketches cleans shakes names"
)
QUALITIES = _words(
    "old bright narrow silent heavy green hollow gentle broken distant golden crooked cold tiny patient strange "
    "rusty early careful wild dusty famous modest quick salty striped clever pale sudden wooden"
)
PLACES = _words(
    "before dawn;near the gate;after the rain;under a thin blanket;for the third time;with both hands;on a Tuesday;"
    "without a word;in late autumn;behind the mill;during supper;at half price;because of a bet;by candlelight;"
    "against all advice;beside the road;until midnight;as a gift;out of habit;across two valleys",
    ";",
)
SENTENCES = (
    "The {q} {n} {v} a {q2} {n2} {p}.",
    "{p}, one {n} {v} the {n2}, and nobody minds the {q} {n3}.",
    "A {n} that {v} the {q} {n2} seldom {v2} any {n3}.",
    "Why does the {n} look so {q} when a {n2} {v} {p}?",
    "My {q} {n} {v} every {n2}; the {n3} only {v2} {p}.",
    "Some say a {q} {n} {v} more than the {q2} {n2} ever did.",
    "We kept the {n} {p}, since its {n2} {v} the {n3}.",
    "Between {n} and {n2} there is a {q} {n3} which {v} {p}.",
)
SYNONYMS = {
    word: other
    for pair in _words(
        "old/aged bright/shining narrow/slim silent/quiet heavy/weighty broken/shattered distant/remote tiny/small "
        "strange/odd quick/fast sudden/abrupt pale/faint clever/smart famous/renowned cold/chilly follows/trails "
        "hides/conceals lifts/raises repairs/fixes watches/observes gathers/collects finds/discovers shakes/rattles "
        "forgets/overlooks carries/bears crosses/passes visits/frequents seldom/rarely nobody/none look/seem "
        "every/each kept/held path/track stream/brook cabin/hut alley/lane pupil/student lesson/class storm/gale "
        "island/isle harbour/port rope/line cloud/mist dusk/twilight melody/tune singer/vocalist road/street"
    )
    for word, other in (pair.split("/"), pair.split("/")[::-1])
}
OUTLINE = ("Here is where things stand now", "What I noticed", "What I would try next", "Let me know how it goes")


@dataclass(frozen=True)
class Made:
    """family: how it is made; truth: per turn; collapsed: whether the conversation as a whole is."""

    family: str
    texts: tuple[str, ...]
    truth: tuple[bool | None, ...]
    collapsed: bool


class Writer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def fillings(self, topic: str) -> dict[str, str]:
        """What a sentence is about."""
        pick = self.random
        nouns = pick.sample(TOPICS[topic].split(), 3)
        verbs, qualities = pick.sample(VERBS, 2), pick.sample(QUALITIES, 2)
        found = {"n": nouns[0], "n2": nouns[1], "n3": nouns[2], "v": verbs[0], "v2": verbs[1]}
        return {**found, "q": qualities[0], "q2": qualities[1], "p": pick.choice(PLACES)}

    def told(self, facts: dict[str, str]) -> str:
        text = self.random.choice(SENTENCES).format(**facts)
        return text[0].upper() + text[1:]

    def sentence(self, topic: str) -> str:
        return self.told(self.fillings(topic))

    def text(self, topic: str | None = None, sentences: int | None = None) -> list[str]:
        topic = topic or self.random.choice(sorted(TOPICS))
        return [self.sentence(topic) for _ in range(sentences or self.random.randint(4, 9))]

    def replaced(self, sentences: list[str], share: float) -> list[str]:
        """Each word is another one with this probability."""
        pool = VERBS + QUALITIES
        return [
            " ".join(self.random.choice(pool) if self.random.random() < share else word for word in sentence.split())
            for sentence in sentences
        ]

    def paraphrased(self, sentences: list[str]) -> list[str]:
        """Synonyms where there are some, and the sentences in another order."""
        found = [" ".join(SYNONYMS.get(word, word) for word in sentence.split()) for sentence in sentences]
        chosen = [self.random.choice(pair) for pair in zip(sentences, found, strict=True)]
        self.random.shuffle(chosen)
        return chosen


def clock(turn: int) -> str:
    return f"[{10 - turn / 3:.1f} hours remaining] "


def _said(*parts: list[str]) -> str:
    return " ".join(sentence for part in parts for sentence in part)


def diverse(w: Writer) -> Made:
    n = w.random.randint(20, 30)
    return Made("diverse", tuple(clock(i) + _said(w.text()) for i in range(n)), (False,) * n, False)


def one_topic(w: Writer) -> Made:
    topic, n = w.random.choice(sorted(TOPICS)), w.random.randint(20, 30)
    return Made("one_topic", tuple(_said(w.text(topic)) for _ in range(n)), (False,) * n, False)


def outline(w: Writer) -> Made:
    n, topic = 24, w.random.choice(sorted(TOPICS))
    texts = (
        "\n".join(f"**{head}**: {_said(w.text(topic, w.random.randint(1, 3)))}" for head in OUTLINE) for _ in range(n)
    )
    return Made("outline", tuple(texts), (False,) * n, False)


def refrain(w: Writer) -> Made:
    """One paragraph comes back, now and then: too seldom to be a loop."""
    again, n, every = w.text(), 28, w.random.randint(9, 12)
    texts = [_said(again if i % every == 0 else w.text()) for i in range(n)]
    return Made("refrain", tuple(texts), tuple(None if i % every == 0 else False for i in range(n)), False)


def full(w: Writer) -> Made:
    motif, n = w.text(), w.random.randint(12, 30)
    return Made("full", tuple(clock(i) + _said(motif) for i in range(n)), (True,) * n, True)


def full_changed(w: Writer) -> Made:
    """Up to 15 % of the words are others in each turn, and some ends are cut."""
    motif, n, share = w.text(sentences=8), 24, w.random.uniform(0.03, 0.15)
    texts = [_said(w.replaced(motif, share)) for _ in range(n)]
    cut = [text[: int(len(text) * w.random.uniform(0.5, 1.0))] if w.random.random() < 0.4 else text for text in texts]
    return Made("full_changed", tuple(cut), (True,) * n, True)


def late(w: Writer) -> Made:
    before, after, motif = w.random.randint(8, 20), w.random.randint(5, 15), w.text()
    texts = [_said(w.text()) for _ in range(before)] + [clock(i) + _said(motif) for i in range(after)]
    return Made("late", tuple(texts), (False,) * before + (True,) * after, True)


def drift(w: Writer) -> Made:
    """The share of one motif grows turn by turn, until nothing else is left."""
    motif, before, slope, after = w.text(sentences=10), 10, 8, 8
    shares = [0.0] * before + [i / slope for i in range(1, slope + 1)] + [1.0] * (after - 1)
    texts = []
    for share in shares:
        kept = round(share * 10)
        sentences = w.random.sample(motif, kept) + w.text(sentences=10 - kept)
        texts.append(_said(sorted(sentences, key=lambda s: motif.index(s) if s in motif else w.random.randint(0, 9))))
    truth = tuple(False if share < 0.4 else True if share > 0.7 else None for share in shares)
    return Made("drift", tuple(texts), truth, True)


def loop(w: Writer, period: int) -> Made:
    before, rounds = w.random.randint(0, 12), w.random.randint(4, 7)
    poles = [w.text(topic) for topic in w.random.sample(sorted(TOPICS), period)]
    texts = [_said(w.text()) for _ in range(before)]
    texts += [_said(w.replaced(poles[i % period], 0.04)) for i in range(rounds * period)]
    return Made(f"loop{period}", tuple(texts), (False,) * before + (True,) * (rounds * period), True)


def paraphrase(w: Writer) -> Made:
    before, after, motif = 8, 12, w.text(sentences=7)
    texts = [_said(w.text()) for _ in range(before)] + [_said(w.paraphrased(motif)) for _ in range(after)]
    return Made("paraphrase", tuple(texts), (False,) * before + (True,) * after, True)


def reworded(w: Writer) -> Made:
    """The same things and doings in each turn, but always in other sentences."""
    before, after, topic = 8, 12, w.random.choice(sorted(TOPICS))
    told = [w.fillings(topic) for _ in range(7)]
    texts = [_said(w.text()) for _ in range(before)]
    texts += [_said([w.told(facts) for facts in w.random.sample(told, len(told))]) for _ in range(after)]
    return Made("reworded", tuple(texts), (False,) * before + (True,) * after, True)


def frame(w: Writer) -> Made:
    """A paragraph that stays, around three to four tenths of each turn, and something new."""
    fixed, n = w.text(sentences=4), 22
    texts = tuple(_said(fixed, w.text(sentences=w.random.randint(6, 9))) for _ in range(n))
    return Made("frame", texts, (False,) * n, False)


def loop_too_long(w: Writer) -> Made:
    """More poles than any window holds."""
    poles = [w.text() for _ in range(9)]
    return Made("loop9", tuple(_said(poles[i % 9]) for i in range(36)), (True,) * 36, True)


def pair(w: Writer) -> Made:
    """One turn is said twice."""
    n, at = 20, w.random.randint(1, 18)
    texts = [_said(w.text()) for _ in range(n)]
    texts[at] = texts[at - 1]
    return Made("pair", tuple(texts), tuple(i in (at - 1, at) for i in range(n)), False)


def short(w: Writer) -> Made:
    n = w.random.randint(1, 5)
    return Made("short", tuple(_said(w.text()) for _ in range(n)), (False,) * n, False)


def short_repeat(w: Writer) -> Made:
    n, motif = w.random.randint(4, 5), w.text(sentences=1)
    return Made("short_repeat", tuple(clock(i) + _said(motif) for i in range(n)), (True,) * n, True)


def empty_between(w: Writer) -> Made:
    """Single empty replies among diverse ones."""
    texts = tuple("" if i % 8 == 3 else _said(w.text()) for i in range(24))
    return Made("empty_between", texts, tuple(None if not text else False for text in texts), False)


def empty_run(w: Writer) -> Made:
    """It falls silent."""
    before, after = w.random.randint(6, 12), w.random.randint(4, 10)
    texts = [_said(w.text()) for _ in range(before)] + [""] * after
    return Made("empty_run", tuple(texts), (False,) * before + (True,) * after, True)


def empty_inside(w: Writer) -> Made:
    """A collapsed conversation in which replies are missing."""
    motif = w.text()
    texts = tuple("" if i % 7 == 5 else clock(i) + _said(motif) for i in range(24))
    return Made("empty_inside", texts, tuple(True if text else None for text in texts), True)


FAMILIES: dict[str, Callable[[Writer], Made]] = {
    "diverse": diverse,
    "one_topic": one_topic,
    "outline": outline,
    "frame": frame,
    "refrain": refrain,
    "short": short,
    "pair": pair,
    "empty_between": empty_between,
    "full": full,
    "full_changed": full_changed,
    "late": late,
    "drift": drift,
    "loop2": lambda w: loop(w, 2),
    "loop3": lambda w: loop(w, 3),
    "loop9": loop_too_long,
    "paraphrase": paraphrase,
    "reworded": reworded,
    "short_repeat": short_repeat,
    "empty_run": empty_run,
    "empty_inside": empty_inside,
}


def constructed(seeds: range) -> Iterator[Made]:
    """One conversation of each family for each seed."""
    for name, make in FAMILIES.items():
        for seed in seeds:
            yield make(Writer(zlib.crc32(f"{name} {seed}".encode())))

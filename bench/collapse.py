"""How well collapse is found: precision and recall of both methods, on labelled and on made conversations.

    python bench/collapse.py [--seeds 10] [--embedding] [--upstream FOLDER]

Shared conversations: against tests/data/labels (made by reading; `unclear` turns are left out), identical ones once.
Made ones: tests/helpers/constructed.py, one of each family for each seed. A conversation counts as collapsed with a
span of at least 4 turns. `online` is the detector that stops early: the stretches of which it spoke. `said` is the
older method on what was said alone: elsewhere it takes the reasoning in the text along, as it always did.

Left one out: the bounds are chosen anew on all shared conversations but one (best F1 over turns), and tried on that
one. Of the bounds in use, half of the wording is what the labels mean by repetitive; 0.85 and 0.95 lie above the most
alike diverse turns of the shared conversations (0.83 and 0.91). Labels, made conversations and method are of one hand,
and the measure, `hold`, the rules of ties and of `online` were settled with the shared and the made conversations in
view: this check does not cover that. All shared conversations collapse: there, no false alarm for a whole one can show.

Prose: this repository's documents in pieces, which nobody would call a collapse: every span is a false alarm.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.constructed import Made, constructed
from helpers.labelled import Score, collapsed, inside, labelled
from overnight.analysis import absolute, online, profile
from overnight.analysis.collapse import Span
from overnight.analysis.conversation import split_thinking
from overnight.analysis.similarity import Backend, Vectors, open_backend

Found = Callable[[Sequence[str]], list[Span]]
UPSTREAM = Path(__file__).resolve().parents[2] / "shared/data/upstream"


class Once:
    """A backend that keeps what it made: each conversation is looked at by several methods."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._made = backend, dict[tuple[str, ...], Vectors]()

    def vectors(self, texts: Sequence[str]) -> Vectors:
        key = tuple(texts)
        if key not in self._made:
            self._made[key] = self._backend.vectors(texts)
        return self._made[key]


def found_online(texts: Sequence[str]) -> list[Span]:
    """The stretches of which the online detector spoke."""
    detector, spans = online.OnlineDetector(), list[Span]()
    for text in texts:
        verdict = detector.add(text)
        if verdict is None:
            continue
        if spans and spans[-1].first_turn == verdict.onset_turn:
            spans.pop()
        spans.append(Span(verdict.onset_turn, verdict.turn, verdict.share))
    return spans


def methods(backends: dict[str, Once]) -> dict[str, Found]:
    found: dict[str, Found] = {"absolute, wording alone": lambda texts: absolute.spans(texts), "online": found_online}
    for name, backend in backends.items():
        found[f"absolute, {name}"] = lambda texts, b=backend: absolute.spans(texts, b.vectors(texts))  # type: ignore[misc]
        found[f"profile, {name}"] = lambda texts, b=backend: profile.spans(texts, b.vectors(texts))  # type: ignore[misc]
        found[f"profile, {name}, said"] = lambda texts, b=backend: profile_of_said(texts, b)  # type: ignore[misc]
    return dict(sorted(found.items()))


def profile_of_said(texts: Sequence[str], backend: Once) -> list[Span]:
    said = [split_thinking(text)[1] for text in texts]
    return profile.spans(said, backend.vectors(said))


def row(name: str, turns: Score, conversations: Score, note: str = "") -> str:
    return (
        f"{name:28} turns {turns.precision:5.2f} {turns.recall:5.2f}  ({turns.hits} right, {turns.false} false, "
        f"{turns.missed} missed)  conversations {conversations.precision:5.2f} {conversations.recall:5.2f}  {note}"
    ).rstrip()


def scored(method: Found, made: Sequence[Made]) -> tuple[Score, Score]:
    turns, conversations = Score(), Score()
    for one in made:
        spans = method(one.texts)
        turns.add(inside(spans, len(one.texts)), one.truth)
        conversations.add([collapsed(spans)], [one.collapsed])
    return turns, conversations


def of_shared(found: dict[str, Found], shared: Sequence[Made]) -> None:
    print("\nShared conversations: precision, recall")
    for name, method in found.items():
        print(row(name, *scored(method, shared)))
        for one in shared:
            score = Score().add(inside(method(one.texts), len(one.texts)), one.truth)
            if score.false or score.missed:
                wrong = f"false {score.false_turns} " * bool(score.false) + f"missed {score.missed_turns}" * bool(
                    score.missed
                )
                print(f"    {one.family:34} {wrong}")


def of_made(found: dict[str, Found], made: Sequence[Made]) -> None:
    families = defaultdict[str, list[Made]](list)
    for one in made:
        families[one.family].append(one)
    print("\nMade conversations: precision, recall; families with errors below")
    for name, method in found.items():
        print(row(name, *scored(method, made)))
        for family, members in families.items():
            turns, conversations = scored(method, members)
            if turns.false or turns.missed or conversations.false or conversations.missed:
                print(
                    f"    {family:14} turns: {turns.false} false of {turns.false + turns.rejected}, "
                    f"{turns.missed} missed of {turns.missed + turns.hits}; "
                    f"conversations: {conversations.false} false, {conversations.missed} missed of {len(members)}"
                )


def left_out(backends: dict[str, Once], shared: Sequence[Made]) -> None:
    shares = [round(0.30 + 0.05 * step, 2) for step in range(11)]
    cosines = {
        "tfidf": [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 2.0],
        "embedding": [0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 2.0],
    }
    for name, backend in backends.items():
        bounds = [(share, near) for share in shares for near in cosines[name]]
        measured = [absolute.repetition(one.texts, backend.vectors(one.texts)) for one in shared]
        scores = {
            bound: [
                Score().add(_flags(m, bound, len(one.texts)), one.truth)
                for m, one in zip(measured, shared, strict=True)
            ]
            for bound in bounds
        }
        print(f"\nLeft one out, {name}: bounds chosen on the others (2.0: vectors not used), and what they give here")
        total = Score()
        for index, one in enumerate(shared):
            best = max(bounds, key=lambda bound: (_without(scores[bound], index).f1, -abs(bound[0] - 0.5), bound[1]))
            here = scores[best][index]
            total = _sum([total, here])
            print(
                f"    {one.family:34} share {best[0]:.2f} near {best[1]:.3f}  {here.precision:5.2f} {here.recall:5.2f}"
            )
        print(f"    all turns left out: precision {total.precision:.3f}, recall {total.recall:.3f}, F1 {total.f1:.3f}")
        use = (online.BEGIN_SHARE, absolute.NEAR[name])
        print(f"    bounds in use {use}: F1 {_sum(scores[use]).f1:.3f}; by share, at near {use[1]}:", end=" ")
        print(", ".join(f"{share:.2f} {_sum(scores[share, use[1]]).f1:.3f}" for share in shares))
        print(f"    by near, at share {use[0]}:", end=" ")
        print(", ".join(f"{near} {_sum(scores[use[0], near]).f1:.3f}" for near in cosines[name]))


def _flags(measured: absolute.Repetition, bound: tuple[float, float], turns: int) -> list[bool]:
    hold = bound[0] * online.HOLD_SHARE / online.BEGIN_SHARE
    return inside((Span(a + 1, b + 1, 0) for a, b in absolute.ranges(measured, bound[0], hold, bound[1])), turns)


def _without(scores: Sequence[Score], index: int) -> Score:
    return _sum([score for other, score in enumerate(scores) if other != index])


def _sum(scores: Sequence[Score]) -> Score:
    return Score(*(sum(getattr(score, name) for score in scores) for name in ("hits", "false", "missed", "rejected")))


def of_stopping(shared: Sequence[Made]) -> None:
    print("\nOnline, at what turn it first speaks, and the first turn that is labelled repetitive")
    for one in shared:
        detector = online.OnlineDetector()
        spoken = next((v for v in map(detector.add, one.texts) if v), None)
        first = next(turn for turn, truth in enumerate(one.truth, 1) if truth)
        said = f"turn {spoken.turn}, since {spoken.onset_turn}" if spoken else "never"
        print(f"    {one.family:34} {said:20} labelled from {first} of {len(one.texts)}")


def of_prose(found: dict[str, Found]) -> None:
    root = Path(__file__).resolve().parents[1]
    files = [
        *sorted(root.glob("docs/*.md")),
        root / "README.md",
        root / "LICENSE",
        *sorted(root.glob("daemon/**/*.py")),
    ]
    read = {file.name: file.read_text() for file in files}
    cut = {name: tuple(text[at : at + 900] for at in range(0, len(text), 900)) for name, text in read.items()}
    pieces = sum(len(texts) for texts in cut.values())
    print(f"\nProse: {len(cut)} documents, {pieces} pieces; pieces inside spans")
    for name, method in found.items():
        wrong = {file: sum(span.turns for span in method(texts)) for file, texts in cut.items()}
        print(f"    {name:28} {sum(wrong.values())} in {sum(map(bool, wrong.values()))} documents")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--embedding", action="store_true", help="the embedding backend, too (minutes)")
    parser.add_argument("--upstream", type=Path, default=UPSTREAM)
    options = parser.parse_args()
    names = ["tfidf", "embedding"] if options.embedding else ["tfidf"]
    backends = {name: Once(open_backend(name)) for name in names}
    found = methods(backends)
    if options.upstream.is_dir():
        shared = labelled(options.upstream)
        of_shared(found, shared)
        left_out(backends, shared)
        of_stopping(shared)
    of_prose(found)
    of_made(found, list(constructed(range(options.seeds))))


if __name__ == "__main__":
    main()

"""Repetition as it happens: what the stop-early plugin hears."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.constructed import Made, Writer, constructed
from helpers.labelled import labelled
from overnight.analysis.online import OnlineDetector, Verdict, Wording, terms, triples


def verdicts(texts: tuple[str, ...] | list[str], **options: int) -> list[Verdict | None]:
    detector = OnlineDetector(**options)
    return [detector.add(text) for text in texts]


def made(*families: str) -> list[Made]:
    return [one for one in constructed(range(6)) if one.family in families]


def first(texts: tuple[str, ...] | list[str]) -> Verdict | None:
    return next((verdict for verdict in verdicts(texts) if verdict), None)


def test_it_speaks_at_the_fifth_repetition() -> None:
    w = Writer(1)
    texts = [" ".join(w.text()) for _ in range(9)] + [
        f"[{n} hours remaining] Nothing to do but wait." for n in range(8)
    ]
    said = verdicts(texts)
    assert said[:14] == [None] * 14
    assert said[14] == Verdict(turn=15, onset_turn=10, repeating=5, share=1.0)
    assert said[16] is not None and said[16].repeating == 7


def test_it_is_over_after_three_turns_that_are_new() -> None:
    w = Writer(1)
    same, new = ["Nothing to do but wait for the end."] * 8, [" ".join(w.text()) for _ in range(5)]
    said = verdicts([*same, *new[:2], same[0], *new[2:], same[0]])
    assert [bool(verdict) for verdict in said] == [False] * 5 + [True] * 3 + [False, False, True] + [False] * 4


@pytest.mark.parametrize(
    "family", ["diverse", "one_topic", "outline", "frame", "refrain", "short", "pair", "empty_between"]
)
def test_diverse_conversations_are_left_alone(family: str) -> None:
    assert all(first(one.texts) is None for one in made(family))


@pytest.mark.parametrize("family", ["full", "full_changed", "drift", "loop2", "loop3", "paraphrase", "empty_inside"])
def test_collapse_is_heard_and_never_while_all_is_new(family: str) -> None:
    for one in made(family):
        verdict = first(one.texts)
        assert verdict is not None
        assert one.truth[verdict.turn - 1] is not False


def test_on_the_shared_conversations(upstream: Path) -> None:
    heard = {one.family: first(one.texts) for one in labelled(upstream)}
    silent = {name for name, verdict in heard.items() if verdict is None}
    # Five turns are too few for five repetitions; the other one goes on by half only.
    assert silent == {"values_only_8b_think_run1", "baseline_8b_think_run2"}
    for one in labelled(upstream):
        verdict = heard[one.family]
        assert verdict is None or one.truth[verdict.turn - 1] is True


TEXTS = st.lists(st.sampled_from(["", "a b c", "a b c d", "one two three four", "[9 left] so it is", "x"]), max_size=30)


@settings(max_examples=100, deadline=None)
@given(texts=TEXTS, cut=st.integers(0, 30))
def test_a_new_detector_fed_with_the_earlier_turns_goes_on_as_the_old_one(texts: list[str], cut: int) -> None:
    whole = verdicts(texts)
    again = OnlineDetector()
    before = again.feed(texts[:cut])
    assert before == (whole[min(cut, len(texts)) - 1] if cut and texts else None)
    assert [again.add(text) for text in texts[cut:]] == whole[cut:]


def test_what_it_says_does_not_hang_on_the_process() -> None:
    """Sets of strings are ordered otherwise in every process; no verdict may come of that."""
    program = (
        "from helpers.constructed import constructed\n"
        "from overnight.analysis.online import OnlineDetector\n"
        "print([[d.add(t) for t in o.texts] for o in constructed(range(1)) for d in [OnlineDetector()]])"
    )
    tests = Path(__file__).resolve().parents[1]
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": f"{tests}:{tests.parent / 'daemon'}", "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_it_needs_no_numpy() -> None:
    program = "import sys, overnight.analysis.online; sys.exit('numpy' in sys.modules)"
    daemon = Path(__file__).resolve().parents[2] / "daemon"
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(daemon)}, check=True)


def test_it_keeps_a_window_only() -> None:
    wording = Wording(window=3)
    for turn in range(10):
        measured = wording.measure(triples(f"text number {turn} of these few"))
    assert len(measured.shares) == 3


def test_numbers_are_all_alike_and_case_does_not_count() -> None:
    assert terms("At 9.7 Hours, 12:30") == ["at", "#", "hours", "#"]
    assert triples("") == triples(" \n") == frozenset([""])
    assert triples("🌿 🌟") == frozenset(["🌿🌟"])


def test_a_short_text_must_be_like_another_as_a_whole() -> None:
    wording = Wording()
    wording.measure(triples("There are ten hours left, so let us make a list of things that could be done by then."))
    assert wording.measure(triples("There are ten hours left.")).share < 0.5


@pytest.mark.parametrize("options", [{"window": 0}, {"patience": 0}, {"gap": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        OnlineDetector(**options)

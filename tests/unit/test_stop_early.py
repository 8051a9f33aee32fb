"""`limits.stop_early`: a conversation that repeats itself ends, at the same turn however often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.specs import scripted_spec, warm_of
from overnight.analysis import online
from overnight.cells import idle_loop, stop_early
from overnight.cells.idle_loop import Finished
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import ConditionsChanged
from overnight.repair import check_transcript

REPEATS_FROM, WANTED = 5, 4
ENDS = REPEATS_FROM + WANTED - 1


class Stop(Exception):
    """Stands for a kill between two turns."""


def spec(*, turns: int = 40, wanted: int | None = WANTED, repeats_from: int | None = REPEATS_FROM) -> dict[str, Any]:
    found = scripted_spec(turns=turns, reply_tokens=[12, 20], repeat_from=repeats_from)
    if wanted is not None:
        found["limits"]["stop_early"] = wanted
    return found


def run(cell: dict[str, Any], folder: Path, *, stop_after: int | None = None, **more: Any) -> Finished:
    def report(event: str, **fields: Any) -> None:
        if event == "turn" and fields["turn"] == stop_after:
            raise Stop

    return idle_loop.run(ScriptedEngine(warm_of(cell), ""), cell, folder, report=report, **more)


def header(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "transcript.jsonl").read_bytes().splitlines()[0])
    return found


def test_the_script_repeats_itself(tmp_path: Path) -> None:
    run(spec(wanted=None, turns=8), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_bytes().splitlines()[1:]]
    replies = [line["reply"] for line in lines]
    assert len(set(replies[: REPEATS_FROM - 1])) == REPEATS_FROM - 1
    assert set(replies[REPEATS_FROM - 2 :]) == {replies[REPEATS_FROM - 2]}


def test_ends_when_so_many_turns_have_repeated(tmp_path: Path) -> None:
    done = run(spec(), tmp_path)
    assert (done.end_reason, done.turns) == ("collapsed", ENDS)
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert (result["end_reason"], result["turns"]) == ("collapsed", ENDS)


def test_one_that_says_something_new_goes_on_to_its_end(tmp_path: Path) -> None:
    assert run(spec(repeats_from=None), tmp_path).end_reason == "max_iterations"


@pytest.mark.parametrize(("turns", "reason"), [(ENDS, "max_iterations"), (ENDS + 1, "collapsed")])
def test_an_end_by_its_limits_comes_first(tmp_path: Path, turns: int, reason: str) -> None:
    done = run(spec(turns=turns), tmp_path)
    assert (done.end_reason, done.turns) == (reason, ENDS)


def test_killed_after_every_turn_it_ends_at_the_same_one_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run(spec(), tmp_path / "whole")
    for turn in range(1, whole.turns + 1):
        with pytest.raises(Stop):
            run(spec(), tmp_path / "broken", stop_after=turn)
    assert run(spec(), tmp_path / "broken") == whole
    for name in ("transcript.jsonl", "result.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_cells_that_do_not_ask_keep_their_conditions(tmp_path: Path) -> None:
    run(spec(wanted=None, turns=2), tmp_path / "without")
    run(spec(turns=2), tmp_path / "with")
    assert "stop_early" not in header(tmp_path / "without")["conditions"]
    assert header(tmp_path / "with")["conditions"]["stop_early"]["revision"] == online.REVISION


def test_no_conversation_is_judged_by_two_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        run(spec(), tmp_path, stop_after=6)
    monkeypatch.setattr(online, "REVISION", online.REVISION + 1)
    with pytest.raises(ConditionsChanged, match=r"stop_early\.revision was \d+, is \d+"):
        run(spec(), tmp_path)
    assert run(spec(), tmp_path, accept_conditions=True).end_reason == "collapsed"


def test_a_deep_look_judges_the_turns_itself(tmp_path: Path) -> None:
    done = run(spec(), tmp_path)
    scan = check_transcript.scan(tmp_path / "transcript.jsonl", spec())
    assert scan.problems == []
    assert scan.finished(spec(), None) == done  # whatever the queue lost
    more = spec(wanted=WANTED + 1)
    assert check_transcript.scan(tmp_path / "transcript.jsonl", more).finished(more, None) is None


def test_a_turn_after_the_collapse_is_one_too_many(tmp_path: Path) -> None:
    cell = spec(wanted=WANTED + 3)
    run(cell, tmp_path)
    cell["limits"]["stop_early"] = WANTED
    problems = check_transcript.scan(tmp_path / "transcript.jsonl", cell).problems
    assert f"turn {ENDS + 1}: the cell had reached its end before it (collapsed)" in problems


def test_a_collapse_that_is_judged_otherwise_today_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(spec(), tmp_path)
    monkeypatch.setattr(online, "REVISION", online.REVISION + 1)
    scan = check_transcript.scan(tmp_path / "transcript.jsonl", spec())
    assert scan.finished(spec(), "collapsed") == done
    assert scan.finished(spec(), None) is None
    without = spec(wanted=None)
    assert scan.finished(without, "collapsed") is None  # who did not ask for it cannot have ended so


def test_who_does_not_ask_loads_no_detector() -> None:
    assert stop_early.of_limits(spec(wanted=None)["limits"]) is None
    assert stop_early.conditions(spec(wanted=None)["limits"]) == {}


JUDGED = {
    "1 0": 3, "1 8": 3, "1 10": None, "2 0": 4, "2 8": 4, "2 10": None,
    "6 0": 8, "6 8": 8, "6 10": None, "7 0": None, "7 8": None, "7 10": None,
}  # fmt: skip
"""Turns a loop, new words of 20 a turn -> the turn (from 0) at which the third repetition is seen."""


@pytest.mark.parametrize("length", [6, 20])
def test_another_judgement_has_another_revision(length: int) -> None:
    """Where this fails since the detector has learned something: raise its REVISION, and take the new figures over."""

    def judged(loop: int, fresh: int) -> int | None:
        detector = online.OnlineDetector(patience=3)
        new = fresh * length // 20
        for turn in range(20):
            old = range(length * (turn % loop), length * (turn % loop + 1) - new)
            said = [*(f"w{letters(number)}" for number in old), *(f"n{letters(20 * turn + n)}" for n in range(new))]
            if detector.add(" ".join(said)) is not None:
                return turn
        return None

    def letters(number: int) -> str:
        return chr(97 + number % 26) + chr(97 + number // 26)

    found = {f"{loop} {fresh}": judged(loop, fresh) for loop in (1, 2, 6, 7) for fresh in (0, 8, 10)}
    assert (online.REVISION, found) == (1, JUDGED)

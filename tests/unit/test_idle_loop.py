"""The idle loop on the scripted engine: how it ends, what it writes, and that it resumes to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.specs import scripted_spec, warm_of
from overnight.cells import idle_loop
from overnight.cells.idle_loop import Finished
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import ConditionsChanged, Diverged, ExperimentFailed


class Stop(Exception):
    """Stands for a kill between two turns."""


def run(spec: dict[str, Any], folder: Path, *, stop_after: int | None = None, **more: Any) -> Finished:
    def report(event: str, **fields: Any) -> None:
        if event == "turn" and fields["turn"] == stop_after:
            raise Stop

    engine = more.pop("engine", None) or ScriptedEngine(warm_of(spec), "")
    return idle_loop.run(engine, spec, folder, report=report, **more)


def test_ends_at_max_iterations(tmp_path: Path) -> None:
    done = run(scripted_spec(turns=4), tmp_path)
    assert (done.end_reason, done.turns) == ("max_iterations", 4)
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert result["transcript_sha256"] == done.transcript_sha256
    assert result["turns"] == 4


def test_ends_at_the_target_and_the_clock_follows_the_tokens(tmp_path: Path) -> None:
    done = run(scripted_spec(turns=100, target=60, reply_tokens=20), tmp_path)
    assert (done.end_reason, done.turns, done.output_tokens) == ("target_reached", 3, 60)
    lines = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_bytes().splitlines()]
    assert [line["message"] for line in lines[1:]] == [
        "10 hours and 0 minutes to go",
        "6 hours and 40 minutes to go",
        "3 hours and 20 minutes to go",
    ]


def test_full_context_ends_the_cell_and_says_so(tmp_path: Path) -> None:
    done = run(scripted_spec(turns=100, context_tokens=150, reply_tokens=25), tmp_path)
    assert done.end_reason == "context_full"
    assert 0 < done.turns < 10


def test_token_limit_caps_a_reply(tmp_path: Path) -> None:
    run(scripted_spec(turns=1, reply_tokens=50, token_limit=12), tmp_path)
    turn = json.loads((tmp_path / "transcript.jsonl").read_bytes().splitlines()[1])
    assert (len(turn["reply_ids"]), turn["stop"]) == (12, "length")


@pytest.mark.parametrize("ending", ["max_iterations", "context_full"])
def test_stopped_after_every_turn_ends_with_the_same_bytes(tmp_path: Path, ending: str) -> None:
    spec = scripted_spec(turns=7) if ending == "max_iterations" else scripted_spec(turns=99, context_tokens=200)
    whole = run(spec, tmp_path / "whole")
    assert whole.end_reason == ending
    for turn in range(1, whole.turns + 1):
        with pytest.raises(Stop):
            run(spec, tmp_path / "broken", stop_after=turn)
    assert run(spec, tmp_path / "broken") == whole
    for name in ("transcript.jsonl", "result.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_of_the_machine_is_in_the_transcript(tmp_path: Path) -> None:
    spec = scripted_spec(turns=2)
    first, second = tmp_path / "a", tmp_path / "elsewhere" / "b"
    run(spec, first)
    run(spec, second)
    assert (first / "transcript.jsonl").read_bytes() == (second / "transcript.jsonl").read_bytes()


def test_a_finished_cell_is_only_read_again(tmp_path: Path) -> None:
    spec = scripted_spec(turns=3)
    first = run(spec, tmp_path)
    (tmp_path / "result.json").unlink()
    assert run(spec, tmp_path) == first
    assert (tmp_path / "result.json").exists()


def test_failure_keeps_the_turns_before_it(tmp_path: Path) -> None:
    with pytest.raises(ExperimentFailed):
        run(scripted_spec(turns=5, fail_at_turn=3), tmp_path)
    assert len((tmp_path / "transcript.jsonl").read_bytes().splitlines()) == 3


def test_another_specification_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(scripted_spec(turns=5), tmp_path, stop_after=2)
    with pytest.raises(ConditionsChanged, match=r"seed was 7, is 8"):
        run(scripted_spec(turns=5, seed=8), tmp_path)


class Other(ScriptedEngine):
    """The same engine on a machine with another instruction set, say: other digests."""

    def conditions(self, *, threads: int) -> dict[str, Any]:
        return {**super().conditions(threads=threads), "cpu_capability": "OTHER"}


def test_other_conditions_are_refused_unless_accepted_and_then_recorded(tmp_path: Path) -> None:
    spec = scripted_spec(turns=5)
    with pytest.raises(Stop):
        run(spec, tmp_path, stop_after=2)
    other = Other(warm_of(spec), "")
    with pytest.raises(ConditionsChanged, match='cpu_capability was null, is "OTHER"'):
        run(spec, tmp_path, engine=other)
    with pytest.raises(Stop):
        run(spec, tmp_path, engine=other, accept_conditions=True, stop_after=4)
    lines = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_bytes().splitlines()]
    assert [line.get("conditions", {}).get("cpu_capability") for line in lines[1:]] == [
        None,
        None,
        "OTHER",
        None,
    ]
    with pytest.raises(ConditionsChanged, match='cpu_capability was "OTHER", is null'):
        run(spec, tmp_path)  # going back is a change, too: the last turns were made under the other conditions
    run(spec, tmp_path, engine=other)  # and going on under them needs no further consent


def test_a_replay_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    spec = scripted_spec(turns=5)
    with pytest.raises(Stop):
        run(spec, tmp_path, stop_after=3)

    class Drifting(ScriptedEngine):
        def open(self, spec: dict[str, Any], *, threads: int) -> Any:
            session = super().open(spec, threads=threads)
            session._state.update(b"drift")
            return session

    before = (tmp_path / "transcript.jsonl").read_bytes()
    with pytest.raises(Diverged, match="turn 1"):
        run(spec, tmp_path, engine=Drifting(warm_of(spec), ""))
    assert (tmp_path / "transcript.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "over_cap"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "over_cap",
        ),
        (RuntimeError("can't start new thread"), "over_cap"),
        (RuntimeError("shapes differ"), "failed"),
        (ValueError(), "failed"),
        (Diverged("x"), "diverged"),
    ],
)
def test_every_exception_has_its_outcome(error: Exception, outcome: str) -> None:
    found, code, sentence = idle_loop.explain(error)
    assert found == outcome
    assert code
    assert "\n" not in sentence

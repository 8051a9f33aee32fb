"""The audit: what it must name on the real night, each check on cells made for it, and nothing on a sound grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import older_night, small_home
from helpers.older_night import entry, messages
from overnight.analysis import audit
from overnight.analysis.audit import Finding, Subject, check
from overnight.analysis.audit_look import Replies, look, named_thinking
from overnight.analysis.conversation import Conversation, Turn
from overnight.cli.main import main
from overnight.queue.store import Queue


def by_code(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in findings}


def test_the_real_night(upstream: Path) -> None:
    found = by_code(audit.of_folder(upstream))
    assert found["left_running"].cells == ("values_boundaries_8b_nothink_run2",)
    assert set(found["identical"].cells) == {"baseline_1.7b_nothink_run1", "baseline_1.7b_nothink_run2"}
    assert set(found["no_think_thinks"].cells) == {
        *("baseline_1.7b_nothink_run1", "baseline_1.7b_nothink_run2"),
        *("baseline_8b_nothink_run1", "values_only_8b_nothink_run2"),
    }
    assert set(found["tokens_zero"].cells) == {
        *("baseline_1.7b_nothink_run1", "baseline_1.7b_nothink_run2", "baseline_4b_think_run1")
    }
    assert found["lost"].cells == ("baseline_8b_think_run1",)
    assert "27 iterations and 154,939 tokens lost: peer closed connection" in found["lost"].detail
    assert found["no_conversation"].count == 9
    assert found["pending"].count == 13
    assert found["cut_thinking"].cells == ("baseline_4b_think_run1",)
    for code in ("left_running", "identical", "no_think_thinks", "tokens_zero", "lost"):
        assert found[code].severity == "error"


def test_the_command_on_the_real_night(upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path / "h"), "audit", str(upstream)]) == 1
    told = capsys.readouterr().out
    assert "4 no-think runs think: " in told
    assert not (tmp_path / "h").exists()  # a folder is looked at without a home
    assert main(["--home", str(tmp_path / "h"), "audit", str(upstream), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["error"] == 5
    assert found["checked"]["cells"] == 33
    assert all({"severity", "code", "title", "detail", "count", "cells"} <= each.keys() for each in found["findings"])


def talk(*texts: str, **changes: Any) -> Conversation:
    turns = tuple(
        Turn(n, text, **{"message": f"[{n}]", "tokens": 5, "stop_reason": "stop", **changes})
        for n, text in enumerate(texts, 1)
    )
    return Conversation("g", "k", "s", "m", 1, {}, "done", "", "", turns, {}, "", "")


def subject(run: int = 1, *, replies: Replies | None = None, **changes: Any) -> Subject:
    seen = look(talk(*(f"reply {n} of run {run}" for n in range(1, 6)))) if replies is None else replies
    given = {
        "key": f"s_m_run{run}", "scaffold": "s", "model": "m", "run": run, "axes": {}, "status": "done",
        "claimed_turns": seen.count, "claimed_tokens": seen.tokens_sum, "replies": seen,
    }  # fmt: skip
    return Subject(**{**given, **changes})


def codes(*subjects: Subject) -> set[str]:
    return {finding.code for finding in check(subjects)}


def test_nothing_is_found_where_nothing_is() -> None:
    assert check([subject(run) for run in range(1, 5)]) == []
    assert check([]) == []


def test_the_same_conversation_twice() -> None:
    words = ("one of these", "two of these", "three of these", "four")
    same = look(talk(*words))
    (finding,) = check([subject(1, replies=same), subject(2, replies=same), subject(3)])
    assert (finding.code, finding.cells) == ("identical", ("s_m_run1", "s_m_run2"))
    (finding,) = check([subject(1, replies=same, greedy=True), subject(2, replies=same, greedy=True)])
    assert "temperature 0" in finding.title
    (finding,) = check([subject(1, replies=same), subject(2, replies=same, model="other")])
    assert "cells of different settings" in finding.title
    (finding,) = check([subject(1, replies=look(talk(*words[:3]))), subject(2, replies=same)])
    assert (finding.code, finding.cells) == ("beginning", ("s_m_run1", "s_m_run2"))
    assert codes(subject(1, replies=look(talk("alike", "a"))), subject(2, replies=look(talk("alike", "b")))) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reasoning": "let me see"}, {"no_think_thinks"}),
        ({"stop_reason": "length"}, {"cut"}),
        ({"stop_reason": ""}, {"cut_unknown"}),
        ({"tokens": 0}, {"tokens_zero"}),
        ({"extra": {"conditions": {}}}, {"conditions_changed"}),
    ],
)
def test_odd_replies(changes: dict[str, Any], expected: set[str]) -> None:
    seen = look(talk("a reply", "another reply", **changes))
    assert codes(subject(replies=seen, thinks=False)) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("<think>what now</think> so", "b"), {"no_think_thinks", "thinking_in_text"}),
        (("[thinking] hm", "b"), {"no_think_thinks", "thinking_in_text"}),
        (("b", "I think that tags are odd </think>"), {"thinking_in_text"}),
        (("<think>what now", "b"), {"no_think_thinks", "thinking_in_text", "cut_thinking", "only_reasoning"}),
        (("", "b"), {"empty"}),
        ((" \n", "b"), {"empty"}),
        (("[1]", "b"), {"echoes"}),
        ((), {"no_replies"}),
    ],
)
def test_odd_texts(texts: tuple[str, ...], expected: set[str]) -> None:
    assert codes(subject(replies=look(talk(*texts)), thinks=False)) == expected


def test_a_think_run_that_does_not() -> None:
    assert codes(subject(thinks=True)) == {"think_does_not"}
    assert codes(subject(thinks=True, replies=look(talk("a", "b", reasoning="hm")))) == set()


@pytest.mark.parametrize(
    ("model", "expected"),
    [("8b_nothink", False), ("8b_no-think", False), ("NoThink", False), ("8b_think", True), ("rethink", None)],
)
def test_what_a_models_name_says(model: str, expected: bool | None) -> None:
    assert named_thinking(model) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"claimed_tokens": None}, {"tokens_missing"}),
        ({"claimed_tokens": 7}, {"tokens_differ"}),
        ({"claimed_turns": 9}, {"turns_differ"}),
        ({"status": "running"}, {"left_running"}),
        ({"said": "running", "status": "pending"}, {"left_running"}),
        ({"status": "failed", "reason": "why"}, {"not_finished"}),
        ({"broken": "not JSON", "replies": None}, {"unreadable"}),
        ({"collapsed": True}, {"stopped_early"}),
        ({"in_state": False}, {"not_in_state"}),
        ({"differences": ("status: a and b",)}, {"contradiction"}),
    ],
)
def test_odd_records(changes: dict[str, Any], expected: set[str]) -> None:
    one = subject(1)
    assert codes(replace(one, **changes), subject(2)) == expected


def test_what_was_lost() -> None:
    bare = Subject("s_m_run1", "s", "m", 1, {}, "failed", claimed_turns=27, claimed_tokens=154_939, reason="gone")
    (finding,) = check([bare])
    assert (finding.severity, finding.code) == ("error", "lost")
    assert finding.detail == "s_m_run1 (27 iterations and 154,939 tokens lost: gone)"
    (finding,) = check([Subject("s_m_run1", "s", "m", 1, {}, "done")])
    assert (finding.severity, finding.code) == ("error", "no_conversation")
    (finding,) = check([Subject("x1", "", "", 0, {}, "failed", reason="exit 1", speaks=False)])
    assert finding.detail == "x1 (failed: exit 1)"
    assert check([Subject("x1", "", "", 0, {}, "done", speaks=False)]) == []


def test_an_audit_of_commands_says_that_it_did_not_look_at_their_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = small_home.build(tmp_path / "h")
    with Queue.open(paths.queue) as queue:
        small_home.attempt(paths, queue, key="x3")
    assert main(["--home", str(paths.home), "audit", "sweep"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 cells looked at, nothing found",
        "of 3 commands, only the end was looked at: an audit reads conversations, and no other results",
    ]
    main(["--home", str(paths.home), "audit", "night"])
    assert "commands" not in capsys.readouterr().out
    main(["--home", str(paths.home), "audit", "--json"])
    assert json.loads(capsys.readouterr().out)["checked"] == {
        "cells": 9, "results_unread": 3, "grids": ["night", "sweep"]
    }  # fmt: skip


def test_runs_of_a_group_with_differing_settings() -> None:
    settings = [{"specification": {"limits": {"token_limit": n}}} for n in (200, 200, 300)]
    (finding,) = check([subject(run, settings=each) for run, each in enumerate(settings, 1)])
    assert (finding.code, finding.cells) == ("settings_differ", ("s_m_run1", "s_m_run3"))
    assert "specification.limits.token_limit 200 -> 300" in finding.detail
    other = look(talk(*(f"reply {n} of run 2" for n in range(1, 6)), message="[another clock]"))
    found = by_code(check([subject(1, said="completed"), subject(2, said="completed", replies=other)]))
    assert "the user's side says something else before turn 1" in found["settings_differ"].detail


def test_many_cells_are_named_but_not_told_of_one_by_one() -> None:
    (finding,) = check([subject(run, claimed_tokens=None) for run in range(1, 101)])
    assert finding.count == 100
    assert finding.detail.endswith("s_m_run60, and 40 more")


def test_what_many_cells_share_is_not_told_of_one_by_one_either() -> None:
    same = subject().replies
    (finding,) = check([subject(run, replies=same) for run in range(1, 101)])
    assert (finding.code, finding.count) == ("identical", 100)
    assert "s_m_run60, and 40 more: all 5 replies" in finding.detail
    (finding,) = check([subject(run, settings={"seed": min(run, 2)}) for run in range(1, 102)])
    assert (finding.code, finding.count) == ("settings_differ", 101)
    assert finding.detail.endswith("s_m_run61 (seed 1 -> 2), and 40 more")


def test_settings_that_runs_share_are_kept_once(tmp_path: Path) -> None:
    paths = small_home.build(tmp_path / "h")
    with Queue.open(paths.queue) as queue:
        found = [each for each in audit.subjects_of_grid(paths, queue, "night") if each.settings]
    assert len(found) > 3
    assert len({id(each.settings) for each in found}) == len({str(each.settings) for each in found}) == 1


def test_one_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(found: Conversation) -> Replies:
        if found.run == 2:
            raise RecursionError("too deep")
        return look(found)

    monkeypatch.setattr(audit, "look", broken)
    for run in (1, 2):
        older_night.conversation(tmp_path, run=run)
    assert by_code(audit.of_folder(tmp_path))["unreadable"].cells == ("baseline_8b_think_run2",)


def test_a_folder_with_a_broken_file(tmp_path: Path) -> None:
    older_night.night(tmp_path)
    (tmp_path / "baseline_8b_think_run3.json").write_text('{"metadata": {')
    found = by_code(audit.of_folder(tmp_path))
    assert found["unreadable"].cells == ("baseline_8b_think_run3",)
    (tmp_path / "other_run3.json").write_text("")
    assert by_code(audit.of_folder(tmp_path))["unreadable"].cells == ("baseline_8b_think_run3", "other_run3.json")


def test_tokens_that_are_not_those_of_the_replies(tmp_path: Path) -> None:
    older_night.conversation(tmp_path, said=messages("x", tokens=400), total_tokens=1600)
    assert "tokens_too_many" in by_code(audit.of_folder(tmp_path))
    older_night.conversation(tmp_path, said=messages("x", tokens=10))
    assert "tokens_too_many" not in by_code(audit.of_folder(tmp_path))


def test_pending_cells_of_a_state(tmp_path: Path) -> None:
    older_night.state(tmp_path, entry(status="pending", iterations="absent", started_at="absent"))
    (finding,) = audit.of_folder(tmp_path)
    assert (finding.severity, finding.code) == ("warning", "pending")


def test_what_is_neither_a_grid_nor_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path / "h"), "audit", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert main(["--home", str(tmp_path / "h"), "audit", str(tmp_path / "empty")]) == 2
    assert "holds neither" in capsys.readouterr().err

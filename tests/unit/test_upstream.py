"""Reading the older harness's files: all that they say, nothing that they do not, one line for what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import older_night
from helpers.older_night import entry, messages
from overnight.analysis import upstream as older
from overnight.errors import UserError
from overnight.queue.states import Status


def found(night: older.Night) -> dict[str, older.Found]:
    return {each.key: each for each in night.cells}


def test_a_night_as_it_is(tmp_path: Path) -> None:
    folder = older_night.night(tmp_path / "night-1")
    (folder / "notes.txt").write_text("mine")
    night = older.read(folder)
    assert (night.name, night.ignored, night.has_state) == ("night-1", ("notes.txt",), True)
    cells = found(night)
    assert len(cells) == 7
    lost = older.imported(cells["values_only_8b_think_run1"])
    assert (lost.status, lost.turns, lost.tokens, lost.reason) == (Status.FAILED, 27, 154_939, "peer closed connection")
    assert lost.sha256 is None
    left = older.imported(cells["values_only_8b_think_run2"])
    assert (left.status, left.began, left.turns, left.evidence["said"]) == (Status.PENDING, True, 0, "running")
    assert left.reason == "left running by the older harness, which kept nothing of it"
    waiting = older.imported(cells["values_only_8b_think_run3"])
    assert (waiting.status, waiting.began, waiting.started_at) == (Status.PENDING, False, None)
    bare = cells["baseline_8b_think_run3"]
    assert (bare.file, bare.facts.status) == (None, Status.DONE)
    assert cells["values_only_4b_think_run1"].state is None


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    one = older_night.conversation(tmp_path, run=1, said=messages("alike"))
    other = older_night.conversation(tmp_path, run=2, said=messages("alike", fragments=True))
    texts = []
    for path in (one, other):
        (cell,) = older.read(path).cells
        told = older.conversation(cell)
        assert told is not None
        texts.append([(turn.text, turn.reasoning, turn.message, turn.tokens) for turn in told.turns])
    assert texts[0] == texts[1]
    assert texts[0][1] == ("alike 2, and so on", "hm", "[1 of 4]", 10)


def test_the_conversation_counts_more_than_a_state_that_lags_behind(tmp_path: Path) -> None:
    older_night.conversation(tmp_path)
    older_night.state(tmp_path, entry(status="running", iterations=2))
    (cell,) = older.read(tmp_path).cells
    assert (cell.facts.said, cell.facts.iterations) == ("completed", 4)
    assert list(older.differences(cell)) == ["status: running and completed", "iterations: 2 and 4"]
    older_night.conversation(tmp_path, status="running")
    older_night.state(tmp_path, entry(status="failed", error="out of luck"))
    (cell,) = older.read(tmp_path).cells
    assert (cell.facts.said, cell.facts.error) == ("failed", "out of luck")


def test_nothing_is_invented(tmp_path: Path) -> None:
    bare = {name: "absent" for name in entry() if name not in ("scaffold_name", "model_id", "run_num", "status")}
    (cell,) = older.read(older_night.conversation(tmp_path, **bare)).cells
    told = older.imported(cell)
    assert (told.turns, told.tokens, told.reason, told.end_reason) == (4, 0, "", None)  # 4: its replies, counted
    assert (told.started_at, told.finished_at) == (None, None)
    assert told.template["scaffold"] == {"id": None, "name": "baseline"}


def axes(**changes: Any) -> dict[str, Any]:
    """Metadata of a cell with one axis more, as an export of ours has them."""
    coords = {"scaffold": "baseline", "model": "8b_think", "run": 1, "t": 0.5, **changes.pop("coords", {})}
    document: dict[str, Any] = {"metadata": entry(coords=coords, **changes), "conversation": []}
    return document


def nested(levels: int) -> Any:
    found: Any = "x"
    for _ in range(levels):
        found = [found]
    return found


BROKEN: list[tuple[str, Any, str]] = [
    ("not JSON", b'{"metadata": {', "not JSON"),
    ("empty", b"", "not JSON"),
    ("no text", b"\xff\xfe\x00", "not JSON"),
    ("a list", [1], "expected an object with `metadata` and `conversation`"),
    ("no metadata", {"conversation": []}, "metadata: expected an object"),
    ("no conversation", {"metadata": entry()}, "expected an object with `metadata` and `conversation`"),
    ("no model", {"metadata": entry(model_id="absent"), "conversation": []}, "model_id: missing"),
    ("a path", {"metadata": entry(scaffold_name="../x"), "conversation": []}, "scaffold_name: found '../x'"),
    ("a run of text", {"metadata": entry(run_num="1"), "conversation": []}, "run_num: found '1'"),
    ("a negative run", {"metadata": entry(run_num=-1), "conversation": []}, "run_num: found -1"),
    ("no status", {"metadata": entry(status="absent"), "conversation": []}, "status: found None"),
    ("another status", {"metadata": entry(status="done?"), "conversation": []}, "status: found 'done?'"),
    ("a time", {"metadata": entry(started_at="noon"), "conversation": []}, "started_at: found 'noon'"),
    ("half iterations", {"metadata": entry(iterations=1.5), "conversation": []}, "iterations: found 1.5"),
    ("true tokens", {"metadata": entry(total_tokens=True), "conversation": []}, "total_tokens: found True"),
    ("huge tokens", {"metadata": entry(total_tokens=2**70), "conversation": []}, "total_tokens: found"),
    (
        "a message of text",
        {"metadata": entry(), "conversation": ["hello"]},
        "message 0: expected an object with a role",
    ),
    ("no role", {"metadata": entry(), "conversation": [{"content": "x"}]}, "message 0: expected an object with a role"),
    (
        "content of a number",
        {"metadata": entry(), "conversation": [{"role": "assistant", "content": 3}]},
        "message 0: content: expected a text or a list",
    ),
    ("NaN", b'{"metadata": {"run_num": NaN}, "conversation": []}', "found NaN"),
    ("infinity", b'{"metadata": {"run_num": 1e999}, "conversation": []}', "found 1e999"),
    ("too deep", b"[" * 100_000, "not JSON"),
    ("twice the same", b'{"metadata": {}, "metadata": {}, "conversation": []}', "'metadata' stands there twice"),
    ("large metadata", {"metadata": entry(notes="x" * 70_000), "conversation": []}, "larger than 64 KiB"),
    ("other coords", {"metadata": entry(coords={"run": 2}), "conversation": []}, "coords: expected an object"),
    (
        "an axis of text",
        {
            "metadata": entry(coords={"scaffold": "baseline", "model": "8b_think", "run": 1, "t": "x"}),
            "conversation": [],
        },
        "coords.t: found 'x'",
    ),
    ("a run of true", axes(coords={"run": True}), "coords: expected an object with the same scaffold, model and run"),
    ("a run of 1.0", axes(coords={"run": 1.0}), "coords: expected an object with the same scaffold, model and run"),
    ("a key of another file", axes(key="grid_state.json"), "key: found 'grid_state.json', expected one that ends with"),
    ("a key of another run", axes(key="baseline_8b_think_t0.5_run11"), "expected one that ends with _run1"),
    ("deep metadata", {"metadata": entry(x=nested(700)), "conversation": []}, "metadata: nested deeper than 50 levels"),
    ("a deep error", {"metadata": entry(error=nested(700)), "conversation": []}, "nested deeper than 50 levels"),
    ("a deep name", {"metadata": entry(model_id=nested(700)), "conversation": []}, "nested deeper than 50 levels"),
]


@pytest.mark.parametrize(("document", "said"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN])
def test_a_broken_file_gets_one_line(tmp_path: Path, document: Any, said: str) -> None:
    path = tmp_path / "baseline_8b_think_run1.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    older_night.conversation(tmp_path, run=2)
    for which in (path, tmp_path):
        with pytest.raises(UserError) as error:
            older.read(which)
        assert said in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    broken: dict[str, str] = {}
    assert [cell.key for cell in older.read(tmp_path, broken=broken).cells] == ["baseline_8b_think_run2"]
    assert list(broken) == [path.name]


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "holds neither a grid_state.json with cells nor conversations"),
    ):
        with pytest.raises(UserError, match=said):
            older.read(path)
    os.mkfifo(tmp_path / "a_b_run1.json")
    with pytest.raises(UserError, match="no regular file"):
        older.read(tmp_path)


def test_one_cell_is_not_told_of_twice(tmp_path: Path) -> None:
    first = older_night.conversation(tmp_path)
    first.rename(tmp_path / "again_run7.json")
    older_night.conversation(tmp_path)
    with pytest.raises(UserError, match="tells of baseline_8b_think_run1"):
        older.read(tmp_path)
    (tmp_path / "again_run7.json").unlink()
    (tmp_path / "grid_state.json").write_text(json.dumps({"cells": {"a": entry(), "b": entry()}}))
    with pytest.raises(UserError, match="a second time"):
        older.read(tmp_path)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["running", "\ud800", "2026-01-12"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from([*entry(), "coords", "key", "end_reason"]), VALUES, max_size=3),
    said=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "reasoning", "tokens", "stop_reason"]), VALUES, max_size=4)
        | VALUES,
        max_size=3,
    ),
    state=st.booleans(),
)
def test_whatever_stands_in_a_file_is_taken_or_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: list[Any], state: bool
) -> None:
    metadata = {**entry(), **changes}
    document = {"cells": {"x": metadata}} if state else {"metadata": metadata, "conversation": said}
    path = tmp_path / "some_file_run1.json"
    path.write_text(json.dumps(document))
    try:
        (cell,) = older.read(path).cells
    except UserError as error:
        assert "\n" not in str(error)
        return
    told = older.imported(cell)
    json.dumps([told.coords, told.template, told.evidence], ensure_ascii=False, allow_nan=False).encode()
    told.reason.encode()
    assert told.turns >= 0
    assert told.status in (Status.DONE, Status.FAILED, Status.PENDING, Status.CANCELLED)


def test_the_real_night(upstream: Path) -> None:
    night = older.read(upstream)
    cells = found(night)
    assert len(cells) == 33
    statuses = [str(each.facts.status) for each in cells.values()]
    assert {status: statuses.count(status) for status in set(statuses)} == {"done": 18, "failed": 1, "pending": 14}
    assert sum(each.file is not None for each in cells.values()) == 9
    assert cells["values_boundaries_8b_nothink_run2"].facts.said == "running"
    assert not any(list(older.differences(each)) for each in cells.values())
    assert older.imported(cells["baseline_8b_nothink_run1"]).turns == 25

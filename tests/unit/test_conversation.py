"""One form for every conversation: our transcripts and the older harness's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.specs import scripted_spec
from overnight.analysis import conversation
from overnight.analysis.conversation import ConversationError, read_transcript, read_upstream, split_thinking
from overnight.cells.transcript import Transcript


def write(path: Path, replies: list[dict[str, Any]], **header: Any) -> Path:
    writer = Transcript.open(path)
    assert list(writer.records()) == []
    writer.write_header({"spec": {**scripted_spec(), **header}, "conditions": {"threads": 1}})
    for reply in replies:
        ids = {"input_ids": [1, 2], "reply_ids": [3, 4, 5], "prefill_digest": "a", "decode_digest": "b"}
        writer.append({"message": "9 hours to go", "minutes_left": 540, "cropped": 0, "stop": "eos", **ids, **reply})
    writer.close()
    return path


def test_a_transcript_is_read_whole(tmp_path: Path) -> None:
    path = write(
        tmp_path / "transcript.jsonl",
        [{"reply": "<think>\nhm\n</think>\n\nHello."}, {"reply": "Again.", "stop": "length", "tool_calls": [{"a": 1}]}],
        key="baseline_m_run2",
        coords={"scaffold": "baseline", "model": "m", "style": "short", "run": 2},
        system="You are alone.",
    )
    found = read_transcript(path, grid="g", status="done", end_reason="max_iterations")
    assert (found.grid, found.key, found.scaffold, found.model, found.run) == (
        "g",
        "baseline_m_run2",
        "baseline",
        "m",
        2,
    )
    assert (found.coords, found.system, found.status) == ({"style": "short"}, "You are alone.", "done")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    first, second = found.turns
    assert (first.text, first.reasoning, first.stop_reason) == ("Hello.", "hm", "stop")
    assert (first.number, first.message_index, first.message, first.tokens) == (1, 1, "9 hours to go", 3)
    assert (second.text, second.stop_reason, second.message_index) == ("Again.", "length", 3)
    assert second.extra == {"minutes_left": 540, "cropped": 0, "tool_calls": [{"a": 1}]}
    assert found.header["conditions"] == {"threads": 1}
    assert (found.tokens, found.tokens_known) == (6, True)


def test_a_torn_tail_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "transcript.jsonl", [{"reply": "one"}, {"reply": "two"}])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert read_transcript(path).texts == ["one"]
    path.write_bytes(whole[: whole.index(b"\n")])
    with pytest.raises(ConversationError, match="no header"):
        read_transcript(path)


@pytest.mark.parametrize(
    ("reply", "reasoning", "text"),
    [
        ("plain", "", "plain"),
        ("  plain \n", "", "  plain \n"),
        ("<think>a</think>b", "a", "b"),
        ("<think></think>\n\nb", "", "b"),
        ("<think>a</think><think>b</think>c", "a\n\nb", "c"),
        ("<think>cut off", "cut off", ""),
        ("said <think>a</think>", "", "said <think>a</think>"),
    ],
)
def test_thinking_at_the_head_is_no_text(reply: str, reasoning: str, text: str) -> None:
    assert split_thinking(reply) == (reasoning, text)


def test_both_layouts_of_the_older_harness_give_the_same(tmp_path: Path) -> None:
    metadata = {"scaffold_name": "baseline", "model_id": "8b", "run_num": 3, "status": "running"}
    plain = [
        {"role": "system", "content": "Be."},
        {"role": "assistant", "content": "one", "reasoning": "why", "tokens": 5},
        {"role": "user", "content": "9 h"},
        {"role": "assistant", "content": "two\nthree", "reasoning": "", "tokens": 0},
    ]
    call = {"type": "tool_use", "name": "time_travel", "input": {}}
    pieces: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "Be."}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "one"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "9 h"}]},
        {"role": "assistant", "content": ["two", {"type": "output_text", "text": "three"}, call], "tokens": 0},
    ]
    found = []
    for name, messages in (("a", plain), ("b", pieces)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"metadata": metadata, "conversation": messages}))
        found.append(read_upstream(path))
    for each in found:
        assert (each.key, each.run, each.status, each.system) == ("baseline_8b_run3", 3, "pending", "Be.")
        assert [(t.text, t.reasoning, t.message, t.message_index) for t in each.turns] == [
            ("one", "why", "", 1),
            ("two\nthree", "", "9 h", 3),
        ]
        assert not each.tokens_known
    assert [turn.tokens for turn in found[0].turns] == [5, 0]
    assert [turn.tokens for turn in found[1].turns] == [None, 0]
    assert found[1].turns[1].extra == {"tokens": 0, "fragments": [call]}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"conversation": 3}', '{"conversation": [3]}', "[" * 100_000])
def test_what_is_no_conversation_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x_run1.json"
    path.write_text(text)
    with pytest.raises(ConversationError, match=r"x_run1\.json") as refused:
        read_upstream(path)
    assert "\n" not in str(refused.value)


def test_a_number_that_nobody_can_hold_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "x_run1.json"
    for huge, known in (("9007199254740992", 2**53), ("9007199254740993", None), ("9" * 400, None)):
        replies = f'[{{"role": "assistant", "content": "a", "tokens": {huge}}}]'
        path.write_text(f'{{"metadata": {{"run_num": {huge}}}, "conversation": {replies}}}')
        found = read_upstream(path)
        assert (found.turns[0].tokens, found.run) == (known, known or 0)
    path.write_text(path.read_text().replace("9" * 400, "9" * 5000))
    with pytest.raises(ConversationError, match="not JSON"):
        read_upstream(path)


def test_the_shared_conversations(upstream: Path) -> None:
    files = sorted(upstream.glob("*_run*.json"))
    assert len(files) == 9
    for path in files:
        found = read_upstream(path, grid="old")
        assert found.key == path.stem
        assert found.status == "done"
        assert found.turns[0].text
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        # Two of them begin inside the content with what a no-think run should not have.
        assert found.turns[0].text.startswith("<think>") == ("1.7b" in path.stem or "4b" in path.stem)


def test_the_module_needs_nothing_but_the_standard_library() -> None:
    import subprocess
    import sys

    program = f"import sys, {conversation.__name__}; print({{'numpy', 'scipy', 'torch'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"

"""Canonical chunks: cut in one way, whatever interrupted the conversation. A tokenizer of a few lines stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import chat_templates
from overnight.engines import chat
from overnight.engines.chat import Chunk, Conversation
from overnight.errors import ModelError

SPECIAL = {"bos_token": "^", "eos_token": "$"}
SYSTEM = "all night"


class Characters:
    """One id a character, but `ab` and `<end_of_turn>` are one each: the ids [a, b] do not survive text -> ids."""

    PAIR, END = 1_000_001, 1_000_002

    def encode(self, text: str) -> list[int]:
        folded = text.replace("<end_of_turn>", "\ue000").replace("ab", "\ue001")
        return [{"\ue000": self.END, "\ue001": self.PAIR}.get(letter, ord(letter)) for letter in folded]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join({self.PAIR: "ab", self.END: "<end_of_turn>"}.get(token) or chr(token) for token in ids)


TOKENS = Characters()


def conversation(template: str = chat_templates.SMOLLM2, *, thinking: bool | None = None) -> Conversation:
    render = chat.renderer(chat.compile_template(template), special=SPECIAL, date="2025-01-01", thinking=thinking)
    return Conversation(render, TOKENS, SYSTEM)


def say(talk: Conversation, message: str, reply: str | list[int]) -> Chunk:
    chunk = talk.ask(message)
    talk.take(chunk)
    ids = TOKENS.encode(reply) if isinstance(reply, str) else reply
    talk.hear(ids, TOKENS.decode(ids))
    return chunk


def test_the_first_chunk_is_the_whole_prompt() -> None:
    chunk = conversation().ask("hello")
    assert chunk.cropped == 0
    assert TOKENS.decode(chunk.ids) == (
        "<|im_start|>system\nall night<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_reply_keeps_its_own_ids() -> None:
    talk = conversation()
    say(talk, "one", [ord("a"), ord("b"), ord("!")])
    chunk = talk.ask("two")
    assert chunk.cropped == 0
    assert chunk.ids[:3] == [ord("a"), ord("b"), ord("!")]
    assert TOKENS.decode(chunk.ids) == "ab!<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"


def test_a_trimmed_reply_is_tokenised_from_the_template() -> None:
    talk = conversation(chat_templates.GEMMA2)
    say(talk, "one", [ord(" "), ord("a"), ord("b"), ord("\n")])
    chunk = talk.ask("two")
    assert chunk.cropped == 0
    assert chunk.ids[:2] == [Characters.PAIR, Characters.END]
    assert TOKENS.decode(chunk.ids) == "ab<end_of_turn>\n<start_of_turn>user\ntwo<end_of_turn>\n<start_of_turn>model\n"


def test_rewritten_history_is_cropped_to_the_common_ids() -> None:
    talk = conversation(chat_templates.QWEN3)
    say(talk, "one", "<think>\nhm\n</think>\n\nyes")
    before = talk.length
    chunk = talk.ask("two")
    # The prompt ends in "assistant\n", and "yes" follows it in place of the thought: nothing held is wrong.
    assert chunk.cropped == 0
    assert TOKENS.decode(chunk.ids) == "yes<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    talk.take(chunk)
    assert talk.length == before + len(chunk.ids)


def test_without_thinking_the_empty_thought_is_cropped() -> None:
    talk = conversation(chat_templates.QWEN3, thinking=False)
    first = say(talk, "one", "yes")
    assert TOKENS.decode(first.ids).endswith("assistant\n<think>\n\n</think>\n\n")
    chunk = talk.ask("two")
    assert chunk.cropped == len("<think>\n\n</think>\n\n")
    assert TOKENS.decode(chunk.ids).startswith("yes<|im_end|>\n<|im_start|>user\ntwo")


def test_something_is_always_left_to_prefill() -> None:
    """A template that keeps the latest message alone: the very same prompt twice."""
    talk = conversation("{{ messages[-1]['content'] }}{{ messages[0]['content'] if messages|length < 3 }}")
    say(talk, "all night", "x")
    say(talk, "all night", "")
    chunk = talk.ask("all night")
    assert (chunk.cropped, chunk.ids) == (1, [ord("t")])


def test_a_template_that_renders_nothing_is_refused() -> None:
    talk = conversation("{{ messages[0]['content'] if messages|length < 3 }}")
    say(talk, "one", "")
    with pytest.raises(ModelError, match="as nothing"):
        talk.ask("two")


def test_an_empty_reply_is_a_reply() -> None:
    talk = conversation()
    say(talk, "one", "")
    assert TOKENS.decode(talk.ask("two").ids).startswith("<|im_end|>\n<|im_start|>user\ntwo")


def test_asking_changes_nothing() -> None:
    talk = conversation()
    say(talk, "one", "yes")
    assert talk.ask("two") == talk.ask("two")
    assert talk.ask("other") != talk.ask("two")


def test_the_system_text_is_merged_where_there_is_no_system_role() -> None:
    assert TOKENS.decode(conversation(chat_templates.GEMMA2).ask("hello").ids) == (
        "^<start_of_turn>user\nall night\n\nhello<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_system_text_is_merged_where_the_template_drops_it() -> None:
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + ':' + m['content'] + ';' }}{% endfor %}"
    talk = conversation(silent)
    assert TOKENS.decode(say(talk, "hello", "yes").ids) == "user:all night\n\nhello;"
    assert TOKENS.decode(talk.ask("two").ids) == "assistant:yes;user:two;", "once"


def test_a_template_that_cannot_converse_is_refused() -> None:
    with pytest.raises(ModelError, match="refuses the conversation: never"):
        conversation("{{ raise_exception('never') }}")


def test_the_token_that_ends_a_turn() -> None:
    def end(template: str) -> int | None:
        render = chat.renderer(chat.compile_template(template), special=SPECIAL, date="2025-01-01", thinking=None)
        return chat.end_of_turn(render, TOKENS)

    assert end(chat_templates.GEMMA3) == Characters.END
    assert end(chat_templates.ZEPHYR) == ord("$")
    assert end("{{ messages[0]['content'] }}") is None
    assert end("{{ raise_exception('no') }}") is None


_REPLIES = st.lists(
    st.one_of(
        st.text(alphabet="ab \n<", max_size=6).map(lambda text: [ord(letter) for letter in text]),
        st.sampled_from(["<think>\nab\n</think>\n\nb", "a</think>b", "<think>", "  ab ", "<|im_end|>"]).map(
            TOKENS.encode
        ),
    ),
    min_size=2,
    max_size=6,
)


@given(
    replies=_REPLIES,
    template=st.sampled_from(
        [chat_templates.SMOLLM2, chat_templates.QWEN3, chat_templates.LLAMA32, chat_templates.GEMMA2]
    ),
    thinking=st.sampled_from([None, True, False]),
    data=st.data(),
)
def test_following_a_recording_gives_the_same_chunks(
    replies: list[list[int]], template: str, thinking: bool | None, data: Any
) -> None:
    """What was recorded, taken in place of what is asked for, leaves the conversation in the same state; and the ids
    held always decode to the rendered text."""
    whole = conversation(template, thinking=thinking)
    held: list[int] = []
    chunks = []
    for turn, reply in enumerate(replies):
        chunk = say(whole, f"message {turn}", reply)
        assert chunk.ids
        assert 0 <= chunk.cropped <= len(held)
        held = held[: len(held) - chunk.cropped] + chunk.ids
        assert TOKENS.decode(held) == chunk.rendered
        assert whole.length == len(held)
        chunks.append(chunk)
    start = data.draw(st.integers(1, len(replies) - 1))
    resumed = conversation(template, thinking=thinking)
    for turn in range(start):
        fresh = resumed.ask(f"message {turn}")
        resumed.take(Chunk(chunks[turn].cropped, list(chunks[turn].ids), fresh.message, fresh.rendered))
        resumed.hear(replies[turn], TOKENS.decode(replies[turn]))
    assert [say(resumed, f"message {turn}", replies[turn]) for turn in range(start, len(replies))] == chunks[start:]

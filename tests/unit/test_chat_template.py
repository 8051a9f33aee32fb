"""Rendering: the clock is pinned, the sandbox holds, and what templates rely on is there."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from helpers import chat_templates
from overnight.engines import chat
from overnight.errors import ModelError

ASKED = [{"role": "user", "content": "hello"}]


def render(source: str, messages: Any = ASKED, **how: Any) -> str:
    settings: dict[str, Any] = {"special": {}, "date": "2024-02-29", "thinking": None, **how}
    return chat.renderer(chat.compile_template(source), **settings)(messages)


def test_the_clock_is_the_specification_s() -> None:
    assert render("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}") == "2024-02-29 00:00:00"
    assert render("{{ date_string }}") == "29 Feb 2024"


def test_nothing_of_today_gets_in() -> None:
    """Llama 3.2 takes `date_string` before it asks `strftime_now`; this one asks both."""
    text = render(chat_templates.CLOCKS, special={"bos_token": "^"}, date="2001-02-03")
    assert "It is Saturday, 2001-02-03 00:00:00\nToday Date: 03 Feb 2001\n" in text
    assert str(datetime.datetime.now(datetime.UTC).year) not in text


def test_a_template_learns_no_other_clock() -> None:
    with pytest.raises(ModelError, match="'now' is undefined"):
        render("{{ now() }}")


@pytest.mark.parametrize(("thinking", "expected"), [(None, "unset"), (True, "True"), (False, "False")])
def test_thinking_is_passed_when_it_is_set(thinking: bool | None, expected: str) -> None:
    source = "{{ enable_thinking if enable_thinking is defined else 'unset' }}"
    assert render(source, thinking=thinking) == expected


def test_special_tokens_have_their_names() -> None:
    assert render("{{ bos_token }}|{{ eos_token }}", special={"bos_token": "<s>", "eos_token": "</s>"}) == "<s>|</s>"


def test_tools_and_documents_are_none_and_a_reply_is_asked_for() -> None:
    assert render("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}") == "True True True"


def test_blocks_are_trimmed_as_transformers_does() -> None:
    assert (
        render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}")
        == "hello\n"
    )


def test_loop_controls_generation_and_tojson() -> None:
    assert render("{% for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "1"
    assert render("<{% generation %}{{ messages[0].content }}{% endgeneration %}>") == "<hello>"
    assert render("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__['x'] }}",
        "{{ raise_exception.__code__.co_code }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    """A template comes with a model from anywhere."""
    with pytest.raises(ModelError, match="refuses the conversation"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{{ messages[9].content + 1 }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ messages[0].x.y }}"]
)
def test_a_failing_template_is_one_line(source: str) -> None:
    with pytest.raises(ModelError, match="refuses the conversation") as refused:
        render(source)
    assert "\n" not in str(refused.value)


def test_a_template_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be read: expected token"):
        chat.compile_template("{{ messages | }}")

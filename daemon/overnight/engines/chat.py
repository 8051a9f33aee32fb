"""From messages to the chunks of token ids that enter the key-value cache, always cut in the same way.

Resume is exact only because a chunk depends on the conversation alone and not on how the process came to it. After a
reply, the next chunk is (P = the rendered conversation up to and with the generation prompt, r = the reply's text):

    next P begins with P + r   the reply's own ids, then the rest tokenised: the ids stay exact even where their text
                               would be tokenised otherwise (at temperature 1.0 about one reply in five)
    next P begins with P       the template changed the reply's ends (Gemma, Llama 3 trim it): the rest tokenised
    neither                    the template rewrote history (Qwen3 drops earlier thinking): all of it tokenised, the
                               cache cropped to the common prefix of ids, and what follows is the chunk

No torch here: ids are numbers, a tokenizer is two functions.
"""

from __future__ import annotations

import datetime
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from overnight.errors import ModelError

if TYPE_CHECKING:
    import jinja2


class CannotRender(ModelError):
    """A chat template refuses what it was given."""


Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]


class Tokens(Protocol):
    """What is needed of a tokenizer. `encode` adds nothing: the template writes the first token itself."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def compile_template(source: str) -> jinja2.Template:
    """Compile a model's chat template as transformers does, in a sandbox: it comes with the model, from anywhere.

    It is rendered here and not by `apply_chat_template`, since that gives templates today's date through
    `strftime_now`, and takes no function in its place (seen in transformers 5.23). Raises ModelError.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks replies for training; here it only passes its body on."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"the model's chat template cannot be read: {error}") from None


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options)


def renderer(template: jinja2.Template, *, special: Mapping[str, str], date: str, thinking: bool | None) -> Render:
    """A function from messages to text, ending in the generation prompt.

    special: `bos_token`, `eos_token`, ... as the tokenizer names them.
    date: the conversation's date, YYYY-MM-DD: all that a template ever learns of the clock (midnight of that day).
    thinking: `enable_thinking` for the templates that know it; None leaves the template's own choice.
    """
    import jinja2

    day = datetime.datetime.fromisoformat(date)
    variables: dict[str, Any] = {
        **special,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "strftime_now": day.strftime,
        "date_string": day.strftime("%d %b %Y"),
    }
    if thinking is not None:
        variables["enable_thinking"] = thinking

    def render(messages: Sequence[Message]) -> str:
        try:
            return template.render(messages=messages, **variables)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CannotRender(f"the model's chat template refuses the conversation: {error}") from None

    return render


@dataclass(frozen=True)
class Chunk:
    """What one turn puts into the cache: crop `cropped` ids off its end, then prefill `ids` (at least one)."""

    cropped: int
    ids: list[int]
    message: str
    rendered: str


class Conversation:
    """The messages of one conversation and the ids that the cache holds for them. Per turn: `ask`, `take` (of what
    was asked for, or of what a transcript recorded), then `hear`."""

    def __init__(self, render: Render, tokens: Tokens, system: str) -> None:
        """Raises ModelError when the template cannot render a conversation at all."""
        self._render = render
        self._tokens = tokens
        self._system = system
        self._merged = _must_merge(render, system)
        self._messages: list[Message] = [] if self._merged else [{"role": "system", "content": system}]
        self._rendered = ""
        self._reply = ""
        self._reply_ids: list[int] = []
        self._canonical = array("q")

    @property
    def length(self) -> int:
        """How many ids the cache holds between turns."""
        return len(self._canonical)

    def ask(self, message: str) -> Chunk:
        """The chunk of the next user message. Changes nothing."""
        text = self._render([*self._messages, self._user(message)])
        so_far = self._rendered + self._reply
        ids: list[int] = []
        if self.length and text.startswith(so_far):
            ids = self._reply_ids + self._tokens.encode(text[len(so_far) :])
        elif self.length and text.startswith(self._rendered):
            ids = self._tokens.encode(text[len(self._rendered) :])
        if ids:
            return Chunk(0, ids, message, text)
        whole = self._tokens.encode(text)
        if not whole:
            raise CannotRender("the model's chat template renders a conversation as nothing")
        # The last id is always prefilled again: its logits are what the reply is sampled from.
        common = min(_common_prefix(self._canonical, whole), len(whole) - 1)
        return Chunk(self.length - common, whole[common:], message, text)

    def take(self, chunk: Chunk) -> None:
        """The chunk is in the cache now."""
        del self._canonical[self.length - chunk.cropped :]
        self._canonical.extend(chunk.ids)
        self._messages.append(self._user(chunk.message))
        self._rendered = chunk.rendered

    def hear(self, reply_ids: Sequence[int], reply: str) -> None:
        """The model's answer. It enters the cache with the next chunk, not before."""
        self._messages.append({"role": "assistant", "content": reply})
        self._reply_ids, self._reply = list(reply_ids), reply

    def _user(self, message: str) -> Message:
        first = self._merged and not self._messages
        return {"role": "user", "content": f"{self._system}\n\n{message}" if first else message}


def _must_merge(render: Render, system: str) -> bool:
    """True for a template without a system role (Gemma 2 refuses it; some drop it without a word): the system text
    then stands in front of the first user message."""
    question = {"role": "user", "content": "?"}
    try:
        if system.strip() in render([{"role": "system", "content": system}, question]):
            return False
    except CannotRender:
        pass
    render([{"role": "user", "content": f"{system}\n\n?"}, {"role": "assistant", "content": "!"}, question])
    return True


def end_of_turn(render: Render, tokens: Tokens) -> int | None:
    """The first id that the template puts behind a finished reply; a stop token, if it is a control token at all.

    Converted models do not always list it among their stop tokens, and would then talk on in the user's place.
    """
    mark = "overnight"
    question = {"role": "user", "content": "?"}
    try:
        text = render([question, {"role": "assistant", "content": mark}, question])
    except CannotRender:
        return None
    rest = text.rpartition(mark)[2].lstrip()
    return tokens.encode(rest)[0] if rest and mark in text else None


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    common = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        common += 1
    return common

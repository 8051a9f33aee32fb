"""One conversation on a loaded model: chunks in, sampled replies out, the cache canonical after every turn.

Import this in a warm server only: it imports torch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from overnight.engines import kv_cache, sampling
from overnight.engines.base import Stop, Turn
from overnight.engines.chat import Chunk, Conversation, Tokens
from overnight.errors import Diverged, ModelError

PIECE_TOKENS = 512
"""A longer chunk is prefilled in pieces of this size, counted from its start: it bounds the memory that one prefill
takes, and being counted so it is the same in every run."""


def digest(logits: torch.Tensor) -> str:
    """First 16 hex digits of SHA-256 over the logits as little-endian float32."""
    values = logits.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(memoryview(values)).hexdigest()[:16]


class Runner:
    """A model with one cache: prefill, step, crop."""

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._cache = kv_cache.make_cache(model.config)
        # Logits of all positions of a long prefill are hundreds of MiB; only the last position's are ever read.
        accepts = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._cache.get_seq_length())

    def forward(self, ids: Sequence[int]) -> torch.Tensor:
        """Append `ids` to the cache; the last position's logits, float32 on the CPU."""
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([list(ids)], device=self._device),
                past_key_values=self._cache,
                use_cache=True,
                **self._last_only,
            )
            logits: torch.Tensor = out.logits[0, -1]
            return logits.to("cpu", torch.float32)

    def prefill(self, ids: Sequence[int]) -> torch.Tensor:
        """`forward` in pieces."""
        for start in range(0, len(ids) - PIECE_TOKENS, PIECE_TOKENS):
            self.forward(ids[start : start + PIECE_TOKENS])
        return self.forward(ids[(len(ids) - 1) // PIECE_TOKENS * PIECE_TOKENS :])

    def crop_to(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        if (surplus := self.length - length) > 0:
            self._cache.crop(-surplus)

    def shrink(self) -> None:
        """Give the cache's spare room back."""
        for layer in self._cache.layers:
            if isinstance(layer, kv_cache.GrowingLayer):
                layer.shrink()


class TransformersSession:
    """Implements `engines.base.Session`."""

    def __init__(
        self,
        runner: Runner,
        conversation: Conversation,
        tokens: Tokens,
        *,
        how: sampling.Sampling,
        stop_ids: Collection[int],
        context_tokens: int,
    ) -> None:
        self.context_tokens = context_tokens
        self.safe_point: Callable[[], None] = lambda: None
        self._runner = runner
        self._conversation = conversation
        self._tokens = tokens
        self._how = how
        self._stop_ids = stop_ids
        self._asked: Chunk | None = None
        self._turn = 0
        self._decoding = False

    def prepare(self, message: str) -> int:
        self._asked = chunk = self._conversation.ask(message)
        return self._conversation.length - chunk.cropped + len(chunk.ids)

    def generate(self, *, token_limit: int, seed: int) -> Turn:
        chunk, self._asked = self._asked, None
        if chunk is None:
            raise ValueError("generate without prepare")
        self._turn += 1
        logits = self._prefill(chunk)
        prefill_digest = digest(logits)
        source = sampling.generator(seed)
        reply_ids: list[int] = []
        stop: Stop = "length"
        self._decoding = True
        while True:
            self.safe_point()
            token = sampling.pick(logits, self._how, source)
            if token in self._stop_ids:
                stop = "eos"
                break
            reply_ids.append(token)
            if len(reply_ids) >= token_limit:
                break  # the logits behind the last token are nobody's: no forward pass for it
            logits = self._runner.forward([token])
        self._decoding = False
        # What decoding wrote is not canonical: the reply enters the cache again as part of the next chunk.
        self._runner.crop_to(self._conversation.length)
        reply = self._tokens.decode(reply_ids)
        self._conversation.hear(reply_ids, reply)
        return Turn(
            input_ids=chunk.ids,
            cropped=chunk.cropped,
            reply_ids=reply_ids,
            reply=reply,
            stop=stop,
            prefill_digest=prefill_digest,
            decode_digest=digest(logits),
        )

    def replay(self, message: str, turn: Turn, *, check: bool = True) -> None:
        self._turn += 1
        chunk = self._conversation.ask(message)
        if check:
            # Equal prefill digests alone would not show a reply that was changed in the transcript's last turn, or
            # one that the next chunk does not hold (a template that drops thinking).
            self._same("the chunk", (turn.cropped, turn.input_ids), (chunk.cropped, chunk.ids))
            self._same("the reply's text", turn.reply, self._tokens.decode(turn.reply_ids))
        recorded = Chunk(turn.cropped, turn.input_ids, message, chunk.rendered)
        if not turn.input_ids or not 0 <= turn.cropped <= self._conversation.length:
            raise Diverged(f"turn {self._turn}: the recorded chunk does not fit the history before it")
        found = digest(self._prefill(recorded))
        if check:
            self._same("the prefill digest", turn.prefill_digest, found)
        self._conversation.hear(turn.reply_ids, turn.reply)

    def shrink(self) -> bool:
        if self._decoding:
            return False  # the very next token would make the room anew
        self._runner.shrink()
        return True

    def _prefill(self, chunk: Chunk) -> torch.Tensor:
        self._runner.crop_to(self._conversation.length - chunk.cropped)
        logits = self._runner.prefill(chunk.ids)
        self._conversation.take(chunk)
        return logits

    def _same(self, what: str, recorded: object, found: object) -> None:
        if recorded != found:
            raise Diverged(
                f"turn {self._turn}: replay gives another value for {what}: "
                f"{str(found)[:60]}, the transcript holds {str(recorded)[:60]}"
            )


def check_exact(model: Any, ids: Sequence[int]) -> None:
    """Rehearse the rule that resume stands on, on the loaded weights: prefill, decode, crop, prefill must give the
    logits of prefill, prefill. It is the warm-up too. `ids`: four or more. Raises ModelError."""
    first, second = list(ids[: len(ids) // 2]), list(ids[len(ids) // 2 :])
    disturbed, straight = Runner(model, "cpu"), Runner(model, "cpu")
    for runner in (disturbed, straight):
        runner.forward(first)
        if runner.length != len(first):
            raise ModelError(
                "the model does not keep its history in the cache it is given: it cannot be resumed exactly"
            )
    for token in second[:2]:
        disturbed.forward([token])
    disturbed.crop_to(len(first))
    if digest(disturbed.forward(second)) != digest(straight.forward(second)):
        raise ModelError("the model gives other logits after its cache was cropped: it cannot be resumed exactly")

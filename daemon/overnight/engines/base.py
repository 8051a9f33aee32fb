"""What an engine is: it loads a model once in a warm server and then produces turns in forked children.

The contract that makes resume exact: after `replay` of the turns 0..n-1 a session is in the same state as after
`prepare` + `generate` of the same turns, whatever interrupted it, so that turn n comes out the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Promise = Literal["exact", "continued"]
Stop = Literal["eos", "length"]


@dataclass(frozen=True)
class Turn:
    """One finished turn, as the transcript keeps it.

    input_ids: token ids prefilled for this turn (on top of what the cache still held after cropping).
    cropped: how many tokens were cropped off the canonical history before `input_ids` were prefilled.
    reply_ids: the sampled token ids, without the stop token.
    reply: their text.
    stop: `eos` when the model ended its reply, `length` when `token_limit` did.
    prefill_digest, decode_digest: hex digests of the last prefill logits and of the final decode logits.
    """

    input_ids: list[int]
    cropped: int
    reply_ids: list[int]
    reply: str
    stop: Stop
    prefill_digest: str
    decode_digest: str


class Session(Protocol):
    """One conversation, in one process. `prepare` then `generate`, or `replay`, once a turn, in order."""

    context_tokens: int
    """Size of the context window in tokens."""
    safe_point: Callable[[], None]
    """Called wherever `generate` could stand a `shrink` (between two tokens, say). The idle loop sets it; it does
    nothing before that."""

    def prepare(self, message: str) -> int:
        """Take the next user message and render the next chunk; returns how many tokens the context will hold
        once it is prefilled. Computes nothing on the model."""
        ...

    def generate(self, *, token_limit: int, seed: int) -> Turn:
        """Prefill what `prepare` rendered and sample a reply of at most `token_limit` tokens.

        `seed` (0 <= seed < 2**63) alone seeds the sampling of this turn."""
        ...

    def replay(self, message: str, turn: Turn, *, check: bool = True) -> None:
        """Bring the session to the state it had after `turn`, from the recorded ids, without sampling.

        Raises `Diverged` when `check` is set and the recomputed prefill digest differs."""
        ...

    def shrink(self) -> bool:
        """Let go of memory that can be had again: spare room, caches. Called between turns and from `safe_point`.

        False: not now, since it would be taken again at once; called again at every safe point until it is done, at
        the turn's end at the latest, where it must be. What the session computes must not change by it, not in one
        bit. Collecting and trimming is the caller's."""
        ...


class Engine(Protocol):
    """One loaded model. `load` runs in the warm server, `open` in each forked child."""

    name: str
    promise: Promise
    shrinks: bool
    """True when a cell handles SIGUSR1 by giving memory back; False: the signal's default action would kill it."""
    freezes: bool
    """False for a remote engine: stopping its cell frees nothing and breaks its connection."""

    def load(self) -> None:
        """Import, load, warm up. Raises `ModelError` with one clear line."""
        ...

    def conditions(self, *, threads: int) -> dict[str, Any]:
        """All that a transcript's bytes depend on besides the cell's specification: model fingerprint, engine
        and library versions, dtype, threads, CPU capability. JSON values only, the same at every start."""
        ...

    def open(self, spec: dict[str, Any], *, threads: int) -> Session:
        """Begin one cell's conversation (its system prompt is `spec["system"]`)."""
        ...


EngineFactory = Callable[[dict[str, Any], str], Engine]
"""(warm specification, path of the model store) -> Engine. See `engines/registry.py`."""

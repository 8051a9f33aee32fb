"""A deterministic engine without a model, for dry runs (`--engine scripted`) and for tests.

It behaves like an exact engine in all that the rest of Overnight can see: token ids, a context window, digests that
depend on the whole history, so that a wrong replay is found out. Settings (`options` of the model):

    reply_tokens    int or [low, high]: length of a reply in tokens (default [5, 40])
    delay_s         seconds that a turn takes (default 0)
    grow_bytes      bytes of touched memory that each new turn keeps (default 0), to be a leak on purpose
    cache_bytes     bytes of touched memory that a session keeps as a cache, filled again at each new turn (default 0);
                    a shrink drops it
    spike_at_turn   the turn (from 1) that touches spike_bytes for a moment, and lets go of them
    fail_at_turn    the turn (from 1) that fails, with fail_kind: error | memory | exit | hang (default error)
    repeat_from     the turn (from 2) from which on each reply is that of the turn before it
    load_s          seconds that loading takes (default 0)
    context_tokens  size of the context window (default 100000)
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import time
from collections.abc import Callable
from typing import Any

from overnight.engines.base import Promise, Turn
from overnight.errors import Diverged, ExperimentFailed

_WORDS = (
    *("night", "lamp", "quiet", "hour", "window", "rain", "clock", "thought", "paper", "tide", "stone", "letter"),
    *("garden", "slow", "bright", "road", "count", "breath", "memory", "winter", "river", "signal", "cloud"),
    *("morning", "drift", "ember", "harbour", "question", "answer", "pause"),
)
_REVISION = 1
"""Raised whenever the same seed would give other replies."""
_PAGE = mmap.PAGESIZE
_STEP_S = 0.1


class ScriptedEngine:
    """Implements `engines.base.Engine` with arithmetic."""

    name = "scripted"
    promise: Promise = "exact"
    shrinks = True
    freezes = True

    def __init__(self, warm: dict[str, Any], store: str) -> None:
        del store  # nothing is loaded from a model store
        self._options: dict[str, Any] = warm["options"]

    def load(self) -> None:
        time.sleep(float(self._options.get("load_s", 0.0)))

    def conditions(self, *, threads: int) -> dict[str, Any]:
        return {"engine": "scripted", "revision": _REVISION, "threads": threads}

    def open(self, spec: dict[str, Any], *, threads: int) -> ScriptedSession:
        del threads
        return ScriptedSession(spec["system"], self._options)


class ScriptedSession:
    """Implements `engines.base.Session`: the state is a hash over everything that was 'prefilled'."""

    def __init__(self, system: str, options: dict[str, Any]) -> None:
        self.context_tokens = int(options.get("context_tokens", 100_000))
        self.safe_point: Callable[[], None] = lambda: None
        self._options = options
        self._state = hashlib.sha256(b"scripted")
        self._length = 0
        self._turn = 0
        self._lead = _encode(system)  # what the next chunk begins with: the system prompt, then the last reply
        self._chunk: list[int] = []
        self._kept: list[bytearray] = []
        self._cache: mmap.mmap | None = None

    def prepare(self, message: str) -> int:
        self._chunk = [*self._lead, *_encode(message)]
        return self._length + len(self._chunk)

    def generate(self, *, token_limit: int, seed: int) -> Turn:
        self._turn += 1
        self._fill_cache()
        self._maybe_fail()
        prefill = self._prefill(self._chunk)
        rng = random.Random(f"{seed}:{prefill}")  # noqa: S311 - a script, not a secret
        if self._repeats():
            wanted, reply = len(self._lead), self._lead
        else:
            wanted = self._reply_length(rng)
            reply = [rng.randrange(len(_WORDS)) for _ in range(min(wanted, token_limit))]
        self._misbehave()
        self._lead = reply
        return Turn(
            input_ids=self._chunk,
            cropped=0,
            reply_ids=reply,
            reply=" ".join(_WORDS[token] for token in reply),
            stop="eos" if wanted <= token_limit else "length",
            prefill_digest=prefill,
            decode_digest=hashlib.sha256(f"{prefill}:{reply}".encode()).hexdigest()[:16],
        )

    def replay(self, message: str, turn: Turn, *, check: bool = True) -> None:
        del message
        self._turn += 1
        digest = self._prefill(turn.input_ids)
        if check and digest != turn.prefill_digest:
            raise Diverged(
                f"turn {self._turn}: replay gives the digest {digest}, the transcript holds {turn.prefill_digest}"
            )
        self._lead = turn.reply_ids

    def shrink(self) -> bool:
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        return True

    def _fill_cache(self) -> None:
        size = int(self._options.get("cache_bytes", 0))
        if size and self._cache is None:
            # A mapping of its own, so that closing it gives every page back, whatever else the heap holds.
            self._cache = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._cache[::_PAGE] = b"\1" * len(range(0, size, _PAGE))

    def _prefill(self, chunk: list[int]) -> str:
        self._length += len(chunk)
        self._state.update(repr(chunk).encode())
        return self._state.hexdigest()[:16]

    def _reply_length(self, rng: random.Random) -> int:
        wanted = self._options.get("reply_tokens", (5, 40))
        return int(wanted) if isinstance(wanted, int) else rng.randint(int(wanted[0]), int(wanted[1]))

    def _repeats(self) -> bool:
        since = self._options.get("repeat_from")
        return since is not None and self._turn >= max(2, int(since))

    def _misbehave(self) -> None:
        self._pass(float(self._options.get("delay_s", 0.0)))
        if self._turn == self._options.get("spike_at_turn") and (spike := int(self._options.get("spike_bytes", 0))):
            with mmap.mmap(-1, spike, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as touched:
                touched[::_PAGE] = b"\1" * len(range(0, spike, _PAGE))
        if grow := int(self._options.get("grow_bytes", 0)):
            block = bytearray(grow)
            block[::_PAGE] = b"\1" * len(range(0, grow, _PAGE))  # touch every page: untouched memory costs nothing
            self._kept.append(block)

    def _pass(self, delay_s: float) -> None:
        """The time that a turn takes, in steps like a model's tokens."""
        end = time.monotonic() + delay_s
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, _STEP_S))
            self.safe_point()

    def _maybe_fail(self) -> None:
        if self._turn != self._options.get("fail_at_turn"):
            return
        kind = self._options.get("fail_kind", "error")
        if kind == "memory":
            raise MemoryError
        if kind == "exit":
            os._exit(3)
        while kind == "hang":
            time.sleep(3600)
        raise ExperimentFailed(f"the script fails at turn {self._turn}")


def _encode(text: str) -> list[int]:
    """Stable pseudo-tokens of a text, one a word."""
    return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") for word in text.split()]

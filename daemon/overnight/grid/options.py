"""What `options` of a model may hold, engine by engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from overnight.grid.fields import ContextTokens, LengthOrRange, Seconds, Section, SizeBytes, Turn


class TransformersOptions(Section):
    """The transformers engine has no options yet."""


class ScriptedOptions(Section):
    """Settings of the scripted engine; see `engines/scripted.py`."""

    reply_tokens: LengthOrRange = Field(default_factory=lambda: [5, 40])
    delay_s: Seconds = 0.0
    load_s: Seconds = 0.0
    grow_bytes: SizeBytes = 0
    cache_bytes: SizeBytes = 0
    spike_at_turn: Turn = None
    spike_bytes: SizeBytes = 0
    fail_at_turn: Turn = None
    fail_kind: Annotated[
        Literal["error", "memory", "exit", "hang"], Field(description="one of error, memory, exit, hang")
    ] = "error"
    repeat_from: Turn = None
    context_tokens: ContextTokens = 100_000


OPTIONS: dict[str, type[Section]] = {"transformers": TransformersOptions, "scripted": ScriptedOptions}
"""Engine -> its options."""

"""Choosing one token from a vector of logits, by a definition that can be checked by hand.

    temperature 0   the first of the largest logits
    else            p = softmax((logits - largest) / temperature), in float32
    top_k           only ids whose p is at least the k-th largest (ties stay); 0 = off
    top_p           of what top_k left, scaled to sum 1, only ids whose p is at least that of the last member of the
                    smallest set of most probable ids with a sum >= top_p (ties stay); 1.0 = off
    the draw        u uniform in [0, 1) from the turn's generator; the first id whose cumulated p exceeds u

Everything is on the CPU, and the draw takes one number a token, so that a seed means the same on every device.
Import this in a warm server only: it imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from overnight.errors import ExperimentFailed

_FIRST_LOOK = 512
"""Sorting a whole vocabulary takes milliseconds; nearly always the nucleus is among this many ids."""


@dataclass(frozen=True)
class Sampling:
    """How a cell samples. See the module's docstring for the meaning of 0 and 1."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Sampling:
        return cls(float(spec["temperature"]), float(spec.get("top_p", 1.0)), int(spec.get("top_k", 0)))


def generator(seed: int) -> torch.Generator:
    """The source of a turn's draws. 0 <= seed < 2**63."""
    made = torch.Generator(device="cpu")
    made.manual_seed(seed)
    return made


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """p of every id (float32 logits, shape (vocabulary,)), before the draw. `sampling.temperature` > 0."""
    # The largest is taken off first, so that a tiny temperature gives 0 and -inf and not inf.
    p = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
    if 0 < sampling.top_k < len(p):
        p = p.where(p >= torch.topk(p, sampling.top_k).values[-1], 0.0)
    if sampling.top_p < 1.0:
        p = p.where(p >= _nucleus_edge(p, sampling.top_p), 0.0)
    return p


def _nucleus_edge(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """The p of the least probable member of the nucleus."""
    wanted = top_p * p.sum(dtype=torch.float64)
    look = min(_FIRST_LOOK, len(p))
    while True:
        largest = torch.topk(p, look).values
        cumulated = largest.cumsum(0, dtype=torch.float64)
        if cumulated[-1] >= wanted or look == len(p):
            # Rounding may leave the sum of all a hair below `wanted`: then everything is the nucleus.
            member = min(int(torch.searchsorted(cumulated, wanted)), look - 1)
            return largest[member]
        look = min(look * 8, len(p))


def pick(logits: torch.Tensor, sampling: Sampling, source: torch.Generator) -> int:
    """One id. `logits`: float32 on the CPU, shape (vocabulary,). Raises ExperimentFailed when they are no numbers."""
    if not torch.isfinite(logits.max()):
        raise ExperimentFailed("the model's logits are not finite numbers (float16 overflows in many models)")
    if sampling.temperature <= 0.0:
        return int(torch.argmax(logits))
    cumulated = probabilities(logits, sampling).cumsum(0, dtype=torch.float64)
    u = torch.rand(1, generator=source, dtype=torch.float64) * cumulated[-1]
    chosen = int(torch.searchsorted(cumulated, u, right=True))
    # u * sum may round up to the sum itself: then it is the last id with any probability.
    last = int(torch.searchsorted(cumulated, cumulated[-1:]))
    return min(chosen, last)

"""Pure: how much memory a cell is taken to need beside its warm server, and how that is known.

    raised     the last attempt met its cap or was killed for want of memory: more than that
    learned    cells of its very kind have ended: a high quantile of their peaks
    hint       the grid's own `memory:`
    family     cells like it have ended: their largest peak
    predicted  arithmetic on the model's config (`predict.py`)
    prior      [memory] prior: nothing is known

The first that there is counts. Peaks are private anonymous and shared memory as sampled while a cell ran.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from overnight import figures
from overnight.durable import canonical

MOST_SAMPLES = 32
FEW_SAMPLES = 20
"""Below this a 95 % quantile is the maximum anyway, and is taken as such."""
QUANTILE = 0.95
MARGIN, SMALLEST_MARGIN_BYTES = 0.05, 8 * 2**20
"""Between two runs of one cell peaks differ by the sampling and by the allocator."""
FAMILY_MARGIN = 0.10
GROW_BY = 1.5
GROW_MARGIN, SMALLEST_GROW_BYTES = 0.10, 16 * 2**20
CAP_LEAST_BYTES = 64 * 2**20
REFUTED_AFTER = 3
"""So many cells that ended whole later than a cut-off one show that its peak was its own, not its kind's."""

Source = Literal["raised", "learned", "hint", "family", "predicted", "prior"]
_MODEL = ("source", "dtype", "device", "options")
_NO_AXES = frozenset({"seed", "run"})
"""Coordinates that make another sample of a cell, no other kind of cell."""


class Peak(Protocol):
    """One measured peak. whole: the attempt ran to its end; otherwise the peak is a lower bound."""

    @property
    def peak_bytes(self) -> int: ...
    @property
    def whole(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and where it comes from. samples: peaks behind it; basis_bytes: the figure before margins and bounds;
    bounded: it was cut down to all that a cell can have."""

    bytes: int
    source: Source
    samples: int = 0
    basis_bytes: int = 0
    bounded: bool = False

    def sentence(self) -> str:
        """For people."""
        basis = figures.size(self.basis_bytes)
        how = {
            "raised": "raised, since the last attempt ran out of memory",
            "learned": f"learned from {_many(self.samples)} of its kind, which took up to {basis}",
            "hint": f"the grid says memory: {basis}",
            "family": f"learned from {_many(self.samples)} like it, which took up to {basis}",
            "predicted": f"predicted from the model's config: {basis}",
            "prior": "nothing is known yet: the configured prior",
        }[self.source]
        bound = "; cut down to all that one cell can have" if self.bounded else ""
        if self.source == "family" and self.bytes > _with(self.basis_bytes, FAMILY_MARGIN, SMALLEST_GROW_BYTES):
            bound = ", but no less than the configured prior"
        return f"{figures.size(self.bytes)} ({how}{bound})"


def _many(samples: int) -> str:
    return f"{samples} attempt{'s' if samples != 1 else ''}"


def kind(spec: Mapping[str, Any]) -> str:
    """Cells of one kind are taken to need the same: 16 hex digits over all that a cell's memory depends on."""
    if spec.get("kind") == "command":
        coords = {name: value for name, value in spec["coords"].items() if name not in _NO_AXES}
        return _hash({**_command(spec), "coords": coords})
    scaffold = spec.get("scaffold") or {}
    return _hash({**_idle_loop(spec), "scaffold": [scaffold.get("id"), scaffold.get("name")]})


def family(spec: Mapping[str, Any]) -> str:
    """Cells of one family are like each other: the same model under another scaffold, the same command under other
    parameters. 16 hex digits."""
    return _hash(_command(spec) if spec.get("kind") == "command" else _idle_loop(spec))


def _command(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = ("kind", "command", "shell", "env", "cwd", "threads")
    return {name: spec.get(name) for name in names}


def _idle_loop(spec: Mapping[str, Any]) -> dict[str, Any]:
    model = spec.get("model") or {}
    names = ("kind", "engine", "limits", "threads")
    return {**{name: spec.get(name) for name in names}, "model": {name: model.get(name) for name in _MODEL}}


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def claim(
    peaks: Sequence[Peak],
    family_peaks: Sequence[Peak] = (),
    *,
    raised: int | None,
    hint: int | None,
    predicted: int | None,
    prior: int,
    most: int,
) -> Claim:
    """The claim of a cell's next attempt.

    peaks, family_peaks: newest first. raised: what `grown` gave after the last attempt. most: all that a cell can
    have beside its warm server; no claim is larger.
    """
    found = _known(peaks, family_peaks, hint=hint, predicted=predicted, prior=prior)
    if raised is not None and raised >= found.bytes:
        found = Claim(raised, "raised", basis_bytes=raised)
    bound = max(most, 0)
    if found.bytes <= bound:
        return found
    return Claim(bound, found.source, found.samples, found.basis_bytes, bounded=True)


def _known(
    peaks: Sequence[Peak], family_peaks: Sequence[Peak], *, hint: int | None, predicted: int | None, prior: int
) -> Claim:
    samples = _samples(peaks[:MOST_SAMPLES])
    if any(each.whole for each in peaks[:MOST_SAMPLES]):
        basis = _quantile(samples)
        return Claim(_with(basis, MARGIN, SMALLEST_MARGIN_BYTES), "learned", len(samples), basis)
    like_it = _samples(family_peaks[:MOST_SAMPLES])
    if hint is not None:
        found = Claim(hint, "hint", basis_bytes=hint)
    elif any(each.whole for each in family_peaks[:MOST_SAMPLES]):
        likely = _with(max(like_it), FAMILY_MARGIN, SMALLEST_GROW_BYTES)
        # A command's size may well be what its axes are about; being killed again and again costs more than some room.
        likely = likely if predicted is not None else max(likely, prior)
        found = Claim(likely, "family", len(like_it), max(like_it))
    elif predicted is not None:
        found = Claim(predicted, "predicted", basis_bytes=predicted)
    else:
        found = Claim(prior, "prior", basis_bytes=prior)
    least = _with(max(samples), MARGIN, SMALLEST_MARGIN_BYTES) if samples else 0
    if least > found.bytes:  # nobody of its kind has ended, but somebody was seen with more than that
        return Claim(least, "learned", len(samples), max(samples))
    return found


def _samples(peaks: Sequence[Peak]) -> list[int]:
    """The peaks that tell something. Those of cut-off attempts are lower bounds: they count only above all whole ones,
    and only until enough whole ones have come after them."""
    whole = [each.peak_bytes for each in peaks if each.whole]
    highest = max(whole, default=0)
    found, later = list(whole), 0
    for each in peaks:
        if each.whole:
            later += 1
        elif later < REFUTED_AFTER and each.peak_bytes > highest:
            found.append(each.peak_bytes)
    return found


def _quantile(samples: Sequence[int]) -> int:
    ordered = sorted(samples)
    if len(ordered) < FEW_SAMPLES:
        return ordered[-1]
    return ordered[math.ceil(QUANTILE * len(ordered)) - 1]


def _with(basis: int, share: float, least: int) -> int:
    return basis + max(int(basis * share), least)


def cap(claim_bytes: int, most: int) -> int:
    """What a cell with this claim may not pass; `most`: all that one cell can have. A claim is what will probably do;
    between it and the cap there is time to see that it does not, and to extend it."""
    return max(claim_bytes, min(most, claim_bytes + max(claim_bytes // 2, CAP_LEAST_BYTES)))


def grown(claim_bytes: int, peak_bytes: int, most: int) -> int:
    """The next claim of a cell that ran out of memory; `most` at most."""
    return min(most, max(int(GROW_BY * claim_bytes), _with(peak_bytes, GROW_MARGIN, SMALLEST_GROW_BYTES)))

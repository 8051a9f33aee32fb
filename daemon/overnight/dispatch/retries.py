"""Pure: what the end of an attempt means for the cell's next one: when, with what claim, alone or not, or never again.

    over_cap, oom_killed    a larger claim at once; at the largest that there is: quarantined, it cannot fit
    evicted                 again; twice without a new turn: alone; evicted alone: by its own size it is quarantined,
                            by others' memory it waits
    failed, timed_out       exponential backoff with jitter
    yielded, lost           again; slower and slower while nothing comes of it

Whoever finished a turn goes on, whatever it met: the next attempt begins with fresh memory. Why it comes to an end all
the same: turns are finite, claims grow by half each time and have a bound, and a cell that is alone either completes,
meets the largest cap, or was pushed out by memory that is not ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from overnight import figures
from overnight.dispatch import claims

LONGEST_RETRY_S = 3600.0
LONGEST_WAIT_S = 60.0
EVICTIONS_TO_ALONE = 2
LOADS_MOST = 5
KILLED_MOST = 5
"""Somebody who kills a command, and nothing but the command, so often in a row is part of the experiment
(`timeout -s KILL`, a limit of its own)."""
JITTER = 0.25
"""Cells that failed together, by a full disk say, do not all come back together."""
_WORTH_SHARE, _WORTH_BYTES = 32, 8 * 2**20
"""A cap that lacks less than this part, or these bytes, of the largest possible is as good as that."""
_WAITED_OUT = 3
"""Interruptions in a row without a new turn before a cell is slowed down."""
_SHORT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Consequence:
    """delay_s: before the next attempt. raised_claim_bytes, alone: new values for the cell, None = as they are.
    quarantine: it cannot be run here; failed: it counts as the experiment's own failure after all; with reason_code and
    reason, which take the place of the verdict's."""

    delay_s: float = 0.0
    raised_claim_bytes: int | None = None
    alone: bool | None = None
    quarantine: bool = False
    failed: bool = False
    reason_code: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Attempted:
    """What the attempt had. claim_bytes: with what extensions added; cap_bytes: None when nothing capped it;
    peak_bytes: None when nobody saw; server_bytes, most_bytes: its warm server and `View.most_bytes` at its end, as
    the next attempt will find them, not as predicted before the server was loaded. alone: `Decision.alone`."""

    claim_bytes: int
    server_bytes: int
    most_bytes: int
    peak_bytes: int | None = None
    cap_bytes: int | None = None
    alone: bool = False

    @property
    def largest_bytes(self) -> int:
        """The largest cap that a cell can have beside its warm server."""
        return max(0, self.most_bytes - self.server_bytes)

    @property
    def had_bytes(self) -> int:
        return self.claim_bytes if self.cap_bytes is None else self.cap_bytes

    @property
    def had_all(self) -> bool:
        """Was its cap as large as there can be?"""
        return self.had_bytes >= self.largest_bytes - max(self.largest_bytes // _WORTH_SHARE, _WORTH_BYTES)

    @property
    def too_large(self) -> bool:
        """Does what it took by itself, with its warm server, exceed what there can be for it?"""
        return (self.peak_bytes or 0) + self.server_bytes > self.most_bytes


def consequence(
    outcome: str,
    *,
    attempted: Attempted,
    evictions: int,
    tries_used: int,
    interrupted: int,
    retry_delay_s: float,
    no_space_delay_s: float,
    reason_code: str = "",
    told: bool = False,
    chance: float = 0.5,
) -> Consequence:
    """told: its runner lives and said so: nothing of ours had died. evictions, interrupted: of these in a row without a
    new turn, this one included. interrupted is 0 when this one finished one. tries_used: before this one. chance: 0
    to 1, at random."""
    stuck = interrupted > 0
    match outcome:
        case "failed" | "timed_out":
            return Consequence(_failed_s(retry_delay_s, tries_used, chance))
        case "over_cap" if reason_code == "model_memory":  # no larger claim of the cell's would help
            return _model_cannot_load(attempted) if interrupted >= LOADS_MOST else Consequence(_slowed_s(interrupted))
        case "over_cap":
            if stuck and attempted.had_all:
                return _cannot_fit(attempted)
            return Consequence(0.0, _grown(attempted))
        case "oom_killed":
            if stuck and attempted.had_all and attempted.too_large:
                return _cannot_fit(attempted)
            return Consequence(_slowed_s(interrupted), _grown(attempted))
        case "evicted":
            return _evicted(attempted, evictions, interrupted)
        case "yielded" if reason_code in ("no_space", "disk_error"):
            return Consequence(no_space_delay_s)
        case "yielded" if reason_code == "transcript_locked":
            return Consequence(_SHORT_WAIT_S)
        case "lost" if reason_code == "killed" and told and interrupted >= KILLED_MOST:
            return Consequence(
                _failed_s(retry_delay_s, tries_used, chance),
                failed=True,
                reason_code="killed_repeated",
                reason=f"it was killed by a signal {interrupted} times in a row; who does that is not ours",
            )
        case "lost":
            return Consequence(_slowed_s(interrupted))
        case "yielded" if reason_code == "put_back":
            return Consequence(_slowed_s(interrupted))
    return Consequence()


def _failed_s(retry_delay_s: float, tries_used: int, chance: float) -> float:
    wait_s = retry_delay_s * 2.0 ** min(max(0, tries_used), 40)
    return min(LONGEST_RETRY_S, wait_s) * (1 - JITTER + 2 * JITTER * chance)


def _evicted(attempted: Attempted, evictions: int, interrupted: int) -> Consequence:
    if attempted.alone and attempted.too_large and interrupted > 0:
        return _cannot_fit(attempted)
    if attempted.alone and interrupted > 0:
        # Others' memory was the cause: it stays alone, and waits until they have gone.
        return Consequence(_slowed_s(max(interrupted, _WAITED_OUT)), alone=True)
    alone = True if evictions >= EVICTIONS_TO_ALONE else None
    return Consequence(_slowed_s(interrupted), alone=alone)


def _slowed_s(interrupted: int) -> float:
    """A cell that is killed again and again before it finishes a turn must not keep the machine busy with nothing
    else."""
    if interrupted < _WAITED_OUT:
        return 0.0
    return min(LONGEST_WAIT_S, 2.0 ** min(interrupted - _WAITED_OUT, 10))


def _grown(attempted: Attempted) -> int:
    return claims.grown(attempted.claim_bytes, attempted.peak_bytes or 0, attempted.largest_bytes)


def _model_cannot_load(attempted: Attempted) -> Consequence:
    reason = (
        f"loading its model met a memory limit {LOADS_MOST} times in a row, the limit is "
        f"{figures.size(attempted.most_bytes)} (the memory limit less its reserve); give it more memory or take a "
        "smaller model or dtype, then `overnight retry`"
    )
    return Consequence(quarantine=True, reason_code="too_large", reason=reason)


def _cannot_fit(attempted: Attempted) -> Consequence:
    own = max(attempted.peak_bytes or 0, min(attempted.had_bytes, attempted.largest_bytes))
    server = f" with its warm server of {_mib(attempted.server_bytes)}" if attempted.server_bytes else ""
    needed = max(own + attempted.server_bytes, attempted.most_bytes + 2**20)  # with all there is it did not do
    reason = (
        f"needs at least {_mib(needed)}{server}, the limit is "
        f"{_mib(attempted.most_bytes)} (the memory limit less its reserve); give it more memory or make it "
        "smaller, then `overnight retry`"
    )
    return Consequence(quarantine=True, reason_code="too_large", reason=reason)


def _mib(size_bytes: int) -> str:
    """Two figures that differ must not read alike: rounded up, to the MiB."""
    return f"{-(-size_bytes // 2**20)} MiB"

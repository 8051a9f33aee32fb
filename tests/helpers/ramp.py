"""One leak at a steady rate against one watchdog: run it, and say what happened when, in seconds and bytes."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from helpers.arena import MIB, Arena, Workload, crossed_s
from helpers.leak import Entry
from helpers.waiting import until
from overnight_watchdog.assess import Thresholds

END_DEADLINE_S = 30.0
PAUSE_S = 0.2
"""No record for so long: it did not run. A fill that only waits for the processor never pauses so long."""


@dataclass(frozen=True)
class Ramp:
    """What one leak did. Moments are relative to the breach: when headroom fell to where evicting begins.

    decided_s: first verdict record about it. ended_s: last time that it grew. gone_s: it had given its memory back.
    All may be negative (the forecast was quicker than the threshold) and None (it never came to that).
    """

    rate_mib_s: float
    limit_bytes: int
    freezes: bool
    measured_mib_s: float
    headroom_bytes: int
    oom_kills: int
    limit_hits: int
    least_headroom_bytes: int
    steps: tuple[str, ...]
    triggers: tuple[str, ...]
    frozen_s: float | None
    decided_s: float | None
    ended_s: float | None
    gone_s: float | None
    status: int

    @property
    def survived(self) -> bool:
        """The kernel killed nobody."""
        return self.oom_kills == 0

    @property
    def sample_s(self) -> float | None:
        """From the breach to the decision, or to the end of its growth where that came first: one that stands still,
        frozen just before the breach, takes nothing while it is not decided upon."""
        if self.decided_s is None or self.ended_s is None:
            return None
        return max(0.0, min(self.decided_s, self.ended_s))

    @property
    def kill_s(self) -> float | None:
        """From the decision to the end of its growth (a frozen one had ended before)."""
        if self.decided_s is None or self.ended_s is None:
            return None
        return max(0.0, self.ended_s - self.decided_s)

    @property
    def reap_s(self) -> float | None:
        """From the end of its growth, or the decision when it was frozen by then, until its memory was back."""
        if self.decided_s is None or self.ended_s is None or self.gone_s is None:
            return None
        return self.gone_s - max(self.ended_s, self.decided_s)

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"sample_s": self.sample_s, "kill_s": self.kill_s, "reap_s": self.reap_s}


def run_ramp(arena: Arena, rate_mib_s: float, *, prefill_bytes: int = 0, freezes: bool = True) -> Ramp:
    """A leak that begins at `prefill_bytes` (there before the watchdog looks) and grows until somebody ends it."""
    leak = arena.leak("--prefill", prefill_bytes, "ramp", rate_mib_s, freezes=freezes)
    files = arena.cgroup.file_bytes()
    arena.watch()
    leak.go()
    limit = arena.cgroup.limit_bytes
    leak.wait((limit - prefill_bytes) / MIB / rate_mib_s + END_DEADLINE_S)
    if arena.verdicts(leak):
        until(lambda: arena.events("victim_gone"), END_DEADLINE_S, "the log's word that the victim is gone")
    return judged(arena, leak, rate_mib_s, file_bytes=files, freezes=freezes)


def judged(arena: Arena, leak: Workload, rate_mib_s: float, *, file_bytes: int, freezes: bool) -> Ramp:
    """The figures, from the leak's own log, the ring and the kernel's counters, after its end."""
    entries, limit = leak.entries(), arena.cgroup.limit_bytes
    headroom = round(limit * Thresholds().evict_falling_percent / 100)
    breach = crossed_s(entries, limit - headroom + file_bytes)
    if breach is None:  # it never came that far: it would have been there at this moment
        last = entries[-1]
        breach = last.monotonic_s + (limit - headroom + file_bytes - last.charged_bytes) / (rate_mib_s * MIB)
    verdicts = arena.verdicts(leak)

    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - breach

    return Ramp(
        rate_mib_s=rate_mib_s,
        limit_bytes=limit,
        freezes=freezes,
        measured_mib_s=pace(entries),
        headroom_bytes=headroom,
        oom_kills=arena.cgroup.oom_kills(),
        limit_hits=arena.cgroup.limit_hits(),
        least_headroom_bytes=limit - max(entry.charged_bytes for entry in entries) + file_bytes,
        steps=tuple(record["step"] for record in verdicts),
        triggers=tuple(record["trigger"] for record in verdicts),
        frozen_s=since(first_pause_s(entries)),
        decided_s=since(verdicts[0]["monotonic_s"]) if verdicts else None,
        ended_s=since(entries[-1].monotonic_s),
        gone_s=since(leak.died_s),
        status=leak.status(),
    )


def pace(entries: Sequence[Entry]) -> float:
    """MiB/s while it ran, pauses left out; the gate and what the kernel made it wait for are pauses."""
    held, seconds = 0, 0.0
    for before, after in itertools.pairwise(entries[1:]):
        if after.monotonic_s - before.monotonic_s < PAUSE_S:
            held += after.held_bytes - before.held_bytes
            seconds += after.monotonic_s - before.monotonic_s
    return held / MIB / seconds if seconds else 0.0


def first_pause_s(entries: Sequence[Entry]) -> float | None:
    """When it first stopped running for a while after it had begun; None if it never did."""
    for before, after in itertools.pairwise(entries[1:]):
        if after.monotonic_s - before.monotonic_s >= PAUSE_S:
            return before.monotonic_s
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: with few values the 99th percentile is the largest."""
    ordered = sorted(values)
    ranks = [(place + 1) / len(ordered) for place in range(len(ordered))]
    return ordered[min(len(ordered) - 1, bisect_left(ranks, share - 1e-9))]

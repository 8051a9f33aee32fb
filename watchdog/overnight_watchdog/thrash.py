"""Memory that thrashes is gone, although the counters call it free. Pure.

Weights that are mapped from a file and do not fit are read from the disk again and again: nothing is short, nobody is
killed, and nothing gets done. What shows it is (1) refaults: pages that come back soon after they were thrown out, and
(2) the time that somebody stood still for memory (PSI). *Measured*, 400 MiB of mapped weights in 256 MiB: the limit is
read again 5 to 8 times a second on a fast disk, with 17 to 20 % of the time lost; a program that reads a file larger
than its memory slowly refaults 0.4 times the limit a second and loses 1 %.

Cells have caps below the limit, which their page cache meets too, and one that thrashes under its cap raises the very
counters of the limit. *Measured*: with 2.0 of 2.0 GiB free a cell that had mapped 480 MiB under a cap of 27 MiB looked
like that. So what a cell reads again at its own cap is not counted (`OwnCgroup.refaulted_at_cap`). Headroom does not
tell the two apart: of 230 MiB of weights that thrash in 256 MiB, 10 are mapped at a time, and the rest looks free.
"""

from __future__ import annotations

from dataclasses import dataclass

from overnight_watchdog.assess import Level
from overnight_watchdog.tree import PAGE_BYTES

SAMPLE_S = 1.0
"""At most once in this time; a counter that is read more often says less."""


@dataclass(frozen=True, slots=True)
class ThrashLimits:
    """refault_per_s: share of the limit that is read again in a second. stall: share of the time lost.

    Both together are thrashing; where nobody measures stalls, refaults alone have to be twice as many. It is named
    after `named_s`, and somebody is taken out after `evict_s`: the cheapest of several, so that the others
    can go on. One that is alone hurts only itself: it has to lose `alone_stall` of its time, or to read the whole
    limit `alone_refault_per_s` times a second.
    """

    refault_per_s: float = 0.1
    stall: float = 0.1
    named_s: float = 3.0
    evict_s: float = 10.0
    alone_stall: float = 0.4
    alone_refault_per_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Thrashing:
    """What was found at the last look. `since_s`: when it began, None while nothing thrashes."""

    refault_per_s: float = 0.0
    stall: float | None = None
    since_s: float | None = None


class ThrashWatch:
    """Remembers two counters from one second to the next."""

    def __init__(self, limits: ThrashLimits | None = None) -> None:
        self.limits = ThrashLimits() if limits is None else limits
        self.found = Thrashing()
        self._last: tuple[float, int | None, int | None, int] | None = None

    def due(self, now_s: float) -> bool:
        return self._last is None or now_s - self._last[0] >= SAMPLE_S

    def add(self, now_s: float, refaulted_pages: int | None, stalled_us: int | None, limit_bytes: int) -> None:
        """stalled_us: PSI's total of `some`, None where there is no PSI; refaulted_pages: None where nobody counts.

        Another limit has counters of its own: what they showed together with the old one's would mean nothing."""
        last = self._last
        self._last = (now_s, refaulted_pages, stalled_us, limit_bytes)
        if last is None or now_s <= last[0] or limit_bytes != last[3]:
            self.found = Thrashing()
            return
        if refaulted_pages is None or last[1] is None or refaulted_pages < last[1]:
            self.found = Thrashing()
            return
        seconds = now_s - last[0]
        refault = (refaulted_pages - last[1]) * PAGE_BYTES / seconds / limit_bytes
        stall = None if stalled_us is None or last[2] is None else (stalled_us - last[2]) / 1e6 / seconds
        since = self.found.since_s if self.found.since_s is not None else last[0]
        self.found = Thrashing(refault, stall, since if self._thrashes(refault, stall) else None)

    def forget(self) -> None:
        """Somebody is gone: whether it goes on without him is to be seen, and takes its time again."""
        self.found = Thrashing()

    def level(self, now_s: float, candidates: int) -> Level:
        """What it asks for: shrink (and so hold) once it is named, evict when it goes on."""
        since = self.found.since_s
        if since is None or now_s - since < self.limits.named_s:
            return Level.OK
        if now_s - since < self.limits.evict_s or not candidates:
            return Level.SHRINK
        return Level.EVICT if candidates > 1 or self._unbearable() else Level.SHRINK

    def _thrashes(self, refault: float, stall: float | None) -> bool:
        if stall is None:
            return refault >= 2 * self.limits.refault_per_s
        return refault >= self.limits.refault_per_s and stall >= self.limits.stall

    def _unbearable(self) -> bool:
        found = self.found
        if found.stall is not None and found.stall >= self.limits.alone_stall:
            return True
        return found.refault_per_s >= self.limits.alone_refault_per_s

"""What may begin next, with which claim and cap: gathers what the pure parts (`claims`, `admission`) look at.

limit      what bounds us: the watchdog's word, else what we find ourselves
claim      what a cell is expected to need, from its peaks so far, a hint, a prediction
choose     the next cell, if any may begin
extensions running cells that near their cap while there is room
loosenings running cells whose cap throws out what they read again
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from overnight.config import Config
from overnight.dispatch import admission, claims, predict
from overnight.dispatch.admission import EXTEND_FROM, Decision, Passed, Running, Server, View, Wanted
from overnight.dispatch.attempt import Attempt, Grant
from overnight.dispatch.claims import Claim
from overnight.dispatch.crew import Crew
from overnight.dispatch.guardian import Guardian
from overnight.dispatch.pressure import Pressure
from overnight.engines.model_sizes import memory_limit_bytes
from overnight.paths import Paths
from overnight.queue.store import Queue, Ready
from overnight.warm import meter
from overnight.warm.client import WarmServer

WINDOW = 64
"""So many ready cells are looked at behind one that has to wait."""
_RESERVE_SHARE, _RESERVE_OF_BYTES = 0.20, 64 * 2**30
"""Without a watchdog's word: what its `hold` would keep free with its own defaults."""
_LIMIT_AGE_S = 10.0
_NEAR_LEARNED = 0.98
_SURE_S = 60.0
_FREED_MOST = 256
_KNOWN_MOST = 4 * WINDOW
"""So many kinds are remembered: each cell of a sweep may be one of its own, and only those in the window are looked at.
*Measured*: a kind takes 91 bytes, and up to 4 KiB with the peaks of its family."""
_THRASHES_BYTES_PER_S, _THRASHES_SHARE = 4 * 2**20, 0.1
"""Under its cap a cell may read so much again, and so much of its cap, a second. *Measured*: a file of 480 MiB that is
mapped under a cap of 27 MiB is read a hundred times slower than the disk and the memory allow."""


@dataclass(frozen=True)
class Bounds:
    """limit_bytes: of everything. headroom_bytes: what is left of it now, None when nobody measures. reserve_bytes:
    what admission keeps free."""

    limit_bytes: int
    headroom_bytes: int | None
    reserve_bytes: int


@dataclass(frozen=True)
class Choice:
    """What to do now: the decision, and for an admitted cell what it begins with."""

    decision: Decision
    ready: Ready | None = None
    grant: Grant | None = None
    wanted: Sequence[Wanted] = ()


class Planner:
    """One a dispatcher. Reads the queue, never changes it."""

    def __init__(self, paths: Paths, config: Config, queue: Queue, crew: Crew, guardian: Guardian) -> None:
        self._paths, self._config, self._queue = paths, config, queue
        self._crew, self._guardian = crew, guardian
        self._learned: dict[str, tuple[Any, Any]] = {}
        self._predicted: dict[str, int | None] = {}
        self._servers: dict[str, int] = {}
        self._own_limit: tuple[float, int] = (float("-inf"), 0)
        self._passed = Passed()
        self._head: Wanted | None = None
        self._freed: list[tuple[float, int]] = []
        self._too_large: tuple[int, float] | None = None
        self._base: tuple[float, int] = (float("-inf"), 0)

    # -- limit ------------------------------------------------------------------------------------------------

    def bounds(self) -> Bounds:
        told, memory = self._guardian.pressure, self._config.memory
        limit = self._found_limit() if told is None else told.limit_bytes
        hold = None if told is None else told.hold_bytes
        reserve = int(_RESERVE_SHARE * min(limit, _RESERVE_OF_BYTES)) if hold is None else hold
        headroom = None if told is None else min(limit, told.headroom_bytes + self._freed_since(told.age_s))
        return Bounds(limit, headroom, max(reserve, memory.reserve or 0))

    def freed(self, held_bytes: int) -> None:
        """A cell has ended and held so much: the watchdog's last word may be older than that."""
        self._freed = [*self._freed[-_FREED_MOST:], (time.monotonic(), held_bytes)]

    def _freed_since(self, age_s: float) -> int:
        said_s = time.monotonic() - age_s
        self._freed = [each for each in self._freed if each[0] > said_s]
        return sum(held for _, held in self._freed)

    def _found_limit(self) -> int:
        at_s, limit = self._own_limit
        if time.monotonic() - at_s > _LIMIT_AGE_S:
            limit = min(memory_limit_bytes(), self._config.memory.budget or 2**62)
            self._own_limit = (time.monotonic(), limit)
        return limit

    def _base_bytes(self) -> int:
        """What daemon and watchdog hold themselves."""
        at_s, held = self._base
        if time.monotonic() - at_s > _LIMIT_AGE_S:
            told = self._guardian.pressure
            pids = [os.getpid(), *([] if told is None or told.pid is None else [told.pid])]
            held = sum(meter.held_bytes(pid) or 0 for pid in pids)
            self._base = (time.monotonic(), held)
        return held

    def slots(self) -> int:
        wanted = self._config.daemon.slots
        return len(os.sched_getaffinity(0)) if wanted == "auto" else wanted

    def summary(self) -> dict[str, Any]:
        """For `overnight status`: what bounds us, and what is claimed of it."""
        bounds, view = self.bounds(), self.view()
        ours = sum(each.used_bytes for each in view.running) + view.base_bytes
        ours += sum(each.used_bytes or 0 for each in view.servers.values())
        used = None if bounds.headroom_bytes is None else bounds.limit_bytes - bounds.headroom_bytes
        return {
            "others_bytes": None if used is None else max(0, used - ours),
            "limit_bytes": bounds.limit_bytes,
            "headroom_bytes": bounds.headroom_bytes,
            "reserve_bytes": bounds.reserve_bytes,
            "most_bytes": max(0, view.most_bytes),
            "claimed_bytes": sum(each.claim_bytes for each in view.running),
            "warm_bytes": sum(each.size_bytes for each in view.servers.values()),
        }

    # -- claim ------------------------------------------------------------------------------------------------

    def claim(self, ready: Ready, most_bytes: int) -> Claim:
        kind, family = claims.kind(ready.spec), claims.family(ready.spec)
        if kind not in self._learned:
            _make_room(self._learned)
            self._learned[kind] = (self._queue.peaks(kind), self._queue.family_peaks(family))
        if kind not in self._predicted:
            _make_room(self._predicted)
            self._predicted[kind] = predict.cell_bytes(ready.spec, self._paths.models)
        peaks, family_peaks = self._learned[kind]
        return claims.claim(
            peaks,
            family_peaks,
            raised=ready.claim_bytes,
            hint=ready.policy.get("memory_bytes"),
            predicted=self._predicted[kind],
            prior=self._config.memory.prior,
            most=most_bytes,
        )

    def forget(self) -> None:
        """A peak was learned: claims are drawn from the queue again."""
        self._learned.clear()

    def server_bytes(self, warm_key: str, warm: dict[str, Any]) -> int:
        """What a warm server costs: what it holds once it has loaded, else what is predicted."""
        server = next((each for each in self._crew.pool if each.key == warm_key), None)
        if server is not None and server.state == "ready" and server.bytes:
            self._servers[warm_key] = server.bytes
        if warm_key not in self._servers:
            _make_room(self._servers)
            self._servers[warm_key] = predict.server_bytes(warm, self._paths.models)
        return self._servers[warm_key]

    # -- choose -----------------------------------------------------------------------------------------------

    def choose(self, *, delay_left_s: float) -> Choice | None:
        """What to do about the cells that are ready; None when none is."""
        window = self._queue.next_ready_many(1)
        if not window:
            self._head = None
            return None
        view = self.view(delay_left_s)
        choice = self._decide(view, window)
        passable = choice.decision.kind in ("wait", "let_go") and choice.decision.why in admission.PASSABLE
        if passable and view.slots_used < view.slots:
            window = self._queue.next_ready_many(WINDOW)
            if len(window) > 1:
                choice = self._decide(view, window)
        return choice

    def admitted(self, choice: Choice) -> None:
        """That cell has begun; whoever stood before it was passed by once more."""
        self._passed.admitted(choice.wanted, choice.decision.index, time.monotonic())

    def _decide(self, view: View, window: list[Ready]) -> Choice:
        found = [self.claim(ready, view.most_bytes) for ready in window]
        wanted = [
            Wanted(
                cell_id=ready.cell_id,
                warm_key=ready.warm_key,
                threads=ready.threads,
                claim_bytes=claim.bytes,
                server_bytes=self.server_bytes(ready.warm_key, ready.warm),
                alone=ready.alone,
            )
            for ready, claim in zip(window, found, strict=True)
        ]
        self._head = wanted[0]
        view = self._passed.see(view, wanted, time.monotonic())
        decision = self._surely(view, admission.decide(view, wanted), wanted[0])
        if decision.kind not in ("admit", "too_large"):
            return Choice(decision)
        ready, claim = window[decision.index], found[decision.index]
        return Choice(decision, ready, self._grant(view, ready, claim, wanted[decision.index], decision), wanted)

    def _surely(self, view: View, decision: Decision, head: Wanted) -> Decision:
        """`too_large` is final, and rests on a limit that may change and on a prediction: it has to last. That no cell
        at all has room is no cell's fault."""
        if decision.kind != "too_large":
            self._too_large = None
            return decision
        now = time.monotonic()
        if self._too_large is None or self._too_large[0] != head.cell_id:
            self._too_large = (head.cell_id, now)
        if view.most_bytes < admission.SMALLEST_CELL_BYTES or now - self._too_large[1] < _SURE_S:
            return Decision("wait", "too_large")
        return decision

    def _grant(self, view: View, ready: Ready, claim: Claim, wanted: Wanted, decision: Decision) -> Grant:
        capped = self._config.memory.caps != "none" and ready.policy.get("cap", "auto") != "none"
        granted = min(claim.bytes, decision.cap_bytes)
        server_bytes = view.server_bytes(wanted)
        return Grant(
            claim,
            claim_bytes=granted,
            cap_bytes=claims.cap(granted, view.most_bytes - server_bytes) if capped else None,
            alone=decision.alone,
            server_bytes=server_bytes,
            most_bytes=view.most_bytes,
        )

    def view(self, delay_left_s: float = 0.0) -> View:
        now, bounds = self._guardian.pressure, self.bounds()
        return View(
            slots=self.slots(),
            pressure=None if now is None else self._level(now),
            watchdog_required=self._config.daemon.require_watchdog,
            limit_bytes=bounds.limit_bytes,
            headroom_bytes=bounds.headroom_bytes,
            reserve_bytes=bounds.reserve_bytes,
            running=tuple(_running(attempt) for attempt in self._crew.attempts.values()),
            servers={server.key: self._server(server) for server in self._crew.pool},
            max_servers=self._config.warm.servers,
            delay_left_s=delay_left_s,
            base_bytes=self._base_bytes(),
        )

    def _level(self, now: Pressure) -> str:
        """`hold` is what admission itself sees to, by the same threshold, and without its hysteresis: whoever packs up
        to a line would wait at it. A `shrink` that is only foreseen keeps nobody waiting either: what runs will grow to
        its claims, and those are counted. (Where nothing holds cells to their claims, both do.)"""
        if self._config.memory.caps == "none":
            return now.level
        return "ok" if now.level == "hold" or (now.level == "shrink" and now.foreseen) else now.level

    def _server(self, server: WarmServer) -> Server:
        return Server(
            cells=len(server.attempts),
            leaving=server.state == "leaving",
            loading=server.state == "loading",
            claim_bytes=self.server_bytes(server.key, server.warm),
            used_bytes=server.bytes or None,
            model=bool(server.warm),
        )

    # -- extensions -------------------------------------------------------------------------------------------

    def extensions(self) -> Iterator[tuple[Attempt, int]]:
        """Running cells that hold most of their claim, and the larger one that there is room for."""
        for index, attempt in enumerate(tuple(self._crew.attempts.values())):
            grant = attempt.grant
            # What was learned is a peak and a little more: a cell at its peak is no news.
            near = _NEAR_LEARNED if grant.claim.source == "learned" else EXTEND_FROM
            if attempt.bytes < near * grant.claim_bytes or attempt.over or attempt.intent:
                continue
            heads = [] if self._head is None else [self._head]
            view = self._passed.see(self.view(), heads, time.monotonic())
            larger = admission.extension(view, index, attempt.bytes, self._head)
            if larger is not None and larger > attempt.grant.claim_bytes:
                yield attempt, larger

    def loosenings(self) -> Iterator[tuple[Attempt, int]]:
        """Running cells that read the same pages again and again since their cap throws them out, and the larger cap
        that there is room for. Their claims stay: clean page cache is nobody's, the kernel takes it from whoever has it
        when it is short. What is mapped counts as used meanwhile, so the room that is measured must leave it."""
        granted = 0
        for attempt in tuple(self._crew.attempts.values()):
            grant = attempt.grant
            if grant.cap_bytes is None or grant.slot is None or attempt.over or attempt.intent:
                continue
            bearable = max(_THRASHES_BYTES_PER_S, int(_THRASHES_SHARE * grant.cap_bytes))
            larger = min(2 * grant.cap_bytes, grant.most_bytes - grant.server_bytes)
            more = larger - grant.cap_bytes
            if attempt.refault_bytes_per_s <= bearable or more < admission.SMALLEST_GAIN_BYTES:
                continue
            if granted + more <= self._unused_bytes():
                granted += more
                yield attempt, larger

    def _unused_bytes(self) -> int:
        """What is measured to be free beyond the reserve; where nobody measures, what is not promised to anybody."""
        bounds = self.bounds()
        if bounds.headroom_bytes is None:
            return self.view().room_bytes
        return bounds.headroom_bytes - bounds.reserve_bytes


def _running(attempt: Attempt) -> Running:
    return Running(
        claim_bytes=max(attempt.grant.claim_bytes, attempt.bytes),
        used_bytes=attempt.bytes,
        warm_key=attempt.server.key,
        threads=attempt.threads,
        alone=attempt.grant.alone,
    )


def _make_room(cache: dict[str, Any]) -> None:
    if len(cache) >= _KNOWN_MOST:
        cache.clear()

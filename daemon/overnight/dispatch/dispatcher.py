"""The daemon's loop: take in-flight cells back, then for ever

    wait      for a message, an exit, or a second
    receive   what warm servers and cells say
    reap      attempts and servers that ended
    heed      cancellations that somebody asked for; a clock that was set back
    enforce   time limits
    extend    claims and caps of running cells, while there is room
    record    ended attempts in the queue, for as long as it takes
    admit     the next cells, while there is room
    retire    warm servers that nobody wants
    publish   heartbeat, grid_state.json, registrations

and between the slow ones `guard`: nothing stays frozen without a living watchdog.

It decides nothing itself: `admission` and `verdicts` are pure, `signals` signals, `queue` remembers. It never imports
an engine.
"""

from __future__ import annotations

import os
import selectors
import time
from typing import Any

from overnight import durable, figures, procfs
from overnight.config import Config
from overnight.dispatch import leftovers, oom, records
from overnight.dispatch.attempt import Grant
from overnight.dispatch.beat import Beat
from overnight.dispatch.cell_cgroups import CellCgroups
from overnight.dispatch.crew import Crew
from overnight.dispatch.grid_state import GridStates
from overnight.dispatch.guardian import Guardian
from overnight.dispatch.lock import DaemonLock
from overnight.dispatch.planner import Planner
from overnight.dispatch.recorder import Recorder, Unstarted
from overnight.dispatch.recover import recover
from overnight.dispatch.registry import Registration
from overnight.dispatch.stopping import StopSignal
from overnight.dispatch.wall_clock import WallClock
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Claimed, Queue, QueueUnavailable

TICK_S = 1.0
_FREED_S = 0.1
"""How soon is looked again for memory that an ended cell has given back: the watchdog must have seen it, too."""
_GUARD_S = 0.05
_REST_S = 1.0
_STOP_MOST_S = 300.0
"""At a stop even a command with a longer grace has no more (supervisord waits a little longer than this)."""
_NEWS = ("pressure", "watchdog")


class Dispatcher:
    """One per `var/`, under the daemon's lock. cgroup: the folder of the budget's memory cgroup, when it has one.
    cgroups: where cells get memory cgroups of their own; None where that is not allowed."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        queue: Queue,
        log: Any,
        *,
        stop: StopSignal,
        lock: DaemonLock,
        beat: Beat,
        cgroup: str | None = None,
        cgroups: CellCgroups | None = None,
        supervised: bool = False,
    ) -> None:
        self.paths, self.config, self.queue, self.log = paths, config, queue, log
        self.states = GridStates(paths, queue, log)
        self.holding = ""
        self._stop, self._lock, self._beat, self._cgroup = stop, lock, beat, cgroup
        self._started_s = time.monotonic()
        self._registered = False
        self._delay_until_s = 0.0
        self._sequence, self._published_s = 0, 0.0
        self._full, self._look = False, True
        self._rests_until_s = self._guarded_s = float("-inf")
        self._selector = selectors.DefaultSelector()
        self._selector.register(stop, selectors.EVENT_READ)
        self._ended_s = float("-inf")
        self._oom, self._wall = oom.OomWatch.of_own(), WallClock(log)
        self._cgroups = cgroups
        self.crew = Crew(paths, config, queue, self._selector, log, cgroups=cgroups)
        self.guardian = Guardian(paths, log, supervised=supervised)
        self.planner = Planner(paths, config, queue, self.crew, self.guardian)
        self.recorder = Recorder(config, queue, self.crew, self.planner, log)

    def run(self) -> None:
        """Work until a stop is requested, then stop in good order. Raises QueueUnavailable at the start only."""
        recover(self.queue, self.crew.registry, self.log, others=self._left_behind, beat=self._beat.strike)
        self._register()
        for grid in self.queue.grids():
            self.states.touch(grid.name)
        while not self._stop.requested:
            self.step()
            self.wait()
        self.stop()

    def _left_behind(self) -> list[tuple[int, int]]:
        """(pid, start time) of what a dead daemon's commands have put aside."""
        in_slots = [] if self._cgroups is None else self._cgroups.leftovers()
        return leftovers.find(leftovers.token(self.paths.home)) + in_slots

    def step(self) -> None:
        self.guard()
        self.crew.receive()
        self.reap()
        self.heed()
        self.guard()
        self.crew.enforce()
        self.extend()
        self.record()
        self.guard()
        self.admit()
        self.guard()
        self.retire()
        self.publish()

    def guard(self) -> None:
        now = time.monotonic()
        if now - self._guarded_s >= _GUARD_S:
            self._guarded_s = now
            self.guardian.look(self.crew.attempts.values())

    # -- wait -------------------------------------------------------------------------------------------------

    def wait(self, timeout_s: float = TICK_S) -> None:
        soon = self.holding == "memory" and time.monotonic() - self._ended_s < TICK_S
        if soon or self.crew.sweeping:
            timeout_s = _FREED_S
        timeout_s = 0 if self._stop.requested else self.guardian.tick_s(timeout_s)
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._stop:
                self._stop.drain()

    # -- reap, extend -----------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Who has ended; and did the kernel's OOM killer strike above the cells since the last look?"""
        before = len(self.crew.ended)
        self.crew.reap()
        if len(self.crew.ended) > before:
            self._ended_s = time.monotonic()
            struck = self._oom.struck()
            for attempt in self.crew.ended[before:]:
                attempt.oom_above = struck
                self.planner.freed(attempt.bytes)

    def extend(self) -> None:
        """The kernel is told at once; `note` tells the queue."""
        for attempt, claim_bytes in self.planner.extensions():
            before = attempt.grant.claim_bytes
            try:
                if not self.crew.extend(attempt, claim_bytes):
                    continue
            except OSError:
                continue  # it keeps what it has
            self.log.info(
                "claim_extended", **attempt.names(), bytes=attempt.bytes, before_bytes=before, claim_bytes=claim_bytes
            )
        for attempt, cap_bytes in self.planner.loosenings():
            refaults = attempt.refault_bytes_per_s
            try:
                if not self.crew.loosen(attempt, cap_bytes):
                    continue
            except OSError:
                continue
            facts = {"bytes": attempt.bytes, "cap_bytes": cap_bytes, "refault_bytes_per_s": refaults}
            self.log.info("cap_loosened", **attempt.names(), **facts)

    # -- heed ------------------------------------------------------------------------------------------------

    def heed(self) -> None:
        """Cancellations, a clock that was set back. A change is told once only: remembered until it was looked at."""
        if self._queue_rests():
            return
        try:
            self._wall.heed(self.queue)
            self._look = self.queue.changed() or self._look
            if not (self._look and self.crew.attempts):
                return
            for _, number in self.queue.cancel_requested():
                if (wanted := self.crew.attempts.get(number)) is not None:
                    wanted.ask("cancelled", time.monotonic())
            self._look = False
        except QueueUnavailable as error:
            self._unavailable(error)

    # -- record -----------------------------------------------------------------------------------------------

    def record(self) -> None:
        """Tell the queue how attempts ended; while its disk is full they wait here, and nothing is forgotten."""
        if self._queue_rests():
            return
        try:
            while (grid := self.recorder.next()) is not None:
                self.states.touch(grid)
                self._delay_until_s = time.monotonic() + self.config.daemon.delay_s
                self._full = False
            self.crew.note()
        except QueueUnavailable as error:
            self._unavailable(error)

    def _unavailable(self, error: Exception) -> None:
        """Say it once, not once a second, until the queue has taken something again."""
        if not self._full:
            self.log.error("queue_unavailable", error=str(error))
        self._full, self._rests_until_s = True, time.monotonic() + _REST_S

    def _queue_rests(self) -> bool:
        """Each question to a locked queue takes a second: cells that grow must not wait for several of them."""
        return time.monotonic() < self._rests_until_s and not self._stop.requested

    # -- admit ------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        try:
            while self._admit_one():
                pass
        except QueueUnavailable as error:
            self._unavailable(error)

    def _admit_one(self) -> bool:
        """Start the next cell that may begin; True when another one may be asked for."""
        if self.recorder.waits or self._stop.requested or self._queue_rests():
            return False  # first the queue must know what ended
        choice = self.planner.choose(delay_left_s=self._delay_until_s - time.monotonic())
        if choice is None:
            self._hold("")
            return False
        decision, ready, grant = choice.decision, choice.ready, choice.grant
        if decision.kind == "let_go":
            self.crew.pool.release(decision.key, decision.why)
        if ready is None or grant is None:
            self._hold(decision.why)
            return False
        claimed = self.queue.claim(
            boot_id=procfs.boot_id(),
            daemon=f"{os.getpid()}",
            cell_id=ready.cell_id,
            claim_bytes=grant.claim_bytes,
            claim_source=grant.claim.source,
            cap_bytes=grant.cap_bytes,
        )
        if claimed is None:
            return False
        if decision.kind == "too_large":
            self._cannot_fit(claimed, grant)
            return False  # `record` tells the queue
        self.planner.admitted(choice)
        self._launch(claimed, grant)
        return not self.recorder.waits

    def _cannot_fit(self, claimed: Claimed, grant: Grant) -> None:
        """Its warm server alone is more than there is: no attempt would tell us more."""
        server, most = figures.size(grant.server_bytes), figures.size(grant.most_bytes)
        reason = (
            f"needs at least {server} for its warm server, the limit is {most} (the memory limit less its reserve); "
            "give it more memory or a smaller model, then `overnight retry`"
        )
        self.recorder.unstarted.append(Unstarted(claimed, Outcome.OVER_CAP, "too_large", reason, quarantine=True))
        self.log.warning("cell_too_large", grid=claimed.grid, cell=claimed.cell.key, reason=reason)

    def _launch(self, claimed: Claimed, grant: Grant) -> None:
        self._full = False
        self._hold("")
        self.states.touch(claimed.grid)
        try:
            self.crew.launch(claimed, grant)
        except OSError as error:
            self.log.error("warm_start_failed", error=str(error))
            reason, delay_s = f"its warm server could not be started: {error}", self.config.daemon.retry_delay_s
            self.recorder.unstarted.append(Unstarted(claimed, Outcome.LOST, "warm_start_failed", reason, delay_s))

    def _hold(self, why: str) -> None:
        """Remember what the head of the queue waits for; waiting for memory or for the watchdog is news."""
        if why != self.holding:
            if why.startswith(_NEWS):
                self.log.warning("admission_holds", why=why)
            elif self.holding.startswith(_NEWS):
                self.log.info("admission_resumes", after=self.holding)
        self.holding = why

    # -- retire, publish --------------------------------------------------------------------------------------

    def retire(self) -> None:
        now = self.guardian.pressure
        wanted = now is not None and now.level not in ("ok", "hold")  # hold only keeps new cells waiting
        self.crew.pool.retire(idle_s=self.config.warm.idle_s, memory_wanted=wanted)

    def publish(self) -> None:
        """Heartbeat, registrations and grid_state.json; at most once a second, and never a reason to fail."""
        self.beat()
        now = time.monotonic()
        if now - self._published_s < TICK_S and not self._stop.requested:
            return
        self._published_s = now
        self._sequence += 1
        self._oom.remember(now)
        self.crew.pool.weigh()
        if self._lock.lost() and not self._stop.requested:
            self.log.critical("lock_lost", path=str(self.paths.lock))
            self._stop.requested = True  # somebody emptied var/run: leave before a second daemon works here
        state = {
            "v": 1,
            "boot_id": procfs.boot_id(),
            "pid": os.getpid(),
            "start_ticks": procfs.start_ticks(os.getpid()),
            "sequence": self._sequence,
            "monotonic_s": now,
            "stopping": self._stop.requested,
            "holding": self.holding,
            "slots": self.planner.slots(),
            "memory": self.planner.summary(),
            "warm": self.crew.pool.summary(),
            "running": [attempt.summary() for attempt in self.crew.attempts.values()],
        }
        try:
            durable.write_atomic(self.paths.daemon_state, records.sealed(state), durable=False)
            self._refresh(now)
        except OSError:
            pass  # a full disk: what is shown grows old, what is done goes on
        live = {
            attempt.claimed.cell.id: (attempt.turn, attempt.output_tokens) for attempt in self.crew.attempts.values()
        }
        try:
            self.states.write(live, at_once=self._stop.requested)
        except QueueUnavailable as error:
            self._unavailable(error)

    def _refresh(self, now: float) -> None:
        """Registrations that changed, could not be written so far, or were removed by somebody. Raises OSError."""
        registry = self.crew.registry
        if not self._registered or registry.missing(os.getpid()):
            self._register()
        self.crew.pool.refresh()
        for attempt in self.crew.attempts.values():
            if attempt.handle is None or attempt.over:
                continue
            told = max(attempt.last_turn_s or 0.0, attempt.extended_s) > attempt.registered_s
            if told:
                self.states.touch(attempt.grid)
            if told or registry.missing(attempt.handle.pid):
                registry.put(attempt.registration())
                attempt.registered_s = now

    def beat(self) -> None:
        """Tell the watchdog that the loop goes round. It must not wait for a disk."""
        self._beat.strike(stopping=self._stop.requested)

    def _register(self) -> None:
        """The daemon is under the watchdog's care too; without its registration it works all the same."""
        ticks = procfs.start_ticks(os.getpid())
        if ticks is None:
            return
        entry = Registration(
            pid=os.getpid(),
            start_ticks=ticks,
            pgid=os.getpgrp(),
            role="daemon",
            started_s=self._started_s,
            cgroup=self._cgroup,
            freezes=False,
        )
        try:
            self.crew.registry.put(entry)
            self._registered = True
        except OSError:
            pass  # `publish` tries again

    # -- stop -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Orderly: cells leave (their unfinished turn is thrown away), the queue hears of it, servers go."""
        self.crew.ask_all("yielded")
        grace_s = min(_STOP_MOST_S, self.crew.longest_grace_s())
        self.log.info("daemon_stopping", cells=len(self.crew.attempts), grace_s=grace_s)
        deadline = time.monotonic() + grace_s + self.config.daemon.stop_grace_s
        while self.crew.attempts and time.monotonic() < deadline:
            self.beat()
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._stop:
                    self._stop.drain()
            self.crew.receive()
            self.reap()
            self.crew.enforce()
        self.crew.dismiss(self.beat)
        self.record()
        self.publish()
        self.crew.registry.drop(os.getpid())
        self.log.info("daemon_stopped")

"""The watchdog's life, a look at a time:

    look     how much memory is left, under everything that bounds us
    meet     who is registered, and what each of them holds
    assess   how bad is it
    act      decide, look again, do the one thing, then write it down
    follow   those who are on their way out, and the daemon
    report   the heartbeat, a change of level, a summary a minute

and then sleep, for as long as nobody can fill what is left.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from overnight_watchdog import pace
from overnight_watchdog.act import Actor, Dying
from overnight_watchdog.assess import Assessment, Level, Thresholds, View, assess, entry_bytes
from overnight_watchdog.daemon_watch import DaemonWatch
from overnight_watchdog.decide import Action, Candidate, Policy, Situation, Step, decide, in_order
from overnight_watchdog.forecast import Track, exhaustion_s
from overnight_watchdog.gauges import Eye, StallGauge
from overnight_watchdog.limits import PROC
from overnight_watchdog.report import Reporter, Seen, names
from overnight_watchdog.roster import Guarded, Roster, number
from overnight_watchdog.sample import Sample, SampleError
from overnight_watchdog.thrash import ThrashWatch

REACTION_S = (0.02, 0.05)
"""Bounds of what is believed of the measured reaction: the first kill has no predecessor, and tearing down a large
process takes longer than stopping its growth, which is what a forecast has to be in time for."""
STAYS_S = 5.0
_NEEDED = {Step.FREEZE: Level.FREEZE, Step.EVICT: Level.EVICT, Step.KILL: Level.KILL, Step.RESTART: Level.EVICT}
"""The level below which a step is not taken after all."""
_EVENTS = {
    Step.SHRINK: "shrink_asked",
    Step.FREEZE: "frozen",
    Step.THAW: "thawed",
    Step.EVICT: "evicted",
    Step.KILL: "killed",
    Step.RESTART: "daemon_restarted",
}


class Watchdog:
    """What is remembered from one look to the next.

    daemon: the watch over the daemon, None where no supervisord would start another.
    """

    def __init__(
        self,
        *,
        eye: Eye,
        roster: Roster,
        actor: Actor,
        reporter: Reporter,
        daemon: DaemonWatch | None = None,
        stalls: StallGauge | None = None,
        thresholds: Thresholds | None = None,
        policy: Policy | None = None,
        longest_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._eye, self._roster, self._actor, self._daemon = eye, roster, actor, daemon
        self._reporter = reporter
        self._clock, self._wall_clock, self._longest_s = clock, wall_clock, longest_s
        self._thresholds = Thresholds() if thresholds is None else thresholds
        self._policy = Policy() if policy is None else policy
        self._thrash = ThrashWatch()
        self._stalls = stalls
        self._capped_pages = 0
        self._track = Track()
        self._tracked: tuple[str, int] | None = None
        self._level, self._foreseen = Level.OK, False
        self._sample: Sample | None = None
        self._exhaustion_s: float | None = None
        self._reactions: deque[float] = deque(maxlen=64)
        self._killed: tuple[float, int] | None = None
        self._looks = 0

    # -- one look ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A look that fails publishes nothing: the heartbeat goes stale, and the daemon admits nothing."""
        if (seen := self.observe()) is None:
            return
        self._act(*seen)
        self._follow(self._clock())
        self._report()

    def observe(self) -> tuple[Sample, Assessment] | None:
        """The half of a step that touches nobody; None when nothing can be seen."""
        try:
            sample = self._look()
        except (SampleError, OSError) as error:
            self._track.forget()  # no slope across the gap
            self._reporter.seldom(self._clock(), "error", "sampling_failed", error=str(error))
            self._see_off(self._clock())
            return None
        self._meet(sample.monotonic_s)
        return sample, self._assess(sample)

    def _see_off(self, now_s: float) -> None:
        """What a blind watchdog can still do: end leases, and follow those who are on their way out."""
        for guarded in self._roster:
            if guarded.frozen_s is not None and now_s - guarded.frozen_s >= self._policy.freeze_lease_s:
                self._actor.carry_out(Action(Step.THAW, guarded.pid, "lease_over"), guarded, now_s, {})
                self._reporter.action("info", "thawed", guarded, trigger="lease_over")
        self._follow(now_s)

    def _look(self) -> Sample:
        self._looks += 1
        sample = self._sample = self._eye.look()
        if self._tracked != (sample.limit_source, sample.limit_bytes):
            self._track.forget()
            self._tracked = (sample.limit_source, sample.limit_bytes)
        self._track.add(sample.monotonic_s, sample.limit_bytes - sample.firm_headroom_bytes)
        return sample

    def _meet(self, now_s: float) -> None:
        self._roster.refresh(now_s, self._greet)
        for guarded in self._roster:
            if self._actor.ended(guarded) and not self._actor.follows(guarded):
                if guarded.frozen_s is not None:  # whom it leaves behind must not stay frozen
                    self._actor.carry_out(Action(Step.THAW, guarded.pid, "ended"), guarded, now_s, {})
                self._roster.drop(guarded)
                continue
            guarded.measure(now_s)
            guarded.count_faults(now_s, PROC)
            if guarded.role == "daemon":  # between two daemons the last one's word stands
                folder = guarded.entry.get("cgroup")
                self._eye.budget_folder = folder if isinstance(folder, str) else ""

    def _greet(self, guarded: Guarded) -> None:
        """Nobody stays frozen because the watchdog that froze him is dead."""
        if self._actor.thaw_found(guarded):
            self._reporter.action("info", "thawed", guarded, trigger="found_stopped")

    def _assess(self, sample: Sample) -> Assessment:
        found = assess(self._view(sample), self._level, self._thresholds)
        self._level, self._foreseen = found.level, found.trigger == "forecast"
        return found

    def _view(self, sample: Sample) -> View:
        now_s, slope = sample.monotonic_s, self._track.slope()
        floor = self._thresholds.falling_bytes_per_s
        self._exhaustion_s = exhaustion_s(sample.firm_headroom_bytes, slope, floor_bytes_per_s=floor)
        if self._stalls is not None and len(self._roster) and self._thrash.due(now_s):
            bound = self._eye.limit_cgroup()
            folder, pages = "" if bound is None else str(bound.folder), sample.refaulted_pages
            if sample.limit_source == "machine":  # under a smaller limit others' refaults would count as ours
                pages = self._stalls.refaulted_pages()
            self._capped_pages += sum(each.tree.refaulted_at_cap() for each in self._roster)
            if pages is not None:  # what a cell's own cap throws out is not for want of the limit
                pages -= self._capped_pages
            self._thrash.add(now_s, pages, self._stalls.stalled_us(folder), sample.limit_bytes)
        cells = [each for each in self._roster if each.role in ("cell", "command") and not each.leaves]
        return View(
            headroom_bytes=sample.headroom_bytes,
            firm_headroom_bytes=sample.firm_headroom_bytes,
            limit_bytes=sample.limit_bytes,
            slope_bytes_per_s=slope,
            exhaustion_s=self._exhaustion_s,
            reaction_s=self.reaction_s,
            thrash=self._thrash.level(now_s, len(cells)),
            step_bytes=max((each.step_bytes for each in cells), default=0),
        )

    @property
    def reaction_s(self) -> float:
        """From the look to the victim's death: the slowest of the last ones, within reason."""
        low, high = REACTION_S
        return min(high, max(low, *self._reactions)) if self._reactions else low

    # -- act --------------------------------------------------------------------------------------------------

    def _act(self, sample: Sample, found: Assessment) -> None:
        if found.level < Level.SHRINK and not any(each.touched for each in self._roster):
            return
        action = self._decide(sample, found)
        if action is None:
            begun = any(each.leaves for each in self._roster)
            if found.level >= Level.EVICT and not begun:
                self._reporter.seldom(
                    sample.monotonic_s, "error", "no_victim", pressure=found.level.label, **self._seen(sample).numbers()
                )
            return
        guarded = self._roster.get(action.pid)
        if guarded is None:
            return
        if (needed := _NEEDED.get(action.step)) is not None and action.trigger != "grace_over":
            # What was true when the decision began need not be true any more.
            sample, found = self._look_again(sample, found)
            if found.level < needed:
                self._reporter.seldom(
                    sample.monotonic_s, "info", "action_skipped", step=action.step.value, why="pressure fell meanwhile"
                )
                self._decide(sample, found)  # had its end been its lease's end, too, the lease ends all the same
                return
            guarded.measure(sample.monotonic_s)
        self._carry_out(action, guarded, sample, found)

    def _decide(self, sample: Sample, found: Assessment) -> Action | None:
        """Ends the leases that are over (a promise that changes nothing of what was seen, so it uses up no look), and
        returns the first other thing to be done."""
        now = self._situation(sample, found)
        while True:
            action = decide(now, self._candidates(sample.monotonic_s), self._policy)
            if action is None or action.trigger != "lease_over":
                return action
            if (frozen := self._roster.get(action.pid)) is not None:
                self._carry_out(action, frozen, sample, found)

    def _look_again(self, sample: Sample, found: Assessment) -> tuple[Sample, Assessment]:
        """Right before a signal. Whoever is blind now goes by what he saw a moment ago."""
        try:
            sample = self._look()
        except (SampleError, OSError):
            return sample, found
        return sample, self._assess(sample)

    def _candidates(self, now_s: float) -> list[Candidate]:
        """The daemon only where somebody would start another one."""
        return [each.candidate(now_s) for each in self._roster if each.role != "daemon" or self._daemon is not None]

    def _situation(self, sample: Sample, found: Assessment) -> Situation:
        limit, thresholds = sample.limit_bytes, self._thresholds
        wanted = entry_bytes(Level.FREEZE, limit, thresholds) + int(
            thresholds.hysteresis_percent * min(limit, thresholds.scale_cap_bytes) / 100
        )
        falling = False
        if self._killed is not None:
            since_s, left = self._killed
            falling = sample.monotonic_s - since_s >= 0.05 and sample.firm_headroom_bytes < left - limit // 100
        return Situation(
            now_s=sample.monotonic_s,
            level=found.level,
            trigger=found.trigger,
            limit_bytes=limit,
            need_bytes=max(0, wanted - sample.firm_headroom_bytes),
            falling=falling,
        )

    def _carry_out(self, action: Action, guarded: Guarded, sample: Sample, found: Assessment) -> None:
        now_s, step = sample.monotonic_s, action.step
        if step is Step.RESTART and not self._actor.dry_run:
            self._restart_daemon(guarded, now_s, found)
            return
        record = self._record(action, guarded, sample, found)
        why_not = self._actor.carry_out(action, guarded, now_s, record)
        # Everything below happens after the signal.
        done_s = self._clock()
        if why_not:
            self._reporter.seldom(now_s, "info", "action_skipped", step=step.value, **names(guarded), why=why_not)
            return
        if step is Step.KILL:
            self._killed = (now_s, sample.firm_headroom_bytes)
        event, severity = _EVENTS[step], "info" if step in (Step.SHRINK, Step.THAW) else "warning"
        if self._actor.dry_run:
            event, severity = "action_planned", "info"
        facts = {
            name: value for name, value in record.items() if name not in ("pid", "cell", "role", "attempt", "level")
        }
        took_ms = round((done_s - now_s) * 1000, 3)
        self._reporter.action(severity, event, guarded, pressure=found.level.label, **facts, took_ms=took_ms)

    def _record(self, action: Action, guarded: Guarded, sample: Sample, found: Assessment) -> dict[str, Any]:
        """The verdict: what was seen, who is meant, and why."""
        slope = self._track.slope()
        return {
            "monotonic_s": round(sample.monotonic_s, 6),
            "wall_s": round(self._wall_clock(), 3),
            "pid": guarded.pid,
            "start_ticks": guarded.start_ticks,
            "role": guarded.role,
            "cell": guarded.cell,
            "attempt": number(guarded.entry.get("attempt")),
            "step": action.step.value,
            "trigger": action.trigger,
            "level": found.level.label,
            "limit_bytes": sample.limit_bytes,
            "limit_source": sample.limit_source,
            "headroom_bytes": sample.firm_headroom_bytes,
            "slope_bytes_per_s": None if slope is None else round(slope),
            "exhaustion_s": None if self._exhaustion_s is None else round(self._exhaustion_s, 3),
            "own_bytes": guarded.own_bytes,
            "peak_bytes": guarded.track.peak,
            "loss_s": round(guarded.loss_s(sample.monotonic_s), 3),
        }

    def _restart_daemon(self, guarded: Guarded, now_s: float, found: Assessment) -> None:
        if self._daemon is None:
            return
        if self._daemon.busy:  # it is on its way out already, for its silence
            guarded.leaving_s = now_s
            return
        record = {"trigger": "leak", "level": found.level.label, "own_bytes": guarded.own_bytes}
        if self._daemon.restart(guarded.pid, guarded.start_ticks, now_s, record, self._actor.note):
            guarded.leaving_s = now_s

    # -- follow -----------------------------------------------------------------------------------------------

    def _follow(self, now_s: float) -> None:
        for each in self._actor.watch(now_s):
            self._gone(each, now_s)
        for each in self._actor.dying:
            if each.killed and now_s - each.since_s >= STAYS_S and not each.guarded.reported:
                each.guarded.reported = True
                self._reporter.action("error", "victim_stays", each.guarded, after_s=round(now_s - each.since_s, 1))
        if self._daemon is not None and not self._actor.dry_run:
            self._daemon.look(now_s, self._actor.end, self._actor.note)

    def _gone(self, dying: Dying, now_s: float) -> None:
        after_s = now_s - dying.since_s
        if dying.killed or dying.guarded.role == "cell":
            self._reactions.append(after_s)
        self._killed = None
        self._track.forget()
        self._thrash.forget()
        held = dying.own_bytes
        self._reporter.action("info", "victim_gone", dying.guarded, after_s=round(after_s, 4), freed_bytes=held)
        self._roster.drop(dying.guarded)

    def _report(self) -> None:
        if (sample := self._sample) is None:
            return
        seen = self._seen(sample)
        self._reporter.publish(seen, frozen=sum(each.frozen_s is not None for each in self._roster))
        if self._thrash.level(sample.monotonic_s, 0) is not Level.OK:
            worst = max(self._roster, key=lambda each: each.major_faults_per_s, default=None)
            self._reporter.thrashing(seen, self._thrash.found, worst)
        self._reporter.summarise(
            seen, guarded=len(self._roster), looks=self._looks, reaction_s=round(self.reaction_s, 4)
        )

    def _seen(self, sample: Sample) -> Seen:
        hold_bytes = entry_bytes(Level.HOLD, sample.limit_bytes, self._thresholds)
        return Seen(sample, self._level, self._track.slope(), self._exhaustion_s, hold_bytes, self._foreseen)

    # -- between the looks, before and after ------------------------------------------------------------------

    def pause_s(self) -> float:
        """How long nothing can happen."""
        sample = self._sample
        if sample is None or not any(each.role != "daemon" for each in self._roster):
            return self._longest_s  # nobody whom we could stop
        if not all(each.guarded.reported for each in self._actor.dying):
            return min(self._longest_s, pace.SHORTEST_S)
        frozen = any(each.frozen_s is not None for each in self._roster)
        headroom, limit = sample.firm_headroom_bytes, sample.limit_bytes
        return min(self._longest_s, pace.pause_s(headroom, limit, self._track.slope(), self._thresholds, frozen=frozen))

    def victims(self) -> list[tuple[Candidate, Guarded]]:
        """Everybody registered, in the order in which they would be taken out now."""
        sample = self._sample
        if sample is None:
            return []
        now = self._situation(sample, Assessment(Level.EVICT, "headroom"))
        candidates = [guarded.candidate(sample.monotonic_s) for guarded in self._roster]
        pairs = [(each, self._roster.get(each.pid)) for each in in_order(now, candidates, self._policy)]
        return [(each, guarded) for each, guarded in pairs if guarded is not None]

    @property
    def level(self) -> Level:
        return self._level

    def look_now(self) -> Seen | None:
        """The last look, as it is reported; None before the first."""
        return None if self._sample is None else self._seen(self._sample)

    def started(self, **facts: Any) -> None:
        acts = not self._actor.dry_run
        self._reporter.line("info", "watchdog_started", acts=acts, **facts, thresholds=asdict(self._thresholds))

    def stopped(self, why: str) -> None:
        """Nobody stays frozen without a watchdog."""
        for guarded in self._roster:
            if guarded.frozen_s is not None and not self._actor.dry_run:
                self._actor.carry_out(Action(Step.THAW, guarded.pid, "stopping"), guarded, self._clock(), {})
                self._reporter.action("info", "thawed", guarded, trigger="stopping")
        self._reporter.stopped(why, self._level)

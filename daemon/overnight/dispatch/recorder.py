"""How attempts end in the queue: the verdict, what follows from it, and what was learned."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from overnight.config import Config
from overnight.dispatch import claims, retries, verdicts
from overnight.dispatch.attempt import Attempt
from overnight.dispatch.crew import Crew
from overnight.dispatch.planner import Planner
from overnight.dispatch.retries import Attempted, Consequence
from overnight.dispatch.verdicts import Verdict
from overnight.queue.rows import Peak
from overnight.queue.states import Outcome
from overnight.queue.store import Claimed, Queue, StaleAttempt


@dataclass(frozen=True)
class Unstarted:
    """A claimed cell that got no process: how its attempt ended before it began."""

    claimed: Claimed
    outcome: Outcome
    reason_code: str
    reason: str
    delay_s: float = 0.0
    quarantine: bool = False


class Recorder:
    """`unstarted` and the crew's `ended` wait here while the queue takes nothing; nothing is forgotten."""

    def __init__(
        self,
        config: Config,
        queue: Queue,
        crew: Crew,
        planner: Planner,
        log: Any,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._config, self._queue, self._log = config, queue, log
        self._crew, self._planner, self._chance = crew, planner, chance
        self.unstarted: list[Unstarted] = []

    @property
    def waits(self) -> bool:
        """Is there an end that the queue does not know yet?"""
        return bool(self.unstarted or self._crew.ended)

    def next(self) -> str | None:
        """Tell the queue of one end; returns the grid, or None when there is nothing to tell. Raises QueueUnavailable:
        then nothing has changed, and it is told later."""
        if self.unstarted:
            found = self.unstarted[0]
            self._queue.finish(
                found.claimed.attempt_id,
                found.outcome,
                reason_code=found.reason_code,
                reason=found.reason,
                delay_s=found.delay_s,
                quarantine=found.quarantine,
            )
            self.unstarted.pop(0)
            return found.claimed.grid
        if not self._crew.ended:
            return None
        attempt = self._crew.ended[0]
        self._record(attempt)
        self._crew.ended.pop(0)
        return attempt.grid

    def _record(self, attempt: Attempt) -> None:
        cell, grant, report = attempt.claimed.cell, attempt.grant, attempt.report or {}
        if attempt.verdict is None:  # drawn once: its cgroup is asked before it is used again
            attempt.verdict = verdicts.judge(attempt.ending())
            attempt.peak_bytes = _peak(attempt)
        verdict = attempt.verdict
        turns = report.get("turns", attempt.turn)
        follows = self._consequence(attempt, verdict, progressed=turns > cell.turns)
        learn = self._lesson(attempt, verdict)
        outcome = Outcome.FAILED if follows.failed else Outcome(verdict.outcome)
        reason = follows.reason or verdict.reason
        code = follows.reason_code or verdict.reason_code
        evidence = verdict.evidence | {"confidence": verdict.confidence}
        try:
            status = self._queue.finish(
                attempt.id,
                outcome,
                reason_code=code,
                reason=reason,
                evidence=evidence,
                turns=turns,
                output_tokens=report.get("output_tokens", attempt.output_tokens),
                end_reason=report.get("end_reason"),
                transcript_sha256=report.get("transcript_sha256") or report.get("result_sha256"),
                delay_s=follows.delay_s,
                load_s=attempt.server.load_s,
                replay_s=attempt.replay_s,
                max_rss_bytes=attempt.max_rss_bytes,
                process=None if attempt.handle is None else (attempt.handle.pid, attempt.handle.start_ticks),
                claim_bytes=grant.claim_bytes,
                cap_bytes=grant.cap_bytes,
                peak_bytes=attempt.peak_bytes or None,
                raised_claim_bytes=follows.raised_claim_bytes,
                alone=follows.alone,
                quarantine=follows.quarantine,
                learn=learn,
            )
        except StaleAttempt as error:
            self._log.error("attempt_stale", **attempt.names(), error=str(error))
            self._crew.settle_memory(attempt)
            return
        if learn is not None:
            self._planner.forget()
        self._crew.settle_memory(attempt)
        write = self._log.info if verdict.outcome in ("completed", "cancelled") else self._log.warning
        figures = {"claim_bytes": grant.claim_bytes, "next_claim_bytes": follows.raised_claim_bytes}
        said = {
            "outcome": str(outcome),
            "status": str(status),
            "turns": turns,
            "reason_code": code,
            "reason": reason,
            "delay_s": round(follows.delay_s, 3),
        }
        # The watchdog's record has a peak of its own, as it saw it.
        write(
            "cell_ended", **({"peak_bytes": attempt.peak_bytes or None} | evidence | attempt.names() | said | figures)
        )

    def _consequence(self, attempt: Attempt, verdict: Verdict, *, progressed: bool) -> Consequence:
        cell, daemon, grant = attempt.claimed.cell, self._config.daemon, attempt.grant
        # As they are now: what was predicted of a server before it had loaded must not quarantine a cell that fits.
        server_bytes = self._planner.server_bytes(attempt.server.key, attempt.server.warm)
        most_bytes = self._planner.view().most_bytes
        # A warm server that the OOM killer took says nothing of the cell's own size.
        outcome = "lost" if verdict.reason_code == "warm_server_oom_killed" else verdict.outcome
        return retries.consequence(
            outcome,
            attempted=Attempted(
                claim_bytes=grant.claim_bytes,
                server_bytes=server_bytes,
                most_bytes=most_bytes,
                peak_bytes=attempt.peak_bytes or None,
                # A limit on a command's data counts what is reserved: its claim says what it had.
                cap_bytes=grant.cap_bytes if attempt.cap_grows else None,
                alone=grant.alone,
            ),
            evictions=(0 if progressed else cell.evictions) + (verdict.outcome == "evicted"),
            tries_used=cell.tries_used,
            interrupted=0 if progressed else cell.stalled + 1,
            retry_delay_s=daemon.retry_delay_s,
            no_space_delay_s=daemon.no_space_delay_s,
            reason_code=verdict.reason_code,
            told=attempt.report is not None,
            chance=self._chance(),
        )

    def _lesson(self, attempt: Attempt, verdict: Verdict) -> Peak | None:
        if not attempt.peak_bytes:
            return None
        spec = attempt.claimed.spec
        return Peak(claims.kind(spec), claims.family(spec), attempt.peak_bytes, verdict.outcome == "completed")


def _peak(attempt: Attempt) -> int:
    """The most that it was seen to hold. One that met its cap held all of it; of one that was gone before it was ever
    weighed the kernel's high-water mark tells (which counts the files that it wrote, too)."""
    found, grant = attempt.peak_bytes, attempt.grant
    if attempt.eviction is not None and not attempt.eviction.warm:
        found = max(found, attempt.eviction.peak_bytes)  # the watchdog looks more often when it gets tight
    if attempt.verdict is not None and attempt.verdict.outcome == "over_cap" and grant.capped_by == "cgroup":
        return max(found, grant.cap_bytes or 0)  # a limit on data counts what was reserved, not what was held
    if not found and grant.slot is not None and grant.cap_bytes is not None:
        return min(grant.slot.evidence().high_water_bytes, grant.cap_bytes)
    return found

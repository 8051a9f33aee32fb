"""What the watchdog says of what it sees: the heartbeat, one line for each change of level, a summary a minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from overnight_watchdog.assess import Level
from overnight_watchdog.journal import short_source
from overnight_watchdog.roster import Guarded
from overnight_watchdog.sample import Sample
from overnight_watchdog.thrash import Thrashing

SUMMARY_S = 60.0
PUBLISH_S = 0.25
CALM_S = 0.5
"""A level is said to be left when nothing asked for it so long: a forecast comes and goes with a breath."""


class Heartbeat(Protocol):
    def write(self, record: dict[str, Any]) -> bool: ...


class Log(Protocol):
    def write(self, level: str, event: str, **fields: Any) -> bool: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """One look, as it is reported. slope: bytes a second by which the firm headroom shrinks. hold_bytes: the headroom
    at which `hold` begins, under this limit. foreseen: the level is due to the forecast alone."""

    sample: Sample
    level: Level
    slope_bytes_per_s: float | None
    exhaustion_s: float | None
    hold_bytes: int = 0
    foreseen: bool = False

    def numbers(self) -> dict[str, Any]:
        sample, slope, left = self.sample, self.slope_bytes_per_s, self.exhaustion_s
        return {
            "headroom_bytes": sample.headroom_bytes,
            "firm_headroom_bytes": sample.firm_headroom_bytes,
            "headroom_source": sample.headroom_source,
            "limit_bytes": sample.limit_bytes,
            "limit_source": sample.limit_source,
            "usage_bytes": sample.usage_bytes,
            "slope_bytes_per_s": None if slope is None else round(slope),
            "exhaustion_s": None if left is None else round(left, 3),
        }


class Reporter:
    """identity: the fields of the heartbeat that name this process (boot_id, pid, start_ticks)."""

    def __init__(self, heartbeat: Heartbeat, log: Log, identity: dict[str, Any]) -> None:
        self._heartbeat, self._log, self._identity = heartbeat, log, identity
        self._said = Level.OK
        self._asked_s = [float("-inf")] * len(Level)
        self._foreseen = [False] * len(Level)
        self._published_s = float("-inf")
        self._sequence = self._heartbeats_lost = 0
        self._quiet: dict[str, float] = {}
        self._summary_due_s: float | None = None
        self._lowest_bytes: int | None = None

    def action(self, severity: str, event: str, guarded: Guarded, **fields: Any) -> None:
        """Somebody was touched; the heartbeat says so at once."""
        self._log.write(severity, event, **names(guarded), **fields)
        self._published_s = float("-inf")

    def line(self, severity: str, event: str, **fields: Any) -> None:
        self._log.write(severity, event, **fields)

    def seldom(self, now_s: float, severity: str, event: str, **fields: Any) -> None:
        """At most one line a minute of a kind (and of a step, where it has one)."""
        key = f"{event}:{fields.get('step', '')}"
        if now_s >= self._quiet.get(key, float("-inf")):
            self._quiet[key] = now_s + SUMMARY_S
            self._log.write(severity, event, **fields)

    def publish(self, seen: Seen, *, frozen: int) -> None:
        """The heartbeat: at every change of level, and four times a second at most otherwise."""
        now_s, before = seen.sample.monotonic_s, self._said
        for level in Level:
            if level <= seen.level:
                self._asked_s[level], self._foreseen[level] = now_s, seen.foreseen
        self._said = max(level for level in Level if now_s - self._asked_s[level] < CALM_S)
        if self._said is not before:
            severity = "warning" if self._said > before else "info"
            change = {"from": before.label, "to": self._said.label}
            self._log.write(severity, "pressure_changed", **change, **seen.numbers())
        elif now_s - self._published_s < PUBLISH_S:
            return
        self._published_s = now_s
        self._sequence += 1
        numbers = seen.numbers()
        for only_logged in ("firm_headroom_bytes", "headroom_source"):
            del numbers[only_logged]
        record = {
            "v": 1,
            **self._identity,
            **numbers,
            "level": self._said.label,
            "limit_source": short_source(seen.sample.limit_source),
            "hold_bytes": seen.hold_bytes,
            "foreseen": self._foreseen[self._said],
            "frozen": frozen,
            "sequence": self._sequence,
            "monotonic_s": now_s,
        }
        if not self._heartbeat.write(record):
            self._heartbeats_lost += 1

    def summarise(self, seen: Seen, **fields: Any) -> None:
        """Once a minute; nothing for a look as such."""
        now_s, headroom = seen.sample.monotonic_s, seen.sample.headroom_bytes
        self._lowest_bytes = headroom if self._lowest_bytes is None else min(self._lowest_bytes, headroom)
        if self._summary_due_s is None:
            self._summary_due_s = now_s + SUMMARY_S
        if now_s < self._summary_due_s:
            return
        self._log.write(
            "info",
            "pressure_sampled",
            pressure=seen.level.label,
            **seen.numbers(),
            lowest_headroom_bytes=self._lowest_bytes,
            **fields,
            sequence=self._sequence,
            heartbeats_lost=self._heartbeats_lost,
            own_rss_bytes=psutil.Process().memory_info().rss,
        )
        self._summary_due_s, self._lowest_bytes = now_s + SUMMARY_S, None

    def thrashing(self, seen: Seen, found: Thrashing, worst: Guarded | None) -> None:
        """It is named once a minute as long as it goes on."""
        now_s = seen.sample.monotonic_s
        self.seldom(
            now_s,
            "warning",
            "thrashing",
            refault_per_s=round(found.refault_per_s, 3),
            stall=None if found.stall is None else round(found.stall, 3),
            lasted_s=None if found.since_s is None else round(now_s - found.since_s, 1),
            worst=None if worst is None else worst.cell or worst.pid,
            **seen.numbers(),
        )

    def stopped(self, why: str, level: Level) -> None:
        self._log.write("info", "watchdog_stopped", reason=why, pressure=level.label, sequence=self._sequence)


def names(guarded: Guarded) -> dict[str, Any]:
    """What every line about a registered process says."""
    return {
        "pid": guarded.pid,
        "role": guarded.role,
        "cell": guarded.cell,
        "attempt": guarded.entry.get("attempt", 0),
    }

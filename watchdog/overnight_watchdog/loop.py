"""The watchdog's life: sample -> assess -> publish -> tell, once an interval.

This version watches and says what it sees; it acts on nobody. The steps "decide" and "act" of the pressure
ladder have no place here yet, and `acts: false` in `watchdog_started` says so to whoever reads the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from overnight_watchdog.assess import Level, Thresholds, assess
from overnight_watchdog.journal import EventLog, PressureFile, short_source
from overnight_watchdog.limits import PROC, SYS, Bound, CgroupFolder, bounds, memory_cgroups
from overnight_watchdog.sample import Sample, SampleError, slope_bytes_per_s, take_sample

SUMMARY_S = 60.0
"""At most one `pressure_sampled` line, and one look at where our cgroups are, in this time."""


class Eye:
    """Looks at memory. Limits and usage are read at each look; where the cgroups are, once a minute."""

    def __init__(
        self,
        *,
        budget_bytes: int | None,
        tree_root: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
        proc_root: Path = PROC,
        sys_root: Path = SYS,
    ) -> None:
        self._budget_bytes, self._tree_root, self._clock = budget_bytes, tree_root, clock
        self._proc_root, self._sys_root = proc_root, sys_root
        self._machine_bytes = 0
        self._folders: tuple[CgroupFolder, ...] = ()
        self._refresh_s = clock()

    def bounds(self) -> tuple[Bound, ...]:
        """Everything that bounds us now, the smallest first."""
        now_s = self._clock()
        if now_s >= self._refresh_s:
            self._machine_bytes = psutil.virtual_memory().total
            self._folders = memory_cgroups(self._proc_root, self._sys_root)
            self._refresh_s = now_s + SUMMARY_S
        return bounds(self._machine_bytes, self._budget_bytes, self._folders)

    def look(self) -> Sample:
        """Raises SampleError (or OSError) when nothing can be seen."""
        found = self.bounds()
        root_pid = None if self._budget_bytes is None else self._tree_root()
        return take_sample(found, root_pid=root_pid, now_s=self._clock(), proc_root=self._proc_root)


class Watchdog:
    """What is remembered from one look to the next.

    identity: the fields of the heartbeat that name this process (boot_id, pid, start_ticks).
    """

    def __init__(
        self,
        *,
        look: Callable[[], Sample],
        heartbeat: PressureFile,
        log: EventLog,
        identity: dict[str, Any],
        thresholds: Thresholds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._look, self._heartbeat, self._log, self._identity = look, heartbeat, log, identity
        self._thresholds = Thresholds() if thresholds is None else thresholds
        self._level = Level.OK
        self._last: Sample | None = None
        self._sequence = 0
        self._heartbeats_lost = 0
        self._summary_due_s: float | None = None
        self._lowest_bytes: int | None = None
        self._blind_until_s = float("-inf")

    def run(self, wait: Callable[[], str | None], **facts: Any) -> None:
        """Step until `wait`, which sleeps for the interval, gives a reason to stop. `facts` are logged."""
        self._log.write("info", "watchdog_started", acts=False, **facts, thresholds=asdict(self._thresholds))
        why = None
        while why is None:
            self.step()
            why = wait()
        self._log.write("info", "watchdog_stopped", reason=why, pressure=self._level.label, sequence=self._sequence)
        self._heartbeat.close()
        self._log.close()

    def step(self) -> None:
        """sample -> assess -> publish -> tell.

        A look that fails publishes nothing: the heartbeat goes stale, and the daemon admits nothing.
        """
        try:
            sample = self._look()
        except (SampleError, OSError) as error:
            self._tell_blind(error)
            return
        slope = slope_bytes_per_s(self._last, sample)
        level = assess(sample.headroom_bytes, sample.limit_bytes, slope, self._level, self._thresholds)
        self._publish(sample, slope, level)
        self._tell(sample, slope, level)
        self._last, self._level = sample, level

    def _publish(self, sample: Sample, slope: int | None, level: Level) -> None:
        self._sequence += 1
        record = {
            "v": 1,
            **self._identity,
            "level": level.label,
            "limit_bytes": sample.limit_bytes,
            "limit_source": short_source(sample.limit_source),
            "headroom_bytes": sample.headroom_bytes,
            "usage_bytes": sample.usage_bytes,
            "slope_bytes_per_s": slope,
            "exhaustion_s": None,  # this version forecasts nothing
            "sequence": self._sequence,
            "monotonic_s": sample.monotonic_s,
        }
        if not self._heartbeat.write(record):
            self._heartbeats_lost += 1

    def _tell(self, sample: Sample, slope: int | None, level: Level) -> None:
        """One line for a change of level, else a summary a minute; nothing for a sample as such."""
        now_s = sample.monotonic_s
        lowest = sample.headroom_bytes if self._lowest_bytes is None else self._lowest_bytes
        self._lowest_bytes = min(lowest, sample.headroom_bytes)
        if self._summary_due_s is None:
            self._summary_due_s = now_s + SUMMARY_S
        if level is not self._level:
            change = {"from": self._level.label, "to": level.label}
            severity = "warning" if level > self._level else "info"
            self._log.write(severity, "pressure_changed", **change, **_numbers(sample, slope))
        if now_s >= self._summary_due_s:
            self._log.write(
                "info",
                "pressure_sampled",
                pressure=level.label,
                **_numbers(sample, slope),
                lowest_headroom_bytes=self._lowest_bytes,
                sequence=self._sequence,
                heartbeats_lost=self._heartbeats_lost,
                own_rss_bytes=psutil.Process().memory_info().rss,
            )
            self._summary_due_s, self._lowest_bytes = now_s + SUMMARY_S, None

    def _tell_blind(self, error: Exception) -> None:
        self._last = None  # no slope across the gap
        now_s = self._clock()
        if now_s >= self._blind_until_s:
            self._log.write("error", "sampling_failed", error=str(error))
            self._blind_until_s = now_s + SUMMARY_S


def _numbers(sample: Sample, slope: int | None) -> dict[str, Any]:
    return {
        "headroom_bytes": sample.headroom_bytes,
        "headroom_source": sample.headroom_source,
        "limit_bytes": sample.limit_bytes,
        "limit_source": sample.limit_source,
        "usage_bytes": sample.usage_bytes,
        "slope_bytes_per_s": slope,
    }

"""What the logs of daemon and watchdog say of a night: memory, what was done about it, who started and stopped.

Logs rotate, and a full disk costs lines: what is gone is gone, and nothing here takes their place. Lines are read one
at a time, whatever they hold; those of no interest are not even parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overnight.report.night import Sample

_LONGEST_LINE = 64 * 1024
_EVENT = re.compile(rb'"event": ?"([a-z_]+)"')

TO_SOMEBODY = ("evicted", "killed")
"""Who had to leave."""

SMALLER = ("shrink_asked", "frozen", "thrashing", "no_victim", "daemon_restarted")
"""Done about memory, or wrong, without anybody having to leave."""

_WATCHDOG = {
    "pressure_sampled", "pressure_changed", "watchdog_started", "watchdog_stopped", *TO_SOMEBODY, *SMALLER,
}  # fmt: skip
_DAEMON = {
    "daemon_started", "daemon_stopped", "daemon_failed", "cells_recovered", "watchdog_silent", "watchdog_back",
    "watchdog_restarted", "warm_loaded", "warm_released", "warm_gone", "warm_refused", "cell_too_large",
    "cell_left_memory", "queue_unavailable", "lock_lost", "clock_set_back",
}  # fmt: skip
_MOST_EVENTS = 5000

SUMMARY_S = 60.0
"""Between two samples of the watchdog."""


@dataclass(frozen=True)
class Event:
    """One line. at: unix seconds."""

    at: float
    event: str
    level: str
    fields: Mapping[str, Any]

    def whole(self, name: str) -> int | None:
        value = self.fields.get(name)
        return value if type(value) is int else None

    def number(self, name: str) -> float | None:
        value = self.fields.get(name)
        return float(value) if isinstance(value, int | float) else None

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""


@dataclass
class Logs:
    """Of one period. holds: the share of the limit, as used, from which nothing new is admitted. found: which logs
    there are. dropped: events beyond what a report can show."""

    samples: list[Sample] = field(default_factory=list)
    watchdog: list[Event] = field(default_factory=list)
    daemon: list[Event] = field(default_factory=list)
    holds: float | None = None
    found: list[str] = field(default_factory=list)
    dropped: int = 0


def read(folder: Path, start: float, end: float) -> Logs:
    """The period's part of var/log."""
    logs = Logs()
    for event in _events(folder, "watchdog.jsonl", _WATCHDOG, logs):
        if event.event == "watchdog_started":
            logs.holds = _holds(event) or logs.holds
        if not start <= event.at <= end:
            continue
        if (sample := _sample(event)) is not None:
            logs.samples.append(sample)
        if event.event not in ("pressure_sampled", "pressure_changed"):
            _keep(logs, logs.watchdog, event)
    for event in _events(folder, "daemon.jsonl", _DAEMON, logs):
        if start <= event.at <= end:
            _keep(logs, logs.daemon, event)
    logs.samples.sort(key=lambda sample: sample.at)
    return logs


def _keep(logs: Logs, events: list[Event], event: Event) -> None:
    if len(events) < _MOST_EVENTS or event.event in TO_SOMEBODY:
        events.append(event)
    else:
        logs.dropped += 1


def _holds(event: Event) -> float | None:
    """Percentages are of the limit, on a large machine of at most `scale_cap_bytes`."""
    thresholds, limit = event.fields.get("thresholds"), event.whole("limit_bytes")
    if not isinstance(thresholds, Mapping):
        return None
    percent, cap = thresholds.get("hold_percent"), thresholds.get("scale_cap_bytes")
    if not isinstance(percent, int | float) or not 0 < percent < 100:
        return None
    scale = min(1.0, cap / limit) if isinstance(cap, int) and limit and cap > 0 and limit > 0 else 1.0
    return 1 - percent / 100 * scale


def _sample(event: Event) -> Sample | None:
    limit, headroom = event.whole("limit_bytes"), event.whole("headroom_bytes")
    if limit is None or headroom is None or limit <= 0:
        return None
    lowest = event.whole("lowest_headroom_bytes")
    low = headroom if lowest is None else min(lowest, headroom)
    return Sample(event.at, max(0, limit - headroom), max(0, limit - low), limit)


def _events(folder: Path, name: str, wanted: set[str], logs: Logs) -> Iterator[Event]:
    """From the oldest rotated file to the newest."""
    numbered = sorted(folder.glob(f"{name}.[0-9]*"), key=_rotation, reverse=True)
    for path in [*numbered, folder / name]:
        try:
            stream = path.open("rb")
        except OSError:
            continue
        logs.found.append(path.name)
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                kind = _EVENT.search(line)
                if kind is not None and kind.group(1).decode() in wanted and (event := _event(line)) is not None:
                    yield event


def _rotation(path: Path) -> int:
    number = path.name.rsplit(".", 1)[-1]
    return int(number) if number.isdecimal() else 0


def _event(line: bytes) -> Event | None:
    try:
        record = json.loads(line)
        at = datetime.fromisoformat(record.pop("ts"))
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return Event(at.timestamp(), str(record.pop("event")), str(record.pop("level", "")), record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None

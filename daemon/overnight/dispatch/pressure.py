"""The daemon's reader of var/run/pressure.json, which the watchdog overwrites in place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from overnight import procfs
from overnight.checked import number, read_small, rounded, text, whole
from overnight.dispatch import records

STALE_S = 5.0
"""A heartbeat older than this means that the watchdog is gone."""

_AHEAD_S = 1.0
"""A heartbeat of the future would be fresh for ever: nobody of this boot wrote it."""


@dataclass(frozen=True)
class Pressure:
    """The watchdog's last word.

    slope_bytes_per_s: how fast the headroom goes away; exhaustion_s: until it is gone; None = not known.
    foreseen: the level is due to the forecast alone. hold_bytes: the headroom at which `hold` begins, under this limit;
    None = it did not say.
    frozen: processes that it has stopped. pid, start_ticks: who said all this, None = it did not say.
    """

    level: str
    limit_bytes: int
    headroom_bytes: int
    age_s: float
    slope_bytes_per_s: int | None = None
    exhaustion_s: float | None = None
    frozen: int = 0
    pid: int | None = None
    start_ticks: int | None = None
    hold_bytes: int | None = None
    foreseen: bool = False


def read(path: Path) -> Pressure | None:
    """None when there is no living watchdog: no file, a torn or damaged one, another boot's, or a stale one."""
    found = last(path)
    return found if found is not None and found.age_s <= STALE_S else None


def last(path: Path) -> Pressure | None:
    """The last heartbeat of this boot, however old.

    A torn one is read once more before it counts as none, which means death to the guardian: the read may have met a
    write, and two in a row do not."""
    try:
        record = records.whole(read_small(path)) or records.whole(read_small(path))
    except OSError:
        return None
    if record is None:
        return None
    slope, exhaustion = record.get("slope_bytes_per_s"), record.get("exhaustion_s")
    pid, ticks, hold = record.get("pid"), record.get("start_ticks"), record.get("hold_bytes")
    try:
        found = Pressure(
            text(record["level"] or None, 16),
            whole(record["limit_bytes"]),
            whole(record["headroom_bytes"]),
            time.monotonic() - number(record["monotonic_s"]),
            slope_bytes_per_s=None if slope is None else rounded(slope),
            exhaustion_s=None if exhaustion is None else number(exhaustion),
            frozen=whole(record.get("frozen") or 0),
            pid=None if pid is None else whole(pid, 1, procfs.PID_MOST),
            start_ticks=None if ticks is None else whole(ticks),
            hold_bytes=None if hold is None else whole(hold),
            foreseen=record.get("foreseen") is True,
        )
    except (KeyError, ValueError):
        return None
    return found if found.age_s > -_AHEAD_S else None

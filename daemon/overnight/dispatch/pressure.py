"""The daemon's reader of var/run/pressure.json, which the watchdog overwrites in place."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from overnight import durable, procfs

STALE_S = 5.0
"""A heartbeat older than this means that the watchdog is gone."""


@dataclass(frozen=True)
class Pressure:
    """The watchdog's last word."""

    level: str
    limit_bytes: int
    headroom_bytes: int
    age_s: float


def read(path: Path) -> Pressure | None:
    """None when there is no living watchdog: no file, a torn or damaged one, another boot's, or a stale one."""
    try:
        record = json.loads(path.read_bytes())
        checksum = record.pop("checksum")
        if f"{zlib.crc32(durable.canonical(record).encode()):08x}" != checksum:
            return None
        if record["v"] != 1 or record["boot_id"] != procfs.boot_id():
            return None
        age_s = time.monotonic() - float(record["monotonic_s"])
        found = Pressure(str(record["level"]), int(record["limit_bytes"]), int(record["headroom_bytes"]), age_s)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if age_s <= STALE_S else None

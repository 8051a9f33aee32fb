"""var/run/verdicts.ring and var/run/pressure.json as the watchdog writes them, for tests of their reader."""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path
from typing import Any

from overnight import procfs

SLOT_BYTES, SLOTS = 1024, 64
EMPTY = b" " * (SLOT_BYTES - 1) + b"\n"


def sealed(record: dict[str, Any]) -> bytes:
    """Canonical JSON with its checksum."""

    def canonical(value: dict[str, Any]) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    return canonical(record | {"checksum": f"{zlib.crc32(canonical(record)):08x}"})


def verdict(pid: int, start_ticks: int, sequence: int = 1, **changes: Any) -> dict[str, Any]:
    """A whole record: a cell at 181.2 MiB of 2 GiB."""
    return {
        "v": 1,
        "boot_id": procfs.boot_id(),
        "sequence": sequence,
        "monotonic_s": time.monotonic(),
        "wall_s": time.time(),
        "pid": pid,
        "start_ticks": start_ticks,
        "role": "cell",
        "cell": "night/baseline_script_run1",
        "attempt": 1,
        "step": "evict",
        "trigger": "headroom",
        "level": "evict",
        "limit_bytes": 2 << 30,
        "limit_source": "budget",
        "headroom_bytes": 190_000_000,
        "slope_bytes_per_s": 54_840_524,
        "exhaustion_s": None,
        "own_bytes": 310 << 20,
        "peak_bytes": 320 << 20,
        "loss_s": 1.2,
    } | changes


def slot(record: dict[str, Any]) -> bytes:
    return sealed(record).ljust(SLOT_BYTES - 1) + b"\n"


def write_ring(path: Path, *records: dict[str, Any]) -> None:
    """The whole file, the records in its first slots."""
    path.write_bytes(b"".join(slot(record) for record in records).ljust(SLOT_BYTES * SLOTS, b"\0"))


def heartbeat(pid: int, *, age_s: float = 0.0, **changes: Any) -> bytes:
    """A heartbeat by process `pid`, `age_s` old."""
    record = {
        "v": 1,
        "boot_id": procfs.boot_id(),
        "pid": pid,
        "start_ticks": procfs.start_ticks(pid),
        "level": "ok",
        "limit_bytes": 2 << 30,
        "limit_source": "budget",
        "headroom_bytes": 1 << 30,
        "usage_bytes": 1 << 30,
        "slope_bytes_per_s": None,
        "exhaustion_s": None,
        "frozen": 0,
        "sequence": 1,
        "monotonic_s": time.monotonic() - age_s,
    } | changes
    return sealed(record).ljust(511) + b"\n"

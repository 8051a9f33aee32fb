"""var/run/verdicts.ring: the daemon's reader of one process's verdict, and the watchdog going on behind the newest."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from fuzz.sealing import sealed
from fuzz.target import Case, Target, check_line, expect
from helpers.verdict_ring import SLOT_BYTES, SLOTS, slot, verdict
from overnight import procfs
from overnight.dispatch import evictions
from overnight_watchdog import verdicts

_PID, _TICKS = 4242, 77_000
_RINGS_OWN = ("v", "boot_id", "sequence")


class Eviction(Target):
    """The daemon's."""

    name = "verdicts.ring (daemon)"
    tokens = (b'"checksum":"', b'"step":"kill"', b'"sequence":', b'"pid":4242', b"\0" * 1024, b" " * 64, b"\n")

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self._path = folder / "verdicts.ring"
        self._records = [
            verdict(_PID, _TICKS, 7),
            verdict(99, 5, 8, step="freeze"),
            verdict(_PID, _TICKS, 9, step="kill", trigger="thrash", exhaustion_s=2.5, limit_source="cgroup:/x/y"),
            verdict(_PID, _TICKS, 10, step="freeze"),
        ]
        self._sentences = {
            found.sentence() for each in self._records if (found := evictions._eviction(each, False)) is not None
        }

    def seeds(self) -> Sequence[bytes]:
        ring = b"".join(slot(record) for record in self._records)
        return [ring, ring.ljust(SLOT_BYTES * SLOTS, b"\0"), slot(self._records[0])]

    def documents(self) -> Sequence[Any]:
        return self._records

    def render(self, document: Any) -> bytes:
        return slot(self._records[0]) + sealed(document, SLOT_BYTES)

    def read(self, case: Case) -> str:
        self._path.write_bytes(case.data)
        found = evictions.read(self._path, _PID, _TICKS)
        if found is None:
            return "nothing"
        json.dumps(found.evidence(), allow_nan=False).encode()
        sentence = check_line(found.sentence())
        check_line(f"{found.reason_code} {found.step} {found.trigger}")
        expect(case.crafted or sentence in self._sentences, f"a damaged verdict was believed: {sentence}")
        return f"{found.step} {found.reason_code}"


class Ring(Eviction):
    """The watchdog's: it opens the ring of its predecessor, and the next verdict must find its place."""

    name = "verdicts.ring (watchdog)"

    def read(self, case: Case) -> str:
        for record in verdicts.read_ring(case.data):
            expect(case.crafted or any(record["sequence"] == each["sequence"] for each in self._records), "damage")
        self._path.write_bytes(case.data)
        ring = verdicts.VerdictRing(self._path, procfs.boot_id())
        expect(ring.open(), "it cannot be opened")
        try:
            expect(os.fstat(ring._fd).st_size == SLOT_BYTES * SLOTS, "it has another size")
            record = {
                name: value for name, value in verdict(_PID, _TICKS, step="evict").items() if name not in _RINGS_OWN
            }
            expect(ring.write(record), "a verdict cannot be written into it")
            before = ring.sequence
        finally:
            ring.close()
        found = evictions.read(self._path, _PID, _TICKS)
        expect(found is not None and found.step == "evict", "what was just written is not what is found")
        return f"{min(before, 12)}"

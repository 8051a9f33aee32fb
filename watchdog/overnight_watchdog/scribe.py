"""Writes for somebody who must not wait for a disk.

A write to a file can stand still for seconds, or for good: a file system that is frozen for a snapshot, a journal
behind a flood of other writes, a terminal that was stopped. *Measured*: on a frozen file system a watchdog that wrote
its heartbeat itself never came to its signal, and the kernel killed. So one thread writes, in order; the loop hands
over and goes on, and waits for a verdict a few milliseconds at most.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from overnight_watchdog.journal import EventLog
from overnight_watchdog.verdicts import VerdictRing

MOST_WAITING = 1000
"""What is handed over while so much waits is lost, and counted."""
VERDICT_S = 0.005
STACK_BYTES = 256 * 1024

Job = Callable[[], object]


class Scribe:
    """One thread. `lost`: jobs that nobody took, or that failed, since a log line last said so."""

    def __init__(self) -> None:
        self.lost = 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        before = threading.stack_size(STACK_BYTES)
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()
        threading.stack_size(before)

    def put(self, job: Job) -> bool:
        """Have it done. False when too much is waiting already."""
        if self._jobs.qsize() >= MOST_WAITING:
            self.lost += 1
            return False
        self._jobs.put(job)
        return True

    def do(self, job: Job, *, wait_s: float) -> bool:
        """Have it done, and wait for that: no longer than `wait_s`. False when it was not done in time, or failed."""
        done, result = threading.Event(), [False]

        def run() -> None:
            result[0] = bool(job())
            done.set()

        return self.put(run) and done.wait(wait_s) and result[0]

    def finish(self, wait_s: float) -> bool:
        """Have everything written that was handed over. False when that takes too long."""
        self._jobs.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # noqa: BLE001 - whatever one job met, the next ones are written
                self.lost += 1


class Writer(Protocol):
    def write(self, record: dict[str, Any]) -> bool: ...


class LaterHeartbeat:
    """The newest heartbeat counts: one that is overtaken while the disk stands still is never written."""

    def __init__(self, heartbeat: Writer, scribe: Scribe) -> None:
        self._heartbeat, self._scribe = heartbeat, scribe
        self._newest: dict[str, Any] = {}
        self._queued = False
        self._ok = True

    def write(self, record: dict[str, Any]) -> bool:
        """How the one before went."""
        # In this order, as the other thread goes in the opposite one: whoever finds a job queued may be sure that it
        # has not looked for the newest yet.
        self._newest = record
        if self._queued:
            return False
        self._queued = True
        if not self._scribe.put(self._write_newest):
            self._queued = False
            return False
        return self._ok

    def _write_newest(self) -> None:
        self._queued = False
        self._ok = self._heartbeat.write(self._newest)


class LaterLog:
    """A line has the time at which it was told, not the one at which it could be written. The first one after something
    was thrown away says how much (`writes_lost`)."""

    def __init__(self, log: EventLog, scribe: Scribe, clock: Callable[[], float] = time.time) -> None:
        self._log, self._scribe, self._clock = log, scribe, clock

    def write(self, level: str, event: str, **fields: Any) -> bool:
        now_s, lost = self._clock(), self._scribe.lost
        if lost:
            fields["writes_lost"] = lost
        told = self._scribe.put(lambda: self._log.write_at(now_s, level, event, fields))
        if told:
            self._scribe.lost -= lost
        return told


class PatientRing:
    """A verdict is on its way to the disk before the signal, and there unless the disk stands still."""

    def __init__(self, ring: VerdictRing, scribe: Scribe) -> None:
        self._ring, self._scribe = ring, scribe

    def write(self, record: dict[str, Any]) -> bool:
        return self._scribe.do(lambda: self._ring.write(record), wait_s=VERDICT_S)

    def encode(self, record: dict[str, Any]) -> bytes:
        return self._ring.encode(record)

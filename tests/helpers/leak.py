"""A workload that takes memory at a precise rate, for faults and benchmarks. Standard library only.

    python leak.py [--log FILE] [--charged FILE] [--prefill BYTES] [--on-term SECONDS] [--gives-back] KIND ...

    ramp RATE_MIB_S               anonymous memory, written page by page, at a steady rate without an end
    sawtooth PERCENT PERIOD_S LIMIT   grows to PERCENT of LIMIT in PERIOD_S, frees it all, begins again
    plateau BYTES [RATE_MIB_S]    takes that much, at once or at that rate, and stays
    files BYTES [--keep]          writes files of 32 MiB, fsynced, until that much is written; they vanish with it
    thrash FILE                   maps FILE and reads blocks of it at random, as mapped weights would be
    tree RATE_MIB_S               a parent whose grandchild ramps
    shm RATE_MIB_S                as ramp, in a file of a tmpfs that nobody maps; it vanishes with it

It prints `ready PID` (of the one that will grow) once the prefill is there, and grows when it has read a line from
stdin; so whoever started it can register it first. `files` prints `done`; end of file at the gate ends it.

--log: records of (monotonic s, bytes held, bytes charged), which survive a SIGKILL: the file is mapped. --charged: the
cgroup's counter, read for each record. --on-term: go on for so long after a SIGTERM (the default is to die of it).
--gives-back: SIGUSR1 frees the prefill, as a cache would be dropped.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
SEGMENT_BYTES = 64 * MIB
SOURCE = memoryview(b"\x5a" * (4 * MIB))
"""Written in pieces from here: 1.2 GiB/s, where touching page by page in a loop gives 0.3."""

RECORD = struct.Struct("<dQQ")
LOG_BYTES = 4 * MIB
FILE_BYTES = 32 * MIB
BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Entry:
    """What a leak knew of itself at one moment."""

    monotonic_s: float
    held_bytes: int
    charged_bytes: int


def read_log(path: Path) -> list[Entry]:
    """All records, oldest first; also those of a process that was killed."""
    entries = []
    for monotonic_s, held_bytes, charged_bytes in RECORD.iter_unpack(path.read_bytes()[: _log_end()]):
        if not monotonic_s:
            break
        entries.append(Entry(monotonic_s, held_bytes, charged_bytes))
    return entries


def _log_end() -> int:
    return LOG_BYTES // RECORD.size * RECORD.size


class Log:
    """A mapped file, touched beforehand: a record costs no system call, no allocation and no waiting for a disk."""

    def __init__(self, path: Path | None, charged: Path | None) -> None:
        self._map: mmap.mmap | None = None
        self._at = 0
        self._charged = -1 if charged is None else os.open(charged, os.O_RDONLY)
        if path is not None:
            with path.open("w+b") as file:
                file.write(bytes(LOG_BYTES))
                file.flush()
                self._map = mmap.mmap(file.fileno(), LOG_BYTES)

    def put(self, held_bytes: int) -> None:
        """One record; a full log keeps what it has."""
        if self._map is None or self._at + RECORD.size > LOG_BYTES:
            return
        charged = int(os.pread(self._charged, 32, 0)) if self._charged >= 0 else 0
        RECORD.pack_into(self._map, self._at, time.monotonic(), held_bytes, charged)
        self._at += RECORD.size


class Memory:
    """Private anonymous memory that has been written to."""

    def __init__(self) -> None:
        self._segments: list[mmap.mmap] = []
        self._room = 0
        self.held_bytes = 0

    def grow(self, count: int) -> None:
        while count > 0:
            if not self._room:
                self._segments.append(mmap.mmap(-1, SEGMENT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
                self._room = SEGMENT_BYTES
            step = min(count, self._room, len(SOURCE))
            start = SEGMENT_BYTES - self._room
            self._segments[-1][start : start + step] = SOURCE[:step]
            self._room -= step
            self.held_bytes += step
            count -= step

    def free(self) -> None:
        """Give everything back."""
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        self._room = self.held_bytes = 0


class Unmapped(Memory):
    """A file in memory, as in /dev/shm: no process shows it as its own."""

    def __init__(self) -> None:
        super().__init__()
        self._file = os.memfd_create("leak")

    def grow(self, count: int) -> None:
        while count > 0:
            written = os.write(self._file, SOURCE[:count])
            self.held_bytes += written
            count -= written


class Leak:
    """The state of one process: what it holds, what it was asked."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.cache = Memory()
        self.memory = Memory()
        self._log = Log(asked.log, asked.charged)
        self._asked_back = False
        if asked.on_term is not None:
            signal.signal(signal.SIGTERM, lambda *_: _leave_after(asked.on_term))
        if asked.gives_back:
            signal.signal(signal.SIGUSR1, self._give_back)
        self.cache.grow(asked.prefill)

    def put(self) -> None:
        """A record; and between two of them a safe point at which the cache may go."""
        if self._asked_back:
            self._asked_back = False
            self.cache.free()
        self._log.put(self.cache.held_bytes + self.memory.held_bytes)

    def _give_back(self, *_: object) -> None:
        self._asked_back = True

    def gate(self) -> None:
        """Tell that all is ready and wait for the word; without anybody there to give it, leave."""
        self.put()
        _say(f"ready {os.getpid()}")
        _wait_for_line()

    def ramp(self, rate_mib_s: float, until_bytes: int | None = None) -> None:
        rate, step_s = rate_mib_s * MIB, 0.001 if rate_mib_s >= 100 else 0.005
        began = last = time.monotonic()
        while until_bytes is None or self.memory.held_bytes < until_bytes:
            now = time.monotonic()
            if now - last > 0.1:  # it was stopped, or made to wait: what was missed is not caught up with in one gulp
                began += now - last
            last = now
            missing = int(rate * (now - began)) - self.memory.held_bytes
            if until_bytes is not None:
                missing = min(missing, until_bytes - self.memory.held_bytes)
            if missing > 0:
                self.memory.grow(missing)
                self.put()
            time.sleep(max(0.0, step_s - (time.monotonic() - now)))

    def sawtooth(self, percent: float, period_s: float, limit_bytes: int) -> None:
        peak = int(limit_bytes * percent / 100)
        while True:
            self.ramp(peak / MIB / period_s, peak)
            self.memory.free()
            self.put()

    def plateau(self, count: int, rate_mib_s: float | None) -> None:
        if rate_mib_s is None:
            self.memory.grow(count)
        else:
            self.ramp(rate_mib_s, count)
        while True:
            self.put()
            time.sleep(0.05)

    def files(self, folder: Path, count: int, *, keep: bool) -> None:
        written, kept = 0, []
        while written < count:
            path = folder / f"leak-{os.getpid()}-{written}"
            file = path.open("wb", buffering=0)
            path.unlink()  # it lives, and its page cache with it, as long as it is open
            for _ in range(FILE_BYTES // MIB):
                file.write(SOURCE[:MIB])
                written += MIB
                self.put()
            os.fsync(file.fileno())
            if keep:
                kept.append(file)
            else:
                file.close()
        _say("done")
        _wait_for_line()

    def thrash(self, path: Path) -> None:
        """Its records hold the bytes read so far as `held`."""
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        blocks = len(mapped) // BLOCK_BYTES
        while True:
            for _ in range(16):
                start = random.randrange(blocks) * BLOCK_BYTES
                # One byte a page: it is the faults that are wanted, not the copying.
                for place in range(start, start + BLOCK_BYTES, mmap.PAGESIZE):
                    mapped[place]
            self.memory.held_bytes += 16 * BLOCK_BYTES
            self.put()


def tree(rate: float, depth: int) -> int:
    """Hand the gate down `depth` generations; each lives as long as its child."""
    options = sys.argv[1 : sys.argv.index("tree")]
    kind = ["ramp", str(rate)] if depth == 1 else ["tree", str(rate), "--depth", str(depth - 1)]
    return subprocess.run([sys.executable, "-S", "-E", __file__, *options, *kind], check=False).returncode


def _leave_after(seconds: float) -> None:
    """Go on as before for so long: whoever must be killed may still grow."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(143))
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.000_001))


def _say(line: str) -> None:
    print(line, flush=True)


def _wait_for_line() -> None:
    if not sys.stdin.readline():
        sys.exit(0)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("--log", type=Path)
    made.add_argument("--charged", type=Path)
    made.add_argument("--prefill", type=int, default=0)
    made.add_argument("--on-term", type=float)
    made.add_argument("--gives-back", action="store_true")
    kinds = made.add_subparsers(dest="kind", required=True)
    for kind in ("ramp", "shm"):
        kinds.add_parser(kind).add_argument("rate", type=float)
    sawtooth = kinds.add_parser("sawtooth")
    sawtooth.add_argument("percent", type=float)
    sawtooth.add_argument("period", type=float)
    sawtooth.add_argument("limit", type=int)
    plateau = kinds.add_parser("plateau")
    plateau.add_argument("bytes", type=int)
    plateau.add_argument("rate", type=float, nargs="?")
    files = kinds.add_parser("files")
    files.add_argument("bytes", type=int)
    files.add_argument("--keep", action="store_true")
    kinds.add_parser("thrash").add_argument("file", type=Path)
    below = kinds.add_parser("tree")
    below.add_argument("rate", type=float)
    below.add_argument("--depth", type=int, default=2)
    return made


def main() -> None:
    asked = parser().parse_args()
    if asked.kind == "tree":
        sys.exit(tree(asked.rate, asked.depth))
    leak = Leak(asked)
    leak.gate()
    if asked.kind == "shm":
        leak.memory = Unmapped()
    if asked.kind in ("ramp", "shm"):
        leak.ramp(asked.rate)
    elif asked.kind == "sawtooth":
        leak.sawtooth(asked.percent, asked.period, asked.limit)
    elif asked.kind == "plateau":
        leak.plateau(asked.bytes, asked.rate)
    elif asked.kind == "files":
        leak.files(Path.cwd(), asked.bytes, keep=asked.keep)
    elif asked.kind == "thrash":
        leak.thrash(asked.file)


if __name__ == "__main__":
    main()

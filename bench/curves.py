"""Sixty programs whose memory goes up and down: the cells of bench/makespan.py and bench/claims.py.

    python -I -S bench/curves.py KIND SEED SCALE RUNS_FOLDER       run one

It touches anonymous memory along a curve of straight lines in time, and waits in between; killed, it starts from
nothing. In RUNS_FOLDER it keeps one small file a run, `KIND-SEED.PID.STARTED`, with "started last_seen done" (seconds
of the monotonic clock): so whoever ran it, what was lost can be added up afterwards. It imports little, since a run
is to cost its curve and not its interpreter.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
import zlib

MIB = 2**20
CHUNK = 2 * MIB
STEP_S = 0.02

KINDS = {
    # (share of the duration, share of the peak) ..., MiB at the peak
    "flat": (((0.0, 0.0), (0.08, 1.0), (1.0, 1.0)), 450),
    "small": (((0.0, 0.3), (0.5, 1.0), (1.0, 0.8)), 110),
    "ramp": (((0.0, 0.1), (0.4, 1.0), (1.0, 1.0)), 800),
    "spike": (((0.0, 0.12), (0.6, 0.12), (0.75, 1.0), (0.88, 1.0), (0.92, 0.12), (1.0, 0.12)), 1100),
    "teeth": (((0.0, 0.2), (0.3, 1.0), (0.35, 0.2), (0.6, 1.0), (0.65, 0.2), (0.9, 1.0), (1.0, 0.2)), 650),
    "stairs": (
        ((0.0, 0.4), (0.2, 0.4), (0.25, 0.6), (0.4, 0.6), (0.45, 0.8), (0.6, 0.8), (0.65, 1.0), (1.0, 1.0)),
        950,
    ),
}
"""What rises, rises by 0.1 to 2 GiB a second: as a program does that allocates an array and fills it."""


class Curve:
    """One cell's: `points` are (seconds, bytes), joined by straight lines."""

    def __init__(self, kind: str, seed: int, scale: float = 1.0) -> None:
        shape, mib = KINDS[kind]
        self.kind, self.seed = kind, seed
        self.duration_s = scale * (2 + 6 * _share(kind, seed, "duration"))
        self.peak_bytes = int(mib * MIB * (0.88 + 0.22 * _share(kind, seed, "peak")))
        self.points = [(at * self.duration_s, int(part * self.peak_bytes)) for at, part in shape]

    def bytes_at(self, now_s: float) -> int:
        before_s, before = self.points[0]
        for at_s, size in self.points[1:]:
            if now_s < at_s:
                return int(before + (size - before) * (now_s - before_s) / (at_s - before_s))
            before_s, before = at_s, size
        return before

    def byte_seconds(self) -> float:
        """The area below it: what it costs him who knows it at every moment."""
        pairs = zip(self.points, self.points[1:])  # noqa: B905 - the program imports little
        return sum((later[0] - at[0]) * (later[1] + at[1]) / 2 for at, later in pairs)


def _share(kind: str, seed: int, what: str) -> float:
    """0..1, the same always."""
    return zlib.crc32(f"{kind}:{seed}:{what}".encode()) / 2**32


def main(kind: str, seed: str, scale: str, folder: str) -> None:
    started = time.monotonic()
    curve = Curve(kind, int(seed), float(scale))
    run = os.open(f"{folder}/{kind}-{seed}.{os.getpid()}.{started:.3f}", os.O_WRONLY | os.O_CREAT, 0o644)
    held: list[mmap.mmap] = []
    touch = b"\1" * (CHUNK // mmap.PAGESIZE)
    while (now := time.monotonic() - started) < curve.duration_s:
        os.pwrite(run, b"%015.3f %015.3f 0\n" % (started, started + now), 0)
        wanted = curve.bytes_at(now) // CHUNK
        while len(held) > wanted:
            held.pop().close()
        while len(held) < wanted:
            chunk = mmap.mmap(-1, CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            chunk[:: mmap.PAGESIZE] = touch
            held.append(chunk)
        time.sleep(STEP_S)
    os.pwrite(run, b"%015.3f %015.3f 1\n" % (started, time.monotonic()), 0)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:5])

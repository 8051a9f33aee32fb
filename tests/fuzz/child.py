"""`python -m fuzz.child FOLDER SEED BYTE-LEVEL STRUCTURAL READER...`: shoot at readers in a process of its own.

Prints one JSON line a reader when it is through. FOLDER/current holds the input under way: the first line is the name
of the reader.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from fuzz import guard, shots
from fuzz.readers import BY_NAME
from fuzz.target import Case
from overnight import durable

CURRENT = "current"


class Unsynced(durable.Calls):
    """Reading is what is tried here: nobody waits for a disk."""

    def fsync(self, fd: int) -> None:
        pass


def main(argv: list[str]) -> int:
    folder, seed, byte_level, structural = Path(argv[0]), *map(int, argv[1:4])
    out = sys.stdout  # what a reader prints is caught, or lost
    sys.stdout = (folder / "printed").open("w", errors="backslashreplace")
    durable.calls = Unsynced()
    gc.freeze()  # a reader that collects is not to walk through our own modules each time
    guard.arm()
    current = (folder / CURRENT).open("r+b", buffering=0) if (folder / CURRENT).exists() else None
    for number, name in enumerate(argv[4:]):
        place = folder / f"t{number}"
        place.mkdir()
        target = BY_NAME[name](place)

        def note(case: Case, name: str = name) -> None:
            if current is not None:
                current.seek(0)
                current.write(name.encode() + b"\n" + len(case.data).to_bytes(8, "big") + case.data)

        try:
            share = target.share
            tally = shots.shoot(target, seed, int(byte_level * share), int(structural * share), note)
        finally:
            target.close()
        found = {
            "reader": name,
            "executions": tally.executions,
            "taken": tally.taken,
            "complaints": list(tally.complaints.values()),
            "slowest_s": tally.slowest_s,
            "grown_bytes": tally.grown_bytes,
        }
        print(json.dumps(found), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

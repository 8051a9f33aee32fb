"""What a process holds now."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

KIB = 1024


@dataclass(frozen=True)
class Vitals:
    """Of one process. pss_bytes: its share of all pages that it maps. held_bytes: of that, what no file backs: it does
    not move when others who map the same libraries come and go. private_bytes: pages that nobody else maps. zombies:
    dead children that it has not waited for. cpu_s: since its start."""

    pid: int
    pss_bytes: int
    held_bytes: int
    private_bytes: int
    descriptors: int
    threads: int
    zombies: int
    cpu_s: float


def look(pid: int) -> Vitals:
    """Raises OSError or psutil.Error when there is no such process."""
    process = psutil.Process(pid)
    found = rollup(pid)
    times = process.cpu_times()
    return Vitals(
        pid=pid,
        pss_bytes=found["Pss"],
        held_bytes=found["Pss"] - found["Pss_File"],
        private_bytes=found["Private_Clean"] + found["Private_Dirty"],
        descriptors=descriptors(pid),
        threads=process.num_threads(),
        zombies=sum(_is_zombie(child) for child in process.children()),
        cpu_s=times.user + times.system,
    )


def rollup(pid: int) -> dict[str, int]:
    """Bytes by name, of /proc/PID/smaps_rollup."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest.split()[0]) * KIB
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names are enough


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

"""What a dead attempt may have left running: found by OVERNIGHT_ATTEMPT in its environment, or by its cgroup.

A process that gets away from its runner (double fork, setsid) keeps its environment, unless it was cleaned (`env -i`,
sudo): then only a cgroup still knows whose it is. Finding is done here, signalling elsewhere.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from overnight.cells.command_tree import PROC, member_of
from overnight.cells.command_tree import in_cgroup as members_of

_NAME = b"OVERNIGHT_ATTEMPT="


def token(home: Path) -> str:
    """8 hex digits that stand for a home, whichever links it was reached by; a cell's token is
    `{token(home)}:{attempt id}`."""
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:8]


def find(wanted: str, proc_root: Path = PROC) -> list[tuple[int, int]]:
    """(pid, start time in ticks) of all processes of one attempt, or of all attempts of a home when `wanted` is its
    bare token. Never ourselves, nor whom we come from. Environments that may not be read are passed over."""
    spared = _lineage(proc_root)
    prefix = _NAME + wanted.encode()
    found = []
    for name in os.listdir(proc_root):  # noqa: PTH208 - names, not objects, of a thousand processes
        if not name.isdigit() or int(name) in spared:
            continue
        try:
            environ = (proc_root / name / "environ").read_bytes()
        except OSError:
            continue
        if not _holds(environ, prefix, whole=":" in wanted):
            continue
        # Looked at after its environment: should it have become another process in between, that one is no match.
        member = member_of(int(name), proc_root)
        if member is not None and _still(proc_root / name, environ):
            found.append((member.pid, member.start_ticks))
    return sorted(found)


def in_cgroup(folder: str | os.PathLike[str], proc_root: Path = PROC) -> list[tuple[int, int]]:
    """(pid, start time in ticks) of everybody in a cgroup's folder, but for ourselves and whom we come from."""
    spared = _lineage(proc_root)
    return [(each.pid, each.start_ticks) for each in members_of(folder, proc_root) if each.pid not in spared]


def _holds(environ: bytes, prefix: bytes, *, whole: bool) -> bool:
    if prefix not in environ:
        return False
    entries = environ.split(b"\0")
    return prefix in entries if whole else any(entry.startswith(prefix + b":") for entry in entries)


def _still(folder: Path, environ: bytes) -> bool:
    try:
        return (folder / "environ").read_bytes() == environ
    except OSError:
        return False


def _lineage(proc_root: Path) -> set[int]:
    """Ourselves and all our ancestors."""
    pids: set[int] = set()
    pid = os.getpid()
    while pid and pid not in pids:
        pids.add(pid)
        member = member_of(pid, proc_root)
        pid = 0 if member is None else member.parent
    return pids

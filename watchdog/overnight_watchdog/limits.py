"""What bounds us now: the machine, every memory cgroup on the way up (v1, v2, nested, hybrid) and the budget.

psutil alone reports the host's memory inside a container; the cgroup that would really kill us is found here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overnight_watchdog.kernel_files import whole_number

PROC = Path("/proc")
SYS = Path("/sys")

Kind = Literal["machine", "cgroup1", "cgroup2", "budget"]

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
_SHOWN = 80
_OCTAL = re.compile(r"\\([0-7]{3})")
_LIMIT_FILE: dict[Kind, str] = {"cgroup1": "memory.limit_in_bytes", "cgroup2": "memory.max"}


@dataclass(frozen=True, slots=True)
class Bound:
    """One thing that bounds us.

    kind: how usage is measured: on the machine, by a cgroup's counters, or (`budget`) process by process.
    folder: the cgroup's, None for the machine and a budget that has none of its own.
    budget: it is the configured budget, even where a cgroup measures it.
    """

    kind: Kind
    limit_bytes: int
    folder: Path | None = None
    budget: bool = False

    @property
    def source(self) -> str:
        """`machine`, `budget` or `cgroup:FOLDER`."""
        if self.budget:
            return "budget"
        return self.kind if self.folder is None else f"cgroup:{self.folder}"


@dataclass(frozen=True, slots=True)
class CgroupFolder:
    """One memory cgroup that this process lives in, directly or further up."""

    kind: Kind
    path: Path


def parse_size(text: str) -> int:
    """`2GiB`, `512MiB`, `1.5GiB` or a number of bytes -> bytes. Raises ValueError with one line."""
    match = _SIZE.fullmatch(text)
    if match is None or match.group(2).upper() not in _UNITS:
        raise ValueError(f"{text[:_SHOWN]!r} is not a size; expected one such as 2GiB or 512MiB")
    size = int(float(match.group(1)) * _UNITS[match.group(2).upper()])
    if size <= 0:
        raise ValueError(f"{text[:_SHOWN]!r} is no size to live in; expected one such as 2GiB or 512MiB")
    return size


def bounds(
    machine_bytes: int,
    budget_bytes: int | None,
    folders: tuple[CgroupFolder, ...],
    budget_folder: CgroupFolder | None = None,
) -> tuple[Bound, ...]:
    """Everything that bounds us at this moment, the smallest first: that one is *the limit*.

    Cgroup limits are read again at each call, since containers can be resized while they run. A limit that is
    "max", not below the machine's memory (v1 writes no limit as 2**63 less a page), or unreadable bounds
    nobody. Of two equal bounds the narrower one is named: budget, cgroup from the inside out, machine.
    budget_folder: a memory cgroup around what the budget counts, where one could be made.
    """
    found = []
    if budget_bytes is not None:
        own = Bound("budget", budget_bytes, budget=True)
        if budget_folder is not None:
            own = Bound(budget_folder.kind, budget_bytes, budget_folder.path, budget=True)
        found.append(own)
    for each in folders:
        limit = limit_of(each)
        if limit is not None and limit < machine_bytes:
            found.append(Bound(each.kind, limit, each.path))
    found.append(Bound("machine", machine_bytes))
    return tuple(sorted(found, key=lambda bound: bound.limit_bytes))


def cgroup_at(path: Path) -> CgroupFolder | None:
    """The memory cgroup with this folder, or None when it is none (any more)."""
    try:
        if (path / "memory.limit_in_bytes").exists():
            return CgroupFolder("cgroup1", path)
        return CgroupFolder("cgroup2", path) if (path / "memory.current").exists() else None
    except OSError:  # pathlib lets "permission denied" and "name too long" through
        return None


def memory_cgroups(proc_root: Path = PROC, sys_root: Path = SYS) -> tuple[CgroupFolder, ...]:
    """The memory cgroups of this process from its own up to the mounted root; empty where there are none.

    A hybrid machine mounts both hierarchies, but only one of them has the memory controller; both are walked,
    and a folder without a limit file counts for nothing. Whatever cannot be read is passed over.
    """
    mounts = _mounts(proc_root, sys_root)
    folders: list[CgroupFolder] = []
    for kind, path in _memberships(proc_root):
        for root, mount_point in mounts.get(kind, ()):
            leaf = _below(path, root, mount_point)
            if _is_folder(leaf):
                folders += _ancestry(kind, leaf, mount_point)
                break
    return tuple(folders)


def limit_of(folder: CgroupFolder) -> int | None:
    """Bytes, or None for no limit."""
    return whole_number(_read(folder.path / _LIMIT_FILE[folder.kind]).strip()) or None


def _ancestry(kind: Kind, leaf: Path, mount_point: Path) -> list[CgroupFolder]:
    """`leaf` and its parents. On v1 a parent without use_hierarchy neither counts nor limits its children."""
    found = []
    folder = leaf
    while True:
        found.append(CgroupFolder(kind, folder))
        if folder in (mount_point, folder.parent):
            return found
        folder = folder.parent
        if kind == "cgroup1" and _read(folder / "memory.use_hierarchy").strip() == "0":
            return found


def _memberships(proc_root: Path) -> list[tuple[Kind, str]]:
    """`/proc/self/cgroup`, lines `id:controllers:path`; the v2 hierarchy is the line `0::path`."""
    found: list[tuple[Kind, str]] = []
    for line in _read(proc_root / "self" / "cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator or not path.startswith("/"):
            continue
        if "memory" in controllers.split(","):
            found.append(("cgroup1", path))
        elif hierarchy == "0" and not controllers:
            found.append(("cgroup2", path))
    return found


def _mounts(proc_root: Path, sys_root: Path) -> dict[Kind, list[tuple[str, Path]]]:
    """Where the hierarchies are mounted: kind -> (folder of the hierarchy that is mounted, mount point)."""
    found: dict[Kind, list[tuple[str, Path]]] = {}
    for line in _read(proc_root / "self" / "mountinfo").splitlines():
        before, separator, after = line.partition(" - ")
        fields, end = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(end) < 3:
            continue
        kind: Kind
        if end[0] == "cgroup2":
            kind = "cgroup2"
        elif end[0] == "cgroup" and "memory" in end[2].split(","):
            kind = "cgroup1"
        else:
            continue
        point = Path(_unescape(fields[4]))
        if point.is_relative_to(SYS):
            point = sys_root / point.relative_to(SYS)
        found.setdefault(kind, []).append((_unescape(fields[3]), point))
    if not found:  # /proc/self/mountinfo is hidden or damaged: look where everybody mounts them
        found["cgroup1"] = [("/", sys_root / "fs/cgroup/memory")]
        found["cgroup2"] = [("/", sys_root / "fs/cgroup")]
    return found


def _below(path: str, root: str, mount_point: Path) -> Path:
    """The folder of cgroup `path` under a mount that shows the hierarchy from `root` on.

    Inside a container the mount often begins at the container's own cgroup while the path is the host's, or
    the path leads out of the cgroup namespace ("/../.."): then the mounted root is the nearest one there is.
    """
    try:
        inside = Path(path).relative_to(root)
    except ValueError:
        return mount_point
    return mount_point if ".." in inside.parts else mount_point / inside


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # as in `cgroup_at`
        return False


def _unescape(text: str) -> str:
    """mountinfo writes blanks and the like as \\040."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)


def _read(path: Path) -> str:
    """The text of a small file, or "" when it cannot be read. Undecodable bytes (cgroup names) survive."""
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a damaged name holds a NUL
        return ""

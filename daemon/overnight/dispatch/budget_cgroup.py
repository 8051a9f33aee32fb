"""The budget's own memory cgroup, around the daemon and all that it forks: so the kernel counts for us, and a cell
that outruns the watchdog meets the budget and not the machine.

    v1   OURS/overnight-<home>               memory.limit_in_bytes = budget; the daemon is in it
    v2   BESIDE_OURS/overnight-<home>/main   memory.max = budget on the outer one; the daemon is in `main`, since a v2
                                             cgroup with processes of its own cannot limit others inside it

Where it may not be made (no rights, no controller, a read-only mount) everything works without it; and on v2 it is not
made where our own cgroup has a limit, which we would escape by going beside it.
"""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overnight.dispatch import leftovers

PROC, SYS = Path("/proc"), Path("/sys")
_OCTAL = re.compile(r"\\([0-7]{3})")
LIMIT_FILE = {1: "memory.limit_in_bytes", 2: "memory.max"}
_LIMITS = ("memory.max", "memory.high", "memory.swap.max")
"""What may limit the memory of a v2 cgroup."""
_EMPTY_S = 1.0


class Missing(Exception):
    """There is no such cgroup; `str()` says why."""


@dataclass(frozen=True)
class Own:
    """The memory cgroup that this process is in."""

    version: Literal[1, 2]
    folder: Path
    mount: Path


@dataclass(frozen=True)
class BudgetCgroup:
    """A joined cgroup. `folder` has the limit, `leaf` the processes, and `back` is where the daemon came from."""

    folder: Path
    leaf: Path
    back: Path

    def leave(self) -> str | None:
        """Go back and remove the folder, when everybody else in it has ended. Returns what went wrong, or None."""
        try:
            (self.back / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            return f"cannot go back to {self.back}: {error.strerror}"
        deadline = time.monotonic() + _EMPTY_S
        for part in dict.fromkeys((self.leaf, self.folder)):
            while (why := remove(part)) is not None:
                if why != errno.EBUSY or time.monotonic() >= deadline:
                    return f"cannot remove {part}: {os.strerror(why)}"
                time.sleep(0.02)  # who has just ended is counted a moment longer
        return None


def name_of(home: Path) -> str:
    """One a home: the same after a restart, so that what a killed daemon left is found again."""
    return f"overnight-{leftovers.token(home)}"


def join(home: Path, budget_bytes: int, *, proc_root: Path = PROC, sys_root: Path = SYS) -> BudgetCgroup:
    """Make the cgroup, or take over one that was left, and move this process into it. Raises Missing."""
    own, folder = place(home, proc_root=proc_root, sys_root=sys_root)
    parent = folder.parent
    leaf = folder if own.version == 1 else folder / "main"
    # Started inside it, by a daemon that did not leave it: then its parent is where to go back to.
    inside = folder == own.folder or folder in own.folder.parents
    back = parent if inside else own.folder
    made: list[Path] = []
    try:
        if own.version == 2:
            allow_memory(parent)
        for part in dict.fromkeys((folder, leaf)):
            if not part.is_dir():
                part.mkdir()
                made.append(part)
        limit = folder / LIMIT_FILE[own.version]
        if not limit.exists():
            raise Missing(f"{folder}: no memory controller in it")
        limit.write_text(str(budget_bytes))
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
    except (OSError, Missing) as error:
        for part in reversed(made):
            remove(part)
        if isinstance(error, Missing):
            raise
        raise Missing(f"{error.filename or folder}: {error.strerror}") from None
    return BudgetCgroup(folder, leaf, back)


def place(home: Path, *, proc_root: Path = PROC, sys_root: Path = SYS) -> tuple[Own, Path]:
    """Our own cgroup, and the folder that `join` would make or take over. Raises Missing where it must not."""
    own = find_own(proc_root, sys_root)
    name = name_of(home)
    parent = _parent(own, name)
    if own.version == 2 and parent == own.folder.parent and own.folder.name != name:
        for file in _LIMITS:
            if (limit := _read(own.folder / file).strip()) not in ("", "max"):
                raise Missing(f"our own cgroup {own.folder} has {file} = {limit}, which we would escape beside it")
    return own, parent / name


def find_own(proc_root: Path = PROC, sys_root: Path = SYS) -> Own:
    """The cgroup of this process in the hierarchy that has the memory controller. Raises Missing."""
    paths = dict(_memberships(proc_root))
    mounts = _mounts(proc_root, sys_root)
    # A controller is in one hierarchy only: where v1 has memory, v2 has not.
    for version in (1, 2):
        for root, mount in mounts.get(version, ()) if version in paths else ():
            folder = _below(paths[version], root, mount)
            if folder is not None and (folder / "cgroup.procs").exists():
                return Own(1 if version == 1 else 2, folder, mount)
    raise Missing("no mounted memory cgroup of this process was found")


def _parent(own: Own, name: str) -> Path:
    """Where the budget's cgroup belongs. On v2 it is beside ours: ours has processes, so it cannot limit children."""
    for inside in (own.folder, *own.folder.parents):
        if inside.name == name:
            return inside.parent
    return own.folder if own.version == 1 or own.folder == own.mount else own.folder.parent


def allow_memory(parent: Path) -> None:
    """Let the children of a v2 cgroup have the controller. Raises OSError, or Missing when it is not there to be given
    on."""
    if "memory" not in (parent / "cgroup.controllers").read_text().split():
        raise Missing(f"{parent}: the memory controller is not delegated to it")
    control = parent / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")


def remove(folder: Path) -> int | None:
    """Of an empty cgroup. None, or the error's number."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.errno or errno.EIO
    return None


def _memberships(proc_root: Path) -> list[tuple[int, str]]:
    """`/proc/self/cgroup`: lines `id:controllers:path`; v2 is `0::path`."""
    found = []
    for line in _read(proc_root / "self" / "cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and "memory" in controllers.split(","):
            found.append((1, path))
        elif colon and hierarchy == "0" and not controllers:
            found.append((2, path))
    return found


def _mounts(proc_root: Path, sys_root: Path) -> dict[int, list[tuple[str, Path]]]:
    """Version -> (folder of the hierarchy that is mounted, mount point)."""
    found: dict[int, list[tuple[str, Path]]] = {}
    for line in _read(proc_root / "self" / "mountinfo").splitlines():
        before, dash, after = line.partition(" - ")
        fields, end = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(end) < 3:
            continue
        version = 2 if end[0] == "cgroup2" else 1 if end[0] == "cgroup" and "memory" in end[2].split(",") else None
        if version is None:
            continue
        point = Path(_unescape(fields[4]))
        if point.is_relative_to(SYS):
            point = sys_root / point.relative_to(SYS)
        found.setdefault(version, []).append((_unescape(fields[3]), point))
    return found


def _below(path: str, root: str, mount: Path) -> Path | None:
    """The folder of cgroup `path` under a mount that shows the hierarchy from `root` on; None when it does not show it.

    Inside a container the path is often the host's while the mount begins at our own cgroup: then that is ours."""
    if ".." in Path(path).parts:
        return None
    try:
        return mount / Path(path).relative_to(root)
    except ValueError:
        return mount


def _unescape(text: str) -> str:
    """mountinfo writes blanks and the like as \\040."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""

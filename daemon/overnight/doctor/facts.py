"""Looks at the machine and at a home for `overnight doctor`. Changes nothing, imports nothing heavy, never raises."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight import procfs
from overnight.cli import common, supervise
from overnight.config import load_config
from overnight.dispatch import budget_cgroup, pressure
from overnight.doctor.memory_checks import Psi
from overnight.engines.model_sources import first_line
from overnight.errors import ConfigError, QueueError
from overnight.paths import Paths
from overnight.queue import probe
from overnight.repair import unknown_grids

ENGINE_PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "accelerate",
    "gguf",
    "jinja2",
    "huggingface_hub",
)
"""What the extra `overnight[transformers]` installs, by import names."""

_CONNECT_S = 0.5


@dataclass(frozen=True, slots=True)
class Folder:
    """var/: who may use it, and what is left on its file system. `file_system` is None where that cannot be seen.

    free_inodes is None on a file system that does not count them (btrfs).
    """

    path: Path
    mode: int
    owner: int
    user: int
    writable: bool
    read_only: bool
    file_system: str | None
    free_bytes: int
    free_inodes: int | None


@dataclass(frozen=True, slots=True)
class Running:
    """What runs on this home. supervisord: "running", "lost" (its socket is gone) or "gone"."""

    supervisord: str
    daemon: dict[str, Any] | None
    watchdog: pressure.Pressure | None


@dataclass(frozen=True, slots=True)
class Settings:
    """etc/overnight.toml: the budget, or what is wrong with the file."""

    budget_bytes: int | None
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """grids: how many the queue knows. lost: those that have results and that it does not know. complaint: what is
    wrong with its file."""

    grids: int
    lost: Sequence[str] = ()
    complaint: str = ""


def settings(path: Path) -> Settings:
    try:
        return Settings(load_config(path).memory.budget)
    except ConfigError as error:
        return Settings(None, first_line(error))


def queue(paths: Paths) -> QueueFacts:
    folders = unknown_grids.folders(paths)
    try:
        known = probe.grids(paths.queue)
    except QueueError as error:
        return QueueFacts(0, complaint=first_line(error))
    return QueueFacts(len(known), unknown_grids.unknown(paths, known, folders))


def no_cgroup(paths: Paths) -> str:
    """Why the budget's cgroup has no place, seen from here; '' when it has one (whether it may be made, the watchdog
    finds out)."""
    try:
        budget_cgroup.place(paths.home)
    except (budget_cgroup.Missing, OSError) as why:
        return str(why)
    return ""


def spelling(paths: Paths) -> str:
    """What supervisord would not like about this home, or ''."""
    try:
        supervise.check(paths)
    except ConfigError as error:
        return first_line(error)
    return ""


def folder(path: Path) -> Folder:
    """Raises OSError when the folder is gone."""
    found, disk = path.stat(), os.statvfs(path)
    return Folder(
        path=path,
        mode=stat.S_IMODE(found.st_mode),
        owner=found.st_uid,
        user=os.geteuid(),
        writable=os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids),
        read_only=bool(disk.f_flag & os.ST_RDONLY),
        file_system=file_system(_read(Path("/proc/self/mountinfo")), path.resolve()),
        free_bytes=disk.f_bavail * disk.f_frsize,
        free_inodes=disk.f_favail if disk.f_files else None,
    )


def file_system(mountinfo: str, path: Path) -> str | None:
    """The kind of file system that a path (without links) is on: that of the longest mount point above it.

    Of several mounts at one place the last one is what is seen.
    """
    best, kind = -1, None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ")[0]
    return kind or None


def running(paths: Paths) -> Running:
    now = pressure.read(paths.pressure)
    if now is not None and now.pid is not None and now.start_ticks is not None:
        # A heartbeat stays fresh for some seconds after its writer has ended.
        now = now if procfs.alive(now.pid, now.start_ticks) else None
    return Running(_supervisord(paths), common.daemon_state(paths), now)


def _supervisord(paths: Paths) -> str:
    """By connecting only: a supervisord that hangs must not keep us waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_CONNECT_S)
        try:
            client.connect(os.fsencode(paths.supervisor_socket))
        except OSError:
            lost = supervise.find(paths)
        else:
            return "running"
    if lost is None:
        return "gone"
    lost.close()
    return "lost"


def engine_versions() -> dict[str, str | None]:
    """Version of every package of the transformers engine, None for one that is not there; nothing is imported."""
    return {name: _version(name) for name in ENGINE_PACKAGES}


def _version(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:  # a mere folder of that name is a package to Python, but not the package
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def descriptors() -> tuple[int, int]:
    """Limits of open files: what a process has, and to what it may raise that. -1: none."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def psi() -> Psi:
    """Is pressure stall information built into this kernel, whether switched on or not?"""
    release = platform.release()
    for place in (Path("/boot") / f"config-{release}", Path("/lib/modules") / release / "config"):
        if (found := psi_of(_read(place))) is not Psi.UNKNOWN:
            return found
    try:
        return psi_of(gzip.decompress(Path("/proc/config.gz").read_bytes()).decode("utf-8", "replace"))
    except (OSError, EOFError):
        return Psi.UNKNOWN


def psi_of(configuration: str) -> Psi:
    """The text of a kernel's configuration -> is it built in?"""
    if not configuration.strip():
        return Psi.UNKNOWN
    return Psi.BUILT_IN if re.search(r"^CONFIG_PSI=y", configuration, re.MULTILINE) else Psi.ABSENT


def _read(path: Path) -> str:
    """A small file, "" when it cannot be read. Undecodable bytes (names of mount points) survive."""
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""

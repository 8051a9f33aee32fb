"""What is left over when nobody runs: temporary files, registrations of dead processes, what a killed restore unpacked,
modes that let others in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from overnight import procfs
from overnight.backup import leftovers
from overnight.dispatch.registry import BY
from overnight.paths import Paths
from overnight.repair import check_files
from overnight.repair.check_cell import TEMPORARY
from overnight.repair.plan import Step, Tools, removal

_LARGEST_BYTES = 1 << 20


def steps(paths: Paths) -> Iterator[Step]:
    """Below var/; those of the cells are found with the cells."""
    grids = [path for path in paths.results.glob("*") if path.is_dir()]
    for folder in (paths.var, paths.run, paths.registry, paths.log, paths.results, *sorted(grids)):
        for path in sorted(folder.glob(".*.tmp")):
            if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                yield removal("file", _shown(paths, path), "left over by an interruption", path)
    for path in sorted(paths.registry.glob("*.json")):
        if _is_stale(path):
            yield removal("file", _shown(paths, path), "registers a process that is gone", path)
    if _pid_is_gone(paths.supervisor_pid):
        path = paths.supervisor_pid
        yield removal("file", _shown(paths, path), "names a supervisord that is gone", path)
    for path in leftovers.of_restores(paths.home):
        yield _unpacked(paths, path)
    for path, mode, wanted in check_files.modes(paths):
        yield _private(paths, path, mode, wanted)


def _unpacked(paths: Paths, path: Path) -> Step:
    """Not copied first: all of it is in the archive, and it may be as large."""

    def act(tools: Tools) -> None:
        del tools
        shutil.rmtree(path)

    return Step("file", _shown(paths, path), "unpacked by a restore that was killed", "removed", act=act)


def _private(paths: Paths, path: Path, mode: int, wanted: int) -> Step:
    def act(tools: Tools) -> None:
        del tools
        if path.exists():
            path.chmod(wanted)

    what = f"others may look in (mode {mode:04o})"
    return Step("file", _shown(paths, path), what, f"mode {wanted:04o}", act=act)


def _is_stale(path: Path) -> bool:
    """A daemon's own registration of a process that does not live. What people register by hand is theirs."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return False
        entry = json.loads(path.read_bytes())
        ours = entry["by"] == BY
        return ours and (
            entry["boot_id"] != procfs.boot_id() or not procfs.alive(int(entry["pid"]), int(entry["start_ticks"]))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _pid_is_gone(path: Path) -> bool:
    try:
        return path.is_file() and procfs.start_ticks(int(path.read_text()[:20])) is None
    except (OSError, ValueError):
        return False


def _shown(paths: Paths, path: Path) -> str:
    return str(path.relative_to(paths.home)).encode(errors="surrogateescape").decode(errors="backslashreplace")

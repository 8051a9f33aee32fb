"""The one file layer through which everything durable is written.

A write that must outlive a power cut is: all bytes written, the file fsynced, and for a new name its folder fsynced
too. After a failed fsync the kernel may have dropped the dirty pages and marked them clean, so a second fsync would
lie: the caller ends its attempt and never syncs that descriptor again.

Every step that changes the disk is one method of `Calls`, so that a test can put a failing disk, or an end of the
process between any two of them, in the place of `calls`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from overnight.errors import CellError, ExperimentFailed, NoSpace

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LASTING = (
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EFBIG),
)
"""Waiting does not mend these: somebody put a file, a link or a right where there should be none."""


_LONGEST_NAME_BYTES = 200

ODD_NAMES = "backslashreplace"
"""How JSON is encoded that may hold names of files which are no UTF-8: what stands for a byte of one becomes JSON's own
escape (\\udcff), which every reader turns back. All other text is as without it."""


class DiskFailed(CellError):
    """The disk refused a write or a sync for another reason than being full."""

    outcome = "yielded"
    reason_code = "disk_error"


class Calls:
    """The system calls that change the disk, one a method. All raise OSError."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def mkdir(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)


calls = Calls()
"""What all functions here go through."""


def canonical(value: Any) -> str:
    """JSON in the one form that hashes and specifications use: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however short the single writes are. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[calls.write(fd, view) :]


def sync(fd: int) -> None:
    """fsync a descriptor. Raises OSError; after that never call it again for this descriptor."""
    calls.fsync(fd)


def truncate(fd: int, size: int) -> None:
    """Cut a file to `size` bytes; durable once it is synced. Raises OSError."""
    calls.ftruncate(fd, size)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        calls.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """mkdir -p that also fsyncs the parent of every folder that it makes. Raises OSError."""
    missing: list[Path] = []
    at = folder
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for new in reversed(missing):
        calls.mkdir(new)
        sync_folder(new.parent)


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:
    """Replace `path` whole: either the old or the new bytes are there, never a mixture. Raises OSError.

    data: all of it, or its pieces, which need not be in memory at once.
    durable: also fsync the file and its folder (what lives below var/run/ need not survive a power cut).
    """
    # A name may be as long as a name can be; the one beside it has to fit, too.
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME_BYTES])
    beside = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        fd = calls.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                write_all(fd, piece)
            if durable:
                sync(fd)
        finally:
            os.close(fd)
        calls.replace(beside, path)
    except BaseException:
        calls.unlink(beside)
        raise
    if durable:
        sync_folder(path.parent)


def as_cell_error(error: OSError, what: str) -> CellError:
    """The reason to record when a durable write failed: a full disk is waited for, anything else too, by name."""
    if error.errno in _FULL:
        return NoSpace(
            f"no space left while {what}; every finished turn is on disk, the cell goes on when there is room"
        )
    if error.errno in _LASTING:
        return ExperimentFailed(f"{error.strerror} while {what}; mend it, then `overnight retry`")
    return DiskFailed(f"{error.strerror or error} while {what}")

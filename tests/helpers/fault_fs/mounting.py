"""mount(2) and its end. Whatever happens to a server, its mount is gone afterwards and nobody hangs in it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MS_NOSUID, _MS_NODEV = 2, 4
_CONNECTIONS = Path("/sys/fs/fuse/connections")


def why_not() -> str | None:
    """Why no such file system can be mounted here, or None."""
    if os.geteuid() != 0:
        return "needs root: it mounts a file system"
    if shutil.which("umount") is None:
        return "there is no umount"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse cannot be opened ({error.strerror})"
    return None


def mount(point: Path) -> int:
    """Mount at `point`; returns the descriptor of /dev/fuse by which it is served. Raises OSError."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    done = _libc.mount(b"fault_fs", os.fsencode(point), b"fuse", _MS_NOSUID | _MS_NODEV, options.encode())
    if done != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code), str(point))
    return fd


def device_of(point: Path) -> str | None:
    """The number by which sysfs knows the connection of a mount. Asks no server: it may be dead."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(point):
            return fields[2].split(":")[1]
    return None


def unmount(point: Path) -> None:
    """Abort what waits for the server, then take the mount away. Harmless when there is none."""
    device = device_of(point)
    if device is None:
        return
    try:
        (_CONNECTIONS / device / "abort").write_text("1")
    except OSError:
        pass  # sysfs is not mounted there, or the connection is gone: the server's end has aborted it
    subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)

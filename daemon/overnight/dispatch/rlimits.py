"""The cap of a cell that has no cgroup: RLIMIT_DATA, which the kernel checks against a process's VmData.

VmData counts private writable mappings, whether they were touched or not: heap, anonymous maps and thread stacks, never
shared or file-backed read-only ones. A forked child begins with its server's, so its limit is relative to that: an
absolute one would count the inherited weights. It holds for each process by itself.
"""

from __future__ import annotations

import errno
import resource

from overnight import cgroup_memory
from overnight.cgroup_memory import PROC


def vm_data(pid: int | None = None) -> int | None:
    """VmData in bytes, of this process by default; None when there is no such process."""
    try:
        status = (PROC / ("self" if pid is None else str(pid)) / "status").read_bytes()
    except OSError:
        return None
    kib = cgroup_memory.field(status, b"VmData:")
    return None if kib is None else kib * 1024


def cap_data(extra_bytes: int) -> int:
    """In the child itself: let it map so much more than it has now. Only the soft limit, so that it can be raised from
    outside without a privilege. Returns the limit. Raises OSError or ValueError."""
    if (inherited := vm_data()) is None:
        raise OSError(errno.ENOSYS, "cannot cap: /proc/self/status does not tell VmData")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = _below(hard, inherited + extra_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return soft


def extend(pid: int, more_bytes: int) -> int | None:
    """From the dispatcher: raise a running child's limit by so much. Returns the new one; None when it has none to be
    raised, or is gone. Raises OSError."""
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        if soft == resource.RLIM_INFINITY:
            return None
        soft = _below(hard, soft + more_bytes)
        resource.prlimit(pid, resource.RLIMIT_DATA, (soft, hard))
    except ProcessLookupError:
        return None
    return soft


def _below(hard: int, wanted: int) -> int:
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)

"""The watchdog's own survival: stay in memory, come last for the OOM killer, be scheduled when everybody wants to run.

Each of these is used where it is allowed and done without where not; `abilities` tells which.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from overnight_watchdog.kernel import PR_SET_PDEATHSIG, SYS_PROCESS_MRELEASE
from overnight_watchdog.limits import PROC

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_SYS_ADMIN, _CAP_IPC_LOCK = 21, 14
_NICE = -15
OOM_SCORE_ADJ = -1000
_ENOSYS = 38


@dataclass(frozen=True, slots=True)
class Ability:
    """ok: it is there. detail: what exactly, or what was said instead."""

    ok: bool
    detail: str


def settle() -> dict[str, Ability]:
    """Prepare this process for the worst. Returns what could be had.

    Memory is locked page by page as it is first used (MCL_ONFAULT): locking whole mappings would make 20 MiB out of 15.
    """
    found = {"mlock": _lock_memory(), "oom_score_adj": set_oom_score_adj(OOM_SCORE_ADJ)}
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except OSError:
        pass
    gc.collect()
    gc.freeze()
    gc.disable()  # the loop makes no cycles; a collection would touch every page at the wrong moment
    return found


def set_oom_score_adj(score: int) -> Ability:
    """Where -1000 (never) is not allowed, the lowest value that is: the present one."""
    path = PROC / "self" / "oom_score_adj"
    try:
        path.write_text(str(score))
    except OSError as error:
        try:
            return Ability(False, f"{error.strerror}; it stays at {path.read_text().strip()}")
        except OSError:
            return Ability(False, str(error.strerror))
    return Ability(True, str(score))


def _lock_memory() -> Ability:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    flags = _MCL_CURRENT | _MCL_ONFAULT
    if soft == resource.RLIM_INFINITY or _capable(_CAP_IPC_LOCK):
        flags |= _MCL_FUTURE  # under a limit this would make later allocations fail
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(flags) != 0:
        return Ability(False, f"mlockall: {os.strerror(ctypes.get_errno())} (limit: {soft // 1024} KiB)")
    return Ability(True, "all memory stays" if flags & _MCL_FUTURE else "what there is now stays")


def _capable(capability: int) -> bool:
    try:
        data = (PROC / "self" / "status").read_bytes()
    except OSError:
        return False
    at = data.find(b"\nCapEff:")
    fields = data[at + 8 : at + 40].split(None, 1) if at >= 0 else []
    return bool(fields and int(fields[0], 16) >> capability & 1)


def tie_to_parent() -> bool:
    """Have the kernel kill this process when supervisord dies, so that no orphan holds the lock.

    False when it is dead already. It may have died before the first getppid(): supervisord's children are in
    its session, while whoever adopts an orphan (init, a subreaper) leads or lives in another.
    Raises OSError when the kernel refuses."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        return os.getppid() == parent and os.getsid(parent) == os.getsid(0)
    except ProcessLookupError:
        return False


def abilities(*, cgroup_parent: Path | None, counters: bool) -> dict[str, Ability]:
    """What this machine offers to a watchdog, looked at and left as it is.

    cgroup_parent: the memory cgroup that we are in. counters: some memory cgroup's usage can be read."""
    return {
        "mlock": _may_lock(),
        "oom_score_adj": _may_lower_score(),
        "pidfd": _pidfd(),
        "process_mrelease": _mrelease(),
        "psi": _readable(PROC / "pressure" / "memory"),
        "psi_trigger": _psi_trigger(),
        "cgroup_counters": Ability(counters, "usage is read from a memory cgroup" if counters else "no memory cgroup"),
        "budget_cgroup": _may_make_cgroup(cgroup_parent),
    }


def _may_lock() -> Ability:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or _capable(_CAP_IPC_LOCK):
        return Ability(True, "unlimited")
    return Ability(soft >= 64 * 2**20, f"limit {soft // 1024} KiB")


def _may_lower_score() -> Ability:
    path = PROC / "self" / "oom_score_adj"
    try:
        before = int(path.read_text())
        path.write_text(str(max(-1000, before - 1)))
        path.write_text(str(before))
    except (OSError, ValueError) as error:
        return Ability(False, str(getattr(error, "strerror", error)))
    return Ability(True, "may be lowered")


def _pidfd() -> Ability:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        return Ability(False, str(error))
    return Ability(True, "pidfd_open works")


def _mrelease() -> Ability:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(SYS_PROCESS_MRELEASE), ctypes.c_int(-1), ctypes.c_uint(0))
    if ctypes.get_errno() == _ENOSYS:
        return Ability(False, "not in this kernel (Linux 5.15 has it)")
    return Ability(True, "process_mrelease works")


def _readable(path: Path) -> Ability:
    try:
        return Ability(bool(path.read_bytes()), str(path))
    except OSError as error:
        return Ability(False, f"{path}: {error.strerror}")


def _psi_trigger() -> Ability:
    from overnight_watchdog.wake import open_psi_trigger

    try:
        os.close(open_psi_trigger(PROC / "pressure" / "memory"))
    except OSError as error:
        return Ability(False, str(error.strerror))
    return Ability(True, "wakes the watchdog early")


def _may_make_cgroup(parent: Path | None) -> Ability:
    if parent is None:
        return Ability(False, "no memory cgroup")
    probe = parent / f"overnight-probe-{os.getpid()}"
    try:
        probe.mkdir()
        made = (probe / "memory.limit_in_bytes").exists() or (probe / "memory.max").exists()
        probe.rmdir()
    except OSError as error:
        return Ability(False, f"{parent}: {error.strerror}")
    return Ability(made, str(parent) if made else f"{parent}: a child gets no memory controller")

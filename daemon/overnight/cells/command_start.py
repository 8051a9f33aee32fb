"""The command's own process: its environment, its folder, its limits, and a fork and exec by hand.

By hand, since the death signal and the limits have to be set between the two, and a cell's start shall cost no more
than a millisecond. A fork is safe here: the runner has one thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from overnight.cells import placeholders
from overnight.private import UMASK

RESULT_FILE, CHECKPOINT_FOLDER, SCRATCH_FOLDER = "result.user.json", "checkpoint", "work"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The command could not be started. `str()` is the sentence."""

    def __init__(self, reason_code: str, sentence: str, *, outcome: str = "failed") -> None:
        super().__init__(sentence)
        self.outcome, self.reason_code = outcome, reason_code


@dataclass(frozen=True)
class Plan:
    """What is to be executed. limits: (resource, soft limit in bytes). umask: None = as it is."""

    argv: list[str]
    environ: dict[str, str]
    cwd: Path
    limits: tuple[tuple[int, int], ...] = ()
    umask: int | None = None


@dataclass(frozen=True)
class Started:
    """A running command and our ends of its pipes."""

    pid: int
    stdout: int
    stderr: int


def prepare(
    spec: Mapping[str, Any],
    folder: Path,
    environ: Mapping[str, str],
    *,
    cap: str,
    cap_bytes: int | None,
    cgroup: str | None,
    token: str,
    number: int,
    secrets: Mapping[str, str],
) -> Plan:
    """Fill in the placeholders and make the folders that the command is promised. secrets: variable -> value, of no
    placeholder: a command line can be read by everybody. Raises Refused, OSError."""
    values = placeholders.values_of(spec)
    try:
        if spec["shell"]:
            argv = ["/bin/sh", "-c", placeholders.fill(spec["command"], values, quote=True)]
        else:
            argv = [placeholders.fill(item, values) for item in spec["command"]]
        own = {name: placeholders.fill(value, values) for name, value in spec["env"].items()}
    except ValueError as error:
        raise Refused("placeholder", f"the command cannot be filled in: {error}") from None
    checkpoint, result = folder / CHECKPOINT_FOLDER, folder / RESULT_FILE
    checkpoint.mkdir(exist_ok=True)
    remove(result)
    told = {
        "OVERNIGHT_ATTEMPT": token,
        "OVERNIGHT_CELL": spec["key"],
        "OVERNIGHT_GRID": folder.parent.name,
        "OVERNIGHT_SEED": placeholders.written_as(values["seed"]),
        "OVERNIGHT_ATTEMPT_NUMBER": str(number),
        "OVERNIGHT_CHECKPOINT_DIR": str(checkpoint),
        "OVERNIGHT_RESULT": str(result),
        "OVERNIGHT_THREADS": str(spec["threads"]),
        "OVERNIGHT_PYTHON": sys.executable,
    }
    if cap_bytes is not None:
        told["OVERNIGHT_MEMORY_BYTES"] = str(cap_bytes)
    # A daemon may itself be a cell's command: what that one was told of its cap is none of this one's business.
    inherited = {name: value for name, value in environ.items() if name not in ("OVERNIGHT_MEMORY_BYTES", UMASK)}
    limits = _limits(cap, cap_bytes, cgroup)
    return Plan(
        argv, inherited | own | dict(secrets) | told, _cwd(spec["cwd"], folder), limits, _umask(environ.get(UMASK, ""))
    )


def _umask(text: str) -> int | None:
    """What `overnight up` was run with; None when it did not say."""
    try:
        return int(text, 8) & 0o777
    except ValueError:
        return None


def _cwd(cwd: str, folder: Path) -> Path:
    if cwd != "scratch":
        return Path(cwd)
    scratch = folder / SCRATCH_FOLDER
    remove(scratch)
    scratch.mkdir()
    return scratch


def remove(path: Path) -> None:
    """Whatever is there, a folder with all that is in it. Links are not followed. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _limits(cap: str, cap_bytes: int | None, cgroup: str | None) -> tuple[tuple[int, int], ...]:
    if cap_bytes is None:
        return ()
    if cap == "address_space":
        return ((resource.RLIMIT_AS, cap_bytes),)
    return ((resource.RLIMIT_DATA, cap_bytes),) if cap == "auto" and cgroup is None else ()


def adopt_orphans() -> None:
    """From here on whoever loses his parent below this process becomes its child. Raises OSError."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def start(plan: Plan) -> Started:
    """Fork, and become the command. Returns once it is executed. Raises Refused."""
    out, out_write = os.pipe()
    err, err_write = os.pipe()
    failed, failed_write = os.pipe()
    theirs = (out_write, err_write, failed_write)
    runner = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        for fd in (out, err, failed, *theirs):
            os.close(fd)
        sentence = f"no process for the command: {error.strerror}"
        raise Refused("fork_failed", sentence, outcome="lost") from None
    if pid == 0:
        _become(plan, runner, theirs)
    for fd in theirs:
        os.close(fd)
    said = os.read(failed, 32)
    os.close(failed)
    if not said:
        return Started(pid, out, err)
    os.close(out)
    os.close(err)
    os.waitpid(pid, 0)
    raise _refusal(plan, said[:1], int(said[1:]))


def _become(plan: Plan, runner: int, pipes: tuple[int, int, int]) -> NoReturn:
    step, failed = b"x", pipes[2]
    try:
        for number in signal.valid_signals():
            if signal.getsignal(number) is signal.SIG_IGN:  # an exec keeps that, and resets all handlers itself
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setpgid(0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != runner:
            os._exit(1)
        # Out of the way first: one of them may be what another one has to become.
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for target, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (null, *pipes)]):
            os.dup2(fd, target, inheritable=target < 3)
        failed = 3
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        if plan.umask is not None:
            os.umask(plan.umask)
        step = b"c"
        os.chdir(plan.cwd)
        step = b"l"
        for which, soft in plan.limits:
            hard = resource.getrlimit(which)[1]  # left alone, so that whoever extends the cap needs no right to it
            resource.setrlimit(which, (soft if hard < 0 else min(soft, hard), hard))
        step = b"x"
        os.execvpe(plan.argv[0], plan.argv, plan.environ)  # noqa: S606 - running what was asked for is the purpose
    except OSError as error:
        os.write(failed, step + str(error.errno or errno.EINVAL).encode())
    except MemoryError:
        os.write(failed, step + str(errno.ENOMEM).encode())
    except Exception:  # noqa: BLE001 - such as a NUL in an argument
        os.write(failed, step + str(errno.EINVAL).encode())
    finally:
        os._exit(127)


def _refusal(plan: Plan, step: bytes, code: int) -> Refused:
    name, why = plan.argv[0], os.strerror(code)
    if step == b"c":
        return Refused("bad_cwd", f"{plan.cwd}: {why}; `cwd:` must be a folder that the command can start in")
    if code == errno.ENOMEM and plan.limits:
        return Refused("memory_error", f"{name}: its memory cap leaves no room to start it", outcome="over_cap")
    if code not in (errno.ENOENT, errno.ENOTDIR):
        mend = {
            errno.EACCES: "; it must be an executable file (chmod +x)",
            errno.ENOEXEC: "; a script needs a first line such as #!/bin/sh",
        }.get(code, "")
        return Refused("not_executable", f"{name}: cannot be run: {why}{mend}")
    search = [str(plan.cwd)] if "/" in name else os.get_exec_path(plan.environ)
    if any((Path(plan.cwd) / place / name).is_file() for place in search):
        return Refused("not_executable", f"{name}: cannot be run: what its first line (#!) names is not there")
    if "/" in name:
        where = "" if name.startswith("/") else f" in {plan.cwd}"
        return Refused("not_found", f"{name}: no such file{where}")
    return Refused("not_found", f"{name}: not found on PATH ({os.pathsep.join(search)})")

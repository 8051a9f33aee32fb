"""One cell of a user's own command, from its start to the end of everybody whom it has started.

    lock -> prepare -> start -> attend: streams, signals, orphans -> end the rest -> keep files -> result.json

The runner is no shell and no guard: it holds nothing of the command's but the ends of its streams.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight.cells import command_ending, command_result, command_start
from overnight.cells.command_ending import Ending, Left
from overnight.cells.command_result import disk_error
from overnight.cells.command_start import Refused, Started
from overnight.cells.command_streams import LAST_LINE_BYTES, STDERR_BYTES, Log, Stream, Streams, Tail
from overnight.cells.command_tree import CommandTree, step_out
from overnight.cells.locking import open_locked
from overnight.masking import NOTHING, Masks
from overnight.secrets import SecretError, look_up

Report = Callable[..., None]

LINGER_S = 0.05
"""Who was started by the command may be a moment longer about leaving than the command itself."""

LEFTOVER_GRACE_S = 1.0
"""From SIGTERM to SIGKILL for whom a command that has ended left behind."""

KILL_S = 10.0
"""Who does not die of SIGKILL within that sits in the kernel, on a disk or a device."""

SAID_BYTES = 2**14
"""Of stderr, to judge by: Node and Go say that they were refused memory ahead of a trace of several KiB (*measured*:
2.3 KiB of Node 20). STDERR_BYTES of it are kept as evidence."""

OOM_SCORE_ADJ = 0
"""Far below the 800 that the command inherits: in a small cgroup, or a fork bomb of small processes, the runner is the
largest of all by what it has from its warm server. The kernel shall take the command, and the runner say so."""

_SIGINFO = struct.Struct("<IiiI112x")
"""The head of struct signalfd_siginfo: ssi_signo, ssi_errno, ssi_code, ssi_pid."""


def run(
    spec: Mapping[str, Any],
    folder: Path,
    *,
    report: Report,
    policy: Mapping[str, Any],
    token: str,
    number: int,
    cap_bytes: int | None,
    cgroup: str | None,
    dispatcher_pid: int,
    secrets_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Ending:
    """Run the command of `spec` in `folder` to its end. Raises CellError for the disk's faults and a held lock only.

    For a freshly forked process with one thread: it becomes a subreaper, and SIGTERM, SIGCHLD and SIGCONT stay blocked.
    token: OVERNIGHT_ATTEMPT, by which leftovers are found. cgroup: the folder of the cell's own memory cgroup, that
    this process is in; the command inherits it, the runner leaves it. dispatcher_pid: whose SIGTERM is passed on to
    the tree. secrets_file: where secrets are that the environment lacks. environ: what the command inherits, our own
    environment by default.
    """
    lock = _lock(folder)
    masks = NOTHING
    try:
        try:
            signals = _signal_fd()
            command_start.adopt_orphans()
            for name in os.listdir(folder):  # noqa: PTH208 - a pattern would be compiled in each child anew
                if name.startswith(".") and name.endswith(".tmp"):  # of an attempt that was killed while it wrote
                    (folder / name).unlink(missing_ok=True)
            command_result.clear_beside(folder)
            inherited = os.environ if environ is None else environ
            secrets = _secrets(spec, inherited, secrets_file)
            masks = Masks(secrets)
            plan = command_start.prepare(
                spec,
                folder,
                inherited,
                cap=policy.get("cap", "auto"),
                cap_bytes=cap_bytes,
                cgroup=cgroup,
                token=token,
                number=number,
                secrets=secrets,
            )
            started = command_start.start(plan)
        except OSError as error:
            raise disk_error(error, f"preparing {folder}") from error
        except Refused as refused:
            return Ending(refused.outcome, refused.reason_code, masks.text(str(refused)))
        runner = _Runner(started, folder, signals, cgroup, dispatcher_pid, policy.get("grace_s", 10.0), masks)
        report("begun", turn=0, output_tokens=0, replay_s=0.0)
        try:
            runner.attend()
        finally:
            runner.end()
        report("finishing")
        return _conclude(spec, folder, plan, runner, masks)
    finally:
        os.close(lock)


class _Runner:
    """The loop around one running command."""

    def __init__(
        self,
        started: Started,
        folder: Path,
        signals: int,
        cgroup: str | None,
        dispatcher: int,
        grace_s: float,
        masks: Masks,
    ) -> None:
        self._signals, self._dispatcher, self.grace_s = signals, dispatcher, grace_s
        self.tree = CommandTree(started.pid, cgroup)
        self.streams = Streams(
            Stream(started.stdout, Log(folder / "stdout.log"), Tail(LAST_LINE_BYTES), masks),
            Stream(started.stderr, Log(folder / "stderr.log"), Tail(SAID_BYTES), masks),
            signals,
        )
        self.asked = self.grace_over = self._passed_on = False
        self.leftovers = self.unkilled = 0
        self._kill_s: float | None = None
        self._ask_rest_s: float | None = None
        _spare_the_runner()
        if cgroup is not None:
            step_out(cgroup)

    def attend(self) -> None:
        """hear -> reap -> (the command has ended: so has the rest) -> wait, until all are gone or have to be killed."""
        while True:
            self._hear()
            self.tree.reap()
            if self.tree.status is not None:
                if not self.tree.anybody():
                    return
                self._ask_the_rest()
            if self._kill_s is not None and time.monotonic() >= self._kill_s:
                self.grace_over = self.tree.status is None
                return
            self.streams.wait(self._pause_s())

    def end(self) -> None:
        """Whatever happened: nobody is left behind, and what they wrote is in the files."""
        self.unkilled = self.tree.kill(KILL_S)
        self._hear()
        self.streams.finish()

    def _hear(self) -> None:
        """SIGTERM: remember when it has to be over, and pass it on unless everybody was told by the sender.

        SIGCONT: so does the tree go on. A watchdog stops all of us, and whoever takes its place when it is dead may
        reach the runner alone. Only then: a command may have stopped children of its own on purpose (job control), and
        nobody else's SIGCONT comes to us while it works. After SIGTERM, so that nobody goes on who has yet to be told
        to leave; who was told is not hurt by one SIGCONT more."""
        try:
            data = os.read(self._signals, 16 * _SIGINFO.size)
        except BlockingIOError:
            return
        heard = list(_SIGINFO.iter_unpack(data))
        for number, _, _, sender in heard:
            if number != signal.SIGTERM:
                continue
            # Whoever tells everybody may have told the command first: its end may be seen before we are told.
            if not self.asked and command_ending.exit_code(self.tree.status) in (None, -signal.SIGTERM):
                self.asked, self._kill_s = True, time.monotonic() + self.grace_s
            if not self._passed_on and not _tells_everybody(sender, self._dispatcher):
                self._passed_on = True
                self.tree.ask_to_leave()
        if any(number == signal.SIGCONT for number, *_ in heard):
            self.tree.continue_all()

    def _ask_the_rest(self) -> None:
        """The command is gone and others are not. Those who were asked to leave together with it have their time."""
        if self.asked:
            return
        now_s = time.monotonic()
        if self._ask_rest_s is None:
            self._ask_rest_s = now_s + LINGER_S
        elif self._kill_s is None and now_s >= self._ask_rest_s:
            self.leftovers = len(self.tree.members())
            self._kill_s = now_s + LEFTOVER_GRACE_S
            self.tree.ask_to_leave()

    def _pause_s(self) -> float | None:
        """None while nothing but a signal or a stream can matter: the end of a child is a signal too. Who is only in
        the cgroup is nobody's child."""
        if self.tree.status is None and self._kill_s is None:
            return None
        left = float("inf") if self._kill_s is None else self._kill_s - time.monotonic()
        return max(0.0, min(left, 0.02 if self.tree.status is not None else left))


def _secrets(spec: Mapping[str, Any], environ: Mapping[str, str], file: Path | None) -> dict[str, str]:
    """Variable -> value. Raises Refused."""
    try:
        return look_up(spec.get("secrets", ()), environ, file or Path(os.devnull))
    except SecretError as error:
        raise Refused(error.reason_code, str(error)) from None


def _conclude(spec: Mapping[str, Any], folder: Path, plan: command_start.Plan, runner: _Runner, masks: Masks) -> Ending:
    out, err, status = runner.streams.out, runner.streams.err, runner.tree.status
    said = err.tail.text()
    result = command_result.Result()
    if command_ending.exit_code(status) == 0:
        result = command_result.read(folder, out.tail.last_line(), masks)
    ending = command_ending.judge(
        Left(
            status,
            asked=runner.asked,
            grace_over=runner.grace_over,
            grace_s=runner.grace_s,
            result=result.value is not None,
            limited=bool(plan.limits),
            stderr=said,
        )
    )
    evidence: dict[str, Any] = {
        **command_ending.how(status),
        "stderr_tail": said.encode()[-STDERR_BYTES:].decode(errors="replace").strip(),
        "leftovers": runner.leftovers,
        "unkilled": runner.unkilled,
        "output_lost_bytes": runner.streams.lost_bytes,
        "result_note": result.note,
    }
    try:
        evidence["result_withdrawn"] = command_result.withdraw(folder, masks)
        command_result.clear_beside(folder)
    except OSError as error:
        raise disk_error(error, f"removing a secret from {folder}") from error
    sha256 = None
    if ending.outcome == "completed":
        try:
            kept = command_result.keep(spec, plan.cwd, folder, masks)
            evidence |= {"keep_missing": kept.missing, "keep_refused": kept.refused}
            sha256 = command_result.write(spec, folder, result, kept.files)
        except OSError as error:
            raise disk_error(error, f"writing the result into {folder}") from error
        _tidy(spec, folder)
    return replace(
        ending,
        reason=masks.text(ending.reason),
        evidence=masks.value({name: value for name, value in evidence.items() if value or name == "exit_code"}),
        result_sha256=sha256,
    )


def _tidy(spec: Mapping[str, Any], folder: Path) -> None:
    """The scratch folder of a completed cell; what it holds has been kept or is not wanted."""
    if spec["cwd"] == "scratch":
        try:
            command_start.remove(folder / command_start.SCRATCH_FOLDER)
        except OSError:
            pass  # the result stands all the same


def _tells_everybody(sender: int, dispatcher: int) -> bool:
    """Does this sender of a signal send it to every member itself? The watchdog does; the dispatcher, a shell and
    whoever is gone already do not."""
    if sender in (0, dispatcher):
        return False
    try:
        words = Path(f"/proc/{sender}/cmdline").read_bytes()
    except OSError:
        return False
    return b"overnight_watchdog" in words or b"overnight-watchdog" in words


def _lock(folder: Path) -> int:
    """One attempt a cell. Raises Busy, or a CellError for the disk's faults."""
    path = folder / "lock"
    try:
        return open_locked(path)
    except OSError as error:
        raise disk_error(error, f"opening {path}") from error


def _signal_fd() -> int:
    """SIGTERM, SIGCHLD and SIGCONT as a descriptor: the sender's pid comes with it, and nothing has to wake up to look.
    A blocked SIGCONT continues us all the same.

    Python has no signalfd. Raises OSError."""
    wanted = (signal.SIGTERM, signal.SIGCHLD, signal.SIGCONT)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the statuses away
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    mask = sum(1 << (number - 1) for number in wanted).to_bytes(8, sys.byteorder) + bytes(120)
    fd: int = ctypes.CDLL(None, use_errno=True).signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def _spare_the_runner() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError:
        pass

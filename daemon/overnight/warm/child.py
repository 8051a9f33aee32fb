"""The child that a warm server forks for one attempt: settle, wait for the registration, run the cell, leave."""

from __future__ import annotations

import os
import random
import signal
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from overnight import procfs
from overnight.cells import command, idle_loop
from overnight.cells.shrinking import Shrinker
from overnight.dispatch import rlimits
from overnight.engines.base import Engine
from overnight.warm.meter import Meter
from overnight.warm.protocol import Channel, Closed, Message

OOM_SCORE_ADJ = 800
"""High, so that a kernel that has to choose takes a cell and neither the daemon nor a warm server."""

EXIT_COMPLETED, EXIT_ENDED = 0, 70
"""The exit status only says whether the cell completed; the `ended` message says how it ended otherwise."""

EXIT_YIELDED = 75


@dataclass
class Child:
    """A forked child as its server sees it. cgroup_error: why it is not in its memory cgroup, "" when it is or has
    none. cap_bytes: its cap when it was forked."""

    attempt: int
    pid: int
    pidfd: int
    meter: Meter
    cgroup_error: str
    cap_bytes: int | None
    _gate: int = field(repr=False)

    def let_go(self) -> None:
        """The registration is on disk: the child may begin. It is told whether it is in its cgroup."""
        if self._gate >= 0:
            try:
                os.write(self._gate, b"r" if self.cgroup_error else b"g")
            except OSError:
                pass  # it died while it waited; its exit will be reaped
            self.close_gate()

    def close_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    def close(self) -> None:
        self.close_gate()
        self.meter.close()
        os.close(self.pidfd)


def fork(channel: Channel, engine: Engine, message: Message, siblings: tuple[Child, ...]) -> Child:
    """Fork the child of one attempt; it waits at its gate until `let_go`. Raises OSError when there is no fork."""
    gate_read, gate_write = os.pipe()
    parent = os.getpid()
    # A signal that arrives in the child before it has its own handlers would run the parent's.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    try:
        pid = os.fork()
        if pid == 0:
            _child(channel, engine, message, parent, (gate_read, gate_write), siblings)
    except BaseException:
        os.close(gate_write)
        raise
    finally:
        os.close(gate_read)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.close(gate_write)  # the child reads the end of its gate and leaves
        os.waitpid(pid, 0)
        raise
    cgroup = message["cgroup"]
    error = "" if cgroup is None else _join(pid, cgroup)
    is_command = message["spec"]["kind"] == "command"
    meter = Meter(pid, cgroup=None if error else cgroup, tree=is_command)
    return Child(message["attempt"], pid, pidfd, meter, error, message["cap_bytes"], gate_write)


def _join(pid: int, cgroup: str) -> str:
    """Put the child into its memory cgroup while it waits at its gate: what it allocates is charged there from the
    first byte. Returns what went wrong, or ""."""
    try:
        (Path(cgroup) / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        return f"{cgroup}: {error.strerror}"
    return ""


def _child(
    channel: Channel,
    engine: Engine,
    message: Message,
    parent: int,
    gate: tuple[int, int],
    siblings: tuple[Child, ...],
) -> None:
    """Never returns: leaves by os._exit, so that nothing of the parent's is flushed or torn down twice."""
    status = EXIT_ENDED
    shrinker = Shrinker() if engine.shrinks else None
    try:
        _settle(parent, gate[1], siblings, shrinker)
        if word := os.read(gate[0], 1):
            if word == b"r":
                message["cgroup"] = None
            status = _run(channel, engine, message, shrinker)
    except BaseException:  # noqa: BLE001 - a child that escapes into the server's loop would be a second server
        traceback.print_exc()
    finally:
        os._exit(status)


def _settle(parent: int, own_gate: int, siblings: tuple[Child, ...], shrinker: Shrinker | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    if shrinker is not None:
        shrinker.install()  # before the gate: whoever reads `shrinks: true` finds the signal handled
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    procfs.die_with_parent(parent)
    os.setpgid(0, 0)
    os.close(own_gate)
    for sibling in siblings:
        sibling.close()
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError:
        pass


def _run(channel: Channel, engine: Engine, message: Message, shrinker: Shrinker | None) -> int:
    attempt = message["attempt"]

    def report(event: str, **fields: Any) -> None:
        channel.offer(event, attempt=attempt, **fields)

    random.seed(message["spec"]["seed"])
    try:
        if message["spec"]["kind"] == "command":
            ending = _command(message, report)
        else:
            ending = _idle_loop(engine, message, report, shrinker)
    except Exception as error:  # noqa: BLE001 - every way to end is data for the queue
        outcome, code, reason = idle_loop.explain(error)
        if code == "exception":
            traceback.print_exc()
        ending = {"outcome": outcome, "reason_code": code, "reason": reason}
    try:
        channel.send("ended", attempt=attempt, **ending)
    except Closed:
        return EXIT_ENDED
    return {"completed": EXIT_COMPLETED, "yielded": EXIT_YIELDED}.get(ending["outcome"], EXIT_ENDED)


def _idle_loop(engine: Engine, message: Message, report: idle_loop.Report, shrinker: Shrinker | None) -> dict[str, Any]:
    if message["cap_bytes"] is not None and message["cgroup"] is None:
        # An absolute limit would count the weights that were inherited.
        rlimits.cap_data(message["cap_bytes"])
    finished = idle_loop.run(
        engine,
        message["spec"],
        Path(message["folder"]),
        report=report,
        accept_conditions=message["accept_conditions"],
        shrinker=shrinker,
    )
    return {"outcome": "completed", "reason_code": "", "reason": "", **asdict(finished)}


def _command(message: Message, report: idle_loop.Report) -> dict[str, Any]:
    ending = command.run(
        message["spec"],
        Path(message["folder"]),
        report=report,
        policy=message["policy"],
        token=message["token"],
        number=message["number"],
        cap_bytes=message["cap_bytes"],
        cgroup=message["cgroup"],
        dispatcher_pid=message["dispatcher_pid"],
        secrets_file=None if message["secrets_file"] is None else Path(message["secrets_file"]),
    )
    return asdict(ending)

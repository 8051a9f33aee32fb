"""`overnight-watchdog guard -- COMMAND...`: one command under the ladder, without a home, a daemon or a queue."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from overnight_watchdog.act import Actor
from overnight_watchdog.kernel import PR_SET_PDEATHSIG
from overnight_watchdog.limits import PROC
from overnight_watchdog.loop import Watchdog
from overnight_watchdog.roster import Roster
from overnight_watchdog.tree import start_ticks
from overnight_watchdog.wake import Waker

_FOUND_NOT, _CANNOT_RUN = 127, 126


_DONE = {
    "frozen": "stopped it for a moment",
    "evicted": "asked it to leave (SIGTERM)",
    "killed": "killed it (SIGKILL)",
}


class GuardLog:
    """Tells on stderr what was done to the command, one line each; nothing about mere changes of level."""

    def __init__(self, say: Callable[[str], object]) -> None:
        """say: must not block."""
        self._say = say

    def write(self, level: str, event: str, **fields: Any) -> bool:
        del level
        if (done := _DONE.get(event)) is not None:
            self._say(f"{done}: {_why(fields)}")
        elif event == "thrashing":
            self._say(f"memory thrashes: {fields['refault_per_s']:.2f} times the limit is read again each second")
        elif event == "action_planned":
            self._say(f"dry run, would {fields['step']} it: {_why(fields)}")
        return True


class Deaf:
    """A log for nobody."""

    def write(self, level: str, event: str, **fields: Any) -> bool:
        del level, event, fields
        return True


class Silent:
    """A heartbeat for nobody."""

    def write(self, record: dict[str, Any]) -> bool:
        del record
        return True


def _why(fields: dict[str, Any]) -> str:
    left = f"{fields['headroom_bytes'] / 2**20:.1f} MiB of {fields['limit_bytes'] / 2**20:.1f} MiB are left"
    going = fields.get("slope_bytes_per_s") or 0
    falling = f", going at {going / 2**20:.1f} MiB/s" if going > 0 else ""
    held = f"it held {fields['own_bytes'] / 2**20:.1f} MiB"
    return f"{left} ({fields['limit_source']}){falling}; {held} [{fields['trigger']}]"


class Child:
    """The command, waiting at a gate until it is guarded."""

    def __init__(self, command: list[str]) -> None:
        """Fork. Raises OSError when that is refused."""
        gate_read, self._gate = os.pipe()
        self._failed, failed_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._failed)
            _become(command, gate_read, failed_write)
        os.close(gate_read)
        os.close(failed_write)

    def let_go(self) -> int:
        """Let it become the command. Returns 0, or the errno of a command that cannot be run."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        said = os.read(self._failed, 16)
        os.close(self._failed)
        return int(said) if said else 0

    def status(self) -> int | None:
        """Exit status as a shell has it, None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _become(command: list[str], gate: int, failed: int) -> NoReturn:
    try:
        # A guard that is killed while the command is frozen must not leave it so.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; the command shall not
            signal.signal(number, signal.SIG_DFL)
        if os.read(gate, 1):
            os.execvp(command[0], command)  # noqa: S606 - running what was asked for is the purpose
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(_FOUND_NOT)


def run(
    command: list[str],
    *,
    prepare: Callable[[int], tuple[Watchdog, Roster, Actor]],
    say: Callable[[str], None],
    boot_id: str,
) -> int:
    """Run `command` to its end under the ladder; returns its exit status (127: not found, 126: cannot be run).

    prepare: makes the watchdog around the pid of the command.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the command's status away
    child = Child(command)
    waker = Waker()
    waker.install()  # before it may run: who is stopped from now on hands that on
    watchdog, roster, actor = prepare(child.pid)
    roster.add(
        {
            "v": 1,
            "boot_id": boot_id,
            "pid": child.pid,
            "start_ticks": start_ticks(child.pid),
            "role": "command",
            "cell": command[0],
            "started_s": time.monotonic(),
        }
    )
    guarded = roster.get(child.pid)
    if (failed := child.let_go()) != 0:
        os.waitpid(child.pid, 0)
        say(f"{command[0]}: {os.strerror(failed)}")
        return _FOUND_NOT if failed == 2 else _CANNOT_RUN
    waker.watch_pressure(PROC / "pressure" / "memory")
    if guarded is not None:
        waker.add(guarded.pidfd)
    status = None
    while status is None or not all(each.guarded.reported for each in actor.dying):
        # Who was told to go together with the command may outlive it, but not the guard.
        if status is None and (status := child.status()) is not None and guarded is not None:
            waker.remove(guarded.pidfd)
        if waker.stop is not None:
            if waker.stop != "SIGINT" and guarded is not None:  # a terminal sends Ctrl-C to the command itself
                actor.forward(guarded.pidfd, signal.Signals[waker.stop])
            waker.stop = None
        if guarded is not None:
            # Were the guard killed now, the command itself would be continued (see `_become`), but not its children.
            guarded.entry["freezes"] = len(guarded.tree.members()) <= 1
        watchdog.step()
        if status is None or actor.dying:
            waker.wait(watchdog.pause_s())
    sys.stdout.flush()
    return status

"""The other half of the mutual watch: a daemon that has fallen silent is restarted through supervisord.

supervisord restarts what died, not what hangs. A daemon is silent when its beat (var/run/daemon.beat) is old although
its process is there and is not stopping. It gets SIGTERM through supervisor's XML-RPC, so that supervisord knows of it,
and SIGKILL when that does not help; then supervisord starts another. The request is one preformatted POST over the unix
socket, which is never waited for: `xmlrpc.client` alone would cost 9 MiB.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight_watchdog.journal import checksum
from overnight_watchdog.kernel import Kernel
from overnight_watchdog.roster import read_small

SILENT_S = 15.0
ANSWER_S = 2.0
GRACE_S = 10.0
LOOK_S = 1.0
ASLEEP_S = 5.0
"""Who has not looked for so long was stopped himself (a paused container, a thrashing machine), and so was the daemon:
its silence counts from then on."""
_MOST_BYTES = 4096
_FOREVER_S = 1e12
_REQUEST = (
    "<?xml version='1.0'?><methodCall><methodName>supervisor.signalProcess</methodName><params>"
    "<param><value><string>daemon</string></value></param><param><value><string>{name}</string></value></param>"
    "</params></methodCall>"
)


def request(name: str) -> bytes:
    """The HTTP request that has supervisord send the daemon a signal, such as TERM."""
    body = _REQUEST.format(name=name).encode()
    head = "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(slots=True)
class Beat:
    """The daemon's last sign of life."""

    pid: int
    start_ticks: int
    monotonic_s: float
    stopping: bool


def read_beat(path: Path, boot_id: str) -> Beat | None:
    """None: there is none, it is damaged, or another boot's."""
    try:
        record: dict[str, Any] = json.loads(read_small(path, _MOST_BYTES))
        if record["v"] != 1 or record["boot_id"] != boot_id or record["checksum"] != checksum(record):
            return None
        pid, ticks, seconds = record["pid"], record["start_ticks"], record["monotonic_s"]
        if type(pid) is not int or type(ticks) is not int or type(seconds) not in (int, float):
            return None
        return Beat(pid, ticks, float(seconds), record["stopping"] is True) if abs(seconds) < _FOREVER_S else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Supervisor:
    """supervisord's socket, asked without waiting."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._request = request("TERM")
        self._socket: socket.socket | None = None
        self._deadline_s = 0.0

    def ask(self, now_s: float) -> bool:
        """Send the request. False when nobody takes it."""
        self.close()
        asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        asked.setblocking(False)
        try:
            asked.connect(self._path)
            sent = asked.send(self._request) == len(self._request)
        except OSError:
            asked.close()
            return False
        self._socket, self._deadline_s = asked, now_s + ANSWER_S
        return sent

    def answered(self, now_s: float) -> bool | None:
        """True: it did as asked. False: it refused, or the time is over. None: nothing yet."""
        if self._socket is None:
            return False
        try:
            data = self._socket.recv(4096)
        except BlockingIOError:
            if now_s < self._deadline_s:
                return None
            data = b""
        except OSError:
            data = b""
        self.close()
        return b" 200 " in data[:20] and b"<fault>" not in data

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class DaemonWatch:
    """Looks once a second; restarts a daemon that is silent, or that was found to be the leak."""

    def __init__(
        self,
        beat: Path,
        supervisor: Supervisor,
        kernel: Kernel,
        boot_id: str,
        tell: Callable[..., None],
        *,
        ours: Callable[[int], bool] = lambda pid: True,
        began_s: float = float("-inf"),
    ) -> None:
        """ours: did our own supervisord start this process? One that somebody runs by hand is his to restart.
        began_s: silence counts from here on: what ended the watchdog before us may have stopped the daemon, too."""
        self._path, self._supervisor, self._kernel, self._boot_id = beat, supervisor, kernel, boot_id
        self._tell, self._ours = tell, ours
        self._due_s, self._awake_s = float("-inf"), began_s
        self._looked_s: float | None = None
        self._pidfd: int | None = None
        self._kill_s = 0.0
        self._asking = False

    @property
    def busy(self) -> bool:
        """A restart is under way."""
        return self._pidfd is not None

    def look(self, now_s: float, end: Callable[[int, int], None], write: Callable[[dict[str, Any]], object]) -> None:
        """Step once. end(pidfd, signal) signals; write(record) notes a verdict before that."""
        if self._pidfd is not None:
            self._follow(now_s, end)
            return
        if now_s < self._due_s:
            return
        if self._looked_s is not None and now_s - self._looked_s > ASLEEP_S:
            self._awake_s = now_s  # what stopped us may have stopped it, too
        self._looked_s, self._due_s = now_s, now_s + LOOK_S
        beat = read_beat(self._path, self._boot_id)
        if beat is None or beat.stopping or now_s - max(beat.monotonic_s, self._awake_s) < SILENT_S:
            return
        if not self._ours(beat.pid):
            return
        record = {"trigger": "silent", "silent_s": round(now_s - beat.monotonic_s, 1)}
        self.restart(beat.pid, beat.start_ticks, now_s, record, write)

    def restart(
        self, pid: int, ticks: int, now_s: float, record: dict[str, Any], write: Callable[[dict[str, Any]], object]
    ) -> bool:
        """Begin a restart. False when that process has ended already, or a restart is under way."""
        if self._pidfd is not None or (pidfd := self._kernel.open(pid, ticks)) is None:
            return False
        named = {"pid": pid, "start_ticks": ticks, "role": "daemon", "step": "restart"}
        write(named | {"monotonic_s": round(now_s, 6)} | record)
        self._pidfd, self._kill_s = pidfd, now_s + GRACE_S
        self._asking = self._supervisor.ask(now_s)
        if not self._asking:
            self._kill_s = now_s  # nobody to be asked: the next step is SIGKILL, and supervisord will see it
        # A log line has a level of its own.
        facts = {"pressure" if name == "level" else name: value for name, value in record.items()}
        self._tell("daemon_restarted", pid=pid, asked_supervisord=self._asking, **facts)
        return True

    def _follow(self, now_s: float, end: Callable[[int, int], None]) -> None:
        pidfd = self._pidfd
        if pidfd is None:
            return
        if self._asking and (answer := self._supervisor.answered(now_s)) is not None:
            self._asking = False
            if not answer:
                self._kill_s = now_s
        if self._kernel.ended(pidfd):
            self._kernel.close(pidfd)
            self._pidfd = self._looked_s = None
            self._due_s = now_s + SILENT_S  # its successor needs time for its first beat
        elif now_s >= self._kill_s:
            end(pidfd, 9)
            self._kill_s = now_s + GRACE_S

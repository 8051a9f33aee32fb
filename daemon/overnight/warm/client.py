"""A warm server as the dispatcher sees it: start it, talk to it, watch it end. Heavy imports stay on its side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overnight.dispatch import signals
from overnight.dispatch.evictions import Eviction
from overnight.warm import protocol

OUTPUT_MOST_BYTES = 1 << 20


class WarmServer:
    """One warm server process. `state` is loading, ready, leaving or gone."""

    def __init__(self, key: str, warm: dict[str, Any], store: Path, stderr: Path) -> None:
        """Start the process and ask it to load. Raises OSError when it cannot be started."""
        self.key = key
        self.warm = warm
        self.state = "loading"
        self.load_s: float | None = None
        self.shrinks = False
        self.freezes = True
        self.promise = ""
        self.bytes = 0  # what it holds itself, as it said when it had loaded; the dispatcher looks again
        self.told: tuple[object, ...] | None = None  # what its registration says; None: it has none yet
        self.attempts: set[int] = set()
        self.forked: set[int] = set()  # those of them that have a process
        self.started = time.monotonic()
        self.idle_since: float | None = None
        self.channel, theirs = protocol.pair()
        with _stderr(stderr) as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "overnight.warm.server", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        theirs.close()
        self.pid = self._process.pid
        self.handle = signals.Handle.open(self.pid)
        self.eviction: Eviction | None = None
        self.refused = False
        self.deaf = False
        self.leaving_since = 0.0
        try:
            self.channel.send("load", warm=warm, store=str(store))
        except protocol.Closed:
            pass  # it died at once: the dispatcher sees its exit

    def fork(
        self,
        attempt: int,
        spec: dict[str, Any],
        folder: Path,
        *,
        accept_conditions: bool = False,
        policy: Mapping[str, Any] | None = None,
        number: int = 1,
        token: str = "",
        cgroup: str | None = None,
        cap_bytes: int | None = None,
        secrets_file: Path | None = None,
    ) -> None:
        """Ask for a child; `forked` or `fork_failed` will answer, unless the server dies, which shows by its exit.

        cgroup: the memory cgroup that it is put into before it may allocate. cap_bytes: what it may hold beyond what
        it inherits; without a cgroup it limits its own data. number, token: which attempt a command is told it is.
        secrets_file: where its runner finds secrets that the environment lacks; no value ever passes here."""
        self._tell(
            "fork",
            attempt=attempt,
            spec=spec,
            folder=str(folder),
            accept_conditions=accept_conditions,
            policy=dict(policy or {}),
            number=number,
            token=token,
            cgroup=cgroup,
            cap_bytes=cap_bytes,
            dispatcher_pid=os.getpid(),
            secrets_file=None if secrets_file is None else str(secrets_file),
        )

    def let_go(self, attempt: int) -> None:
        """The attempt's registration is on disk."""
        self._tell("go", attempt=attempt)

    def _tell(self, kind: str, **fields: Any) -> None:
        try:
            self.channel.send(kind, **fields)
        except protocol.Closed:
            pass

    def leave(self) -> None:
        """Ask it to end. Only for a server without cells: it does not wait for any."""
        self._leaving()
        self._tell("stop")

    def kill(self) -> None:
        """SIGKILL; its children die with it."""
        self._leaving()
        if self.handle is not None:
            self.handle.kill()

    def refuse(self) -> None:
        """It said that it cannot load, and ends by itself."""
        self.refused = True
        self._leaving()

    def _leaving(self) -> None:
        if self.state != "leaving":
            self.state, self.leaving_since = "leaving", time.monotonic()

    def exit_status(self) -> int | None:
        """None while it runs, else the exit code, or minus the signal."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> bool:
        """True when it ended within the time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        self.state = "gone"
        self.channel.close()
        if self.handle is not None:
            self.handle.close()

    def describe(self) -> str:
        return f"{self.warm['engine']} {self.warm['source']} {self.warm['dtype']}" if self.warm else "commands"


def _stderr(path: Path) -> Any:
    """Where libraries that print may print; nowhere when the disk is full."""
    bound_output(path)
    try:
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def bound_output(path: Path) -> None:
    """Start that file anew when it has grown too long. Servers and cells that have it open append: they go on at its
    new end."""
    try:
        if path.stat().st_size > OUTPUT_MOST_BYTES:
            os.truncate(path, 0)
    except OSError:
        pass

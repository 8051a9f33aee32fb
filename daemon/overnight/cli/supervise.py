"""supervisord from outside: is it there, start it, ask it, end it. (Not a command.)"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from overnight import procfs
from overnight.dispatch.signals import Handle
from overnight.errors import ConfigError, UserError
from overnight.paths import Paths

PROGRAMS = ("watchdog", "daemon")
_ANSWER_S = 5.0
_STOPPING_S = 360.0
_ENDING_S = 60.0
_REMIND_S = 2.0
_SOCKET_PATH_MAX = 100
"""A unix socket's path has room for 107 bytes; supervisord binds a temporary name that is a little longer."""


_ODD = "%\"'\\"
"""What supervisord's configuration expands or quotes."""


def rpc(paths: Paths) -> Any:
    """The `supervisor` namespace of a living supervisord, or None when there is none.

    One that is just stopping is waited for. Raises UserError for one that does not answer."""
    from supervisor.xmlrpc import SupervisorTransport

    deadline = time.monotonic() + _STOPPING_S
    while paths.supervisor_socket.exists():
        socket.setdefaulttimeout(_ANSWER_S)  # the transport has no setting of its own for this
        transport = SupervisorTransport(None, None, serverurl=f"unix://{paths.supervisor_socket}")
        server = ServerProxy("http://127.0.0.1", transport=transport)
        try:
            server.supervisor.getPID()
        except TimeoutError:
            raise UserError(
                f"supervisord does not answer within {_ANSWER_S:.0f} s ({paths.supervisor_socket}); "
                f"is it stopped? its pid is in {paths.supervisor_pid}"
            ) from None
        except (OSError, http.client.HTTPException):
            return None  # a socket that nobody listens at: supervisord was killed
        except Fault:
            if time.monotonic() > deadline:
                raise UserError(f"supervisord is still stopping after {_STOPPING_S:.0f} s: see {paths.log}") from None
            time.sleep(0.1)
            continue
        return server.supervisor
    return None


def environment() -> dict[str, str]:
    """supervisord finds `overnight` on PATH: the one that belongs to this interpreter comes first. Its own umask keeps
    var/ private; the files that commands write elsewhere get the user's, which `private` has noted."""
    bin_folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([bin_folder, os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path}


def command(paths: Paths, *, foreground: bool = False) -> list[str]:
    extra = ["--nodaemon"] if foreground else []
    return [sys.executable, "-m", "supervisor.supervisord", "-c", str(paths.supervisord_conf), *extra]


def check(paths: Paths) -> None:
    """Refuse what supervisord would only complain about in its own log. Raises ConfigError."""
    if len(os.fsencode(paths.supervisor_socket)) > _SOCKET_PATH_MAX:
        raise ConfigError(
            f"{paths.supervisor_socket}: the path is too long for a unix socket (at most {_SOCKET_PATH_MAX} bytes); "
            "choose a shorter home with --home DIR"
        )
    if odd := sorted({char for char in str(paths.home) if char in _ODD or not char.isprintable()}):
        raise ConfigError(
            f"{paths.home}: supervisord cannot work with {' '.join(map(repr, odd))} in a path; "
            "choose another home with --home DIR"
        )
    if not paths.supervisord_conf.is_file():
        raise ConfigError(f"{paths.supervisord_conf} is missing; restore it from the package's etc/supervisord.conf")


def start(paths: Paths) -> None:
    """Start supervisord in the background. Raises UserError with its own words when it refuses."""
    done = subprocess.run(
        command(paths),
        env=environment(),
        cwd=paths.home,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # a Ctrl-C that detaches `overnight run` is not for supervisord
    )
    if done.returncode == 0:
        return
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        if rpc(paths) is not None:
            return  # somebody else started it at the same moment
        time.sleep(0.1)
    lines = (done.stderr or done.stdout).strip().splitlines()
    said = next((line for line in lines if line.startswith("Error:")), lines[-1] if lines else "it said nothing")
    raise UserError(f"supervisord did not start: {said.removeprefix('Error: ')} (see {paths.log / 'supervisord.log'})")


def start_programs(supervisor: Any) -> list[str]:
    """Start whatever of our programs is not running; returns their names."""
    started = []
    for info in supervisor.getAllProcessInfo():
        if info["name"] in PROGRAMS and info["statename"] not in ("RUNNING", "STARTING", "BACKOFF"):
            try:
                supervisor.startProcess(info["name"], False)
                started.append(info["name"])
            except Fault as fault:
                if "ALREADY_STARTED" in fault.faultString:
                    continue  # somebody else did, at the same moment
                raise UserError(f"supervisord cannot start {info['name']}: {fault.faultString}") from None
    return started


def all_running(supervisor: Any) -> bool | None:
    """True once supervisord counts all our programs as running, else None."""
    states = {info["name"]: info["statename"] for info in supervisor.getAllProcessInfo()}
    return all(states.get(name) == "RUNNING" for name in PROGRAMS) or None


def find(paths: Paths) -> Handle | None:
    """The supervisord of this home by its command line, for when its socket or pid file is gone."""
    conf = os.path.realpath(paths.supervisord_conf)
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if not any("supervisord" in word for word in words[:3]) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(os.path.realpath(os.path.join(process.cwd(), word)) == conf for word in words[1:]):  # noqa: PTH118 - cwd may be gone
                return Handle.open(process.pid)
        except psutil.Error:
            continue
    return None


def end(handle: Handle, timeout_s: float = _ENDING_S) -> bool:
    """Have a supervisord stop in good order (SIGTERM); False when it is still there after the time."""
    handle.ask_to_leave()
    try:
        deadline = time.monotonic() + timeout_s
        while not (gone := handle.wait(_REMIND_S)) and time.monotonic() < deadline:
            remind(handle.pid)
        return gone
    finally:
        handle.close()


def remind(supervisord: int) -> None:
    """Ask what a stopping supervisord waits for to leave, once more.

    It sends SIGTERM once, and the handlers that a child has between its fork and its exec are supervisord's own: they
    take that signal and forget it. Without this it would wait until `stopwaitsecs` is over."""
    if not procfs.is_supervisord(supervisord):
        return
    try:
        children = psutil.Process(supervisord).children()
        daemons = [each for each in children if _runs_daemon(each.cmdline())]
        for each in daemons or children:  # the watchdog comes last, since it watches until the last cell has left
            if (handle := Handle.open(each.pid)) is not None:
                if procfs.parent(each.pid) == supervisord:
                    handle.ask_to_leave()
                handle.close()
    except psutil.Error:
        pass  # somebody has just ended: the next reminder finds who is left


def _runs_daemon(words: Sequence[str]) -> bool:
    """Is this `overnight [--home DIR] daemon ...`, whichever interpreter runs it? Not the watchdog, nor another program
    of supervisord's, even if a word of theirs or the home is called so."""
    at = next((i for i, word in enumerate(words) if PurePath(word).name == "overnight"), len(words))
    options = iter(words[at + 1 :])
    for word in options:
        if word == "--home":
            next(options, None)
        elif not word.startswith("-"):
            return word == "daemon"
    return False


def recorded_pid(paths: Paths) -> int | None:
    """What supervisord wrote into its pid file."""
    return procfs.read_pid(paths.supervisor_pid)


def wait_gone(paths: Paths, pid: int | None, timeout_s: float) -> bool:
    """Wait until a supervisord that was told to shut down has ended."""
    ticks = procfs.start_ticks(pid) if pid is not None else None
    deadline = time.monotonic() + timeout_s
    remind_s = time.monotonic() + _REMIND_S
    while time.monotonic() < deadline:
        if pid is None or ticks is None or not procfs.alive(pid, ticks):
            return True
        if time.monotonic() >= remind_s:
            remind(pid)
            remind_s = time.monotonic() + _REMIND_S
        time.sleep(0.05)
    return False

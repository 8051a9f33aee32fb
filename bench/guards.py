"""The guards that bench/watchdog.py compares: ours, earlyoom, superlance's memmon, and the classic loop in bash.

All of them run inside the limited cgroup, as in a container, with their own defaults. Who of them sees what:
  ours      the cgroup itself.
  memmon    the RSS of each program of its supervisord, never their sum: a limit for each.
  earlyoom  /proc/meminfo, which is the machine's in a plain container. With lxcfs it is the container's, and that
            view it gets here (a file bound over /proc/meminfo, renewed every 5 ms): without it, it would be blind.
  5 s loop  `free`, which reads the same file: the same kindness.
The last two choose among all processes of the machine; they run in a PID namespace with ours only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from helpers.arena import LEAK, Arena, Watched
from helpers.memory_cgroup import MemoryCgroup
from helpers.waiting import until

Loads = dict[str, tuple[object, ...]]
"""Name -> arguments of leak.py."""


class Guard(Protocol):
    """One of them. `acts_at`: the share of the limit at which it says that it acts."""

    name: str
    acts_at: float

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""
        ...

    def start(self, arena: Arena, loads: Loads) -> dict[str, Watched]:
        """Start the loads behind their gates, and then the guard."""
        ...

    def go(self, name: str) -> None:
        """Open the gate of one of the loads."""
        ...

    def pid(self) -> int: ...

    def stop(self) -> None: ...


class _Direct:
    """Loads that this process starts itself."""

    registration: dict[str, dict[str, Any]]

    def _start_loads(self, arena: Arena, loads: Loads) -> dict[str, Watched]:
        self._loads = {}
        for name, arguments in loads.items():
            fields: dict[str, Any] = {"cell": name, "freezes": False, **self.registration.get(name, {})}
            self._loads[name] = arena.leak(*arguments, **fields)
        return dict(self._loads)

    def go(self, name: str) -> None:
        self._loads[name].go()


class Ours(_Direct):
    """registration: more fields of the registrations, by name of the load."""

    name, acts_at = "overnight", 0.90

    def __init__(self) -> None:
        self.registration = {}

    def missing(self) -> str | None:
        return None

    def start(self, arena: Arena, loads: Loads) -> dict[str, Watched]:
        watched = self._start_loads(arena, loads)
        arena.watch()
        self._arena = arena
        return watched

    def pid(self) -> int:
        assert self._arena.watchdog is not None
        return self._arena.watchdog.pid

    def stop(self) -> None:
        self._arena.stop_watchdog()


class Mirror:
    """/proc/meminfo shows the cgroup as if it were the machine. For a mount namespace of one's own only."""

    def __init__(self, cgroup: MemoryCgroup) -> None:
        self._cgroup = cgroup
        self._scratch = tempfile.TemporaryDirectory(dir="/tmp")
        self._path = Path(self._scratch.name) / "meminfo"
        self._file_bytes = cgroup.file_bytes()
        self._path.write_bytes(self._text())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        subprocess.run(["mount", "--bind", str(self._path), "/proc/meminfo"], check=True)

    def end(self) -> None:
        subprocess.run(["umount", "/proc/meminfo"], check=True)
        self._ended.set()
        self._thread.join()
        self._scratch.cleanup()

    def _renew(self) -> None:
        with self._path.open("r+b", buffering=0) as file:
            while not self._ended.wait(0.005):
                os.pwrite(file.fileno(), self._text(), 0)

    def _text(self) -> bytes:
        """Always of the same length."""
        total = self._cgroup.limit_bytes
        free = max(0, total - self._cgroup.charged_bytes())
        rows = {
            "MemTotal": total,
            "MemFree": free,
            "MemAvailable": min(total, free + self._file_bytes),
            "Buffers": 0,
            "Cached": self._file_bytes,
            "SwapCached": 0,
            "SwapTotal": 0,
            "SwapFree": 0,
            "Shmem": 0,
            "SReclaimable": 0,
        }
        return "".join(f"{name + ':':<16}{size // 1024:>12} kB\n" for name, size in rows.items()).encode()


class _Peer(_Direct, ABC):
    """A foreign program without an idea of registrations, which reads /proc/meminfo."""

    name: str

    def __init__(self) -> None:
        self.registration = {}

    def start(self, arena: Arena, loads: Loads) -> dict[str, Watched]:
        watched = self._start_loads(arena, loads)
        self._mirror = Mirror(arena.cgroup)
        self._process = subprocess.Popen(
            arena.cgroup.join(*self._command()), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(0.5)
        assert self._process.poll() is None, f"{self.name} ended with {self._process.poll()}"
        return watched

    @abstractmethod
    def _command(self) -> list[str]: ...

    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._mirror.end()


class Earlyoom(_Peer):
    """With its defaults: SIGTERM at 10 %, SIGKILL at 5 % of what may be had."""

    name, acts_at = "earlyoom", 0.90

    def __init__(self, program: str | None) -> None:
        super().__init__()
        self._program = program

    def missing(self) -> str | None:
        return None if self._program else "not installed (Debian: earlyoom)"

    def _command(self) -> list[str]:
        assert self._program is not None
        return [self._program, "-r", "0"]


LOOP = """
while true; do
  used=$(free | awk '/^Mem:/ {printf "%d", $3 * 100 / $2}')
  if [ "$used" -ge 85 ]; then kill "$(ps -eo pid= --sort=-rss | head -n 1)"; fi
  sleep 5
done
"""


class Loop(_Peer):
    """What one writes first: every five seconds, above 85 %, the largest process."""

    name, acts_at = "5 s loop", 0.85

    def missing(self) -> str | None:
        lacking = [tool for tool in ("bash", "free", "awk", "ps") if shutil.which(tool) is None]
        return f"no {', '.join(lacking)} here" if lacking else None

    def _command(self) -> list[str]:
        return ["bash", "-c", LOOP]


SUPERVISORD = """
[unix_http_server]
file={folder}/s.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/s.sock
[supervisord]
logfile={folder}/s.log
pidfile={folder}/s.pid
nodaemon=true
[eventlistener:memmon]
command={memmon}
events=TICK_5
stderr_logfile={folder}/memmon.log
environment=PYTHONPATH="{libraries}"
{programs}
"""
PROGRAM = """
[program:{name}]
command=sh -c 'exec {command} <{folder}/{name}.gate >{folder}/{name}.said'
autorestart=false
startsecs=0
"""


class Memmon:
    """Each program may have 85 % of the limit as its RSS. The loads are programs of a supervisord in the cgroup."""

    name, acts_at = "memmon", 0.85

    def __init__(self, libraries: Path | None) -> None:
        self._libraries = libraries

    def missing(self) -> str | None:
        return None if self._libraries else "not installed (PyPI: superlance)"

    def start(self, arena: Arena, loads: Loads) -> dict[str, Watched]:
        self._scratch = tempfile.TemporaryDirectory(dir="/tmp")  # a socket's name has to be short
        self._folder = folder = Path(self._scratch.name)
        programs, sizes = "", []
        for name, arguments in loads.items():
            log = ["--log", str(folder / f"{name}.log"), "--charged", str(arena.cgroup.charged_path)]
            command = [sys.executable, "-S", "-E", str(LEAK), *log, *map(str, arguments)]
            programs += PROGRAM.format(name=name, folder=folder, command=" ".join(command))
            subprocess.run(["mkfifo", str(folder / f"{name}.gate")], check=True)
            sizes += ["-p", f"{name}={int(arena.cgroup.limit_bytes * self.acts_at)}"]
        run = f'{sys.executable} -c "from superlance.memmon import main; main()" {" ".join(sizes)}'
        config = folder / "s.conf"
        config.write_text(SUPERVISORD.format(folder=folder, memmon=run, libraries=self._libraries, programs=programs))
        self._process = subprocess.Popen(
            arena.cgroup.join(sys.executable, "-m", "supervisor.supervisord", "-c", str(config)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._gates = {name: (folder / f"{name}.gate").open("w") for name in loads}
        self._watched = {name: Watched(self._ready(name), folder / f"{name}.log") for name in loads}
        self._memmon = until(lambda: child_named(self._process.pid, "superlance.memmon"), what="memmon")
        return dict(self._watched)

    def go(self, name: str) -> None:
        self._gates[name].write("go\n")
        self._gates[name].flush()

    def pid(self) -> int:
        return self._memmon

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        for gate in self._gates.values():
            gate.close()
        for watched in self._watched.values():
            watched.end()
        self._scratch.cleanup()

    def _ready(self, name: str) -> int:
        said = self._folder / f"{name}.said"
        return int(
            until(lambda: said.exists() and said.read_text().removeprefix("ready").strip(), what=f"{name} ready")
        )


def child_named(parent: int, part: str) -> int:
    """The pid of a child with `part` in its command line, 0 when there is none."""
    import psutil

    for child in psutil.Process(parent).children():
        if part in " ".join(child.cmdline()):
            return int(child.pid)
    return 0


def guards(scratch: Path, *, fetch: bool, tell: Callable[[str], None]) -> list[Guard]:
    """All of them, the ones that are missing here too. fetch: get those from Debian and PyPI into `scratch`."""
    earlyoom, superlance = shutil.which("earlyoom"), _superlance()
    if fetch and earlyoom is None:
        # Unpacked, never installed: an installed one would be started as a service.
        tried = [["apt-get", "download", "earlyoom"], ["sh", "-c", "dpkg -x earlyoom_*.deb ."]]
        if all(_quietly(command, scratch) for command in tried):
            earlyoom = str(scratch / "usr/bin/earlyoom")
    if fetch and superlance is None:
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(scratch / "site"), "superlance"]
        if _quietly(pip, scratch):
            superlance = scratch / "site"
    found: list[Guard] = [Ours(), Earlyoom(earlyoom), Memmon(superlance), Loop()]
    for guard in found:
        if (why := guard.missing()) is not None:
            tell(f"{guard.name} is left out: {why}")
    return [guard for guard in found if guard.missing() is None]


def _superlance() -> Path | None:
    import importlib.util

    spec = importlib.util.find_spec("superlance")
    return Path(spec.origin).parents[1] if spec is not None and spec.origin else None


def _quietly(command: list[str], folder: Path) -> bool:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False

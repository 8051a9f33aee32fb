"""An installation of its own for a test: a home, grid files, the command line, a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

from helpers.waiting import until
from overnight.dispatch import budget_cgroup
from overnight.dispatch.signals import Handle
from overnight.paths import Paths
from overnight.queue.store import Queue

CONFIG = """
[daemon]
require_watchdog = {watchdog}
slots = {slots}
retry_delay_s = 0.2
no_space_delay_s = 0.5
stop_grace_s = 2.0
"""


class Home:
    """Commands run in processes of their own, as a user's do."""

    def __init__(self, folder: Path, *, slots: int = 2, watchdog: bool = False, settings: str = "") -> None:
        self.paths = Paths.of(folder).ensure()
        self.paths.config.write_text(CONFIG.format(slots=slots, watchdog=str(watchdog).lower()) + settings)
        self._daemon: subprocess.Popen[bytes] | None = None

    def __call__(self, *args: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one command of the command line and check its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "overnight", "--home", str(self.paths.home), *args],
            capture_output=True,
            text=True,
            timeout=options.pop("timeout", 120),
            check=False,
            **options,
        )
        if code is not None:
            assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json").stdout)

    def grid(self, name: str = "night", **changes: Any) -> Path:
        """A grid file for the scripted engine. `options` and `limits` are merged into the defaults."""
        options = {"delay_s": 0.05, **changes.pop("options", {})}
        limits = {
            "max_iterations": 6,
            "target_output_tokens": None,
            "token_limit": 30,
            **changes.pop("limits", {}),
        }
        grid = {
            "name": name,
            "seed": 7,
            "models": [{"name": "script", "engine": "scripted", "source": "scripted", "options": options}],
            "scaffolds": [1, 2],
            "limits": limits,
            **changes,
        }
        path = self.paths.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(grid, sort_keys=False))
        return path

    def submit(self, name: str = "night", *args: str, **changes: Any) -> None:
        self("submit", str(self.grid(name, **changes)), *args)

    # -- the daemon -------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[bytes]:
        """Start the daemon in the foreground of a background process, without supervisord."""
        with (self.paths.log / "daemon.out").open("ab") as output:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "overnight", "--home", str(self.paths.home), "daemon"],
                stdout=output,
                stderr=output,
            )
        return self._daemon

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self._daemon is not None
        self._daemon.terminate()
        code = self._daemon.wait(30)
        self._daemon = None
        return code

    def kill(self) -> None:
        """SIGKILL."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(30)
        self._daemon = None

    def end(self) -> None:
        """After a test, however it went: nothing may be left."""
        if self._daemon is not None:
            self.kill()
        if self.paths.supervisor_pid.exists():
            self("down", code=None)
            try:
                handle = Handle.open(int(self.paths.supervisor_pid.read_text()))
            except (OSError, ValueError):
                handle = None
            if handle is not None:
                handle.kill()
        for process in psutil.process_iter():
            try:
                if str(self.paths.home) in " ".join(process.cmdline()):
                    process.kill()
            except psutil.Error:
                continue
        self._remove_budget_cgroup()

    def _remove_budget_cgroup(self) -> None:
        """A daemon that was killed leaves it; the next one would take it over."""
        try:
            own = budget_cgroup.find_own()
        except budget_cgroup.Missing:
            return
        for parent in (own.folder, own.folder.parent):
            folder = parent / budget_cgroup.name_of(self.paths.home)
            for part in (folder / "main", *folder.glob("cell-*"), folder):
                if part.is_dir():
                    until(lambda part=part: _removed(part), 10, f"{part} is empty")

    # -- looking ----------------------------------------------------------------------------------------------

    def statuses(self) -> Counter[str]:
        with Queue.open(self.paths.queue) as queue:
            return Counter({str(status): count for status, count in queue.counts().items() if count})

    def wait_done(self, deadline_s: float = 60.0) -> None:
        """Until nothing is pending or running; fails when anything is not done."""
        until(
            lambda: not {"pending", "running"} & self.statuses().keys(),
            deadline_s,
            f"{self.paths.home}: done",
        )
        assert self.statuses().keys() == {"done"}, self.cells()

    def cells(self) -> list[dict[str, Any]]:
        with Queue.open(self.paths.queue) as queue:
            return [{name: getattr(row, name) for name in row.__slots__} for row in queue.cells()]

    def transcripts(self) -> dict[str, bytes]:
        """Key -> bytes, of every transcript of this home."""
        return {path.parent.name: path.read_bytes() for path in self.paths.results.glob("*/*/transcript.jsonl")}

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Lines of the daemon's log."""
        try:
            lines = (self.paths.log / "daemon.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [line for line in found if event in (None, line["event"])]

    def registrations(self, role: str) -> list[dict[str, Any]]:
        """What is registered of a role, dead or alive."""
        found = []
        for path in self.paths.registry.glob("*.json"):
            try:
                found.append(json.loads(path.read_bytes()))
            except (OSError, ValueError):
                continue
        return [entry for entry in found if entry["role"] == role]

    def registered(self, role: str) -> list[Handle]:
        """Handles of the registered processes of a role that are alive now."""
        opened = (Handle.open(entry["pid"], entry["start_ticks"]) for entry in self.registrations(role))
        return [handle for handle in opened if handle is not None]


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True


def environment() -> dict[str, str]:
    """`overnight` and `overnight-watchdog` of this interpreter come first on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

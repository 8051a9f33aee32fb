"""The whole stack under the real supervisord, as a victim: who is there, how it is interrupted, how it is looked at.

Every process of it can be told by its environment: OVERNIGHT_FAULT_POINTS names the folder of this very stack.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from campaigns.base import Violation
from helpers.fault_points import FaultPoints, Struck
from helpers.home import Home
from helpers.kill_shapes import Expected, Shape, results
from overnight import procfs
from overnight.dispatch.signals import Handle

SETTINGS = "[warm]\nservers = 2\n[memory]\nprior = '32MiB'\n"
VICTIMS = ("cell", "command", "warm", "daemon", "watchdog", "supervisord")
SLOTS = 4
_SILENT_DAEMON_S = 10.0
"""A daemon that is stopped for longer may be restarted (after 15 s), and then its cells with it."""


@dataclass(frozen=True)
class Victim:
    """label: GRID/CELL of a cell or a command, else "-"."""

    role: str
    pid: int
    start_ticks: int
    label: str = "-"

    def send(self, number: int) -> bool:
        """False when it has ended already."""
        if (handle := Handle.open(self.pid, self.start_ticks)) is None:
            return False
        try:
            if not (ended := handle.ended()):
                signal.pidfd_send_signal(handle.fileno(), number)
            return not ended
        finally:
            handle.close()

    def ends(self, within_s: float) -> bool:
        """Does it end within the time?"""
        if (handle := Handle.open(self.pid, self.start_ticks)) is None:
            return True
        try:
            return handle.wait(within_s)
        finally:
            handle.close()


@dataclass
class Interruption:
    """One signal. hits: "-" = every cell there is, a label = that cell, "" = nobody. recovered_s: when its victim ran
    again; None where that was not waited for."""

    at_s: float
    role: str
    how: str
    hits: str
    label: str = "-"
    pids: set[int] = field(default_factory=set)


class Stack:
    """One home with a queue that is filled up while it is worked on, so that there is always somebody to be hit."""

    def __init__(self, folder: Path, shape: Shape, expected: Expected) -> None:
        self.points = FaultPoints(folder / "points")
        self.home = Home(folder / "h", slots=SLOTS, watchdog=True, settings=SETTINGS)
        self.shape, self.expected = shape, expected
        self.interruptions: list[Interruption] = []
        self.helpings = 0
        self.up_s: list[float] = []
        self._seen: dict[str, int] = {}
        self._stopped: list[tuple[float, Victim]] = []

    # -- run --------------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Another helping of cells."""
        for file in self.shape.write(self.home, self.helpings):
            # Interrupted while it wrote: it is given again, as its user would.
            while self.home("submit", str(file), code=None, env=self.points.environment()).returncode < 0:
                pass
        self.helpings += 1

    def hungry(self) -> bool:
        return self.home.statuses().get("pending", 0) < SLOTS

    def up(self) -> None:
        """Raises Violation when it does not come up."""
        began_s = time.monotonic()
        done = self.home("up", code=None, env=self.points.environment())
        if done.returncode != 0:
            raise Violation(f"`overnight up` after {self._last()}: {done.stderr.strip() or done.stdout.strip()}")
        self.up_s.append(time.monotonic() - began_s)

    def heal(self) -> None:
        """What systemd does: start supervisord when it is not there."""
        if self.supervisord() is None:
            self.up()

    # -- who is there -----------------------------------------------------------------------------------------

    def supervisord(self) -> Victim | None:
        try:
            pid = int(self.home.paths.supervisor_pid.read_text())
            there = "supervisord" in " ".join(psutil.Process(pid).cmdline())
        except (OSError, ValueError, psutil.Error):
            return None
        return _alive("supervisord", pid) if there else None

    def victims(self, role: str) -> list[Victim]:
        """All processes of a role that live; a program of supervisord's from its very start."""
        supervisord = self.supervisord()
        if role == "supervisord":
            return [] if supervisord is None else [supervisord]
        if role in ("daemon", "watchdog"):
            return [] if supervisord is None else self._programs(supervisord.pid, role)
        entries = self.home.registrations(role)
        each = [_alive(role, entry["pid"], entry["start_ticks"], entry["cell"] or "-") for entry in entries]
        return sorted((one for one in each if one is not None), key=lambda one: (one.label, one.pid))

    @staticmethod
    def _programs(parent: int, role: str) -> list[Victim]:
        found = []
        try:
            for child in psutil.Process(parent).children():
                words = child.cmdline()
                name = "daemon" if words[-1:] == ["daemon"] else "watchdog"
                if name == role and words and (victim := _alive(role, child.pid)) is not None:
                    found.append(victim)
        except psutil.Error:
            pass  # it is gone, or just becoming another program
        return found

    def left(self) -> list[str]:
        """Whoever of this stack is alive, wherever it stands in the tree of processes."""
        marks = f"OVERNIGHT_FAULT_POINTS={self.points.folder}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or marks not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()[:80]}")
            except OSError:
                continue
        return found

    # -- interrupt --------------------------------------------------------------------------------------------

    def interrupt(self, victim: Victim, how: str, *, stop_s: float = 0.0) -> Interruption:
        """Look at what is on disk, then send KILL, TERM, or STOP for `stop_s`."""
        self.look()
        number = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}[how]
        pids = {*self.running_pids(), victim.pid, *(one.pid for one in self.victims("warm"))}
        made = Interruption(time.monotonic(), victim.role, how, "", victim.label, pids)
        made.hits = _hits(victim.role, victim.label, how, stop_s)
        if not victim.send(number):
            made.hits = ""  # it was quicker
        self.interruptions.append(made)
        if how == "STOP":
            while not (procfs.stopped(victim.pid) or victim.ends(0.001)):
                pass  # a signal is not always delivered at once
            self._stopped.append((made.at_s + stop_s, victim))
        return made

    def strike(self, struck: Struck, how: str, *, stop_s: float = 0.0) -> Interruption:
        """A named point was used: the same as `interrupt` for the books."""
        self.look()
        hits = _hits(struck.role, struck.label, how, stop_s)
        made = Interruption(struck.monotonic_s, struck.role, how, hits, struck.label, {struck.pid})
        self.interruptions.append(made)
        if how == "STOP" and (victim := _alive(struck.role, struck.pid)) is not None:
            self._stopped.append((struck.monotonic_s + stop_s, victim))
        return made

    def go_on(self, *, all_of_them: bool = False) -> None:
        """Continue whoever was stopped for long enough."""
        now_s = time.monotonic()
        for each in list(self._stopped):
            if all_of_them or now_s >= each[0]:
                each[1].send(signal.SIGCONT)
                self._stopped.remove(each)

    def wait(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.go_on()
            time.sleep(min(left_s, 0.02))
        self.go_on()

    # -- look -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Whole lines that were on disk stay there, and are those of an undisturbed run. Raises Violation."""
        for name, data in results(self.home).items():
            known = self.expected[name.split("/")[1]]
            whole = data[: data.rfind(b"\n") + 1]
            if not known.startswith(whole):
                raise Violation(f"{name}: differs from the undisturbed one within {len(whole)} bytes, {self._last()}")
            if len(whole) < self._seen.get(name, 0):
                lost = self._seen[name] - len(whole)
                raise Violation(f"{name}: {lost} bytes of whole lines are gone after {self._last()}")
            self._seen[name] = len(whole)

    def running_pids(self) -> set[int]:
        """Of all cells that ran so far."""
        return {one.pid for one in self.points.trace() if one.kind in "BR"}

    def recovered_s(self, made: Interruption) -> float | None:
        """When a cell of the victim ran again: the first sign of a new process, of a new parent if not the cell alone
        was hit."""
        if made.role == "watchdog":
            return self._watchdog_back_s(made)
        for one in self.points.trace():
            new = one.kind == "R" and one.monotonic_s > made.at_s and one.pid not in made.pids
            if new and (one.what == made.label if made.label != "-" else one.number not in made.pids):
                return one.monotonic_s
        return None

    def _watchdog_back_s(self, made: Interruption) -> float | None:
        try:
            told = json.loads(self.home.paths.pressure.read_bytes())
        except (OSError, ValueError):
            return None
        back = told["pid"] not in made.pids and told["monotonic_s"] > made.at_s
        return float(told["monotonic_s"]) if back else None

    def is_done(self, label: str) -> bool:
        return any(f"{cell['grid']}/{cell['key']}" == label and cell["status"] == "done" for cell in self.home.cells())

    def told(self) -> str:
        """What is needed to see what went wrong."""
        open_cells = [
            f"{cell['grid']}/{cell['key']} {cell['status']} ({cell['attempts']} attempts, {cell['turns']} turns)"
            for cell in self.home.cells()
            if cell["status"] in ("pending", "running")
        ]
        log = [" ".join(f"{name}={value}" for name, value in line.items()) for line in self.home.log()[-8:]]
        return f"{self._last()}; open: {open_cells[:6]}; processes: {self.left()}; log: {log}"

    def _last(self) -> str:
        if not self.interruptions:
            return "no interruption"
        last = self.interruptions[-1]
        return f"{len(self.interruptions)} interruptions, the last of them {last.how} for {last.role} {last.label}"

    def end(self) -> None:
        """Nothing is left, however the round went."""
        self.points.disarm()
        self.go_on(all_of_them=True)
        self.home.end()
        for line in self.left():
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass


def _alive(role: str, pid: int, start_ticks: int | None = None, label: str = "-") -> Victim | None:
    """None when that process has ended, a zombie too."""
    if (handle := Handle.open(pid, start_ticks)) is None:
        return None
    try:
        return None if handle.ended() else Victim(role, pid, handle.start_ticks, label)
    finally:
        handle.close()


def _hits(role: str, label: str, how: str, stop_s: float) -> str:
    """Whose turn an interruption may cost."""
    if role in ("watchdog", "cli", "program"):
        return ""  # a program that is about to start has no cells yet
    if how == "STOP":
        # One that is stopped does nothing else than wait, unless it is taken for one that hangs.
        if role == "warm" or (role == "daemon" and stop_s > _SILENT_DAEMON_S):
            return "-"
        return ""
    return label if role in ("cell", "command", "runner") else "-"

"""A limited memory cgroup with workloads in it, a home with their registrations, and a watchdog: as in a container.

Registrations are written here from the contract, not by the daemon's code, and verdicts are read here from the
contract, not by the daemon's reader: two readings of one page.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from helpers.leak import Entry, read_log
from helpers.memory_cgroup import MemoryCgroup
from helpers.waiting import until

MIB = 2**20
GIB = 2**30
LEAK = Path(__file__).with_name("leak.py")
SOURCES = Path(__file__).resolve().parents[2] / "watchdog"
DEADLINE_S = 15.0
SLOT_BYTES, SLOTS = 1024, 64


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the third field (state) on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def start_ticks(pid: int) -> int:
    return int(stat_fields(pid)[19])


def environment() -> dict[str, str]:
    """Without a supervisord around, with the checkout's watchdog first."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")}
    return mine | {"PYTHONPATH": os.pathsep.join([str(SOURCES), *filter(None, [mine.get("PYTHONPATH")])])}


class Watched:
    """A leak that somebody else started, seen from outside: when it ended, and what its log says."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log_path = pid, log
        self.died_s: float | None = None
        """When its end was seen: its memory was given back before."""
        self._pidfd = os.pidfd_open(pid)
        self._watch = threading.Thread(target=self._see_its_end, daemon=True)
        self._watch.start()

    def alive(self) -> bool:
        return self.died_s is None

    def stopped(self) -> bool:
        try:
            return stat_fields(self.pid)[0] == "T"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def wait(self, deadline_s: float) -> float:
        """When it died (monotonic). Fails when it has not within the deadline."""
        self._watch.join(deadline_s)
        assert self.died_s is not None, f"{self.pid} was to die within {deadline_s:g} s"
        return self.died_s

    def entries(self) -> list[Entry]:
        return read_log(self.log_path)

    def end(self) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._watch.join(DEADLINE_S)
        os.close(self._pidfd)

    def _see_its_end(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        self.died_s = time.monotonic()


class Workload(Watched):
    """A leak behind its gate. `pid` is the one that grows, `started` the one that was started (trees: another)."""

    def __init__(self, command: list[str], log: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=folder
        )
        self.started = self._process.pid
        word, _, pid = self.says().partition(" ")
        assert word == "ready", f"{command}: it said {word!r} and ended with {self._process.poll()}"
        super().__init__(int(pid), log)

    def go(self) -> None:
        """Open the gate."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def says(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def status(self) -> int:
        """Exit status of the process that was started: -N when signal N ended it."""
        return self._process.wait(DEADLINE_S)

    def end(self) -> None:
        super().end()
        self._process.kill()
        self._process.communicate()


class Arena:
    """See the module. What was started in it ends with it."""

    def __init__(self, cgroup: MemoryCgroup, home: Path) -> None:
        self.cgroup, self.home = cgroup, home
        self._cells = home / "var" / "run" / "cells"
        self._cells.mkdir(parents=True)
        self._stack = ExitStack()
        self._count = 0
        self.watchdog: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def made(cls, limit_bytes: int, home: Path) -> Iterator[Arena]:
        """Raises helpers.memory_cgroup.Unavailable."""
        with MemoryCgroup.made(limit_bytes) as cgroup:
            arena = cls(cgroup, home)
            with arena._stack:
                yield arena

    # -- who lives in it --------------------------------------------------------------------------------------

    def leak(self, *arguments: object, through: tuple[str, ...] = (), **registration: Any) -> Workload:
        """Start leak.py with `arguments` in the cgroup, behind its gate, and register it.

        through: a command that starts it in its place. registration: fields of the contract, beside the defaults.
        """
        self._count += 1
        log = self.home / f"leak-{self._count}.log"
        options = ["--log", str(log), "--charged", str(self.cgroup.charged_path)]
        command = [*through, sys.executable, "-S", "-E", str(LEAK), *options, *map(str, arguments)]
        workload = Workload(self.cgroup.join(*command), log, self.home)
        self._stack.callback(workload.end)
        self.register(workload.pid if through else workload.started, **registration)
        return workload

    def register(self, pid: int, **fields: Any) -> None:
        """Write (or write again) var/run/cells/<pid>.json."""
        now_s = time.monotonic()
        record = {
            "v": 1,
            "boot_id": boot_id(),
            "pid": pid,
            "start_ticks": start_ticks(pid),
            "pgid": os.getpgid(pid),
            "role": "cell",
            "engine": "scripted",
            "cell": f"cell_{self._count}",
            "attempt": 1,
            "shrinks": False,
            "exact": True,
            "turn": 1,
            "last_turn_s": now_s,
            "started_s": now_s,
            "cgroup": None,
            "claim_bytes": None,
            "cap_bytes": None,
            "replay_s": 0.0,
            "freezes": True,
            "cells": 0,
            **fields,
        }
        path = self._cells / f"{pid}.json"
        half = path.with_suffix(".tmp")
        half.write_text(canonical(record))
        half.replace(path)

    def watch(self, *arguments: str, inside: bool = True) -> None:
        """Start the watchdog and wait until it has looked. inside=False: outside the cgroup, for a budget."""
        command = [sys.executable, "-m", "overnight_watchdog", "--home", str(self.home), *arguments]
        with (self.home / "watchdog.out").open("ab") as output:
            self.watchdog = subprocess.Popen(
                self.cgroup.join(*command) if inside else command, env=environment(), stdout=output, stderr=output
            )
        self._stack.callback(self._end_watchdog)
        until(lambda: self.pressure().get("sequence", 0) >= 2, DEADLINE_S, "a heartbeat")

    def stop_watchdog(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.watchdog is not None
        self.watchdog.terminate()
        return self.watchdog.wait(DEADLINE_S)

    def _end_watchdog(self) -> None:
        assert self.watchdog is not None
        if self.watchdog.poll() is None:
            self.watchdog.kill()
        self.watchdog.wait()

    # -- what it says -----------------------------------------------------------------------------------------

    def pressure(self) -> dict[str, Any]:
        """The newest heartbeat of the running watchdog, {} without one."""
        try:
            record: dict[str, Any] = json.loads((self.home / "var/run/pressure.json").read_bytes())
        except (OSError, ValueError):
            return {}
        assert self.watchdog is not None
        return record if record["pid"] == self.watchdog.pid else {}

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Lines of the watchdog's log with one of these events, or all."""
        try:
            lines = (self.home / "var/log/watchdog.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [line for line in found if not names or line["event"] in names]

    def verdicts(self, workload: Workload | None = None) -> list[dict[str, Any]]:
        """Records of the ring, oldest first, each checked; of one workload or of all."""
        try:
            data = (self.home / "var/run/verdicts.ring").read_bytes()
        except FileNotFoundError:
            return []
        assert len(data) == SLOT_BYTES * SLOTS
        slots = (data[at : at + SLOT_BYTES] for at in range(0, len(data), SLOT_BYTES))
        found = [verdict(slot) for slot in slots if slot.strip(b" \n\0")]
        found.sort(key=lambda record: record["sequence"])
        return [record for record in found if workload is None or record["pid"] in (workload.pid, workload.started)]

    def acts(self) -> list[dict[str, Any]]:
        """Whatever was done to anybody, from the log: for a message when nothing should have been done."""
        return self.events("frozen", "evicted", "killed", "victim_gone", "victim_stays", "no_victim", "action_skipped")


def canonical(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def verdict(slot: bytes) -> dict[str, Any]:
    """One record of the ring, its checksum checked."""
    assert slot.endswith(b"\n"), slot
    record: dict[str, Any] = json.loads(slot)
    bare = {name: value for name, value in record.items() if name != "checksum"}
    assert record["checksum"] == f"{zlib.crc32(canonical(bare).encode()):08x}", record
    return record


def crossed_s(entries: list[Entry], charged_bytes: int) -> float | None:
    """When the charge first passed `charged_bytes`, between two records on a straight line; None if never."""
    for before, after in itertools.pairwise(entries):
        if before.charged_bytes < charged_bytes <= after.charged_bytes:
            share = (charged_bytes - before.charged_bytes) / (after.charged_bytes - before.charged_bytes)
            return before.monotonic_s + share * (after.monotonic_s - before.monotonic_s)
    return None


def hold_on(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    """The condition holds all the time for so long; `what` says in a failure what is the matter."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), what()
        time.sleep(0.05)

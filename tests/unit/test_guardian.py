"""Who guards the watchdog: thawing, telling and restarting, on a clock that is moved by hand."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.verdict_ring import heartbeat
from helpers.waiting import until
from overnight import procfs
from overnight.cells.command_tree import Member
from overnight.dispatch import guardian, supervisor_call
from overnight.dispatch.attempt import Attempt
from overnight.dispatch.guardian import Guardian
from overnight.dispatch.signals import Handle
from overnight.paths import Paths


class Bench:
    """A guardian with a sleeping process that stands for a cell, and another one that stands for the watchdog."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths.of(folder).ensure()
        self.now = 1000.0
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[str, str]] = []
        self.processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        self.cell, self.watchdog = (process.pid for process in self.processes)
        cell: Any = SimpleNamespace(turns=0, output_tokens=0, key="a")
        claimed: Any = SimpleNamespace(
            cell=cell, attempt_id=1, grid="night", policy={"timeout_s": 10.0}, spec={"kind": "idle_loop"}
        )
        server: Any = None
        grant: Any = None
        self.attempt = Attempt(claimed, server, grant, handle=Handle.open(self.cell), forked_s=self.now)
        logger: Any = SimpleNamespace(info=self._line, warning=self._line)
        self.guardian = Guardian(
            self.paths, logger, supervised=True, clock=lambda: self.now, signal_process=self._signal_process
        )

    def _line(self, event: str, **fields: Any) -> None:
        self.log.append((event, fields))

    def _signal_process(self, _path: Path, name: str, number: str, **_: Any) -> bool:
        self.asked.append((name, number))
        return True

    def beat(self, **changes: Any) -> None:
        """The watchdog's heartbeat. Its age is real time, the guardian's patience is not."""
        self.paths.pressure.write_bytes(heartbeat(self.watchdog, **changes))

    def look(self, after_s: float = 0.0) -> None:
        self.now += after_s
        self.guardian.look([self.attempt])

    def freeze(self) -> None:
        os.kill(self.cell, signal.SIGSTOP)
        until(lambda: procfs.stopped(self.cell))

    def events(self) -> list[str]:
        return [event for event, _ in self.log]

    def adopt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let both be children of one supervisord."""
        monkeypatch.setattr(os, "getppid", lambda: os.getpid())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "h")
    yield found
    for process in found.processes:
        process.kill()
        process.wait()


def test_with_a_living_watchdog_a_frozen_cell_stays_frozen(bench: Bench) -> None:
    bench.beat(frozen=1, level="freeze")
    bench.freeze()
    bench.look()
    assert procfs.stopped(bench.cell)
    assert bench.guardian.pressure is not None
    assert bench.guardian.pressure.level == "freeze"
    assert bench.log == []


def thaw(bench: Bench) -> None:
    os.kill(bench.cell, signal.SIGCONT)
    until(lambda: not procfs.stopped(bench.cell))


@pytest.mark.parametrize("said", [{"frozen": 1}, {"level": "freeze"}, {"level": "evict"}, {"level": "kill"}])
def test_a_frozen_cells_time_limit_waits(bench: Bench, said: dict[str, Any]) -> None:
    bench.beat(**said)
    bench.look(4.0)
    bench.freeze()
    for _ in range(30):
        bench.beat(**said)
        bench.look(1.0)
    assert not bench.attempt.overdue(bench.now)
    thaw(bench)
    bench.beat()
    bench.look(1.0)
    assert bench.attempt.frozen_s == 30.0
    assert not bench.attempt.overdue(bench.now + 5.0)
    assert bench.attempt.overdue(bench.now + 5.1)


def test_a_cell_that_the_watchdog_did_not_freeze_has_no_more_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.freeze()
    monkeypatch.setattr(procfs, "stopped", lambda _: pytest.fail("/proc is not asked while nobody is frozen"))
    for level in ("ok", "hold", "shrink"):
        bench.beat(level=level)
        bench.look(4.0)
    assert bench.attempt.overdue(bench.now)


def test_what_is_thawed_is_counted_up_to_then(bench: Bench) -> None:
    bench.beat(frozen=1)
    bench.freeze()
    bench.look()
    bench.beat(frozen=1, age_s=6.0)
    bench.look(2.0)
    bench.look(1.0)
    assert bench.attempt.frozen_s == 2.0


@pytest.mark.parametrize("state", ["silent", "dead", "no file"])
def test_without_one_it_runs_again_at_the_first_look(bench: Bench, state: str) -> None:
    if state != "no file":
        bench.beat(frozen=1, age_s=6.0 if state == "silent" else 0.1)
    if state == "dead":
        bench.processes[1].kill()  # not waited for: even a zombie watches nobody
        until(lambda: procfs.start_ticks(bench.watchdog) is None)
    bench.freeze()
    bench.look()
    until(lambda: not procfs.stopped(bench.cell), 1)
    assert bench.guardian.pressure is None  # and nothing is admitted
    assert ("cells_thawed", {"cells": ["night/a"]}) in bench.log


class CommandBench(Bench):
    """The same with a command: the cell's process stands for its runner, which has a child, `command`, that has one,
    `job`; `stray` is in its cgroup alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.processes[0].kill()
        self.processes[0].wait()
        deeper = "sh -c 'sleep 600 & echo $$ $!; wait' & wait"
        runner = subprocess.Popen(["sh", "-c", deeper], stdout=subprocess.PIPE)
        stray = subprocess.Popen(["sleep", "600"])
        self.processes[0] = runner
        self.processes.append(stray)
        assert runner.stdout is not None
        self.command, self.job = map(int, runner.stdout.readline().split())
        runner.stdout.close()
        self.cell, self.stray = runner.pid, stray.pid
        (folder / "cell-1").mkdir()
        (folder / "cell-1" / "cgroup.procs").write_text(f"{self.stray}\n")
        slot: Any = SimpleNamespace(folder=str(folder / "cell-1"))
        grant: Any = SimpleNamespace(slot=slot)
        self.attempt.claimed.spec["kind"] = "command"
        self.attempt.grant, self.attempt.handle = grant, Handle.open(self.cell)

    @property
    def everybody(self) -> list[int]:
        return [self.cell, self.command, self.job, self.stray]

    def stop(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(procfs.stopped(pid) for pid in pids))

    def stopped(self) -> list[int]:
        return [pid for pid in self.everybody if procfs.stopped(pid)]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[CommandBench]:
    found = CommandBench(tmp_path / "h")
    yield found
    handles = [Handle.open(pid) for pid in (found.job, found.command)]
    for handle in filter(None, handles):  # each ends by itself when the one before it does
        handle.kill()
        handle.close()
    for process in found.processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("who", [(0, 1, 2, 3), (1, 2, 3), (2,), (3,), (0,)])
def test_of_a_command_everybody_runs_again(command: CommandBench, who: tuple[int, ...]) -> None:
    """Also when its runner runs already: a SIGCONT for the runner alone is not all that it takes."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    command.stop(*(command.everybody[number] for number in who))
    command.look()
    until(lambda: not command.stopped(), 1)
    assert command.log == [("cells_thawed", {"cells": ["night/a"]})]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_with_a_living_watchdog_a_commands_stopped_children_are_its_own_affair(command: CommandBench) -> None:
    command.stop(command.job)
    for said in ({"level": "ok"}, {"frozen": 1}):
        command.beat(**said)
        command.look(1.0)
        command.look(1.0)
        assert command.stopped() == [command.job]
    assert (command.log, command.attempt.frozen_s) == ([], 0.0)


@pytest.mark.parametrize("who", ["cell", "command"])
def test_a_commands_time_limit_waits_for_the_runner_and_for_the_command(command: CommandBench, who: str) -> None:
    command.beat(frozen=1)
    command.stop(getattr(command, who))
    for _ in range(5):
        command.look(1.0)
    assert command.attempt.frozen_s == 4.0


def test_without_a_watchdog_a_freeze_counts_from_the_last_look(command: CommandBench) -> None:
    """Nobody tells when it began."""
    command.look()
    command.stop(*command.everybody)
    command.look(30.0)
    command.look(1.0)
    assert command.attempt.frozen_s == 30.0
    assert not command.attempt.overdue(command.now)


def test_one_that_began_since_the_last_look_was_frozen_since_then_at_most(command: CommandBench) -> None:
    command.attempt.forked_s = command.now + 20.0
    command.stop(*command.everybody)
    command.look(30.0)
    command.look(1.0)
    assert command.attempt.frozen_s == 10.0


def test_who_stops_himself_again_and_again_has_no_more_time_for_it(command: CommandBench) -> None:
    """No watchdog does that. He is continued each time, and told of once."""
    command.look()
    for _ in range(20):
        command.stop(command.command)
        command.look(1.0)
        until(lambda: not command.stopped(), 1)
    assert command.attempt.frozen_s == 1.0
    assert command.attempt.overdue(command.now)
    assert command.events().count("cells_thawed") == 1


def test_a_tree_is_looked_through_twice_a_second_at_most(
    command: CommandBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def nobody(pid: int) -> list[Member]:
        looks.append(pid)
        return []

    monkeypatch.setattr(guardian, "descendants", nobody)
    for _ in range(40):
        command.look(0.1)
    assert 7 <= len(looks) <= 9


def test_silence_is_told_once_and_so_is_its_end(bench: Bench) -> None:
    bench.look()
    assert bench.log == []  # both start at the same time: it is given a moment
    bench.look(6.0)
    bench.look(1.0)
    assert bench.events() == ["watchdog_silent"]
    bench.beat()
    bench.look(1.0)
    bench.beat(age_s=7.0)
    bench.look(1.0)
    bench.look(1.0)
    assert bench.events() == ["watchdog_silent", "watchdog_back", "watchdog_silent"]


@pytest.mark.parametrize(
    ("age_s", "longest"), [(0.0, 1.0), (3.0, 1.0), (3.9, 0.62), (4.4, 0.12), (4.7, 0.1), (9.0, 1.0)]
)
def test_the_loop_is_awake_when_the_heartbeat_becomes_too_old(bench: Bench, age_s: float, longest: float) -> None:
    bench.beat(age_s=age_s)
    bench.look()
    assert longest - 0.1 <= bench.guardian.tick_s(1.0) <= longest


def test_a_hanging_watchdog_is_asked_and_then_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.adopt(monkeypatch)
    os.kill(bench.watchdog, signal.SIGSTOP)
    bench.beat(age_s=6.0)
    bench.look()
    bench.look(0.5)
    assert bench.asked == []  # a stall of the whole machine looks like this too
    bench.look(0.6)
    bench.look(1.0)
    assert bench.asked == [("watchdog", "TERM")]
    bench.look(0.9)
    bench.look(0.2)
    assert bench.processes[1].wait(5) == -signal.SIGKILL
    bench.look(10.0)
    assert bench.asked == [("watchdog", "TERM")]
    assert [(event, fields["step"]) for event, fields in bench.log if event == "watchdog_restarted"] == [
        ("watchdog_restarted", "TERM"),
        ("watchdog_restarted", "KILL"),
    ]


def test_one_that_beats_again_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.adopt(monkeypatch)
    bench.beat(age_s=6.0)
    bench.look()
    bench.beat()
    bench.look(0.9)
    bench.beat(age_s=6.0)
    bench.look(0.9)
    bench.look(0.9)
    assert bench.asked == []


def test_one_that_somebody_else_started_is_left_alone(bench: Bench) -> None:
    bench.beat(age_s=60.0)
    for _ in range(20):
        bench.look(1.0)
    assert bench.asked == []
    assert bench.processes[1].poll() is None


def test_one_that_never_beat_is_known_by_its_lock_and_given_longer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.adopt(monkeypatch)
    holder = {
        "v": 1,
        "boot_id": procfs.boot_id(),
        "pid": bench.watchdog,
        "start_ticks": procfs.start_ticks(bench.watchdog),
    }
    bench.paths.watchdog_lock.write_text(json.dumps(holder))
    bench.look()
    bench.look(14.0)
    assert bench.asked == []
    bench.look(1.5)
    assert bench.asked == [("watchdog", "TERM")]


def serve(path: Path, answer: bytes, *, delay_s: float = 0.0) -> list[bytes]:
    """A supervisord that hears one request."""
    heard: list[bytes] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def talk() -> None:
        with server, server.accept()[0] as line:
            heard.append(line.recv(65536))
            threading.Event().wait(delay_s)  # a supervisord that hangs
            try:
                line.sendall(answer)
            except OSError:
                pass

    threading.Thread(target=talk, daemon=True).start()
    return heard


OK = (
    b"HTTP/1.0 200 OK\r\n\r\n<?xml version='1.0'?><methodResponse><params><param><value><boolean>1</boolean></value>"
    b"</param></params></methodResponse>"
)
FAULT = b"HTTP/1.0 200 OK\r\n\r\n<methodResponse><fault><value/></fault></methodResponse>"


@pytest.mark.parametrize(("answer", "said"), [(OK, True), (FAULT, False), (b"", False)])
def test_a_request_to_supervisord(tmp_path: Path, answer: bytes, said: bool) -> None:
    heard = serve(tmp_path / "s", answer)
    assert supervisor_call.signal_process(tmp_path / "s", "watchdog", "TERM", timeout_s=5.0) is said
    head, body = heard[0].split(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"<methodName>supervisor.signalProcess</methodName>" in body
    assert b"<string>watchdog</string>" in body
    assert b"<string>TERM</string>" in body


def test_a_supervisord_that_does_not_answer_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    assert not supervisor_call.signal_process(tmp_path / "missing", "watchdog", "TERM", timeout_s=1.0)
    serve(tmp_path / "s", OK, delay_s=30.0)
    began = time.monotonic()
    assert not supervisor_call.signal_process(tmp_path / "s", "watchdog", "TERM", timeout_s=0.1)
    assert time.monotonic() - began < 1.0


def test_the_request_brings_no_library_along() -> None:
    program = "import sys, overnight.dispatch.guardian; print(sorted({'xmlrpc', 'http', 'ssl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

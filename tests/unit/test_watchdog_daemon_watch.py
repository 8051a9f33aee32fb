"""The watch over the daemon: when it is silent, how supervisord is asked, and what follows."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_kernel import FakeKernel
from overnight import procfs
from overnight.dispatch.beat import BEAT_BYTES
from overnight.dispatch.beat import Beat as DaemonsBeat
from overnight_watchdog.daemon_watch import (
    ANSWER_S,
    ASLEEP_S,
    GRACE_S,
    LOOK_S,
    SILENT_S,
    DaemonWatch,
    Supervisor,
    read_beat,
    request,
)
from overnight_watchdog.journal import block

BOOT = "b"
PID = 50
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 9\r\n\r\n"
DONE = OK + b"<?xml version='1.0'?><methodResponse><params><param><value><boolean>1</boolean></value></param></params>"
FAULT = OK + b"<?xml version='1.0'?><methodResponse><fault><value><struct/></value></fault></methodResponse>"


class Supervisord:
    """A unix socket that somebody listens on; who asked is answered when the test says so."""

    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(os.fspath(path))
        self._listening.listen(4)
        self._listening.setblocking(False)
        self.asked: socket.socket | None = None

    def heard(self) -> bytes:
        """The request; b"" when nobody asked."""
        try:
            self.asked, _ = self._listening.accept()
        except BlockingIOError:
            return b""
        return self.asked.recv(65536)

    def answers(self, data: bytes) -> None:
        assert self.asked is not None
        self.asked.sendall(data)

    def close(self) -> None:
        self._listening.close()
        if self.asked is not None:
            self.asked.close()


class Stage:
    def __init__(self, folder: Path) -> None:
        self.path, self.socket_path = folder / "daemon.beat", folder / "s.sock"
        self.now_s = 10_000.0
        self.kernel = FakeKernel(folder / "proc")
        self.daemon = self.kernel.start(PID)
        self.said: list[dict[str, Any]] = []
        self.noted: list[dict[str, Any]] = []
        self.order: list[str] = []
        self.watch = DaemonWatch(self.path, Supervisor(self.socket_path), self.kernel, BOOT, self._tell)
        self.supervisord: Supervisord | None = None

    def _tell(self, event: str, **fields: Any) -> None:
        self.order.append("told")
        assert "level" not in fields, "a log line has a level of its own"
        self.said.append({"event": event, **fields})

    def listens(self) -> Supervisord:
        self.supervisord = Supervisord(self.socket_path)
        return self.supervisord

    def beats(self, *, age_s: float = 0.0, **changes: Any) -> None:
        record = {
            "v": 1,
            "boot_id": BOOT,
            "pid": PID,
            "start_ticks": self.daemon.ticks,
            "sequence": 1,
            "monotonic_s": self.now_s - age_s,
            "stopping": False,
        } | changes
        self.path.write_bytes(block(record, BEAT_BYTES))

    def _note(self, record: dict[str, Any]) -> None:
        self.order.append("noted")
        self.noted.append(record)

    def look(self, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.watch.look(self.now_s, self._end, self._note)

    def _end(self, pidfd: int, number: int) -> None:
        self.kernel.send(pidfd, number)

    def lasts(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self.look(0.5)

    @property
    def signals(self) -> list[int]:
        return [number for _, number in self.kernel.signals()]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as name:  # a short path: a socket's may have 107 characters
        made = Stage(Path(name))
        yield made
        made.watch._supervisor.close()
        if made.supervisord is not None:
            made.supervisord.close()


# -- the request ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_the_request_is_what_an_xml_rpc_client_would_send(name: str) -> None:
    head, _, body = request(name).partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    assert first == "POST /RPC2 HTTP/1.1"
    fields = dict(line.split(": ", 1) for line in lines)
    assert fields["Content-Type"] == "text/xml" and int(fields["Content-Length"]) == len(body)
    assert "Host" in fields
    assert xmlrpc.client.loads(body) == (("daemon", name), "supervisor.signalProcess")
    assert len(request(name)) < 1024, "one send into an empty socket"


# -- when it is silent ------------------------------------------------------------------------------------------


def test_a_daemon_that_beats_is_left_alone(stage: Stage) -> None:
    supervisord = stage.listens()
    for _ in range(100):
        stage.beats()
        stage.look(1.0)
    stage.look(SILENT_S - 2)
    assert supervisord.heard() == b"" and stage.signals == [] and not stage.watch.busy


@pytest.mark.parametrize(
    "changes",
    [
        {"stopping": True},
        {"boot_id": "another"},
        {"v": 2},
        {"pid": PID + 1},
        {"start_ticks": 1},
        {"pid": 10**30},
        {"pid": "x"},
        {"pid": None, "start_ticks": None},
        {"monotonic_s": None},
        {"monotonic_s": 20_000.0},
    ],
    ids=str,
)
def test_no_beat_but_a_silent_daemons_own_counts(stage: Stage, changes: dict[str, Any]) -> None:
    supervisord = stage.listens()
    stage.beats(age_s=100, **changes)
    stage.lasts(40)
    assert supervisord.heard() == b"" and stage.signals == [] and stage.said == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:60],
        lambda data: data.replace(b'"stopping":false', b'"stopping":0    '),
        lambda data: b"\0" * 256,
        lambda data: b"[1]",
        lambda data: b"[" * 100_000,
        lambda data: b"null",
    ],
)
def test_a_damaged_beat_says_nothing(stage: Stage, damage: Callable[[bytes], bytes]) -> None:
    stage.listens()
    stage.beats(age_s=100)
    stage.path.write_bytes(damage(stage.path.read_bytes()))
    stage.lasts(20)
    assert stage.said == [] and not stage.watch.busy


def test_no_beat_at_all_says_nothing_and_neither_does_a_pipe(stage: Stage) -> None:
    stage.lasts(20)
    os.mkfifo(stage.path)
    stage.lasts(20)
    assert stage.said == []


def test_whoever_was_asleep_himself_accuses_nobody(stage: Stage) -> None:
    """A container is paused for an hour: both of them were silent, and the daemon has a moment to beat again."""
    stage.listens()
    stage.beats()
    stage.look()
    stage.look(3600.0)
    stage.lasts(SILENT_S - 1)
    assert stage.said == []
    stage.lasts(2)
    assert len(stage.said) == 1, "but it has to"


def test_slow_looks_are_no_sleep(stage: Stage) -> None:
    assert LOOK_S < ASLEEP_S < SILENT_S
    stage.listens()
    stage.beats()
    for _ in range(4):
        stage.look(ASLEEP_S - 0.5)
    assert len(stage.said) == 1


# -- the restart ------------------------------------------------------------------------------------------------


def silent(stage: Stage) -> None:
    """It has fallen silent, and this is seen now."""
    stage.beats(age_s=SILENT_S + 0.5)
    stage.look()


def test_a_silent_daemon_gets_sigterm_from_its_supervisor(stage: Stage) -> None:
    supervisord = stage.listens()
    silent(stage)
    heard = supervisord.heard()
    assert heard == request("TERM") and stage.watch.busy
    assert stage.signals == [], "supervisord sends it, so that it knows of it"
    supervisord.answers(DONE)
    stage.look(0.1)
    stage.kernel.end(PID)
    stage.look(0.1)
    assert not stage.watch.busy and stage.signals == []
    assert stage.kernel.open_count() == 0


def test_the_verdict_comes_before_everything_else(stage: Stage) -> None:
    stage.listens()
    silent(stage)
    assert stage.order == ["noted", "told"]
    (note,) = stage.noted
    assert note == {
        "pid": PID,
        "start_ticks": stage.daemon.ticks,
        "role": "daemon",
        "step": "restart",
        "trigger": "silent",
        "silent_s": 15.5,
        "monotonic_s": 10_000.0,
    }
    assert stage.said == [
        {"event": "daemon_restarted", "pid": PID, "asked_supervisord": True, "trigger": "silent", "silent_s": 15.5}
    ]


def test_one_that_does_not_leave_is_killed_after_its_grace(stage: Stage) -> None:
    supervisord = stage.listens()
    silent(stage)
    supervisord.heard()
    supervisord.answers(DONE)
    stage.lasts(GRACE_S - 0.5)
    assert stage.signals == []
    stage.look(0.5)
    assert stage.signals == [signal.SIGKILL] and not stage.daemon.alive
    stage.look(0.1)
    assert not stage.watch.busy


@pytest.mark.parametrize(
    "answer",
    [FAULT, b"HTTP/1.1 401 Unauthorized\r\n\r\n", b"HTTP/1.0 500 no\r\n\r\n", b"garbage", b"\xff" * 5000],
    ids=["fault", "401", "500", "garbage", "bytes"],
)
def test_a_supervisor_that_refuses_is_done_without(stage: Stage, answer: bytes) -> None:
    supervisord = stage.listens()
    silent(stage)
    supervisord.heard()
    supervisord.answers(answer)
    stage.look(0.1)
    assert stage.signals == [signal.SIGKILL] and not stage.daemon.alive


def test_a_supervisor_that_hangs_up_is_done_without(stage: Stage) -> None:
    supervisord = stage.listens()
    silent(stage)
    supervisord.heard()
    assert supervisord.asked is not None
    supervisord.asked.close()
    stage.look(0.1)
    assert stage.signals == [signal.SIGKILL]


def test_a_supervisor_that_hangs_is_waited_for_two_seconds(stage: Stage) -> None:
    stage.listens()
    silent(stage)
    stage.look(ANSWER_S - 0.1)
    assert stage.signals == []
    stage.look(0.1)
    assert stage.signals == [signal.SIGKILL]


@pytest.mark.parametrize("there", ["nothing", "a file", "a socket that nobody listens on", "a path too long"])
def test_without_a_supervisor_it_is_killed_at_once(stage: Stage, there: str) -> None:
    if there == "a file":
        stage.socket_path.write_text("")
    elif there == "a socket that nobody listens on":
        stage.listens().close()
    elif there == "a path too long":
        stage.watch = DaemonWatch(stage.path, Supervisor(Path("/x" * 100)), stage.kernel, BOOT, stage._tell)
    silent(stage)
    assert stage.said[0]["asked_supervisord"] is False
    stage.look(0.01)
    assert stage.signals == [signal.SIGKILL] and not stage.daemon.alive


def test_one_that_cannot_die_is_killed_again_now_and_then(stage: Stage) -> None:
    stage.daemon.stubborn = frozenset([signal.SIGKILL])
    silent(stage)
    stage.lasts(GRACE_S * 3)
    assert stage.signals == [signal.SIGKILL] * 3
    assert stage.watch.busy and len(stage.said) == 1


def test_a_pid_that_is_used_again_meanwhile_is_not_hit(stage: Stage) -> None:
    silent(stage)
    stranger = stage.kernel.start(PID)
    stage.look(0.1)
    stage.look(0.1)
    assert stranger.alive and stranger.received == [] and not stage.watch.busy


def test_its_successor_has_time_for_its_first_beat(stage: Stage) -> None:
    """The old beat lies there until the new daemon beats, and must not be held against it."""
    silent(stage)
    stage.look(0.1)
    stage.look(0.1)
    stage.daemon = stage.kernel.start(PID)
    stage.lasts(SILENT_S - 1)
    for _ in range(60):
        stage.beats()
        stage.lasts(1)
    assert len(stage.said) == 1 and stage.daemon.received == []


def test_a_leak_is_restarted_the_same_way_once(stage: Stage) -> None:
    supervisord = stage.listens()
    record = {"trigger": "leak", "level": "evict", "own_bytes": 9}

    def restart() -> bool:
        return stage.watch.restart(PID, stage.daemon.ticks, stage.now_s, record, stage._note)

    assert restart()
    assert supervisord.heard() == request("TERM")
    assert not restart(), "one is under way"
    assert stage.said == [
        {"event": "daemon_restarted", "pid": PID, "asked_supervisord": True}
        | {"trigger": "leak", "pressure": "evict", "own_bytes": 9}
    ]
    assert stage.noted[0]["level"] == "evict"
    stage.kernel.end(PID)
    stage.look(0.1)
    assert not restart(), "it has ended"
    assert len(stage.said) == len(stage.noted) == 1


# -- the beat ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopping", [True, False])
def test_the_daemons_own_beat_is_understood(tmp_path: Path, stopping: bool) -> None:
    DaemonsBeat(tmp_path / "daemon.beat", clock=lambda: 77.25).strike(stopping=stopping)
    found = read_beat(tmp_path / "daemon.beat", procfs.boot_id())
    assert found is not None
    assert (found.pid, found.start_ticks) == (os.getpid(), procfs.start_ticks(os.getpid()))
    assert (found.monotonic_s, found.stopping) == (77.25, stopping)
    data = (tmp_path / "daemon.beat").read_bytes()
    assert len(data) == BEAT_BYTES and json.loads(data)["boot_id"] == procfs.boot_id()

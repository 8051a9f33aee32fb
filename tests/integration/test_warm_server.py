"""A real warm server process with the scripted engine: forking, gates, exits, and dying together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.specs import scripted_spec, warm_of
from helpers.waiting import until
from overnight.cells import transcript
from overnight.dispatch.pool import Pool
from overnight.dispatch.registry import Registry
from overnight.dispatch.signals import Handle
from overnight.warm.client import WarmServer
from overnight.warm.protocol import Closed


class Talk:
    """A warm server and all that it said."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.spec = scripted_spec(**options)
        self.server = WarmServer("key", warm_of(self.spec), folder, folder / "warm.err")
        self.heard: list[dict[str, Any]] = []

    def expect(self, kind: str, attempt: int | None = None, deadline_s: float = 20.0) -> dict[str, Any]:
        """The next message of a kind; the others are kept in `heard`."""
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            message = self.server.channel.receive(wait=False)
            if message is None:
                time.sleep(0.005)
                continue
            self.heard.append(message)
            if message["kind"] == kind and attempt in (None, message.get("attempt")):
                return message
        raise AssertionError(f"no {kind}; heard {self.heard}")

    def fork(self, attempt: int, *, go: bool = True) -> int:
        self.server.fork(attempt, self.spec, self.folder / str(attempt), accept_conditions=False)
        pid = int(self.expect("forked", attempt)["pid"])
        if go:
            self.server.let_go(attempt)
        return pid


@pytest.fixture
def talk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Talk]:
    marker = request.node.get_closest_marker("options")
    found = Talk(tmp_path, **(marker.kwargs if marker else {}))
    yield found
    if found.server.state != "gone":
        found.server.kill()
        found.server.wait(5)
        found.server.close()


def test_loads_forks_and_reports(talk: Talk) -> None:
    loaded = talk.expect("loaded")
    assert loaded["promise"] == "exact"
    assert len(loaded["threads"]) == 1
    for attempt in (1, 2):
        talk.fork(attempt)
    for _ in (1, 2):  # in whichever order they came to their ends
        ended = talk.expect("exited")
        assert os.waitstatus_to_exitcode(ended["status"]) == 0
        assert ended["max_rss_bytes"] > 0
    reports = [message for message in talk.heard if message["kind"] == "ended"]
    assert {report["outcome"] for report in reports} == {"completed"}
    first, second = (talk.folder / str(n) / "transcript.jsonl" for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    assert reports[0]["transcript_sha256"] == transcript.check(first).sha256


def test_a_child_touches_nothing_before_it_may(talk: Talk) -> None:
    talk.expect("loaded")
    pid = talk.fork(1, go=False)
    time.sleep(0.3)
    assert not (talk.folder / "1").exists()
    assert psutil.Process(pid).status() == psutil.STATUS_SLEEPING
    talk.server.let_go(1)
    talk.expect("exited", 1)
    assert (talk.folder / "1" / "result.json").exists()


@pytest.mark.options(delay_s=30.0)
def test_signals_have_their_default_meaning_in_a_child(talk: Talk) -> None:
    talk.expect("loaded")
    for attempt, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)):
        pid = talk.fork(attempt)
        talk.expect("begun", attempt)
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(talk.expect("exited", attempt)["status"]) == -number


@pytest.mark.options(delay_s=0.05, turns=400, cache_bytes=32 << 20)
def test_sigusr1_is_handled_by_child_and_server_before_anybody_may_send_it(talk: Talk) -> None:
    talk.expect("loaded")
    assert handles_sigusr1(talk.server.pid)
    pid = talk.fork(1, go=False)
    for _ in range(50):  # in whatever state of its start it is, this does not kill it
        os.kill(pid, signal.SIGUSR1)
    until(lambda: handles_sigusr1(pid))
    talk.server.let_go(1)
    talk.expect("begun", 1)
    talk.expect("turn", 1)
    os.kill(pid, signal.SIGUSR1)
    shrunk = talk.expect("shrunk", 1)
    while shrunk["before_bytes"] - shrunk["after_bytes"] < 32 << 20:  # one of those from before the first turn
        os.kill(pid, signal.SIGUSR1)
        shrunk = talk.expect("shrunk", 1)
    os.kill(talk.server.pid, signal.SIGUSR1)
    talk.expect("trimmed")
    talk.expect("turn", 1)
    second = talk.fork(2)
    talk.expect("begun", 2)
    os.kill(second, signal.SIGUSR1)
    talk.expect("shrunk", 2)  # the child answers itself: the server's handler is not in it
    assert sum(message["kind"] == "trimmed" for message in talk.heard) == 1


def handles_sigusr1(pid: int) -> bool:
    """As the watchdog looks: the signal is caught, and not blocked."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    bit = 1 << (signal.SIGUSR1 - 1)
    return bool(int(lines["SigCgt"], 16) & bit) and not int(lines["SigBlk"], 16) & bit


def test_a_loading_server_outlives_sigusr1(tmp_path: Path) -> None:
    talk = Talk(tmp_path, load_s=0.5)
    try:
        until(lambda: not handles_sigusr1(talk.server.pid) and ignores_sigusr1(talk.server.pid))
        for _ in range(20):
            os.kill(talk.server.pid, signal.SIGUSR1)
        talk.expect("loaded")
    finally:
        talk.server.kill()
        talk.server.wait(5)
        talk.server.close()


def ignores_sigusr1(pid: int) -> bool:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigIgn"], 16) & 1 << (signal.SIGUSR1 - 1))


@pytest.mark.options(delay_s=30.0)
def test_children_have_their_own_group_and_a_high_oom_score(talk: Talk) -> None:
    talk.expect("loaded")
    pid = talk.fork(1)
    talk.expect("begun", 1)
    assert os.getpgid(pid) == pid
    score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    assert score > int(Path(f"/proc/{talk.server.pid}/oom_score_adj").read_text()) > 0


@pytest.mark.options(delay_s=30.0)
def test_children_die_with_their_warm_server(talk: Talk) -> None:
    talk.expect("loaded")
    handles = [Handle.open(talk.fork(attempt)) for attempt in (1, 2)]
    talk.expect("begun", 2)
    talk.server.kill()
    for handle in handles:
        assert handle is not None
        assert handle.wait(5)
    with pytest.raises(Closed):
        while True:
            talk.server.channel.receive()


@pytest.mark.options(fail_at_turn=2, fail_kind="memory")
def test_memory_error_is_over_cap(talk: Talk) -> None:
    talk.expect("loaded")
    talk.fork(1)
    assert talk.expect("ended", 1)["outcome"] == "over_cap"


@pytest.mark.options(fail_at_turn=2, fail_kind="exit")
def test_an_exit_without_a_word_is_seen_by_its_status(talk: Talk) -> None:
    talk.expect("loaded")
    talk.fork(1)
    assert os.waitstatus_to_exitcode(talk.expect("exited", 1)["status"]) == 3
    assert not [message for message in talk.heard if message["kind"] == "ended"]


def test_a_hundred_children_leave_no_descriptor_behind(talk: Talk) -> None:
    talk.expect("loaded")
    server = psutil.Process(talk.server.pid)
    talk.fork(0)
    talk.expect("exited", 0)
    before = server.num_fds()
    for attempt in range(1, 101):
        talk.fork(attempt)
        talk.expect("exited", attempt)
    assert server.num_fds() == before
    assert not server.children()


def test_an_engine_that_cannot_load_refuses_in_one_line(tmp_path: Path) -> None:
    spec = scripted_spec()
    server = WarmServer("key", {**warm_of(spec), "engine": "abacus"}, tmp_path, tmp_path / "warm.err")
    try:
        message = server.channel.receive()
        assert message is not None
        assert message["kind"] == "refused"
        assert "abacus" in message["error"]
        assert "\n" not in message["error"]
        assert server.wait(5)
    finally:
        server.kill()
        server.close()


def test_warm_server_and_children_die_with_the_dispatcher(tmp_path: Path) -> None:
    """The dispatcher is a process of its own here, and is SIGKILLed."""
    program = f"""
import json, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from helpers.specs import scripted_spec, warm_of
from overnight.dispatch.pool import Pool
from overnight.dispatch.registry import Registry
from overnight.warm.client import WarmServer
spec = scripted_spec(delay_s=60.0)
server = WarmServer("key", warm_of(spec), Path({str(tmp_path)!r}), Path({str(tmp_path / "warm.err")!r}))
server.channel.receive()
server.fork(1, spec, Path({str(tmp_path / "1")!r}), accept_conditions=False)
pid = server.channel.receive()["pid"]
server.let_go(1)
server.channel.receive()
print(json.dumps([server.pid, pid]), flush=True)
import time
time.sleep(600)
"""
    dispatcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert dispatcher.stdout is not None
        handles = [Handle.open(pid) for pid in json.loads(dispatcher.stdout.readline())]
        assert all(handle is not None and not handle.ended() for handle in handles)
    finally:
        dispatcher.kill()
        dispatcher.wait()
    until(lambda: all(handle is not None and handle.ended() for handle in handles))


@pytest.mark.options(reply_tokens="many")
def test_what_cells_print_is_bounded_while_their_server_lives(talk: Talk) -> None:
    """This one raises what nobody foresees, and its traceback is printed: so may be a million others'."""
    printed = talk.folder / "warm.err"
    pool = Pool(talk.folder, printed, Registry(talk.folder / "cells"), log=None)
    talk.expect("loaded")
    with printed.open("ab") as earlier:
        earlier.write(b"Traceback ...\n" * 100_000)
    pool.weigh()
    assert printed.stat().st_size == 0
    talk.fork(1)
    talk.expect("exited", 1)
    assert printed.read_bytes().startswith(b"Traceback (most recent call last)"), "it goes on at the file's new end"
    pool.weigh()
    assert printed.stat().st_size > 0, "what is short enough stays"

"""Faults that once were there: hanging, leaving and refusing warm servers, a locked queue, endless attempts."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from helpers.home import Home
from helpers.waiting import until
from overnight import procfs
from overnight.dispatch.attempt import Attempt
from overnight.dispatch.crew import Crew
from overnight.dispatch.signals import Handle
from overnight.queue.specs import warm_key


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Somebody holds the queue's write lock, as a submit of a million cells does."""
    connection = sqlite3.connect(home.paths.queue, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


def test_a_warm_server_that_hangs_while_leaving_is_ended_and_replaced(tmp_path: Path) -> None:
    home = Home(tmp_path / "h", settings="[warm]\nidle_s = 0.3\n")
    try:
        home.submit(scaffolds=[1])
        daemon = home.start()
        home.wait_done()
        (warm,) = home.registered("warm")
        os.kill(warm.pid, signal.SIGSTOP)
        until(lambda: home.log("warm_released"))
        home.submit(scaffolds=[1, 2])
        home.wait_done()
        assert len(home.log("warm_gone")) >= 1
        assert psutil.Process(daemon.pid).status() != psutil.STATUS_ZOMBIE
        assert [c for c in psutil.Process(daemon.pid).children() if c.status() == psutil.STATUS_ZOMBIE] == []
        process = psutil.Process(daemon.pid)
        before = process.cpu_times()
        until(lambda: len(home.registered("warm")) == 0)
        spent = process.cpu_times().user + process.cpu_times().system - before.user - before.system
        assert spent < 1.0  # it does not spin on a channel that nobody reads
    finally:
        home.end()


def test_a_locked_queue_does_not_end_fresh_cells(home: Home) -> None:
    home.submit(options={"load_s": 1.0, "delay_s": 0.3})
    home.start()
    until(lambda: home.statuses().get("running") == 2)
    with locked(home):
        until(lambda: len(home.transcripts()) == 2)
        time.sleep(1.5)
    home.wait_done()
    assert {cell["attempts"] for cell in home.cells()} == {1}
    with sqlite3.connect(home.paths.queue) as connection:
        assert connection.execute("SELECT count(*) FROM attempts WHERE pid IS NULL").fetchone() == (0,)


def test_sigterm_is_heard_while_the_queue_is_locked_at_the_start(home: Home) -> None:
    home.submit(limits={"max_iterations": 1000})
    home.start()
    until(lambda: home.statuses().get("running"))
    home.kill()  # something to recover: a write
    assert not home.log("queue_unavailable")
    with locked(home):
        home.start()
        until(lambda: home.log("queue_unavailable"))
        assert home.stop() == 0


def test_reset_without_a_daemon_changes_nothing(home: Home) -> None:
    home.submit(runs=3, limits={"max_iterations": 1000})
    home.start()
    until(lambda: home.statuses().get("running") == 2)
    home.kill()
    before = home.statuses()
    assert "nothing was changed" in home("reset", "night", code=2).stderr
    assert home.statuses() == before


def test_a_stopped_warm_server_cannot_keep_a_cell_running(home: Home) -> None:
    home.submit(scaffolds=[1], limits={"max_iterations": 1000})
    home.start()
    until(lambda: home.registered("cell"))
    os.kill(home.registered("warm")[0].pid, signal.SIGSTOP)
    home("cancel", "--grid", "night")
    until(lambda: home.statuses() == {"cancelled": 1})


def test_cancelling_while_the_model_loads_leaves_no_child(home: Home) -> None:
    home.submit(options={"load_s": 2.0})
    daemon = home.start()
    until(lambda: home.statuses().get("running") == 2)
    home("cancel", "--grid", "night")
    until(lambda: home.statuses() == {"cancelled": 2})
    until(lambda: home.log("warm_loaded"))
    until(lambda: len(psutil.Process(daemon.pid).children(recursive=True)) == 1)


def test_a_model_that_cannot_load_is_named_as_the_reason(home: Home) -> None:
    (home.paths.home / "empty").mkdir()
    home.submit(tries=2)
    with sqlite3.connect(home.paths.queue) as connection:
        ((text,),) = connection.execute("SELECT json FROM warms")
        text = text.replace('"engine":"scripted"', '"engine":"abacus"')
        connection.execute("UPDATE warms SET json = ?, key = ?", (text, warm_key(json.loads(text))))
    home.start()
    until(lambda: home.statuses() == {"failed": 2})
    for cell in home.cells():
        assert "there is no engine 'abacus'" in cell["reason"]
        assert (cell["attempts"], cell["tries_used"]) == (2, 2)


def test_a_cap_that_is_met_for_ever_comes_to_an_end(tmp_path: Path) -> None:
    """Its claim grows by half each time, to all that there is: then it is said to need more than that."""
    home = Home(tmp_path / "h", settings="[memory]\nbudget = '300MiB'\n")
    try:
        home.submit(scaffolds=[1], tries=1, options={"fail_at_turn": 2, "fail_kind": "memory"})
        home.start()
        until(lambda: home.statuses() == {"quarantined": 1}, 60)
        (cell,) = home.cells()
        assert (cell["reason_code"], cell["turns"]) == ("too_large", 1)
        assert 3 <= cell["attempts"] <= 10
    finally:
        home.end()


def test_a_file_where_a_folder_belongs_ends_as_failed(home: Home) -> None:
    home.paths.grid_results("night").mkdir(parents=True)
    home.paths.cell_results("night", "baseline_script_run1").write_text("mine")
    home.submit(scaffolds=[1], tries=1)
    home.start()
    until(lambda: home.statuses() == {"failed": 1})
    assert home.paths.cell_results("night", "baseline_script_run1").read_text() == "mine"


def test_replaying_is_no_going_back() -> None:
    """A cell with 8 turns on disk that is replaying its third still has 8."""
    claimed: Any = SimpleNamespace(cell=SimpleNamespace(turns=8, output_tokens=80))
    server: Any = SimpleNamespace(state="ready")
    grant: Any = SimpleNamespace()
    attempt = Attempt(claimed, server, grant)
    Crew._heard_of(Crew.__new__(Crew), attempt, {"kind": "replaying", "turn": 3})
    assert (attempt.turn, attempt.output_tokens, attempt.replayed) == (8, 80, 3)


def test_an_orphan_of_a_dead_supervisord_refuses_to_start(home: Home) -> None:
    home.paths.supervisor_pid.write_text("1\n")
    said = home("daemon", code=2, env={**os.environ, "SUPERVISOR_ENABLED": "1"})
    assert "supervisord that is gone" in said.stderr
    home.paths.supervisor_pid.unlink()


@pytest.mark.parametrize("victim", ["cell", "warm"])
def test_killed_while_the_queue_is_locked(home: Home, victim: str) -> None:
    """Endings wait until the queue can be told, and nothing is told twice."""
    home.submit(limits={"max_iterations": 8}, options={"delay_s": 0.1})
    home.start()
    until(lambda: len(home.registered("cell")) == 2)
    with locked(home):
        handles: list[Handle] = home.registered(victim)
        handles[0].kill()
        time.sleep(1.5)
    home.wait_done()
    assert {cell["turns"] for cell in home.cells()} == {8}
    assert home.log("attempt_stale") == []


def test_what_was_registered_by_hand_outlives_every_daemon(home: Home) -> None:
    command = subprocess.Popen(["sleep", "600"])
    path = home.paths.registry / f"{command.pid}.json"
    entry = {"v": 1, "boot_id": procfs.boot_id(), "pid": command.pid, "role": "command"}
    written = json.dumps(entry | {"start_ticks": procfs.start_ticks(command.pid)})
    path.write_text(written)
    home.submit(scaffolds=[1], limits={"max_iterations": 1000})

    def started() -> None:
        daemon = home.start()
        until(lambda: [one.pid for one in home.registered("daemon")] == [daemon.pid])
        until(lambda: home.registered("cell"))
        assert command.poll() is None
        assert path.read_text() == written

    try:
        for ending in (home.stop, home.kill, home.kill, home.stop):
            started()
            ending()
        started()
        assert command.pid not in [line["pid"] for line in home.log("leftover_killed")]
        home.stop()
        command.kill()
        command.wait()
        home.start()
        until(lambda: not path.exists())  # nobody needs it any more
    finally:
        command.kill()
        command.wait()


def test_registrations_that_somebody_removed_come_back(home: Home) -> None:
    home.submit(scaffolds=[1], options={"delay_s": 60.0})  # no turn ends, which would write one anew
    home.start()
    until(lambda: home.registered("cell"))
    # So that nothing more would be written for another reason.
    until(lambda: [entry["cells"] for entry in home.registrations("warm")] == [1])
    until(lambda: home.registrations("cell")[0]["last_turn_s"])

    def who() -> dict[str, int]:
        return {role: one.pid for role in ("daemon", "warm", "cell") for one in home.registered(role)}

    before = who()
    assert len(before) == 3
    for path in home.paths.registry.iterdir():
        path.unlink()
    until(lambda: who() == before, 10)


def test_a_loading_warm_server_runs_no_cell_yet(home: Home) -> None:
    home.submit(scaffolds=[1], limits={"max_iterations": 1000}, options={"load_s": 3.0})
    home.start()
    until(lambda: home.statuses().get("running") == 1)
    (loading,) = until(lambda: home.registrations("warm"))
    assert (loading["cells"], loading["shrinks"]) == (0, False)
    until(lambda: [entry["cells"] for entry in home.registrations("warm")] == [1])
    (cell,) = until(lambda: home.registrations("cell"))
    assert cell["started_s"] - loading["started_s"] > 2.5, "the load is not the cell's"
    home("cancel", "--grid", "night")
    until(lambda: [entry["cells"] for entry in home.registrations("warm")] == [0])

"""A real daemon whose cells are analysed when they are done, each by a small job of its own; cells that stop early."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from helpers import undisturbed
from helpers.home import Home
from helpers.queue_checks import assert_sound
from helpers.waiting import until
from overnight.analysis import store
from overnight.dispatch.signals import Handle
from overnight.queue.store import Queue

ANALYSIS = {"after_each": True}
REPEATING: dict[str, Any] = {
    "options": {"delay_s": 0.03, "repeat_from": 4, "reply_tokens": [12, 20]},
    "limits": {"max_iterations": 40, "stop_early": 5},
}
ENDS = 8


def keys(home: Home, grid: str, status: str = "done") -> set[str]:
    with Queue.open(home.paths.queue) as queue:
        return {row.key for row in queue.cells(grid, status)}


def records(home: Home, grid: str = "night", backend: str = "tfidf") -> dict[str, dict[str, Any]]:
    with Queue.open(home.paths.queue) as queue:
        return {each["key"]: each for each in store.records(home.paths, queue, grid, backend, "absolute")}


def all_analysed(home: Home) -> bool:
    return {f"{key}.1" for key in keys(home, "night")} == keys(home, "night.analysis")


def test_each_cell_that_is_done_is_analysed(home: Home) -> None:
    home.submit(runs=2, analysis=ANALYSIS)
    home.start()
    home.wait_done()
    assert len(keys(home, "night")) == 4
    assert all_analysed(home)
    cells = {cell["key"]: cell for cell in home.cells()}
    for key, record in records(home).items():
        assert record["transcript_sha256"] == cells[key]["transcript_sha256"]
        assert (record["turns"], record["status"], record["end_reason"]) == (6, "done", "max_iterations")
    assert len(records(home)) == 4
    claims = [line["peak_bytes"] for line in home.log("cell_ended") if line["grid"] == "night.analysis"]
    assert all(peak > 0 for peak in claims), "it is weighed like any cell"
    assert "0 with a problem" in home("verify").stdout
    assert "0 problems, 0 notes" in home("verify", "--deep").stdout
    assert_sound(home.paths.queue)
    # What people look at is the grid that they submitted.
    status = home.json("status")
    (grid,) = status["grids"]
    assert (grid["grid"], grid["total"], grid["analysis"]["done"]) == ("night", 4, 4)
    assert status["cells"]["done"] == 4
    assert "4/4" in home("status").stdout
    assert {row["grid"] for row in home.json("cells")} == {"night"}
    assert {row["grid"] for row in home.json("cells", "night.analysis")} == {"night.analysis"}
    assert "night/baseline_script_run1" in home("show", "baseline_script_run1").stdout


def test_run_waits_for_the_analysis_and_tells_of_it(home: Home) -> None:
    done = home("run", str(home.grid(analysis=ANALYSIS)))
    lines = done.stdout.splitlines()
    assert any(line.startswith("night: 2 of 2 cells done; transcripts in ") for line in lines)
    assert lines[-1] == f"night.analysis: 2 of 2 done, in {home.paths.analysis / 'night'}"
    assert len(records(home)) == 2
    home("down")


def test_killed_again_and_again_the_daemon_forgets_no_analysis(home: Home) -> None:
    home.submit(runs=4, options={"delay_s": 0.02}, limits={"max_iterations": 3}, analysis=ANALYSIS)
    moments = random.Random(7)
    for _ in range(4):
        home.start()
        before = len(keys(home, "night")) + len(keys(home, "night.analysis"))
        wanted = before + moments.randint(1, 2)
        until(
            lambda wanted=wanted: (
                len(keys(home, "night")) + len(keys(home, "night.analysis")) >= wanted
                or not home.statuses().keys() - {"done"}
            ),
            60,
        )
        home.kill()
        with Queue.open(home.paths.queue) as queue:  # at any moment: done and followed, or neither
            followed = {row.key.rpartition(".")[0] for row in queue.cells("night.analysis")}
        assert followed == keys(home, "night")
    home.start()
    home.wait_done(90)
    assert len(keys(home, "night")) == 8
    assert all_analysed(home)
    assert len(records(home)) == 8
    assert_sound(home.paths.queue)


def test_a_killed_analysis_is_done_again_and_uses_no_try(home: Home) -> None:
    home.submit(scaffolds=[1], analysis=ANALYSIS)
    home.start()

    def running() -> list[Handle]:
        found = [entry for entry in home.registrations("command") if entry["cell"].startswith("night.analysis/")]
        opened = (Handle.open(entry["pid"], entry["start_ticks"]) for entry in found)
        return [handle for handle in opened if handle is not None]

    until(running)[0].kill()
    home.wait_done()
    (row,) = [cell for cell in home.cells() if cell["grid"] == "night.analysis"]
    assert (row["tries_used"], row["attempts"] > 1) == (0, True)
    assert len(records(home)) == 1


def test_what_is_started_afresh_meanwhile_is_left_alone(home: Home) -> None:
    """The job finds no result any more: it is over, and the next one comes when the cell is done again."""
    home.submit(scaffolds=[1], analysis=ANALYSIS)
    home.start()
    home.wait_done()
    home.stop()
    home("reset", "night.analysis")
    home("reset", "night")
    with Queue.open(home.paths.queue) as queue:  # the job shall come first
        queue.cancel(queue.cell_ids("night"))
    home.start()
    until(lambda: keys(home, "night.analysis"))
    result = json.loads(home.paths.result("night.analysis", "baseline_script_run1.1").read_bytes())
    assert result["result"] == {"superseded": True}
    assert records(home) == {}, "what is there of the old results is nobody's"
    home("retry", "--grid", "night")
    home.wait_done()
    assert keys(home, "night.analysis") == {"baseline_script_run1.1", "baseline_script_run1.2"}
    assert len(records(home)) == 1


WITHOUT_SCIPY = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "scipy":
            raise ModuleNotFoundError(f"No module named '{name}'")
sys.meta_path.insert(0, Finder())
"""


def test_a_backend_that_is_not_there_is_told_before_the_night(home: Home) -> None:
    (home.paths.home / "site").mkdir()
    (home.paths.home / "site" / "sitecustomize.py").write_text(WITHOUT_SCIPY)
    environment = {**os.environ, "PYTHONPATH": str(home.paths.home / "site")}
    done = home("submit", str(home.grid(analysis=ANALYSIS)), code=2, env=environment)
    assert done.stderr == "overnight: analysis needs the package scipy: pip install 'overnight[analysis]'\n"
    elsewhere = {**ANALYSIS, "backend": "embedding", "model": "nowhere"}
    done = home("submit", str(home.grid(analysis=elsewhere)), code=2)
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert home.cells() == []


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    quiet = Home(tmp_path / "quiet")
    quiet.submit(**REPEATING)
    return undisturbed.transcripts(quiet)


def test_cells_that_stop_early_end_at_the_same_turn_however_often_they_are_killed(
    home: Home, expected: dict[str, bytes]
) -> None:
    home.submit(**REPEATING)
    home.start()
    killed: set[int] = set()
    for turn in range(1, ENDS):
        until(lambda turn=turn: max((d.count(b"\n") - 1 for d in home.transcripts().values()), default=0) >= turn)
        for handle in home.registered("cell"):
            if handle.pid not in killed:
                killed.add(handle.pid)
                handle.kill()
    home.wait_done()
    assert home.transcripts() == expected
    assert {(cell["turns"], cell["end_reason"]) for cell in home.cells()} == {(ENDS, "collapsed")}
    assert any(line["outcome"] == "lost" for line in home.log("cell_ended"))
    assert "0 problems, 0 notes" in home("verify", "--deep").stdout

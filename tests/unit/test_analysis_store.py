"""Which records of analysis still hold: only what changed is analysed again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import small_home
from overnight.analysis import analyze, store
from overnight.analysis.conversation import Conversation
from overnight.analysis.jobs import Analyst, Job, of_cell
from overnight.analysis.process import jobs_of
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Queue

CONVERSATIONS = 6


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return small_home.build(tmp_path_factory.mktemp("built") / "h")


@pytest.fixture
def paths(built: Paths, tmp_path: Path) -> Paths:
    return Paths(shutil.copytree(built.home, tmp_path / "h"))


def work(paths: Paths, method: str = "absolute", **options: Any) -> tuple[int, int]:
    """(analysed, kept), as one process would."""
    analyst = Analyst(paths, ["tfidf"], method, **options)
    with Queue.open(paths.queue) as queue:
        answers = [analyst.work(job) for job in jobs_of(paths, queue, "night")]
    assert all(answer.problem == "" for answer in answers)
    return sum(answer.analysed for answer in answers), sum(answer.kept for answer in answers)


def path_of(paths: Paths, key: str) -> Path:
    return paths.analysis_record("night", key, "tfidf", "absolute")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def files(paths: Paths) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in paths.analysis.rglob("*.json")}


def test_unchanged_transcripts_are_not_analysed_again(paths: Paths) -> None:
    assert work(paths) == (CONVERSATIONS, 0)
    before = files(paths)
    assert len(before) == CONVERSATIONS
    assert work(paths) == (0, CONVERSATIONS)
    assert files(paths) == before
    assert work(paths, again=True) == (CONVERSATIONS, 0)
    assert {name: data for name, (data, _) in files(paths).items()} == {n: data for n, (data, _) in before.items()}


@pytest.mark.parametrize("error", [ValueError, OverflowError, RecursionError])
def test_one_that_cannot_be_analysed_stops_no_other(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    whole = analyze.analyze

    def broken(read: Conversation, *args: Any) -> dict[str, Any]:
        if read.run == 2:
            raise error("too\nlarge")
        return whole(read, *args)

    monkeypatch.setattr(analyze, "analyze", broken)
    analyst = Analyst(paths, ["tfidf"], "absolute")
    with Queue.open(paths.queue) as queue:
        answers = [analyst.work(job) for job in jobs_of(paths, queue, "night")]
    assert sum(answer.analysed for answer in answers) == CONVERSATIONS - 1
    (problem,) = (answer.problem for answer in answers if answer.problem)
    assert "baseline_script_run2" in problem
    assert "\n" not in problem


def test_a_done_cell_is_not_even_read_again(paths: Paths) -> None:
    work(paths)
    paths.transcript("night", "baseline_script_run1").write_bytes(b"unreadable\n")
    assert work(paths) == (0, CONVERSATIONS)


def test_a_new_turn_is_analysed_and_nothing_else(paths: Paths) -> None:
    work(paths)
    key = "baseline_script_run4"
    with Queue.open(paths.queue) as queue:
        small_home.attempt(paths, queue, key=key, stop_at=3, outcome=Outcome.YIELDED)
    assert work(paths) == (1, CONVERSATIONS - 1)
    assert read(path_of(paths, key))["turns"] == 3


def test_a_new_status_of_the_same_turns_needs_no_analysis(paths: Paths) -> None:
    work(paths)
    with Queue.open(paths.queue) as queue:
        queue.cancel([row.id for row in queue.find_cell("baseline_script_run4")])
    assert work(paths) == (0, CONVERSATIONS)
    assert read(path_of(paths, "baseline_script_run4"))["status"] == "cancelled"


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"parameters": {}}, {"transcript_sha256": "0" * 64}, {"v": 9}, {"embedding_model": "m"}]
)
def test_what_another_analysis_made_does_not_hold(paths: Paths, change: dict[str, Any]) -> None:
    work(paths)
    path = path_of(paths, "baseline_script_run1")
    before = path.read_bytes()
    path.write_text(json.dumps(read(path) | change))
    assert work(paths) == (1, CONVERSATIONS - 1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_is_made_again(paths: Paths, damage: bytes) -> None:
    work(paths)
    path = path_of(paths, "baseline_script_run2")
    before = path.read_bytes()
    path.write_bytes(damage)
    assert work(paths) == (1, CONVERSATIONS - 1)
    assert path.read_bytes() == before


def test_methods_have_records_of_their_own(paths: Paths) -> None:
    work(paths)
    assert work(paths, "profile") == (CONVERSATIONS, 0)
    assert len(files(paths)) == 2 * CONVERSATIONS
    assert work(paths) == (0, CONVERSATIONS)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(paths: Paths) -> None:
    folder = paths.analysis / "night"
    folder.mkdir(parents=True)
    dead, alive = folder / ".k.tfidf-absolute.json.4194999.tmp", folder / f".k.tfidf-absolute.json.{os.getpid()}.tmp"
    dead.touch()
    alive.touch()
    store.forget_half_written(paths, "night")
    assert (dead.exists(), alive.exists()) == (False, True)
    store.forget_half_written(paths, "none")


def test_records_are_their_users_alone(paths: Paths) -> None:
    work(paths)
    assert {path_of(paths, "baseline_script_run1").stat().st_mode & 0o077, paths.analysis.stat().st_mode & 0o077} == {0}


def test_records_of_a_cell_that_was_started_afresh_are_nobodys(paths: Paths) -> None:
    work(paths)
    with Queue.open(paths.queue) as queue:
        queue.reset("night")
        small_home.attempt(paths, queue, key="baseline_script_run1")  # the same turns: it is exact
        paths.transcript("night", "baseline_script_run2").unlink()
        path = path_of(paths, "baseline_script_run1")
        keys = [each["key"] for each in store.records(paths, queue, "night", "tfidf", "absolute")]
        path.write_text(json.dumps(read(path) | {"transcript_sha256": "0" * 64}))
        less = [each["key"] for each in store.records(paths, queue, "night", "tfidf", "absolute")]
    assert "baseline_script_run1" in keys
    assert "baseline_script_run2" not in keys
    assert less == keys[1:]


def keys_of(paths: Paths, queue: Queue) -> dict[str, str]:
    found = store.records(paths, queue, "night", "tfidf", "absolute")
    return {each["key"].removeprefix("baseline_script_"): each["status"] for each in found}


def test_records_hold_for_what_the_queue_has_now(paths: Paths) -> None:
    work(paths)
    with Queue.open(paths.queue) as queue:
        small_home.attempt(paths, queue, key="baseline_script_run4", stop_at=3, outcome=Outcome.YIELDED)
        assert "run4" not in keys_of(paths, queue)  # it has not ended, and went on since
        work(paths)
        assert keys_of(paths, queue)["run4"] == "pending"
        queue.cancel([row.id for row in queue.find_cell("baseline_script_run4")])
        assert keys_of(paths, queue)["run4"] == "cancelled"  # as it is, not as it was when it was analysed
        queue.reset("night")
        paths.grid_results("night").rename(paths.home / "aside")
        assert keys_of(paths, queue) == {}


def environment(paths: Paths, key: str, **changes: str) -> dict[str, str]:
    folder = paths.cell_results("night.analysis", key)
    found = {"OVERNIGHT_RESULT": str(folder / "result.user.json"), "OVERNIGHT_GRID": "night.analysis"}
    return found | {"OVERNIGHT_CELL": key} | changes


def test_the_job_after_a_cell_finds_home_and_cell_by_its_environment(paths: Paths) -> None:
    home, job = of_cell(environment(paths, "baseline_script_run2.13"))
    assert home == paths
    with Queue.open(paths.queue) as queue:
        (row,) = queue.find_cell("baseline_script_run2")
    assert job == Job("night", row.key, row.coords, "done", "max_iterations", row.transcript_sha256)


def test_the_job_after_a_cell_that_is_done_no_longer_has_nothing_to_do(paths: Paths) -> None:
    assert of_cell(environment(paths, "baseline_script_run4.1"))[1] is None


def test_what_the_job_cannot_make_out_is_one_line(paths: Paths) -> None:
    with pytest.raises(UserError, match="OVERNIGHT_RESULT"):
        of_cell({})
    paths.result("night", "baseline_script_run1").write_bytes(b"{")
    with pytest.raises(UserError, match=r"result\.json cannot be read"):
        of_cell(environment(paths, "baseline_script_run1.1"))

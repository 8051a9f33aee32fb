"""`verify --deep`: each kind of damage is found and named, and nothing is found where nothing is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import small_home
from overnight.cells import transcript
from overnight.durable import canonical
from overnight.paths import Paths
from overnight.queue.states import Outcome, Status
from overnight.queue.store import Queue
from overnight.repair import check_cell, check_queue, check_store, repair
from overnight.repair.check_cell import Seen
from overnight.repair.deep import Deep
from overnight.repair.view import View

KEY = "baseline_script_run1"


@pytest.fixture(scope="module", autouse=True)
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_home.build(tmp_path_factory.mktemp("built") / "h").home


@pytest.fixture
def paths(built: Path, tmp_path: Path) -> Paths:
    shutil.copytree(built, tmp_path / "h")
    return Paths.of(tmp_path / "h")


def found(paths: Paths, grid: str | None = None) -> list[str]:
    return [str(each) for each in Deep(paths, grid).findings() if not each.note]


def notes(paths: Paths) -> list[str]:
    return [str(each) for each in Deep(paths, None).findings() if each.note]


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the records of a transcript and seal them again: whole, and wrong."""
    with path.open("rb") as stream:
        records = list(transcript.Reader(stream))
    change(records)
    head, lines = "", []
    for record in records:
        line, head = transcript.seal(record, head)
        lines.append(line)
    path.write_bytes(b"".join(lines))


def test_a_sound_home(paths: Paths) -> None:
    deep = Deep(paths, None)
    assert list(deep.findings()) == []
    assert deep.checked == {"queue": 1, "cells": 9, "transcripts": 6, "turns": 20, "files": 10, "models": 0}
    assert found(paths, "sweep") == []


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("message", "9 hours and 0 minutes to go", "the clock showed"),
        ("minutes_left", 5, "the clock showed 5 minutes"),
        ("cropped", 100000, "were cropped off a history of"),
        ("cropped", -1, "were cropped off"),
        ("reply_ids", list(range(31)), "a reply of 31 tokens"),
        ("reply_ids", ["a"], "not all whole numbers"),
        ("reply", None, "its reply is missing or no str"),
        ("stop", "tired", "ended by 'tired'"),
        ("stop", "length", "ended at the limit of 30 tokens, but has"),
        ("input_ids", "abc", "its input_ids is missing or no list"),
        ("minutes_left", True, "its minutes_left is missing or no int"),
        ("conditions", 5, "its conditions are no object"),
    ],
)
def test_whole_lines_that_say_what_cannot_be(paths: Paths, field: str, value: Any, says: str) -> None:
    path = paths.transcript("night", "baseline_script_run5")
    rewrite(path, lambda records: records[2].update({field: value}))
    lines = found(paths)
    assert lines
    assert "night/baseline_script_run5: turn 2" in lines[0]
    assert says in lines[0]


def test_a_turn_behind_the_end(paths: Paths) -> None:
    rewrite(paths.transcript("night", KEY), lambda records: records.append({**records[-1], "turn": 6}))
    assert any("had reached its end before it (max_iterations)" in line for line in found(paths))


def test_another_header(paths: Paths) -> None:
    rewrite(paths.transcript("night", KEY), lambda records: records[0]["spec"].update(seed=1))
    assert any("another specification than the queue" in line for line in found(paths))


def test_less_than_the_queue_knows(paths: Paths) -> None:
    path = paths.transcript("night", "baseline_script_run5")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert any("1 whole turns, but the queue knows 2" in line for line in found(paths))


@pytest.mark.parametrize("name", ["transcript.jsonl", "result.json"])
def test_missing_files(paths: Paths, name: str) -> None:
    (paths.cell_results("night", KEY) / name).unlink()
    assert any(f"night/{KEY}" in line and "missing" in line for line in found(paths))


def test_a_result_that_says_something_else(paths: Paths) -> None:
    path = paths.result("night", KEY)
    path.write_bytes(path.read_bytes()[:-1] + b" \n")
    assert any("not what its transcript says" in line for line in found(paths))


def test_a_kept_file_and_what_was_not_kept(paths: Paths) -> None:
    folder = paths.cell_results("sweep", "x1")
    (folder / "files" / "kept.txt").write_text("x")
    (folder / "files" / "more.txt").write_text("x")
    (folder / "mine").write_text("x")
    lines = found(paths)
    assert any("files/kept.txt is not the one that was kept" in line for line in lines)
    assert any("files/more.txt is there, and was not kept" in line for line in lines)
    assert any("mine does not belong there" in line for line in lines)


def test_what_is_only_told(paths: Paths) -> None:
    (paths.results / "another" / "cell").mkdir(parents=True)
    (paths.results / "night" / "strange").mkdir()
    (paths.cell_results("night", KEY) / ".result.json.77.tmp").write_text("x")
    (paths.cell_results("night", KEY) / "transcript.jsonl.cut-1").write_text("x")
    with paths.transcript("night", "baseline_script_run4").open("ab") as torn:
        torn.write(b"{half")
    assert found(paths) == []
    said = "\n".join(notes(paths))
    for what in ("results/another: unknown", "night/strange: unknown", "left over", "cut-1", "torn last line"):
        assert what in said, what


def test_what_a_killed_restore_unpacked(paths: Paths) -> None:
    """Noted, and removed by a repair; not of one whose process lives."""
    gone, lives = (paths.home / f".overnight-restore-{pid}" for pid in (2**22 + 7, os.getpid()))
    for folder in (gone, lives):
        (folder / "home" / "var").mkdir(parents=True)
        (folder / "home" / "var" / "queue.db").write_text("x")
    assert found(paths) == []
    (said,) = notes(paths)
    assert f"{gone.name}: unpacked by a restore that was killed; " in said
    assert f"rm -r {gone}" in said
    (step,) = repair.run(paths, dry_run=True).steps
    assert (step.where, step.does) == (gone.name, "removed")
    assert gone.exists()
    repair.run(paths)
    assert not gone.exists()
    assert (lives / "home" / "var" / "queue.db").exists()
    assert notes(paths) == []


def test_modes_that_let_others_in(paths: Paths) -> None:
    paths.queue.chmod(0o644)
    assert any("others may look in (mode 0644, not 0600)" in line for line in found(paths))


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE grid_counts SET n = n + 1 WHERE status = 'done'", "counts other cells"),
        ("UPDATE specs SET json = json || ' '", "does not have its hash"),
        ("UPDATE cells SET coords = '[]' WHERE id = 1", "coords is no JSON object"),
        ("UPDATE events SET detail = '{' WHERE id = 2", "detail is no JSON object"),
        ("UPDATE cells SET key = '../up' WHERE id = 3", "is no name that was given"),
        ("UPDATE cells SET status = 'pending' WHERE id = 1", "another status than its last event"),
        ("UPDATE attempts SET outcome = 'lost' WHERE cell_id = 1", "its last attempt ended lost"),
        ("UPDATE attempts SET number = 9 WHERE cell_id = 1", "beyond its last"),
        ("UPDATE cells SET cancel_requested = 1 WHERE id = 2", "idle, and to be cancelled"),
        ("UPDATE events SET old_status = 'done' WHERE cell_id = 1 AND new_status = 'done'", "takes it from done to"),
        ("DELETE FROM grid_counts WHERE status = 'failed' AND n = 0", "has no counter for failed"),
        ("UPDATE specs SET threads = 7", "does not follow from it"),
    ],
)
def test_a_queue_that_contradicts_itself(paths: Paths, statement: str, says: str) -> None:
    db = sqlite3.connect(paths.queue)
    db.execute(statement)
    db.commit()
    db.close()
    with sqlite3.connect(paths.queue, isolation_level=None) as db:
        lines = [str(each) for each in check_queue.check(db)]
    assert any(says in line for line in lines), lines
    assert any(says in line for line in found(paths))


def test_every_step_that_the_queue_takes_is_allowed(tmp_path: Path) -> None:
    """No finding after any of what commands and daemons do."""
    paths = small_home.build(tmp_path / "h")
    with Queue.open(paths.queue) as queue:
        queue.retry(row.id for row in queue.cells())
        claimed = queue.claim(boot_id="boot", daemon="d1")
        assert claimed is not None
        queue.cancel([claimed.cell.id])
        queue.finish(claimed.attempt_id, Outcome.LOST)
        queue.retry([claimed.cell.id])
        queue.reset("night", aside=lambda keys: [shutil.rmtree(paths.results / "night" / key) for key in keys] and None)
        other = [small_home.Cell(c.key, c.coords, {**c.template, "threads": 2}, c.seed) for c in small_home.commands()]
        queue.enqueue("sweep", cells=other, spec={}, policy=small_home.POLICY, replace=True)
        claimed = queue.claim(boot_id="boot", daemon="d1")
        assert claimed is not None
        assert found(paths) == []
        queue.finish(claimed.attempt_id, Outcome.OVER_CAP, quarantine=True)
    assert found(paths) == []


def test_a_cell_that_changes_meanwhile_is_not_called_broken(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on between the look at its row and the look at its files."""
    check, looks = check_cell.check, []

    def racing(paths: Paths, row: Any, spec: dict[str, Any]) -> Seen:
        looks.append(row.status)
        if row.key == "baseline_script_run4" and looks.count(row.status) and row.status is Status.PENDING:
            small_home.run(paths)
            return Seen(("seen in between",))
        return check(paths, row, spec)

    monkeypatch.setattr(check_cell, "check", racing)
    assert found(paths) == []
    assert Status.PENDING in looks
    assert small_home.statuses(paths)["night/baseline_script_run4"] is Status.DONE


def test_a_cell_that_stays_broken_is(paths: Paths) -> None:
    with Queue.open(paths.queue) as queue:
        queue.claim(boot_id="boot", daemon="d1", cell_id=4)
        path = paths.transcript("night", "baseline_script_run4")
        data = bytearray(path.read_bytes())
        data[data.index(b'"turn":1') + 7] ^= 1
        path.write_bytes(data)
        assert any("baseline_script_run4: line 2" in line for line in found(paths))


def model(store: Path) -> Path:
    """A model of two files, as the store would have described it."""
    folder = store / "tiny--float32"
    folder.mkdir()
    files = {}
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name * 100)
        sha256 = hashlib.sha256((name * 100).encode()).hexdigest()
        files[name] = {"bytes": len(name) * 100, "sha256": sha256, "mtime_ns": (folder / name).stat().st_mtime_ns}
    held = {
        "v": 1, "name": "tiny", "source": "tiny", "origin": "", "dtype": "float32", "params": 1, "bytes": 1,
        "files": files, "created_at": "", "versions": {},
        "fingerprint": hashlib.sha256(canonical({n: f["sha256"] for n, f in files.items()}).encode()).hexdigest(),
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(held))
    return folder


def test_models_are_hashed_again(paths: Paths) -> None:
    folder = model(paths.models)
    (paths.models / ".tiny--float32.lock").touch()
    assert found(paths) == []
    stat = (folder / "config.json").stat()
    (folder / "config.json").write_text("x" * stat.st_size)
    os.utime(folder / "config.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert any("config.json is not what was added" in line for line in found(paths))
    (folder / "extra.bin").touch()
    assert any("extra.bin was not added with it" in line for line in found(paths))
    (folder / "model.safetensors").unlink()
    assert any("No such file" in str(each) for each in check_store.check(paths.models))
    (folder / "model.json").write_text("{")
    assert any("cannot be read" in line for line in found(paths))


def test_a_view_needs_no_queue(paths: Paths) -> None:
    db = sqlite3.connect(paths.queue)
    view = View(db)
    assert [row.key for row in view.cells("sweep")] == ["x1", "x2", "x3"]
    assert view.count("sweep") == 3
    assert view.count(None) == 9
    db.close()

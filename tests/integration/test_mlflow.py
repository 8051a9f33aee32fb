"""`overnight mlflow` with the real MLflow and an SQLite store: once, again, after a change, after a kill."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shutil
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from helpers import older_night, small_home
from helpers.analysis_records import record
from overnight.analysis import store as records
from overnight.cells.locking import open_locked
from overnight.cli.main import main
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Queue
from overnight.report import mlflow_export, mlflow_store
from overnight.report.mlflow_export import Choice, Exported

pytestmark = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")

CHOICE = Choice("tfidf", "absolute", "tfidf")
KEY = "baseline_script_run1"
SECRET = "canary-mlflow-9a8b7c6d5e"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs: making one takes MLflow four seconds."""
    file = tmp_path_factory.mktemp("s") / "mlflow.db"
    with mlflow_store.opened(mlflow_store.Place(f"sqlite:///{file}", file.parent.as_uri(), file), "none"):
        pass
    # Each turn of an idle loop collects garbage: whatever test comes next would pay half a second for all of MLflow.
    gc.collect()
    gc.freeze()
    return file


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Paths:
    """A home with an analysis of each conversation."""
    paths = small_home.build(tmp_path_factory.mktemp("w") / "h")
    (paths.var / "mlflow").mkdir()
    shutil.copyfile(empty_store, paths.var / "mlflow" / "mlflow.db")
    for run in range(1, 6):
        analysed(paths, f"baseline_script_run{run}", run)
    return paths


@pytest.fixture
def paths(tmp_path: Path, worked: Paths, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.delenv(mlflow_store.URI, raising=False)
    shutil.copytree(worked.home, tmp_path / "h")
    return Paths.of(tmp_path / "h")


def analysed(paths: Paths, key: str, run: int, **changes: Any) -> None:
    with Queue.open(paths.queue) as queue:
        (cell,) = queue.find_cell(key)
    made = record("baseline", "script", run, **{"turns": cell.turns, "fraction": 0.5 * (run == 1), **changes})
    made["transcript_sha256"] = hashlib.sha256(paths.transcript("night", key).read_bytes()).hexdigest()
    records.write(paths.analysis_record("night", key, made["backend"], made["method"]), made)


def export(paths: Paths, grid: str = "night", choice: Choice = CHOICE) -> Exported:
    with Queue.open(paths.queue) as queue:
        return mlflow_export.export(paths, queue, grid, mlflow_store.place(None, paths), choice)


def client(paths: Paths) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(mlflow_store.place(None, paths).uri)


def runs(paths: Paths, grid: str = "night") -> dict[str, Any]:
    of = client(paths)
    found = of.search_runs([of.get_experiment_by_name(grid).experiment_id])
    assert len({run.data.tags["overnight.cell"] for run in found}) == len(found)
    return {run.data.tags["overnight.cell"]: run for run in found}


def content(paths: Paths) -> tuple[list[str], dict[str, Any]]:
    """Every row of the database, and every artifact with its time."""
    file = paths.var / "mlflow" / "mlflow.db"
    with sqlite3.connect(file) as db:
        rows = list(db.iterdump())
    db.close()
    files = {str(path): path.stat().st_mtime_ns for path in sorted((file.parent / "artifacts").rglob("*"))}
    return rows, {"files": files, "tree": small_home.tree(file.parent / "artifacts")}


def test_a_run_a_cell_and_a_second_export_changes_nothing(paths: Paths) -> None:
    done = export(paths)
    assert (done.added, done.updated, done.replaced, done.unchanged, done.not_ended) == (5, 0, 0, 0, 1)
    found = runs(paths)
    run = found[KEY]
    assert (run.info.run_name, run.info.status) == (KEY, "FINISHED")
    assert (run.data.params["scaffold"], run.data.params["limits.max_iterations"]) == ("baseline", "5")
    assert run.data.metrics.items() >= {"turns": 5.0, "onset_turn": 4.0, "vendi_score": 3.0 + 1 / 7}.items()
    assert [(p.step, p.value) for p in client(paths).get_metric_history(run.info.run_id, "turn/words")] == [
        (turn, 41.0) for turn in range(1, 6)
    ]
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "transcript.jsonl", "result.json", f"analysis/{KEY}.tfidf-absolute.json",
    }  # fmt: skip
    assert (folder / "transcript.jsonl").read_bytes() == paths.transcript("night", KEY).read_bytes()
    statuses = {run.info.status for key, run in found.items() if key.endswith(("5", "6"))}
    assert statuses == {"FAILED", "KILLED"}
    before = content(paths)
    again = export(paths)
    assert (again.added, again.updated, again.replaced, again.unchanged) == (0, 0, 0, 5)
    assert content(paths) == before


def test_a_changed_cell_updates_its_own_run(paths: Paths) -> None:
    export(paths)
    before = runs(paths)
    analysed(paths, KEY, 1, fraction=0.0, metrics={"vendi_score": 4.5}, turns=4)
    done = export(paths)
    assert (done.added, done.updated, done.unchanged) == (0, 1, 4)
    after = runs(paths)
    assert {key: run.info.run_id for key, run in after.items()} == {key: run.info.run_id for key, run in before.items()}
    run = after.pop(KEY)
    assert (run.data.metrics["vendi_score"], run.data.metrics["collapsed"]) == (4.5, 0.0)
    assert run.data.metrics["onset_turn"] != run.data.metrics["onset_turn"]  # NaN: it has none any more
    history = client(paths).get_metric_history(run.info.run_id, "turn/words")
    assert [(p.step, p.value) for p in history[:5]] == [(turn, 41.0) for turn in range(1, 6)]
    assert [(p.step, p.value != p.value) for p in history[5:]] == [(5, True)]
    assert {key: run.to_dictionary() for key, run in after.items()} == {
        key: run.to_dictionary() for key, run in before.items() if key != KEY
    }
    rows = content(paths)
    assert export(paths).unchanged == 5
    assert content(paths) == rows


def test_other_parameters_are_another_run(paths: Paths) -> None:
    export(paths)
    before = runs(paths)[KEY].info.run_id
    with sqlite3.connect(paths.queue) as db:
        db.execute("UPDATE cells SET seed = seed + 1 WHERE key = ?", (KEY,))
    db.close()
    done = export(paths)
    assert (done.replaced, done.unchanged) == (1, 4)
    run = runs(paths)[KEY]
    assert run.info.run_id != before and run.data.params["seed"] == "1002"
    assert client(paths).get_run(before).info.lifecycle_stage == "deleted"
    assert export(paths).unchanged == 5


@pytest.mark.parametrize("at", ["log_batch", "log_artifact", "set_terminated"])
def test_an_export_that_was_broken_off_goes_on(paths: Paths, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    calls = [0]

    def break_off(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise Broken
        return original(*args, **kwargs)

    from mlflow import MlflowClient

    original = getattr(MlflowClient, at)
    monkeypatch.setattr(MlflowClient, at, break_off)
    with pytest.raises(Broken):
        export(paths)
    monkeypatch.undo()
    done = export(paths)
    assert done.added + done.updated + done.unchanged == 5 and done.updated == 1
    for name in runs(paths)[KEY].data.metrics:
        points = client(paths).get_metric_history(runs(paths)[KEY].info.run_id, name)
        assert len({point.step for point in points}) == len(points), name
    rows = content(paths)
    assert export(paths).unchanged == 5
    assert content(paths) == rows


def test_series_only_where_they_are_wanted(paths: Paths) -> None:
    export(paths, choice=dataclasses.replace(CHOICE, series="off"))
    assert not any(name.startswith("turn/") for run in runs(paths).values() for name in run.data.metrics)


def test_a_conversation_without_an_analysis_that_holds_is_told(paths: Paths) -> None:
    path = paths.analysis_record("night", KEY, "tfidf", "absolute")
    stale = json.loads(path.read_bytes())
    records.write(path, {**stale, "transcript_sha256": "0" * 64})
    done = export(paths)
    assert done.not_analysed == 2  # this one, and the cancelled cell, which nobody analysed
    assert "vendi_score" not in runs(paths)[KEY].data.metrics


def moved(paths: Paths) -> Any:
    """As `overnight reset` does it: old results go aside."""
    return lambda keys: [shutil.rmtree(paths.cell_results("night", key), ignore_errors=True) for key in keys]


def test_a_cell_that_was_started_afresh_has_another_run_without_anything_of_before(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    export(paths)
    before = runs(paths)
    with Queue.open(paths.queue) as queue:
        queue.reset("night", aside=moved(paths))
    done = export(paths)
    assert (done.not_ended, done.under_way, done.added, done.updated) == (1, 5, 0, 0)
    marked = runs(paths)[KEY]
    assert (marked.info.run_id, marked.data.tags["overnight.status"]) == (before[KEY].info.run_id, "pending")
    rows = content(paths)
    assert main(["--home", str(paths.home), "mlflow", "night"]) == 0
    assert "  5 cells have not ended, and a run of before that stays until then" in capsys.readouterr().out
    assert content(paths) == rows
    with Queue.open(paths.queue) as queue:
        small_home.attempt(paths, queue, key=KEY, stop_at=2, outcome=Outcome.LOST)
        queue.cancel([row.id for row in queue.find_cell(KEY)])
    done = export(paths)
    assert (done.replaced, done.not_analysed) == (1, 1)
    run = runs(paths)[KEY]
    assert run.info.status == "KILLED" and run.info.run_id != before[KEY].info.run_id
    assert set(run.data.metrics) == {"turns", "output_tokens", "run_s", "attempts"}
    assert run.data.metrics["turns"] == 2.0
    assert [each.path for each in client(paths).list_artifacts(run.info.run_id)] == ["transcript.jsonl"]
    assert export(paths).unchanged == 1


@pytest.mark.parametrize("now", ["as analysed", "another", "gone"])
def test_of_a_cell_without_an_end_only_an_analysis_of_what_is_there_is_told(paths: Paths, now: str) -> None:
    """The queue has no hash of it."""
    key = "baseline_script_run6"
    analysed(paths, key, 6)
    if now == "gone":
        paths.transcript("night", key).unlink()
    elif now == "another":
        paths.transcript("night", key).write_bytes(paths.transcript("night", KEY).read_bytes())
    export(paths)
    told = {"vendi_score", "turn/words"} & set(runs(paths)[key].data.metrics)
    assert bool(told) is (now == "as analysed")


def test_a_retried_cell_that_comes_to_the_same_end_says_so_again(paths: Paths) -> None:
    export(paths)
    key = "baseline_script_run6"
    with Queue.open(paths.queue) as queue:
        (cell,) = queue.find_cell(key)
        queue.retry([cell.id])
        assert export(paths).under_way == 1
        queue.cancel([cell.id])
    assert runs(paths)[key].data.tags["overnight.status"] == "pending"
    export(paths)
    assert runs(paths)[key].data.tags["overnight.status"] == "cancelled"


def test_a_parameter_that_is_gone_is_another_run(paths: Paths) -> None:
    export(paths)
    before = runs(paths)[KEY]
    with sqlite3.connect(paths.queue) as db:
        number, spec = db.execute(
            "SELECT s.id, s.json FROM specs AS s JOIN cells AS c ON c.spec_id = s.id WHERE c.key = ?", (KEY,)
        ).fetchone()
        fewer = {name: value for name, value in json.loads(spec).items() if name != "threads"}
        db.execute("UPDATE specs SET json = ? WHERE id = ?", (json.dumps(fewer), number))
    db.close()
    assert "threads" in before.data.params
    assert export(paths).replaced == 5  # all of the grid share it
    assert "threads" not in runs(paths)[KEY].data.params


def test_a_file_that_is_gone_goes_and_one_of_others_stays(paths: Paths) -> None:
    export(paths)
    run = runs(paths)[KEY]
    client(paths).log_text(run.info.run_id, "mine", "analysis/mine.txt")
    paths.analysis_record("night", KEY, "tfidf", "absolute").unlink()
    assert export(paths).updated == 1
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "transcript.jsonl", "result.json", "analysis/mine.txt",
    }  # fmt: skip
    assert export(paths).unchanged == 5


def test_what_no_file_of_an_imported_cell_says_is_not_told(paths: Paths, tmp_path: Path) -> None:
    older_night.conversation(tmp_path / "old", run=1, total_tokens=None, completed_at=None)
    older_night.conversation(tmp_path / "old", run=2)
    assert main(["--home", str(paths.home), "import", str(tmp_path / "old")]) == 0
    export(paths, "old")
    bare, whole = (runs(paths, "old")[f"baseline_8b_think_run{n}"] for n in (1, 2))
    assert set(bare.data.metrics) == {"turns", "attempts"}
    assert whole.data.metrics.items() >= {"turns": 4.0, "output_tokens": 40.0}.items() and whole.data.metrics["run_s"]
    assert "seed" not in bare.data.params and "seed" not in whole.data.params
    assert bare.data.tags["mlflow.source.name"] == "imported"


def test_commands_have_runs_too(paths: Paths) -> None:
    done = export(paths, "sweep")
    assert (done.added, done.not_ended, done.not_analysed) == (2, 1, 0)
    assert {run.data.metrics["result/x"] for run in runs(paths, "sweep").values()} == {1.0}


def test_no_secret_reaches_the_store(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of the file, nor one of the environment that a cell of the grid names."""
    paths.secrets.touch(0o600)
    paths.secrets.write_text(f"OF_FILE={SECRET}\n")
    monkeypatch.setenv("OF_ENV", f"{SECRET[::-1]}")
    with sqlite3.connect(paths.queue) as db:
        number, spec = db.execute(
            "SELECT s.id, s.json FROM specs AS s JOIN cells AS c ON c.spec_id = s.id WHERE c.key = 'x1'"
        ).fetchone()
        changed = {**json.loads(spec), "secrets": ["OF_ENV"], "command": f"use {SECRET} and {SECRET[::-1]}"}
        db.execute("UPDATE specs SET json = ? WHERE id = ?", (json.dumps(changed), number))
    db.close()
    leaky = paths.result("sweep", "x2")
    leaky.write_text(json.dumps({**json.loads(leaky.read_text()), "result": {"said": SECRET}}))
    done = export(paths, "sweep")
    assert done.said == ["sweep/x2: result.json stays here, since the value of a secret is in it"]
    assert runs(paths, "sweep")["x1"].data.params["command"] == "use [secret OF_FILE] and [secret OF_ENV]"
    for file in (paths.var / "mlflow").rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes()
            assert SECRET[::-1].encode() not in file.read_bytes()


def test_secrets_that_cannot_be_read_stop_it(paths: Paths) -> None:
    paths.secrets.touch(0o600)
    paths.secrets.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        export(paths)


def test_two_at_once_are_refused(paths: Paths) -> None:
    held = open_locked(paths.run / "mlflow.lock")
    try:
        with pytest.raises(UserError, match="another `overnight mlflow` works on"):
            export(paths)
    finally:
        os.close(held)


def test_a_run_that_was_deleted_is_made_again_and_a_deleted_experiment_is_told(paths: Paths) -> None:
    export(paths)
    of = client(paths)
    of.delete_run(runs(paths)[KEY].info.run_id)
    done = export(paths)
    assert (done.added, done.unchanged) == (1, 4)
    of.delete_experiment(of.get_experiment_by_name("night").experiment_id)
    with pytest.raises(UserError, match="experiment 'night' was deleted; restore it"):
        export(paths)


def test_what_others_wrote_into_a_run_stays(paths: Paths) -> None:
    export(paths)
    run_id = runs(paths)[KEY].info.run_id
    client(paths).log_metric(run_id, "my_own", 1.5)
    client(paths).set_tag(run_id, "mlflow.note.content", "look at this one")
    analysed(paths, KEY, 1, metrics={"vendi_score": 4.5})
    assert export(paths).updated == 1
    run = runs(paths)[KEY]
    assert run.data.metrics["my_own"] == 1.5
    assert run.data.tags["mlflow.note.content"] == "look at this one"


def test_the_command(paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda by: by)
    home = ["--home", str(paths.home)]
    assert main([*home, "mlflow", "night"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "night: 5 runs added, 0 updated, 0 replaced, 0 unchanged",
        "  1 cell has not ended, without a run so far",
        "  1 conversation has no analysis that holds: overnight analyze night --backend tfidf --method absolute",
        f"  sqlite:///{paths.var}/mlflow/mlflow.db",
    ]
    assert said.err == ""
    assert main([*home, "mlflow", "night", "--timeseries", "tfidf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 5
    assert main([*home, "mlflow", "nihgt"]) == 2
    assert "did you mean 'night'" in capsys.readouterr().err
    broken = paths.home / "broken.db"
    broken.write_text("no database at all" * 100)
    assert main([*home, "mlflow", "night", "--store", f"sqlite:///{broken}"]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and str(broken) in said.err

"""What MLflow is told of a cell, and where: without MLflow."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import small_home
from helpers.analysis_records import record
from overnight.errors import UserError
from overnight.masking import NOTHING, Masks
from overnight.paths import Paths
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.report import mlflow_run, mlflow_store
from overnight.report.mlflow_run import Source, Wanted, key_of

SECRET = "canary-mlflow-5e4d3c2b1a"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return small_home.build(tmp_path_factory.mktemp("m") / "h")


def source(paths: Paths, key: str, **changes: Any) -> Source:
    with Queue.open(paths.queue) as queue:
        (cell,) = queue.find_cell(key)
        return dataclasses.replace(Source(paths, cell, queue.cell_spec(cell.id)), **changes)


def told(paths: Paths, key: str = "baseline_script_run1", masks: Masks = NOTHING, **changes: Any) -> Wanted:
    return mlflow_run.wanted(source(paths, key, **changes), masks)


def test_an_idle_loop(paths: Paths) -> None:
    run = told(paths, record=record(fraction=0.5), turns=record(turns=3))
    assert (run.name, run.status) == ("baseline_script_run1", "FINISHED")
    assert run.params.items() >= {
        "scaffold": "baseline", "model": "script", "run": "1", "seed": "1001", "engine": "scripted",
        "limits.max_iterations": "5", "limits.token_limit": "30", "sampling.temperature": "1.0", "threads": "1",
        "system": "You have nothing to do for the next 10 hours.", "model.dtype": "float32", "scaffold.id": "1",
    }.items()  # fmt: skip
    assert any(name.startswith("conditions.") for name in run.params)
    assert run.metrics.items() >= {
        "turns": 5.0, "attempts": 1.0, "run_s": 1.0, "collapsed": 1.0, "collapsed_fraction": 0.5, "onset_turn": 4.0,
        "vendi_score": 3.0 + 1 / 7,
    }.items()  # fmt: skip
    assert run.series["turn/words"] == {1: 41.0, 2: 41.0, 3: 41.0}
    assert run.series["turn/sim_prev1"] == {2: pytest.approx(2 / 3), 3: 1.0}
    assert [each.path.name for each in run.artifacts] == ["transcript.jsonl", "result.json"]
    assert (run.tags["analysis.backend"], run.tags["overnight.status"]) == ("tfidf", "done")
    assert run.started_ms <= run.ended_ms


def test_without_an_analysis_there_are_the_queues_figures(paths: Paths) -> None:
    run = told(paths)
    assert set(run.metrics) == {"turns", "output_tokens", "run_s", "attempts"}
    assert (run.series, run.tags["analysis.backend"]) == ({}, "")


def test_a_command(paths: Paths) -> None:
    run = told(paths, "x1")
    assert run.params.items() >= {"x": "1", "kind": "command", "command": '["echo","{x}"]'}.items()
    assert run.metrics == {"result/x": 1.0, "run_s": 1.0, "attempts": 1.0}


@pytest.mark.parametrize(("key", "status"), [("baseline_script_run5", "FAILED"), ("baseline_script_run6", "KILLED")])
def test_what_did_not_end_well_says_so(paths: Paths, key: str, status: str) -> None:
    assert told(paths, key).status == status


def test_every_status_in_which_a_cell_stays_has_a_run() -> None:
    assert set(mlflow_run.ENDED) == set(Status) - {Status.PENDING, Status.RUNNING}


def test_the_same_cell_has_the_same_digest_and_another_has_another(paths: Paths) -> None:
    run = told(paths, record=record())
    assert told(paths, record=record()).digest == run.digest
    others = [
        told(paths), told(paths, "baseline_script_run2", record=record()), told(paths, record=record(fraction=0.1)),
        told(paths, record=record(), turns=record()), told(paths, record=record(backend="embedding")),
    ]  # fmt: skip
    assert len({run.digest, *(each.digest for each in others)}) == 6
    file = run.artifacts[0]
    changed = dataclasses.replace(run, artifacts=(dataclasses.replace(file, sha256="0" * 64), *run.artifacts[1:]))
    assert changed.digest != run.digest


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_no_value_of_a_secret_is_told(paths: Paths, tmp_path: Path) -> None:
    leaky = tmp_path / "leaky.json"
    leaky.write_text(json.dumps({"said": f"the key is {SECRET}"}))
    clean = tmp_path / "clean.json"
    clean.write_text("{}")
    of = source(paths, "x1")
    cell = dataclasses.replace(
        of.cell, coords={"x": f"a {SECRET} b", SECRET: 1}, reason=SECRET, key=f"k-{SECRET}", grid=SECRET
    )
    spec = {**of.spec, "command": f"curl -H {SECRET}", "env": {"API": "held back too"}}
    changed = dataclasses.replace(
        of, cell=cell, spec=spec, record=record(metrics={SECRET: 1.0, "m": 2.0}), files=(leaky, clean)
    )
    run = mlflow_run.wanted(changed, Masks({"KEY": SECRET}))
    said = repr(dataclasses.replace(run, artifacts=()))
    assert SECRET not in said
    assert "held back too" not in said
    assert run.params["x"] == "a [secret KEY] b"
    assert [each.path.name for each in run.artifacts] == ["clean.json"]
    assert [each.split(": ")[1] for each in run.kept_back] == [
        "leaky.json stays here, since the value of a secret is in it"
    ]


def test_a_secret_across_two_pieces_of_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "_PIECE_BYTES", 10)
    file = tmp_path / "f"
    file.write_text("......" + SECRET)
    assert mlflow_run._sha256(file, Masks({"KEY": SECRET})) is None
    file.write_text("......" + SECRET[:-1])
    assert mlflow_run._sha256(file, Masks({"KEY": SECRET})) is not None


def test_a_figure_that_is_a_secret_is_no_figure(paths: Paths) -> None:
    run = told(paths, masks=Masks({"PIN": "12345678"}), record=record(metrics={"m": 12345678, "n": 1}))
    assert "m" not in run.metrics and run.metrics["n"] == 1.0


def test_a_file_whose_name_holds_a_secret_stays_here(paths: Paths, tmp_path: Path) -> None:
    file = tmp_path / f"{SECRET}.json"
    file.write_text("{}")
    run = told(paths, "x1", Masks({"KEY": SECRET}), files=(file,))
    assert [each.path.name for each in run.artifacts] == ["result.json"]
    assert len(run.kept_back) == 1 and SECRET not in run.kept_back[0]


def test_what_looks_like_a_secret_stays_here(paths: Paths) -> None:
    of = source(paths, "baseline_script_run1")
    options = {"api_key": "abc", "base_url": "https://me:pass@host/v1", "tokenizers": "0.2", "token_limit": 5}
    run = mlflow_run.wanted(dataclasses.replace(of, spec={**of.spec, "model": {"options": options}}), NOTHING)
    found = {name.removeprefix("model.options."): value for name, value in run.params.items() if "options." in name}
    assert found == {
        "api_key": "[left out]", "base_url": "https://[left out]@host/v1", "tokenizers": "0.2", "token_limit": "5",
    }  # fmt: skip


# -- names and values -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=400))
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    key = key_of(name)
    assert 0 < len(key) <= 250
    assert re.fullmatch(r"[/\w.\- :]*", key)
    assert posixpath.normpath(key) == key and not key.startswith(("..", "/")) and key != "."


@pytest.mark.parametrize("name", ["temperature", "limits.shift_hours", "result/loss", "a b", "größe", "x:y"])
def test_usual_names_stay_as_they_are(name: str) -> None:
    assert key_of(name) == name


def test_long_values_and_names_that_fall_together(paths: Paths) -> None:
    of = source(paths, "baseline_script_run1")
    run = mlflow_run.wanted(dataclasses.replace(of, spec={"system": "word " * 5000, "a?": 1, "a!": 2}), NOTHING)
    assert len(run.params["system"]) <= 6000
    assert re.search(r"\.\.\. \(25000 characters, sha256 [0-9a-f]{64}\)$", run.params["system"])
    assert (run.params["a_"], run.params["a__2"]) == ("1", "2")


# -- stores -----------------------------------------------------------------------------------------------------------


def test_the_store_is_the_one_that_was_named_or_mlflows_or_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths.of(tmp_path / "h")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(mlflow_store.URI, raising=False)
    own = mlflow_store.place(None, paths)
    assert own.uri == f"sqlite:///{paths.var}/mlflow/mlflow.db"
    assert own.artifacts == (paths.var / "mlflow" / "artifacts").as_uri()
    monkeypatch.setenv(mlflow_store.URI, "http://server:5000")
    assert mlflow_store.place(None, paths) == mlflow_store.Place("http://server:5000", None)
    named = mlflow_store.place("sqlite:///some/runs.db?timeout=9", paths)
    assert (named.uri, named.file) == (f"sqlite:///{tmp_path}/some/runs.db?timeout=9", tmp_path / "some" / "runs.db")
    assert mlflow_store.place("postgresql+psycopg2://me:pw@db/x", paths).artifacts == own.artifacts


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "mlruns", "/abs/mlruns", "sqlite://", "sqlite:///:memory:", "ftp://u:pw@x"]
)
def test_no_store_is_one_clear_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected sqlite:///FILE") as said:
        mlflow_store.place(uri, Paths.of(tmp_path))
    assert "pw" not in str(said.value)


@pytest.mark.parametrize("name", ["/proc/x.db", "/proc/a/x.db", "folder.db", "text.db"])
def test_a_store_that_cannot_be_opened_is_one_line_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database at all" * 100)
    place = mlflow_store.place(f"sqlite:///{tmp_path / name}", Paths.of(tmp_path))
    assert place.file is not None
    with pytest.raises(UserError, match="expected an SQLite database that can be written") as said:
        mlflow_store._try_to_open(place, place.file)
    assert len(str(said.value).splitlines()) == 1


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    place = mlflow_store.place("postgresql://me:pw@db/x", Paths.of(tmp_path))
    assert str(place) == "postgresql://***@db/x"


def test_without_mlflow_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "mlflow.exceptions", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    place = mlflow_store.place(None, Paths.of(tmp_path))
    with (
        pytest.raises(UserError, match=r"needs the extra `mlflow`.*pip install 'overnight\[mlflow\]'"),
        mlflow_store.opened(place, "night"),
    ):
        pass
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize(
    "module",
    ["overnight.cli.mlflow", "overnight.dispatch.dispatcher", "overnight.warm.child", "overnight.cells.idle_loop"],
)
def test_nothing_that_runs_cells_imports_it(module: str) -> None:
    program = f"import sys, {module}; print([m for m in sys.modules if m.split('.')[0] == 'mlflow' or 'mlflow_' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""`overnight analyze`: what changed is analysed, and one bad conversation keeps no other waiting."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import small_home
from overnight.cli.main import main
from overnight.paths import Paths
from overnight.queue.store import Queue

CONVERSATIONS = 6


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return small_home.build(tmp_path_factory.mktemp("built") / "h")


@pytest.fixture
def paths(built: Paths, tmp_path: Path) -> Paths:
    return Paths(shutil.copytree(built.home, tmp_path / "h"))


class Said:
    """Runs the command in this process; what it said."""

    def __init__(self, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
        self.paths, self._capsys = paths, capsys

    def __call__(self, *args: str, code: int = 0) -> str:
        assert main(["--home", str(self.paths.home), "analyze", *args]) == code
        said = self._capsys.readouterr()
        assert "Traceback" not in said.err
        return said.out + said.err

    def counts(self, *args: str, code: int = 0) -> tuple[int, int]:
        """(analysed, kept) of all grids."""
        found = json.loads(self(*args, "--json", code=code))
        return sum(grid["analysed"] for grid in found), sum(grid["kept"] for grid in found)


@pytest.fixture
def analyze(paths: Paths, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(paths, capsys)


def record(paths: Paths, key: str) -> Path:
    return paths.analysis_record("night", key, "tfidf", "absolute")


def test_only_what_changed_is_analysed(analyze: Said, paths: Paths) -> None:
    first = analyze()
    assert f"night: {CONVERSATIONS} conversations, 0 of them repeat themselves; 6 analysed now, 0 unchanged" in first
    assert "sweep" not in first, "commands have no conversations"
    assert analyze.counts() == (0, CONVERSATIONS)
    assert analyze.counts("night", "--again") == (CONVERSATIONS, 0)
    assert "(tfidf, profile)" in analyze("night", "--method", "profile")


def test_one_conversation_that_cannot_be_read_is_named_and_the_others_are_analysed(analyze: Said, paths: Paths) -> None:
    paths.transcript("night", "baseline_script_run2").write_bytes(b"no transcript\n")
    said = analyze(code=1)
    assert "night/baseline_script_run2: " in said
    assert "it has no header" in said
    assert len(list(paths.analysis.rglob("*.json"))) == CONVERSATIONS - 1


def test_the_tables_are_written(analyze: Said, paths: Paths, tmp_path: Path) -> None:
    said = analyze("night", "--export", "csv", str(tmp_path / "out"))
    assert str(tmp_path / "out" / "cells.csv") in said
    rows = (tmp_path / "out" / "cells.csv").read_text().splitlines()
    assert len(rows) == 1 + CONVERSATIONS
    assert rows[0].startswith("grid,key,scaffold,model,run,")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["nihgt"], "overnight: grid 'nihgt' is not in the queue; did you mean 'night'?"),
        (["--export", "xlsx", "out"], "--export xlsx: one of csv, json, parquet is expected, and then a folder"),
        (["night", "--backend", "embedding", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_get_one_line(analyze: Said, args: list[str], expected: str) -> None:
    said = analyze(*args, code=2)
    assert expected in said
    assert len(said.splitlines()) == 1


def test_where_nothing_can_be_written_it_says_so(analyze: Said, paths: Paths) -> None:
    record(paths, "baseline_script_run3").mkdir(parents=True)
    said = analyze(code=2)
    assert said.startswith("overnight: ")
    assert "Is a directory" in said


def test_the_grid_of_the_jobs_has_no_conversations(analyze: Said, paths: Paths) -> None:
    then = {"grid": "day.analysis", "policy": {}, "template": {"kind": "command"}}
    with Queue.open(paths.queue) as queue:
        queue.enqueue("day", cells=[], spec={"name": "day"}, policy={"then": then})
    assert "'day.analysis' holds the analysis of 'day', no conversations; name that one" in analyze(
        "day.analysis", code=2
    )
    assert "day: 0 conversations" in analyze("day")


def test_the_command_itself_loads_nothing_heavy(paths: Paths) -> None:
    program = f"""
import sys
from overnight.cli.main import main
main(["--home", {str(paths.home)!r}, "analyze"])
print(sorted({{"numpy", "scipy", "sklearn", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

"""Import and export on the real command line: what another harness did, beside cells of our own, through everything
that a home goes through."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import older_night, small_home
from helpers.home import Home
from helpers.import_cli import Cli
from helpers.waiting import until
from overnight.analysis.conversation import Conversation
from overnight.paths import IMPORTED
from overnight.queue.states import Status
from overnight.queue.store import Queue


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    before = os.umask(0o077)  # as the command has it
    yield Cli(tmp_path / "h", capsys)
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return older_night.night(tmp_path / "old")


def test_a_folder_becomes_a_grid(cli: Cli, folder: Path) -> None:
    told = cli("import", folder)
    assert told.startswith("old: 7 cells added, 0 there already\n")
    assert "left running, so pending now: values_only_8b_think_run2" in told
    assert "failed: values_only_8b_think_run1 (27 iterations, 154,939 tokens, of which no conversation is left)" in told
    assert "its 2 pending cells stay pending: nothing here runs an imported cell" in told
    assert cli.statuses() == {
        "baseline_8b_think_run1": "done",
        "baseline_8b_think_run2": "done",
        "baseline_8b_think_run3": "done",
        "values_only_8b_think_run1": "failed",
        "values_only_8b_think_run2": "pending",
        "values_only_8b_think_run3": "pending",
        "values_only_4b_think_run1": "done",
    }
    kept = cli.paths.cell_results("old", "baseline_8b_think_run2") / IMPORTED
    assert kept.read_bytes() == (folder / "baseline_8b_think_run2.json").read_bytes()
    assert "nothing runs the 2 pending cells there" in cli("status")
    for check in (("verify",), ("verify", "--deep"), ("repair", "--dry-run")):
        cli(*check)
    before = cli.state()
    assert cli("import", folder).startswith("old: 0 cells added, 7 there already\n")
    assert cli.state() == before


def test_commands_show_what_it_is(cli: Cli, folder: Path) -> None:
    cli("import", folder)
    told = cli("show", "values_only_8b_think_run1")
    assert "27, 154939 tokens" in told
    assert "peer closed connection" in told
    assert "nothing here runs it" in told
    assert json.loads(cli("show", "values_only_8b_think_run2", "--json"))["claim"] is None
    assert "in pieces 4, and so on" in cli("tail", "baseline_8b_think_run2", "-n", "1")
    cli("tail", "values_only_8b_think_run2", code=2)
    assert "was imported, and has no conversation" in cli.error
    assert cli("cells", "old").count("\n") == 8
    assert "0 back in the queue; 7 imported cells stay as they are" in cli("retry", "--grid", "old")
    assert "0 cancelled; 1 imported cell stays as it is" in cli("cancel", "values_only_8b_think_run3")
    cli("reset", "old", code=2)
    assert "'old' was imported" in cli.error
    grid = cli.paths.home / "old.yaml"
    grid.write_text("name: old\nmodels: [{name: script, engine: scripted}]\nscaffolds: [1]\n")
    cli("submit", grid, code=2)
    assert "choose another grid name" in cli.error


def test_files_one_by_one_make_the_same_grid(cli: Cli, folder: Path) -> None:
    """The grid is named after the folder; the state may come last."""
    for path in sorted(folder.glob("*.json"), reverse=True):
        cli("import", path)
    alone = cli.statuses()
    again = Cli(cli.paths.home.with_name("h2"), cli._capsys)
    again("import", folder, "--grid", "another")
    assert again.statuses() == alone
    cli("verify", "--deep")
    assert cli("import", folder).startswith("old: 0 cells added, 7 there already")


def test_a_night_that_went_on(cli: Cli, folder: Path) -> None:
    cli("import", folder)
    older_night.conversation(folder, "values_only", run=2)
    assert cli("import", folder).startswith("old: 0 cells added, 6 there already, 1 brought up to date\n")
    assert cli.statuses()["values_only_8b_think_run2"] == "done"
    changed = older_night.conversation(folder, run=1, words="something else")
    before = cli.state()
    cli("import", folder, code=2)
    assert "baseline_8b_think_run1 was imported as done with a conversation" in cli.error
    assert cli.state() == before
    told = cli("import", folder, "--replace")
    assert "1 replaced; 1 old results moved to" in told
    kept = cli.paths.cell_results("old", "baseline_8b_think_run1") / IMPORTED
    assert kept.read_bytes() == changed.read_bytes()
    cli("verify", "--deep")


def test_nothing_is_half_imported(cli: Cli, folder: Path) -> None:
    cli("status")
    before = cli.state()
    (folder / "zz_8b_think_run1.json").write_text('{"metadata": {}')
    for name in ("old", "a/b", ".x", ""):
        cli("import", folder, "--grid", name, code=2)
        assert cli.error.count("\n") == 1
        assert cli.state() == before
    cli("import", folder / "nowhere", code=2)
    cli("import", cli.paths.home, code=2)
    (folder / "zz_8b_think_run1.json").unlink()
    cli("import", folder, "--grid", "a/b", code=2)
    assert "cannot be a grid's name" in cli.error
    assert cli.state() == before


def test_files_are_taken_back_when_the_queue_refuses(cli: Cli, folder: Path) -> None:
    """What was written for cells that are not added is gone again, and what was there before is as it was."""
    cli("import", folder)
    older_night.conversation(folder, run=1, words="something else")
    older_night.conversation(folder, "values_only", "4b_think", run=5)
    before = cli.state()
    cli("import", folder, code=2)
    assert cli.state() == before
    small_home.submit(cli.paths)
    before = cli.state()
    cli("import", folder, "--grid", "night", code=2)
    assert "'night' holds cells of its own" in cli.error
    assert cli.state() == before


def test_damage_is_found_and_another_import_mends_it(cli: Cli, folder: Path) -> None:
    cli("import", folder)
    one = cli.paths.cell_results("old", "baseline_8b_think_run1") / IMPORTED
    other = cli.paths.cell_results("old", "baseline_8b_think_run2") / IMPORTED
    one.write_bytes(one.read_bytes()[:-20])
    other.unlink()
    for deep in ((), ("--deep",)):
        told = cli("verify", *deep, code=1)
        assert f"baseline_8b_think_run1: its {IMPORTED} is not the one that was imported" in told
        assert f"baseline_8b_think_run2: imported, but its {IMPORTED} is missing" in told
    told = cli("repair", code=1)
    assert "`overnight import FILE --grid old`" in told
    statuses = cli.statuses()
    assert set(cli("import", folder).splitlines()[0].split(", ")[1:]) == {
        "7 there already",
        "2 conversations written again",
    }
    assert cli.statuses() == statuses
    cli("verify", "--deep")
    (cli.paths.cell_results("old", "values_only_8b_think_run3")).mkdir()
    (cli.paths.cell_results("old", "values_only_8b_think_run3") / IMPORTED).write_text("{}")
    assert "does not belong there" in cli("verify", "--deep", code=1)


def test_a_backup_brings_it_back(cli: Cli, folder: Path, tmp_path: Path) -> None:
    cli("import", folder)
    archive = tmp_path / "b.tar"
    cli("backup", archive)
    again = Cli(tmp_path / "h2", cli._capsys)
    again("restore", archive)
    assert again.statuses() == cli.statuses()
    again("verify", "--deep")
    assert again.conversations("old").keys() == cli.conversations("old").keys()
    # A backup whose conversation is not the recorded one says so.
    path = cli.paths.cell_results("old", "baseline_8b_think_run1") / IMPORTED
    path.write_bytes(b"{}")
    cli("backup", tmp_path / "c.tar")
    third = Cli(tmp_path / "h3", cli._capsys)
    told = third("restore", tmp_path / "c.tar")
    assert "baseline_8b_think_run1: done, but its conversation.json is not the one" in told


def test_a_damaged_queue_is_made_anew_with_them(cli: Cli, folder: Path) -> None:
    """Rows that are read again keep their status; and a cell whose row is gone is told of with what adds it."""
    cli("import", folder)
    statuses = cli.statuses()
    with cli.paths.queue.open("r+b") as file:  # the header's count of free pages: SQLite's own check finds it
        file.seek(36)
        file.write(b"\0\0\1\0")
    assert "a new one is made of 7 cells" in cli("repair", code=1)  # 1: it cannot know what it could not read
    assert cli.statuses() == statuses
    cli("verify", "--deep")
    shutil.move(cli.paths.queue, cli.paths.home / "away.db")
    told = cli("repair", code=1)
    path = cli.paths.cell_results("old", "baseline_8b_think_run1") / IMPORTED
    assert "the rows of 3 imported conversations were lost" in told
    assert "`overnight import FOLDER --grid old` again adds them" in told
    assert f"or with each {path.parents[1]}/*/{IMPORTED}" in told
    cli("import", path, "--grid", "old")
    assert cli.statuses() == {"baseline_8b_think_run1": "done"}


def test_an_export_is_what_was_imported(cli: Cli, folder: Path, tmp_path: Path) -> None:
    cli("import", folder)
    target = tmp_path / "out"
    assert cli("export", "old", target).startswith("old: 3 conversations and grid_state.json in ")
    for path in folder.glob("*_run*.json"):
        assert (target / path.name).read_bytes() == path.read_bytes()
    told, original = (json.loads((each / "grid_state.json").read_bytes()) for each in (target, folder))
    assert (told["started_at"], told["last_updated"]) == (original["started_at"], original["last_updated"])
    for key, entry in original["cells"].items():
        same = {name: value for name, value in told["cells"][key].items() if name in entry and name != "result_path"}
        assert same == {name: value for name, value in entry.items() if name != "result_path"}
    again = Cli(tmp_path / "h2", cli._capsys)
    again("import", target, "--grid", "old")
    assert again.statuses() == cli.statuses()
    mine, theirs = cli.conversations("old"), again.conversations("old")
    assert {key: each.sha256 for key, each in mine.items()} == {key: each.sha256 for key, each in theirs.items()}
    cli("export", "old", target, code=2)
    assert "is not empty" in cli.error
    cli("export", "old", target, "--replace")


def test_our_own_conversations_come_back_the_same(cli: Cli, tmp_path: Path) -> None:
    small_home.build(cli.paths.home)
    target = tmp_path / "out"
    assert cli("export", "night", target).startswith("night: 6 conversations and grid_state.json in ")
    again = Cli(tmp_path / "h2", cli._capsys)
    again("import", target)
    assert list(again.statuses().values()) == ["done", "done", "done", "pending", "failed", "cancelled"]
    mine, theirs = cli.conversations("night"), again.conversations("out")
    assert mine.keys() == theirs.keys()
    for key, one in mine.items():
        assert plain(one) == plain(theirs[key]), key
    again("verify", "--deep")
    with Queue.open(cli.paths.queue) as queue, Queue.open(again.paths.queue) as other:
        for row in queue.cells("night"):
            (same,) = other.find_cell(row.key)
            if row.status is Status.DONE:
                assert (same.turns, same.output_tokens) == (row.turns, row.output_tokens)
                assert same.end_reason == row.end_reason
            assert same.coords == row.coords
    cli("export", "sweep", tmp_path / "no", code=2)
    assert "one of commands" in cli.error
    assert not (tmp_path / "no").exists()


def plain(found: Conversation) -> list[Any]:
    """All that a turn says, but for what only one of the two layouts has a place for."""
    return [replace(turn, extra={}) for turn in found.turns]


def test_further_axes_come_back_in_their_order(cli: Cli, tmp_path: Path) -> None:
    grid = tmp_path / "g.yaml"
    grid.write_text(
        "name: axes\nmodels: [{name: script, engine: scripted}]\nscaffolds: [1]\n"
        "axes: {top_p: [0.5], max_iterations: [1], temperature: [1.0, null]}\n".replace(", null", ", 0.25")
    )
    cli("submit", grid)
    cli("export", "axes", tmp_path / "out")
    again = Cli(tmp_path / "h2", cli._capsys)
    again("import", tmp_path / "out")
    assert again.statuses() == cli.statuses()


def test_a_daemon_runs_what_is_ours_alone(home: Home, tmp_path: Path) -> None:
    """On a real home with a real daemon: imported cells stay as they are, though two of them are pending."""
    home("import", str(older_night.night(tmp_path / "old")))
    with Queue.open(home.paths.queue) as queue:
        before = queue.cells("old")
    home.submit(runs=2)
    home.start()
    with Queue.open(home.paths.queue) as queue:
        until(lambda: queue.grid("night").counts[Status.DONE] == 4, 60, "our own cells are done")
        assert queue.cells("old") == before
    until(lambda: home.paths.grid_state("old").exists(), 10, "its state is written")
    assert home.stop() == 0
    assert {line["event"] for line in home.log()} & {"cell_failed", "warm_failed", "admission_holds"} == set()
    assert not [line for line in home.log() if line.get("grid") == "old"]
    written = json.loads(home.paths.grid_state("old").read_bytes())["cells"]
    path = home.paths.cell_results("old", "baseline_8b_think_run1") / IMPORTED
    assert written["1_8b_think_1"]["result_path"] == str(path)
    assert written["1_8b_think_3"]["result_path"] is None
    home("verify", "--deep")


def test_the_real_night(cli: Cli, upstream: Path, tmp_path: Path) -> None:
    assert cli("import", upstream).startswith("upstream: 33 cells added, 0 there already\n")
    assert cli("import", upstream).startswith("upstream: 0 cells added, 33 there already\n")
    cli("verify", "--deep")
    named = json.loads(cli("audit", "upstream", "--json", code=1))["findings"]
    told = json.loads(cli("audit", upstream, "--json", code=1))["findings"]
    assert [{**each, "grid": ""} for each in named] == [{**each, "grid": ""} for each in told]
    cli("export", "upstream", tmp_path / "out")
    for path in upstream.glob("*_run*.json"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()

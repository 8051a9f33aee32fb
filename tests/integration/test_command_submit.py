"""Grids of commands on the command line, up to the queue that holds their cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.home import Home
from overnight.cli.main import main
from overnight.queue.store import Queue

GRID = "name: night\nkind: command\ncommand: [python3, t.py, '{lr}']\naxes: {lr: [0.1, 0.01], seed: 1..2}\n"


@pytest.fixture
def file(home: Home) -> Path:
    path = home.paths.home / "night.yaml"
    path.write_text(GRID)
    return path


def stored(home: Home, name: str) -> Any:
    with Queue.open(home.paths.queue) as queue:
        return queue.grid(name)


def keys(home: Home) -> list[str]:
    return [cell["key"] for cell in home.cells()]


def test_a_file_of_commands(home: Home, file: Path) -> None:
    assert home("submit", str(file)).stdout == "night: 4 added, 0 there already\n"
    assert keys(home) == ["lr0.1_seed1", "lr0.1_seed2", "lr0.01_seed1", "lr0.01_seed2"]
    grid = stored(home, "night")
    assert grid.policy == {"timeout_s": None, "tries": 3, "memory_bytes": None, "grace_s": 10.0, "cap": "auto"}
    assert (grid.spec["kind"], grid.spec["cwd"]) == ("command", str(file.parent))
    shown = home.json("show", "lr0.01_seed2")
    assert "'command'" in repr(shown) and "t.py" in repr(shown)

    file.write_text(GRID + "memory: 1GiB\ntimeout: 5m\ngrace: 1\ncap: none\n")
    assert "0 added, 4 there already" in home("submit", str(file)).stdout
    assert stored(home, "night").policy["memory_bytes"] == 1 << 30

    file.write_text(GRID.replace("t.py", "u.py"))
    said = home("submit", str(file), code=2).stderr
    assert 'command "[\\"python3\\"' in said or "command[1]" in said
    assert "4 replaced" in home("submit", str(file), "--replace").stdout
    assert "2 added, 0 there already" in home("submit", str(file), "--runs", "1", "--only", "lr=0.10").stdout
    assert keys(home)[-2:] == ["lr0.1_seed1_run1", "lr0.1_seed2_run1"]


def test_a_command_without_a_file(home: Home, tmp_path: Path) -> None:
    words = ("--command", "python3 t.py {lr}", "--axis", "lr=0.1,0.01", "--axis", "seed=1..3", "--cwd", str(tmp_path))
    name, _, done = home("submit", *words, "--only", "seed=1,3").stdout.strip().partition(": ")
    assert (name[:8], done) == ("command-", "4 added, 0 there already")
    assert home("submit", *words, "--tries", "7").stdout == f"{name}: 2 added, 4 there already\n"
    assert stored(home, name).policy["tries"] == 7
    assert stored(home, name).spec["axes"] == {"lr": [0.1, 0.01], "seed": [1, 2, 3]}


def test_paths_are_relative_to_the_current_folder_without_a_file(home: Home, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    home("submit", "--command", "x", "--name", "here", cwd=str(tmp_path / "work"))
    home("submit", "--command", "x", "--name", "there", "--cwd", "work", cwd=str(tmp_path))
    for name in ("here", "there"):
        assert stored(home, name).spec["cwd"] == str(tmp_path / "work")


def test_the_shipped_example(home: Home) -> None:
    assert "6 added" in home("submit", str(home.paths.grids / "command.yaml")).stdout


def test_bad_input_is_one_line_and_exit_2(home: Home, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in [
        ((str(file), "--scaffold", "1"), "--scaffold is for grids of idle loops, and"),
        ((str(file), "--model", "m"), "--model is for grids of idle loops, and"),
        ((str(file), "--engine", "scripted"), "--engine is for grids of idle loops, and"),
        ((str(file), "--command", "x"), "give one of the two"),
        ((str(file), "--only", "lr=3"), "no lr '3' in grid night, expected one of 0.1, 0.01"),
        (("--command", "x", "--only", "a=1"), "it has none"),
        ((), "name a grid FILE, or give a command with --command"),
    ]:
        assert main(["--home", str(home.paths.home), "submit", *words]) == 2
        output, errors = capsys.readouterr()
        assert len(errors.strip().splitlines()) == 1, errors
        assert said in errors
        assert output == ""
    assert not home.paths.queue.exists() or json.dumps(home.statuses()) == "{}"

"""`--command` and its options: the grid that they describe, and one line where they describe none."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest

from overnight.cli import command_options
from overnight.cli.main import parser
from overnight.durable import canonical
from overnight.errors import UserError
from overnight.grid.command_schema import CommandGrid
from overnight.grid.expand import expand, policy

VALUES = "a list of 1 to 100000 values, or a range such as 1..5 or 0..100..10"


def args(*words: str) -> argparse.Namespace:
    return parser().parse_args(["submit", *words])


def grid(*words: str) -> CommandGrid:
    found = args(*words)
    assert command_options.given(found)
    return command_options.grid(found)


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        grid(*words)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_command_with_axes() -> None:
    found = grid(
        *("--command", "python3 t.py --lr {lr} --note 'a b' --seed {seed}"),
        *("--axis", "lr=0.1,1e-3", "--axis", "seed=1..3"),
    )
    assert found.command == ["python3", "t.py", "--lr", "{lr}", "--note", "a b", "--seed", "{seed}"]
    assert found.axes == {"lr": [0.1, 0.001], "seed": [1, 2, 3]}
    assert [cell.key for cell in expand(found)][:4] == [
        "lr0.1_seed1",
        "lr0.1_seed2",
        "lr0.1_seed3",
        "lr0.001_seed1",
    ]
    assert found.cwd == str(Path.cwd())


def test_every_option(tmp_path: Path) -> None:
    found = grid(
        *("--command", "a {x} | b", "--shell", "--axis", "x=1,2.5,true,null,word,010"),
        *("--name", "mine", "--memory", "1.5GiB", "--timeout", "90", "--grace", "30s", "--tries", "5"),
        *("--env", "A=1", "--env", "B={x}=y", "--env", "C=", "--cwd", str(tmp_path)),
        *("--keep", "*.txt", "--keep", "out/{cell}", "--threads", "2", "--runs", "4"),
    )
    assert (found.name, found.shell, found.command, found.runs, found.threads) == ("mine", True, ["a {x} | b"], 4, 2)
    assert found.axes == {"x": [1, 2.5, True, None, "word", "010"]}
    assert found.env == {"A": "1", "B": "{x}=y", "C": ""}
    assert (found.cwd, found.keep) == (str(tmp_path), ["*.txt", "out/{cell}"])
    assert policy(found) == {
        "timeout_s": 90.0,
        "tries": 5,
        "memory_bytes": 3 << 29,
        "grace_s": 30.0,
        "cap": "auto",
    }


def test_scratch_is_a_working_folder() -> None:
    assert grid("--command", "x", "--cwd", "scratch").cwd == "scratch"


def test_the_same_command_is_the_same_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = grid("--command", "echo {x}", "--axis", "x=1")
    assert grid("--command", "echo   '{x}'", "--axis", "x=1..9", "--memory", "1GiB").name == one.name
    assert one.name == f"command-{hashlib.sha256(canonical([one.command, one.cwd]).encode()).hexdigest()[:8]}"
    names = {one.name, grid("--command", "echo {x} {x}", "--axis", "x=1").name}
    names.add(grid("--command", "echo {x}", "--axis", "x=1", "--shell").name)
    monkeypatch.chdir(tmp_path)
    names.add(grid("--command", "echo {x}", "--axis", "x=1").name)
    assert len(names) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "submit: name a grid FILE, or give a command with --command"),
        (["f.yaml", "--command", "x"], "submit: both the file f.yaml and --command; give one of the two"),
        (["f.yaml", "--axis", "a=1"], "--axis goes with --command only; write it in the grid file instead"),
        (["f.yaml", "--shell"], "--shell goes with --command only; write it in the grid file instead"),
        (["f.yaml", "--grace", "1"], "--grace goes with --command only; write it in the grid file instead"),
        (
            ["--command", "x", "--scaffold", "1"],
            "--scaffold is for grids of idle loops, and --command gives a grid of commands; leave it out",
        ),
        (
            ["--command", "x", "--engine", "scripted"],
            "--engine is for grids of idle loops, and --command gives a grid of commands; leave it out",
        ),
        (
            ["--command", ""],
            "--command: found an empty list, expected a list of 1 to 1000 words such as "
            "[python3, train.py, --lr, '{lr}']",
        ),
        (["--command", "'' x"], "--command: found an empty text, expected the command to run"),
        (
            ["--command", "it's"],
            "--command: its quotes cannot be read (no closing quotation); mend them, or add --shell",
        ),
        (
            ["--command", "echo {lrr}", "--axis", "lr=1"],
            "--command: unknown placeholder {lrr}, expected one of {lr}, {seed}, {cell}; did you mean '{lr}'?",
        ),
        (
            ["--command", "awk '{print}'"],
            "--command: unknown placeholder {print}, expected one of {seed}, {cell}; "
            "write {{print}} for braces that are meant",
        ),
        (["--command", "x {"], "--command: the brace { in '{' is never closed; write {{ for a brace that is meant"),
        (["--command", "x", "--axis", "lr"], "--axis: found 'lr', expected NAME=VALUE such as lr=0.1,0.01"),
        (["--command", "x", "--axis", "=1"], "--axis: found '=1', expected NAME=VALUE such as lr=0.1,0.01"),
        (["--command", "x", "--axis", "a="], "--axis: an empty value in a=, expected values such as a=1,2,3"),
        (["--command", "x", "--axis", "a=1,,2"], "--axis: an empty value in a=1,,2, expected values such as a=1,2,3"),
        (
            ["--command", "x", "--axis", "a=1", "--axis", "a=2"],
            "--axis: a is given twice; write all values in one, with commas",
        ),
        (
            ["--command", "x", "--axis", "a=1,2,1"],
            "--axis a: found '1' a second time (first in [0]), expected different values; remove it",
        ),
        (
            ["--command", "x", "--axis", "a=1..3,7"],
            "--axis a: found the range '1..3' within a list, expected it alone, without brackets: 1..3",
        ),
        (
            ["--command", "x", "--axis", "a=3..1"],
            "--axis a: found the range '3..1', expected the smaller end first, 1..3",
        ),
        (
            ["--command", "x", "--axis", "run=1,2"],
            "--axis run: found an axis 'run', which every cell has of itself; use `runs` for repetition",
        ),
        (["--command", "x", "--env", "A"], "--env: found 'A', expected NAME=VALUE such as OMP_NUM_THREADS=1"),
        (["--command", "x", "--env", "A=1", "--env", "A=2"], "--env: A is given twice"),
        (
            ["--command", "x", "--env", "A=b}"],
            "--env A: the brace } in 'b}' closes nothing; write }} for a brace that is meant",
        ),
        (
            ["--command", "x", "--memory", "8G"],
            "--memory: found '8G', expected a size from 1MiB to 64TiB such as 512MiB, 1.5GB or 2GiB, or null for none",
        ),
        (
            ["--command", "x", "--timeout", "soon"],
            "--timeout: found 'soon', expected a time from 1 second to 366 days such as 90, 90s, 15m or 2h, "
            "or null for none",
        ),
        (
            ["--command", "x", "--grace", "2h"],
            "--grace: found '2h', expected a time from 0 seconds to 1 hour such as 10, 30s or 2m",
        ),
        (
            ["--command", "x", "--keep", "/x"],
            "--keep: found '/x', expected a path or glob below the working folder such as out/*.png",
        ),
        (["--command", "x", "--threads", "5000"], "--threads: found 5000, expected a whole number from 1 to 1024"),
        (["--command", "x", "--runs", "100001"], "--runs: found 100001, expected a whole number from 1 to 100000"),
        (["--command", "x", "--cwd", "/nowhere"], "--cwd: no folder /nowhere, expected one that is there, or scratch"),
        (
            ["--command", "x", "--name", "../x"],
            "--name: found '../x', expected a name of at most 48 letters, digits, '.', '_' or '-', "
            "the first a letter or digit",
        ),
    ],
)
def test_what_is_no_grid_is_one_line(words: list[str], message: str) -> None:
    assert refused(*words) == message


def test_options_that_count_are_checked_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        args("--command", "x", "--threads", "many")
    assert caught.value.code == 2
    assert "--threads: a whole number from 1 on is expected" in capsys.readouterr().err

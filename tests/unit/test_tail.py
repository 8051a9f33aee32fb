"""`overnight tail` over files that are moved away, emptied, cut: a pause is a step of the test's, nothing sleeps."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from overnight.cells.command_streams import Log
from overnight.cli import tail
from overnight.cli.main import main
from overnight.queue.store import Queue

Step = Callable[[], object]
Follow = Callable[..., list[str]]


@pytest.fixture
def follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """follow(step, step, ...): the lines that `tail -f` prints when each pause is a step, and the last one the end."""

    def follow(*steps: Step, turns: int | None = None) -> list[str]:
        left = list(steps)
        monkeypatch.setattr(tail, "time", SimpleNamespace(sleep=lambda _: left.pop(0)()))
        args = argparse.Namespace(follow=True, turns=turns)
        tail._tail(tmp_path / "stdout.log", args, tail._Lines(), lambda: not left)
        return capsys.readouterr().out.splitlines()

    return follow


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "stdout.log", limit_bytes=40)


def numbered(log: Log, *numbers: int) -> Step:
    def write() -> None:
        for number in numbers:
            log.append(b"%09d\n" % number)

    return write


def test_lines_go_on_after_a_rotation(follow: Follow, log: Log, tmp_path: Path) -> None:
    said = follow(numbered(log, 1, 2), numbered(log, 3, 4, 5), numbered(log, 6))
    assert (tmp_path / "stdout.log.1").exists()
    assert [int(line) for line in said] == [1, 2, 3, 4, 5, 6]


def test_a_log_that_was_rotated_more_than_once_between_two_looks_is_read_whole(follow: Follow, log: Log) -> None:
    said = follow(numbered(log, 1), numbered(log, *range(2, 11)), numbered(log, 11))
    assert [int(line) for line in said] == list(range(1, 12))


def test_what_is_lost_altogether_is_passed_over(follow: Follow, log: Log) -> None:
    said = [int(line) for line in follow(numbered(log, 1), numbered(log, *range(2, 31)))]
    assert said == [1, 2, 3, 4, *range(21, 31)], "of the others no log is left"


def test_a_line_that_a_rotation_cuts_is_one_line(follow: Follow, log: Log) -> None:
    def write() -> None:
        log.append(b"0123456789" * 3 + b"\nhalf")
        log.append(b" a line\nlast")

    assert follow(write, lambda: None) == ["0123456789" * 3, "half a line", "last"]


def test_a_file_that_was_emptied_is_read_from_its_beginning(follow: Follow, tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    assert follow(
        lambda: path.write_text("a first line\nand another\n"),
        lambda: path.write_text("anew\n"),
        lambda: None,
    ) == ["a first line", "and another", "anew"]


def test_a_line_that_is_not_whole_is_waited_for(follow: Follow, tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"

    def more() -> None:
        with path.open("a") as stream:
            stream.write("re\n")

    assert follow(lambda: path.write_text("one\nmo"), more) == ["one", "more"]


def test_a_folder_that_was_moved_aside_and_made_anew(follow: Follow, tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    path.write_text("old\n")
    assert follow(lambda: path.rename(tmp_path / "aside"), lambda: path.write_text("new\n")) == ["old", "new"]


def test_the_last_lines_come_first(follow: Follow, log: Log) -> None:
    numbered(log, 1, 2, 3)()
    assert [int(line) for line in follow(numbered(log, 4, 5), turns=1)] == [3, 4, 5]


# -- the command ----------------------------------------------------------------------------------------------


def test_stderr_of_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert main([*home, "submit", "--command", "train", "--name", "g"]) == 0
    folder = tmp_path / "var/results/g/command"
    folder.mkdir(parents=True)
    (folder / "stdout.log").write_text("printed\n")
    capsys.readouterr()
    assert main([*home, "tail", "command", "--stderr"]) == 2
    assert capsys.readouterr().err == "overnight: g/command is pending and has no stderr.log yet; -f waits for it\n"
    (folder / "stderr.log").write_text("went wrong\n")
    assert main([*home, "tail", "command", "--stderr"]) == 0
    assert main([*home, "tail", "command"]) == 0
    assert capsys.readouterr().out == "went wrong\nprinted\n"


def test_stderr_of_an_idle_loop_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    grid = tmp_path / "night.yaml"
    grid.write_text("name: night\nmodels: [{name: script, engine: scripted, source: scripted}]\nscaffolds: [1]\n")
    assert main([*home, "submit", str(grid)]) == 0
    with Queue.open(tmp_path / "var/queue.db") as queue:
        (cell,) = queue.cells()
    assert main([*home, "tail", cell.key, "--stderr"]) == 2
    said = capsys.readouterr().err
    assert said == f"overnight: --stderr is for commands, and night/{cell.key} is an idle loop; leave it out\n"

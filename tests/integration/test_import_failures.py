"""Imports that are interrupted, refused by the disk, or meet results that are not theirs: what the queue has got is on
disk, and nothing else is changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import older_night
from helpers.import_cli import Cli
from overnight import durable
from overnight.analysis import taking_in
from overnight.analysis import upstream as older
from overnight.cli.common import Aside
from overnight.errors import QueueError, UserError
from overnight.paths import IMPORTED
from overnight.queue import importing
from overnight.queue.store import Queue


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    before = os.umask(0o077)  # as the command has it
    yield Cli(tmp_path / "h", capsys)
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return older_night.night(tmp_path / "old")


def test_a_file_that_changes_while_it_is_taken_in(cli: Cli, folder: Path) -> None:
    paths = cli.paths.ensure()
    night = older.read(folder)
    older_night.conversation(folder, "values_only", "4b_think", 1, words="something else")
    with Queue.open(paths.queue) as queue:
        with pytest.raises(UserError, match="written meanwhile"):
            taking_in.take_in(paths, queue, night, "old", aside=Aside(paths, "old"))
        assert queue.cells() == []
    assert list(paths.results.iterdir()) == []


def many(folder: Path, words: str) -> Path:
    """More cells than the queue takes in at once."""
    for run in range(1, importing.BATCH + 6):
        older_night.conversation(folder, run=run, words=words)
    return folder


def test_an_interrupt_behind_the_commit_takes_nothing_away(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Queue.take_in

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        whole(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Queue, "take_in", interrupted)
        paths = cli.paths.ensure()
        with Queue.open(paths.queue) as queue:
            taking_in.take_in(paths, queue, older.read(folder), "old", aside=Aside(paths, "old"))
    assert len(cli.statuses()) == 7
    cli("verify", "--deep")
    assert cli("import", folder).startswith("old: 0 cells added, 7 there already\n")


@pytest.mark.parametrize("first", [True, False])
def test_an_interrupt_between_batches_keeps_those_before(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    """New cells, and such that replace others: what the queue has got is on disk, all else as it was."""
    folder = many(tmp_path / "old", "at first")
    paths = cli.paths.ensure()
    if not first:
        cli("import", folder)
        many(folder, "something else")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, Queue.open(paths.queue) as queue, pytest.raises(KeyboardInterrupt):
        patch.setattr(importing.time, "sleep", interrupt)
        taking_in.take_in(paths, queue, older.read(folder), "old", replace=True, aside=Aside(paths, "old"))
    assert len(cli.statuses()) == importing.BATCH + (0 if first else 5)
    cli("verify", "--deep")
    told = cli("import", folder, "--replace")
    assert f"{importing.BATCH} there already" in told
    assert ("5 cells added" if first else "5 replaced; 5 old results moved") in told
    cli("verify", "--deep")


def test_old_results_that_no_row_knows_are_kept(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("import", folder)
    kept = cli.paths.cell_results("old", "baseline_8b_think_run1") / IMPORTED
    old = kept.read_bytes()
    for path in cli.paths.queue.parent.glob("queue.db*"):
        path.unlink()
    changed = older_night.conversation(folder, run=1, words="something else")
    cli("status")

    def refuse(*_: Any, **__: Any) -> None:
        raise QueueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "take_in", refuse)
        cli("import", folder, code=2)
    assert kept.read_bytes() == old
    assert not (cli.paths.grid_results("old") / ".aside").exists()
    assert "7 cells added, 0 there already; 1 old results moved to" in cli("import", folder)
    assert kept.read_bytes() == changed.read_bytes()
    (aside,) = cli.paths.grid_results("old").glob(f".aside/*/{kept.parent.name}/{IMPORTED}")
    assert aside.read_bytes() == old


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_replacement_that_fails_leaves_all_as_it_was(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    cli("import", folder)
    for run in (1, 2):
        older_night.conversation(folder, run=run, words="something else")
    older_night.conversation(folder, run=9)
    before = cli.state()

    class Failing(durable.Calls):
        """The disk refuses one rename."""

        renames = 0

        def replace(self, source: Path, target: Path) -> None:
            self.renames += 1
            if self.renames == failing:
                raise OSError(errno.EIO, "Input/output error", str(target))
            super().replace(source, target)

    calls = Failing()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "calls", calls)
        cli("import", folder, "--replace", code=0 if failing > 5 else 2)
    if failing <= 5:  # three conversations are written, and two folders renamed
        assert "Input/output error; nothing was imported" in cli.error
        assert cli.state() == before
        assert "2 replaced; 2 old results moved to" in cli("import", folder, "--replace")
    cli("verify", "--deep")
    assert not list(cli.paths.grid_results("old").glob(".aside/*-new"))


def test_what_cannot_be_moved_back_is_told_of(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("import", folder)
    older_night.conversation(folder, run=1, words="something else")

    class Failing(durable.Calls):
        def replace(self, source: Path, target: Path) -> None:
            if source.is_dir():
                raise OSError(errno.EIO, "Input/output error", str(target))
            super().replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "calls", Failing())
        cli("import", folder, "--replace", code=2)
    assert "the old results of 1 cell are in " in cli.error
    assert "the same command again mends it" in cli.error
    cli("import", folder, "--replace")
    cli("verify", "--deep")

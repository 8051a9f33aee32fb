"""A disk that is read-only, after an orderly end: what looks still looks, what would write says why it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import small_home
from helpers.home import Home
from helpers.small_disk import SmallDisk
from overnight.queue.errors import QueueUnavailable
from overnight.queue.states import Status
from overnight.queue.store import Queue

pytestmark = pytest.mark.root

KEY = "night/baseline_script_run1"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk") as found:
        yield found


@pytest.fixture
def home(disk: SmallDisk) -> Iterator[Home]:
    home = Home(small_home.build(disk.point / "h").home)
    yield home
    home.end()


def test_what_looks_still_looks(home: Home, disk: SmallDisk, tmp_path: Path) -> None:
    before = home("status").stdout
    disk.read_only(True)
    assert not home.paths.queue.with_name("queue.db-wal").exists()
    assert home("status").stdout == before
    assert KEY.partition("/")[2] in home("cells", "night").stdout
    assert "done" in home("show", KEY).stdout
    assert "0 with a problem" in home("verify").stdout
    assert "0 problems" in home("verify", "--deep").stdout
    home("backup", str(tmp_path / "b.tar.gz"))
    assert "the backup is whole" in home("restore", "--check", str(tmp_path / "b.tar.gz")).stdout


def test_what_would_write_says_why_it_does_not(home: Home, disk: SmallDisk) -> None:
    disk.read_only(True)
    for args in (("cancel", "--grid", "night"), ("retry", "--grid", "night"), ("reset", "sweep")):
        said = home(*args, code=2).stderr
        assert said.count("\n") == 1
        assert "queue.db: its disk is read-only: " in said
    disk.read_only(False)
    home("cancel", "--grid", "night")


def test_a_disk_that_can_be_written_again_meanwhile(home: Home, disk: SmallDisk) -> None:
    """Others may write now: nobody reads on as if they did not."""
    disk.read_only(True)
    with Queue.open(home.paths.queue) as queue:
        (cell,) = queue.find_cell("x3")
        with pytest.raises(QueueUnavailable, match="its disk is read-only"):
            queue.cancel([cell.id])
        disk.read_only(False)
        with Queue.open(home.paths.queue) as other:
            other.cancel([cell.id])
        assert queue.cell(cell.id).status is Status.CANCELLED
        queue.retry([cell.id])
        assert queue.cell(cell.id).status is Status.PENDING

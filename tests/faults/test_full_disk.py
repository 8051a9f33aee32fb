"""A disk that is really full, a small tmpfs: cells stop cleanly, stay whole and go on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.home import Home
from helpers.waiting import until
from overnight.cells import transcript

pytestmark = pytest.mark.root

SIZE = 12 * 2**20


def mount(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)


@pytest.fixture(params=["results", "var"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Home, Path]]:
    """A home whose results, or whose whole var/ (with the queue and the logs), lie on a disk of 12 MiB."""
    folder = tmp_path / "h" / "var" / ("results" if request.param == "results" else "")
    mount(folder)
    home = Home(tmp_path / "h")
    try:
        yield home, folder
    finally:
        home.end()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as stream:
        size = 2**16
        while size:
            try:
                stream.write(b"x" * size)
            except OSError:
                size //= 4
    free = os.statvfs(folder)
    assert free.f_bavail == 0
    return ballast


def test_full_disk_while_turns_are_written(small: tuple[Home, Path], tmp_path: Path) -> None:
    home, folder = small
    grid = {"limits": {"max_iterations": 60}, "options": {"delay_s": 0.03, "reply_tokens": 29}}
    quiet = Home(tmp_path / "quiet")
    try:
        quiet.submit(**grid)
        quiet.start()
        quiet.wait_done()
        whole = quiet.transcripts()
    finally:
        quiet.end()

    home.submit(**grid)
    daemon = home.start()
    until(lambda: len(home.transcripts()) == 2 and all(data.count(b"\n") > 5 for data in home.transcripts().values()))
    ballast = fill(folder)
    until(lambda: not home.registered("cell"), what="every cell has stopped")
    for key, data in home.transcripts().items():
        path = home.paths.transcript("night", key)
        seen = transcript.check(path)
        assert seen.fault is None, (key, seen.fault)
        assert whole[key].startswith(data)
    assert daemon.poll() is None, "the daemon outlives a full disk"
    if folder == home.paths.results:
        # The queue has room: it knows why.
        until(lambda: any(cell["reason_code"] == "no_space" for cell in home.cells()))
        assert {cell["tries_used"] for cell in home.cells()} == {0}
    ballast.unlink()
    home.wait_done()
    assert home.transcripts() == whole
    assert "0 with a problem" in home("verify").stdout


def test_daemon_that_starts_on_a_full_disk_waits_for_room(small: tuple[Home, Path]) -> None:
    home, folder = small
    home.submit()
    ballast = fill(folder)
    daemon = home.start()
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(3)  # it neither dies nor is restarted for ever
    ballast.unlink()
    home.wait_done()

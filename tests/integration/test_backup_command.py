"""`overnight backup` and `overnight restore` as people use them: beside a daemon that works, and that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.home import Home
from helpers.waiting import until

COMMAND = r"""
n=$(cat "$OVERNIGHT_CHECKPOINT_DIR/n" 2>/dev/null || echo 0)
while [ "$n" -lt 6 ]; do sleep 0.05; n=$((n + 1)); echo "$n" > "$OVERNIGHT_CHECKPOINT_DIR/n"; done
echo "$n" > out.txt; ln -s out.txt link; echo '{{"n": '"$n"'}}'
"""


def submit(home: Home) -> None:
    home.submit("night", scaffolds=[1, 2, 3], limits={"max_iterations": 10})
    home("submit", "--command", COMMAND, "--shell", "--name", "sums", "--axis", "k=1..3", "--cwd", "scratch",
         "--keep", "out.txt")  # fmt: skip


def outcome(home: Home) -> dict[str, bytes]:
    """Every transcript, result and kept file."""
    wanted = {"transcript.jsonl", "result.json", "out.txt"}
    found = (path for path in home.paths.results.glob("[!.]*/[!.]*/**/*") if path.name in wanted)
    return {str(path.relative_to(home.paths.results)): path.read_bytes() for path in found if "/work/" not in str(path)}


def restored(archive: Path, folder: Path) -> Home:
    done = subprocess.run(
        [sys.executable, "-m", "overnight", "--home", str(folder), "restore", str(archive)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"restored to {folder}" in done.stdout
    return Home(folder)


def test_backups_beside_a_daemon_that_works_and_is_killed(home: Home, tmp_path: Path) -> None:
    """Each is whole; some are restored, and their daemons bring everything to the bytes that the first one has."""
    submit(home)
    taken: list[Path] = []

    def backup() -> None:
        taken.append(tmp_path / f"b{len(taken)}.tar.gz")
        home("backup", str(taken[-1]))

    home.start()
    backup()
    until(lambda: len(home.transcripts()) >= 2)
    backup()
    home.kill()
    backup()
    home.start()
    until(lambda: home.statuses()["done"] >= 2)
    backup()
    home.kill()
    home.start()
    home.wait_done()
    backup()
    home.stop()
    expected = outcome(home)
    assert len(expected) == 12
    home("reset", "sums")
    backup()
    for number, archive in enumerate(taken):
        assert "the backup is whole" in home("restore", "--check", str(archive)).stdout
        if number in (1, 3, 5):
            again = restored(archive, tmp_path / f"r{number}")
            try:
                again("verify")
                again.start()
                again.wait_done()
                again("verify")
                if number == 5:
                    assert list(again.paths.results.glob("sums/.aside/*/*/result.json"))
                assert outcome(again) == expected
            finally:
                again.end()


def test_by_standard_output_and_input(home: Home, tmp_path: Path) -> None:
    home.submit()
    home.start()
    home.wait_done()
    home.stop()
    run: Any = {"check": True, "capture_output": True}
    base = [sys.executable, "-m", "overnight", "--home"]
    made = subprocess.run([*base, str(home.paths.home), "backup", "-", "--logs"], **run)
    assert made.stderr.startswith(b"standard output: 2 cells of 1 grids, ")
    back = subprocess.run([*base, str(tmp_path / "r"), "restore", "-"], input=made.stdout, **run)
    assert b"1 grids (2 done)" in back.stdout
    again = Home(tmp_path / "r")
    assert again.transcripts() == home.transcripts()
    assert again.log("daemon_started")
    assert "2 cells checked, 0 with a problem" in again("verify").stdout


def test_refusals_are_one_line(home: Home, tmp_path: Path) -> None:
    home.submit()
    for args, said in (
        (("backup", str(tmp_path / "b.zip")), "a name that ends with .tar"),
        (("backup", str(home.paths.results / "b.tar")), "inside of what is to be backed up"),
        (("restore", str(tmp_path / "missing.tar")), "No such file"),
        (("restore", "--check", str(home.paths.config)), "damaged or cut off"),
        (("restore", "--check", str(tmp_path)), "a folder; a file that"),
    ):
        done = home(*args, code=2)
        assert said in done.stderr, done.stderr
        assert done.stderr.startswith("overnight: ")
        assert done.stderr.count("\n") == 1
    home("backup", str(tmp_path / "b.tar"))
    assert "is there already" in home("backup", str(tmp_path / "b.tar"), code=2).stderr
    assert "is there already" in home("restore", str(tmp_path / "b.tar"), code=2).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_that_is_asked_to_end_leaves_nothing(home: Home, tmp_path: Path, number: signal.Signals) -> None:
    """A timer's time is over: as Ctrl-C."""
    home.submit()
    with (home.paths.log / "large").open("wb") as file:
        file.truncate(2**34)
    folder = tmp_path / "backups"
    folder.mkdir()
    args = [sys.executable, "-m", "overnight", "--home", home.paths.home, "backup", "--logs", folder / "b.tar.gz"]
    with subprocess.Popen(args, stderr=subprocess.PIPE) as process:
        until(lambda: any(path.stat().st_size for path in folder.glob(".b.tar.gz.*.queue.tmp")))
        until(lambda: len(list(folder.iterdir())) == 2)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 128 + number
    assert list(folder.iterdir()) == []


@pytest.mark.root
def test_a_disk_that_is_full_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """A really full one: neither a half backup nor a half home."""
    home.submit()
    home("backup", str(tmp_path / "b.tar"))
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        done = home("backup", str(disk / "b.tar"), code=2)
        assert done.stderr.count("\n") == 1
        assert "room" in done.stderr or "No space left" in done.stderr
        assert list(disk.iterdir()) == []
        base = [sys.executable, "-m", "overnight", "--home", str(disk / "r")]
        back = subprocess.run([*base, "restore", str(tmp_path / "b.tar")], capture_output=True, text=True, check=False)
        assert (back.returncode, back.stderr.count("\n")) == (2, 1)
        assert "No space left" in back.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)

"""After a night under a umask of 000, in folders that stood open: nothing of a home is anybody else's."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from helpers.home import Home, environment
from helpers.waiting import until
from overnight.paths import Paths
from overnight.queue.store import Queue

OF_THE_COMMAND = {"result.user.json"}
"""Written by the command itself, under the umask of its user."""


def open_to_others(folder: Path) -> list[str]:
    found = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        seen = path.lstat()
        mode = stat.S_IMODE(seen.st_mode)
        allowed = 0o600 if stat.S_ISREG(seen.st_mode) else 0o700
        if not stat.S_ISLNK(seen.st_mode) and mode & ~allowed and path.name not in OF_THE_COMMAND:
            found.append(f"{path.relative_to(folder)} {mode:04o}")
    return found


def test_nothing_is_open_after_a_night_under_umask_000(tmp_path: Path) -> None:
    home = Home(tmp_path / "h", watchdog=True, settings="[memory]\nprior = '32MiB'\n")
    paths, outside = home.paths, tmp_path / "outside"
    outside.mkdir()
    for folder in (paths.run, paths.log, paths.models, paths.results, paths.var):
        folder.chmod(0o777)
    try:
        command = f"echo x > kept.txt; echo y > {outside}/made; echo '{{{{\"a\": 1}}}}' > $OVERNIGHT_RESULT"
        home("submit", "--command", command, "--shell", "--name", "c", "--cwd", "scratch", "--keep", "*.txt", umask=0)
        home("submit", str(home.grid()), umask=0)
        assert open_to_others(paths.var) == []
        home("up", umask=0, env=environment())
        home.wait_done(90)
        until(lambda: paths.grid_state("night").exists(), 20, "grid_state.json")
        socket = paths.supervisor_socket.lstat()
        assert stat.S_ISSOCK(socket.st_mode)
        assert (stat.S_IMODE(socket.st_mode), socket.st_uid) == (0o700, os.geteuid())
        assert stat.S_IMODE(paths.run.stat().st_mode) == 0o700
        while_up = open_to_others(paths.var)
        home("status", "--write-grid-state", "c", umask=0)
        home("reset", "night", umask=0)
        home("down", umask=0)
        assert while_up == []
        assert open_to_others(paths.var) == []
        for name in ("queue.db", "log/daemon.jsonl", "log/watchdog.jsonl", "log/supervisord.log", "run/pressure.json"):
            assert (paths.var / name).is_file(), name
        assert (paths.cell_results("c", "command") / "files" / "kept.txt").is_file()
        assert stat.S_IMODE((outside / "made").stat().st_mode) == 0o666, "elsewhere a command has its user's umask"
    finally:
        home.end()


@pytest.mark.root
def test_somebody_elses_home_is_refused_by_every_command(home: Home) -> None:
    os.chown(home.paths.var, 65534, 65534)
    for command in (["up"], ["submit", str(home.grid())], ["daemon"], ["cancel", "x"], ["models", "add", "x"]):
        said = home(*command, code=2).stderr
        assert said.startswith(f"overnight: {home.paths.var}: it belongs to ")
        assert said.count("\n") == 1


@pytest.mark.root
@pytest.mark.parametrize("unused", [False, True])
def test_root_that_looks_at_somebody_elses_home_makes_no_queue_there(tmp_path: Path, unused: bool) -> None:
    """unused: a checkout's, which a command that works there would take over."""
    home = Home(tmp_path / "h")
    paths = home.paths
    if unused:
        for folder in (
            paths.registry,
            paths.run,
            paths.log,
            paths.models,
            paths.results,
            paths.analysis,
            paths.reports,
        ):
            folder.rmdir()
        (paths.var / ".gitkeep").touch()
    everything = [paths.home, *paths.home.rglob("*")]
    for path in everything:
        os.chown(path, 65534, 65534)
    for command in (["status"], ["cells"], ["show", "x"], ["tail", "x"], ["verify"]):
        assert home(*command, code=2).stderr == (
            f"overnight: {paths.queue}: there is no queue yet: submit a grid first\n"
        )
    home("models", "list")
    home("doctor", code=None)
    assert sorted([paths.home, *paths.home.rglob("*")]) == sorted(everything)
    assert {path.stat().st_uid for path in everything} == {65534}


@pytest.mark.root
def test_root_that_looks_makes_no_home_in_somebody_elses_folder(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    home.paths = Paths.of(theirs)
    for command in (["status"], ["cells"], ["verify"], ["models", "list"], ["doctor"], ["submit", "x"]):
        said = home(*command, code=2).stderr
        assert f"{theirs} belongs to nobody (uid 65534)" in said
        assert said.count("\n") == 1
    assert list(theirs.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("works", [False, True], ids=["closed", "in use"])
def test_root_may_look_at_somebody_elses_home_and_leaves_it_as_it_is(home: Home, works: bool) -> None:
    home.submit(options={"delay_s": 0})
    home.start()
    home.wait_done()
    assert home.stop() == 0
    paths = home.paths
    for path in [paths.home, *paths.home.rglob("*")]:
        os.lchown(path, 65534, 65534)
    paths.var.chmod(0o750)

    def owners() -> dict[str, tuple[int, int, int]]:
        found = {path: path.lstat() for path in [paths.home, *sorted(paths.home.rglob("*"))]}
        return {str(path): (seen.st_uid, seen.st_gid, seen.st_mode) for path, seen in found.items()}

    key = "baseline_script_run1"
    with Queue.open(paths.queue) if works else nullcontext():
        before = owners()
        assert {owner[:2] for owner in before.values()} == {(65534, 65534)}, "SQLite's log, too"
        for command in (
            *(["status"], ["status", "--json"], ["cells"], ["show", key], ["tail", key], ["tail", "-f", key]),
            *(["verify"], ["verify", "--deep"], ["models", "list"], ["doctor"]),
        ):
            # That var/ is open to others, --deep and doctor do tell.
            done = home(*command, code=None)
            assert done.returncode == 0 or command[-1] in ("--deep", "doctor"), done.stderr
            assert "it belongs to" not in done.stderr
            assert owners() == before, command
        for command in (["status", "--write-grid-state", "night"], ["cancel", key], ["up"], ["daemon"], ["repair"]):
            assert "it belongs to nobody (uid 65534), and this is run by root" in home(*command, code=2).stderr
            assert owners() == before, command

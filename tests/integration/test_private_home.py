"""After a night under a umask of 000, in folders that stood open: nothing of a home is anybody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from helpers.home import Home, environment
from helpers.waiting import until

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
    for command in (["status"], ["cells"], ["up"], ["submit", str(home.grid())], ["daemon"], ["models", "list"]):
        said = home(*command, code=2).stderr
        assert said.startswith(f"overnight: {home.paths.var}: it belongs to ")
        assert said.count("\n") == 1

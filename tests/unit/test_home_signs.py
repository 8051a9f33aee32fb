"""Whose `var/` is it? One of a machine, or of another program, is neither shut off nor filled."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from overnight.cli.main import main
from overnight.errors import ConfigError
from overnight.paths import Paths


def lay_out(home: Path, *names: str) -> None:
    """Folders (a name that ends in /) and files, all of them open to others."""
    for name in names:
        path = home / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    for path in home.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def seen(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mode for path in [folder, *sorted(folder.rglob("*"))]}


MACHINES = (
    *("var/log/syslog", "var/lib/dpkg/status", "var/cache/apt/", "var/run/sshd.pid", "var/tmp/", "var/spool/cron/"),
    *("etc/passwd", "usr/bin/"),
)


@pytest.mark.parametrize(
    "names",
    [
        MACHINES,
        ("var/log/syslog", "var/lib/dpkg/", "var/cache/", "var/run/"),
        ("var/log/", "var/cache/"),  # Symfony's
        ("var/log/app.log",),
        ("var/run/app.pid", "var/log/app.log"),
        ("var/run/cells/", "var/run/app.pid"),
        ("var/models/large.bin",),
        ("var/results/summary.csv",),
        ("var/.gitkeep", "var/data.db"),
        ("var/run", "var/log/"),
        ("var/run/cells/", "var/run/watchdog.lock", "var/log/watchdog.jsonl", "var/data.db"),  # a watchdog was there
    ],
)
@pytest.mark.parametrize("command", [["status"], ["doctor"], ["repair"], ["restore", "/dev/null"]])
def test_what_is_not_overnights_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], command: list[str]
) -> None:
    home = tmp_path / "root"
    lay_out(home, *names)
    before = seen(home)
    assert main(["--home", str(home), *command]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    held = sorted({name.split("/")[1] for name in names if name.startswith("var/")} - {".gitkeep"})
    assert said.startswith(f"overnight: {home}/var: it holds {', '.join(held[:5])} and ")
    assert "--home DIR" in said
    assert seen(home) == before


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("var/",),
        ("var/.gitkeep",),
        ("var/lost+found/",),
        ("var/run/",),  # a first command was killed here, and so on
        ("var/run/cells/",),
        ("var/run/cells/", "var/log/"),
        ("var/run/cells/", "var/log/", "var/models/"),
        ("var/run/daemon.lock",),  # a restore was killed here
        ("var/run/watchdog.lock", "var/run/cells/9.json", "var/log/watchdog.jsonl"),  # the watchdog was first
        ("var/queue.db", "var/anything"),
        ("var/log/daemon.jsonl", "var/models/", "var/results/", "var/prove/"),
        ("var/models/smol--float32/model.json",),  # brought here from another home, and so on
        ("var/results/night/a_run1/transcript.jsonl",),
        ("var/results/night/a_run1/result.json", "var/other"),
        ("var/results/lost+found/",),
        ("etc/overnight.toml", "var/anything"),
    ],
)
def test_what_is_overnights_is_used(tmp_path: Path, names: tuple[str, ...]) -> None:
    lay_out(tmp_path / "h", *names)
    paths = Paths.of(tmp_path / "h").ensure()
    assert stat.S_IMODE(paths.var.stat().st_mode) == 0o700


def test_a_refused_var_is_used_when_it_is_said_to_be_ours(tmp_path: Path) -> None:
    """By what the message says."""
    lay_out(tmp_path, "var/data.db")
    with pytest.raises(ConfigError, match=f"make the file {tmp_path}/etc/overnight.toml"):
        Paths.of(tmp_path).ensure()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "overnight.toml").touch()
    Paths.of(tmp_path).ensure()


def test_many_odd_names_are_one_short_line(tmp_path: Path) -> None:
    lay_out(tmp_path, *(f"var/a\n\x1b[31m{number}" for number in range(1000)), f"var/{'n' * 255}")
    with pytest.raises(ConfigError) as caught:
        Paths.of(tmp_path).ensure()
    said = str(caught.value)
    assert "and 996 more" in said
    assert said.isprintable()


@pytest.mark.parametrize("command", [["status"], ["cells"], ["backup", "x.tar.gz"], ["restore", "/dev/null"]])
def test_an_empty_home_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """As of a script whose variable is not set: the working folder would become a home."""
    monkeypatch.chdir(tmp_path)
    assert main(["--home", "", *command]) == 2
    assert capsys.readouterr().err == "overnight: --home is empty; a folder is expected (--home DIR)\n"
    assert os.listdir(tmp_path) == []  # noqa: PTH208

"""What a new home gets of etc/ and grids/: whole or not at all, whatever the disk says."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.small_disk import CannotMount, SmallDisk
from overnight import durable
from overnight.errors import ConfigError
from overnight.paths import Paths, shipped


def sizes(home: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for name in ("etc", "grids") for path in (home / name).glob("*")}


def expected() -> dict[str, int]:
    return {name: size for name, size in sizes(shipped()).items() if "secrets.env" not in name}


class Full(durable.Calls):
    def write(self, fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullAtOpen(durable.Calls):
    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("disk", [Full, FullAtOpen])
def test_a_full_disk_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Callable[[], durable.Calls]
) -> None:
    home = tmp_path / "h"
    with monkeypatch.context() as patch:
        patch.setattr(durable, "calls", disk())
        with pytest.raises(ConfigError) as caught:
            Paths.of(home).ensure()
    said = str(caught.value)
    assert said.startswith(f"{home}/etc/overnight.service: No space left on device; make room there")
    assert list((home / "etc").iterdir()) == []
    Paths.of(home).ensure()
    assert sizes(home) == expected()


@pytest.mark.root
def test_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    try:
        with SmallDisk(tmp_path / "disk", size=2**20) as disk:
            disk.fill()
            home = disk.point / "h"
            command = [sys.executable, "-m", "overnight", "--home", str(home), "status"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert done.stderr.startswith(f"overnight: {home}/")
            assert "No space left on device; make room there" in done.stderr
            assert 0 not in sizes(home).values()
            disk.empty()
            assert subprocess.run(command, capture_output=True, check=False).returncode == 0
            assert sizes(home) == expected()
    except CannotMount as reason:
        pytest.skip(str(reason))


def test_an_empty_file_of_an_older_release_is_put_back(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path).ensure()
    own = paths.grids / "own.yaml"
    for path in (paths.supervisord_conf, paths.config, paths.grids / "minimal.yaml", own):
        path.write_bytes(b"")
        os.utime(path, (time.time() - 60,) * 2)
    paths.config.write_text("# mine\n")
    paths.ensure()
    assert sizes(tmp_path) == expected() | {"overnight.toml": 7, "own.yaml": 0}


def test_a_file_that_an_editor_has_just_emptied_is_left_to_it(tmp_path: Path) -> None:
    """It writes into the file that it has open: another one of that name would swallow what it writes."""
    paths = Paths.of(tmp_path).ensure()
    with paths.config.open("w") as editor:
        paths.ensure()
        editor.write("# mine\n")
    assert paths.config.read_text() == "# mine\n"


def test_a_link_of_the_users_stays_one(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.toml"
    (tmp_path / "h" / "etc").mkdir(parents=True)
    (tmp_path / "h" / "etc" / "overnight.toml").symlink_to(elsewhere)
    paths = Paths.of(tmp_path / "h").ensure()
    assert paths.config.is_symlink()
    assert elsewhere.read_bytes() == (shipped() / "etc" / "overnight.toml").read_bytes()


def test_what_cannot_be_read_of_the_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.paths.shipped", lambda: tmp_path / "nothing")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/nothing/etc: No such file .* comes with Overnight"):
        Paths.of(tmp_path / "h").ensure()

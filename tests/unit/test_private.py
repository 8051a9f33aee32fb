"""Folders of a home: the user's alone, whatever they were before, and nobody else's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from overnight import private
from overnight.errors import ConfigError
from overnight.paths import Paths


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def folders(paths: Paths) -> list[Path]:
    return [paths.var, paths.run, paths.registry, paths.log, paths.models, paths.results]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_home_is_private(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        paths = Paths.of(tmp_path / "h").ensure()
    finally:
        os.umask(before)
    assert {mode(folder) for folder in folders(paths)} == {0o700}


def test_folders_and_their_files_are_shut_that_stood_open(tmp_path: Path) -> None:
    """As git makes var/, and as an older release may have left it."""
    paths = Paths.of(tmp_path)
    for folder in folders(paths):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        (folder / "file").chmod(0o666)
        folder.chmod(0o2777)
    paths.ensure()
    assert {mode(folder) for folder in folders(paths)} == {0o2700}, "what is not about others stays"
    assert {mode(folder / "file") for folder in folders(paths)} == {0o600}


def test_what_is_not_ours_alone_is_left_as_it_is(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o644)
    var = tmp_path / "h" / "var"
    var.mkdir(parents=True, mode=0o755)
    (var / "queue.db").touch()
    (var / "link").symlink_to(outside)
    (var / "hard").hardlink_to(outside)
    Paths.of(tmp_path / "h").ensure()
    assert (mode(var), mode(outside)) == (0o700, 0o644)


def test_what_vanishes_while_it_is_shut_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As registrations and heartbeats of a daemon that works meanwhile."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    for name in ("a", "b", "c"):
        (folder / name).touch(0o644)
    scandir = os.scandir

    def late(path: Path) -> list[os.DirEntry[str]]:
        entries = list(scandir(path))
        (folder / "b").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(private.os, "scandir", late)
    private.make_folder(folder)
    assert [mode(folder / name) for name in ("a", "c")] == [0o600, 0o600]


def test_a_link_to_a_folder_of_ours_will_do(tmp_path: Path) -> None:
    """A larger disk for the results."""
    large = tmp_path / "large"
    large.mkdir(mode=0o755)
    (tmp_path / "h" / "var").mkdir(parents=True)
    (tmp_path / "h" / "var" / "results").symlink_to(large)
    Paths.of(tmp_path / "h").ensure()
    assert mode(large) == 0o700


def test_the_secrets_of_a_checkout_are_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "checkout"
    for name in ("etc", "grids"):
        (source / name).mkdir(parents=True)
    for name in ("overnight.toml", "secrets.env"):
        (source / "etc" / name).write_text("x")
    monkeypatch.setattr("overnight.paths.shipped", lambda: source)
    paths = Paths.of(tmp_path / "h").ensure()
    assert paths.config.exists()
    assert not paths.secrets.exists()


def test_nor_is_an_editors_copy_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = tmp_path / "checkout" / "etc"
    etc.mkdir(parents=True)
    (tmp_path / "checkout" / "grids").mkdir()
    for name in ("overnight.toml", "secrets.env", "secrets.env~", ".secrets.env.swp", "#secrets.env#"):
        (etc / name).write_text(name)
    (etc / "hard").hardlink_to(etc / "secrets.env")
    (etc / "soft").symlink_to("secrets.env")
    (etc / ".#secrets.env").symlink_to("user@machine.1234")  # Emacs' lock
    monkeypatch.setattr("overnight.paths.shipped", lambda: tmp_path / "checkout")
    paths = Paths.of(tmp_path / "h").ensure()
    assert [path.name for path in paths.etc.iterdir()] == ["overnight.toml"]


def test_git_does_not_take_them(repository: Path) -> None:
    assert "/etc/*secrets.env*" in (repository / ".gitignore").read_text().splitlines()


@pytest.mark.root
def test_root_takes_over_a_checkout_that_nobody_has_used(tmp_path: Path) -> None:
    """As in a container, with a checkout mounted that is somebody else's outside."""
    var = tmp_path / "h" / "var"
    var.mkdir(parents=True)
    (var / ".gitkeep").touch()
    os.chown(var, 65534, 65534)
    Paths.of(tmp_path / "h").ensure()
    assert (var.stat().st_uid, mode(var)) == (0, 0o700)
    os.chown(var, 65534, 65534)  # now it has been used
    with pytest.raises(ConfigError, match="it belongs to"):
        Paths.of(tmp_path / "h").ensure()


@pytest.mark.root
@pytest.mark.parametrize("name", ["var", "var/run", "var/run/cells", "var/log", "var/models", "var/results"])
@pytest.mark.parametrize("linked", [False, True])
def test_somebody_elses_folder_is_refused_in_one_line(tmp_path: Path, name: str, linked: bool) -> None:
    paths = Paths.of(tmp_path / "h").ensure()
    folder = paths.home / name
    if linked:
        theirs = tmp_path / "theirs"
        folder.rename(theirs)
        folder.symlink_to(theirs)
        os.chown(theirs, 65534, 65534)
    else:
        os.chown(folder, 65534, 65534)
    with pytest.raises(ConfigError) as caught:
        paths.ensure()
    said = str(caught.value)
    assert said.startswith(f"{folder}: it belongs to ")
    assert "uid 65534" in said
    assert "sudo -u '#65534' overnight" in said
    assert f"chown -R 0 {folder}" in said
    assert "--home DIR" in said
    assert said.isprintable()


@pytest.mark.root
@pytest.mark.parametrize("below", ["", "new", "new/er"])
def test_root_makes_no_home_in_another_users_folder(tmp_path: Path, below: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(private.SomebodyElses) as caught:
        Paths.of(theirs / below).ensure()
    said = str(caught.value)
    assert f"{theirs} belongs to " in said
    assert "sudo -u '#65534' overnight" in said
    assert "--home DIR" in said
    assert list(theirs.iterdir()) == []


@pytest.mark.root
def test_root_uses_its_own_home_in_another_users_folder(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "roots").mkdir(parents=True)
    os.chown(theirs, 65534, 65534)
    assert Paths.of(theirs / "roots").ensure().config.is_file()


@pytest.mark.root
def test_nothing_of_a_taken_over_var_is_roots_in_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    """Its etc/ and grids/ would be, in another user's folder."""
    var = tmp_path / "theirs" / "var"
    var.mkdir(parents=True)
    (var / ".gitkeep").touch()
    for path in (var.parent, var):
        os.chown(path, 65534, 65534)
    with pytest.raises(private.SomebodyElses):
        Paths.of(var.parent).ensure()
    assert [path.name for path in var.parent.iterdir()] == ["var"]
    assert var.stat().st_uid == 65534


@pytest.mark.parametrize(
    ("home", "said"),
    [("", "--home is empty; a folder is expected"), ("~no-such-user-here/h", "no such user's folder")],
)
def test_a_home_that_no_path_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        Paths.of(home)


def test_an_empty_variable_names_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVERNIGHT_HOME", "")
    assert Paths.of().home != tmp_path


def test_a_file_is_no_home(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=f"^{file}: it is a file, and a folder is expected"):
        Paths.of(file).ensure()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="it is a link that leads nowhere, and a folder is expected"):
        Paths.of(tmp_path / "link").ensure()


@pytest.mark.parametrize("what", ["file", "link to nowhere", "link to itself"])
def test_what_is_no_folder_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    var = tmp_path / "var"
    if what == "file":
        var.write_text("x")
    else:
        var.symlink_to("var" if "itself" in what else tmp_path / "none")
    with pytest.raises(ConfigError, match="the home must be a folder that can be written"):
        Paths.of(tmp_path).ensure()


@pytest.mark.parametrize(
    ("umask", "told", "kept"),
    [
        (0o022, None, "022"),
        (0o000, None, "000"),
        (0o077, None, "077"),
        (0o077, "022", "022"),  # supervisord's own is 077, and `up` has noted the user's
        (0o002, "022", "002"),  # a shell of the user's
    ],
)
def test_the_users_umask_is_kept_for_commands(umask: int, told: str | None, kept: str) -> None:
    program = (
        "import os; from overnight import private; private.tighten_umask();"
        "print(os.environ[private.UMASK], f'{os.umask(0):03o}')"
    )
    environ = {name: value for name, value in os.environ.items() if name != private.UMASK}
    environ |= {} if told is None else {private.UMASK: told}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, umask=umask, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [kept, "077"]

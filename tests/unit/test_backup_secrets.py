"""No backup carries a secret: neither etc/secrets.env nor what editors and links make of it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from helpers.worked_home import WorkedHome
from overnight.backup import create

VALUE = b"canary-5f1e0b7c"


def test_copies_and_other_names_of_the_secrets_are_left_out_and_named(tmp_path: Path) -> None:
    home = WorkedHome(tmp_path / "h")
    home.submit(cells=1)
    home.run_all()
    etc, cell = home.paths.etc, home.paths.cell_results("night", "c1")
    (etc / "old").mkdir()
    (etc / "secrets.env.d").mkdir()
    copies = (
        *("secrets.env", "secrets.env~", ".secrets.env.swp", "#secrets.env#", "secrets.env.before-restore"),
        *("old/secrets.env", "secrets.env.d/more"),
    )
    for name in copies:
        (etc / name).write_bytes(b"A_KEY=" + VALUE)
    (etc / ".#secrets.env").symlink_to("user@machine.1234")  # Emacs' lock
    (etc / "hard").hardlink_to(etc / "secrets.env")
    (etc / "soft").symlink_to("secrets.env")
    (etc / "hard_copy").hardlink_to(etc / "secrets.env~")
    (home.paths.grids / "soft.yaml").symlink_to(etc / "secrets.env")
    (cell / "hard").hardlink_to(etc / "secrets.env")
    home.close()
    backup = create.create(home.paths, tmp_path / "b.tar")
    assert VALUE not in (tmp_path / "b.tar").read_bytes()
    assert sorted(backup.told.left_out) == sorted(
        f"{name}: it holds secrets: a backup goes where they shall not"
        for name in (
            *(f"etc/{name}" for name in copies[:-1]),
            *("etc/secrets.env.d", "etc/.#secrets.env", "etc/hard", "etc/soft", "etc/hard_copy"),
            *("grids/soft.yaml", "var/results/night/c1/hard"),
        )
    )
    with tarfile.open(tmp_path / "b.tar") as archive:
        names = archive.getnames()
    assert {"etc/overnight.toml", "etc/old", "var/results/night/c1/transcript.jsonl"} <= set(names)


def test_secrets_kept_elsewhere_behind_a_link(tmp_path: Path) -> None:
    home = WorkedHome(tmp_path / "h")
    home.submit(cells=1)
    home.close()
    (home.paths.etc / "keys").write_bytes(VALUE)
    home.paths.secrets.symlink_to("keys")
    backup = create.create(home.paths, tmp_path / "b.tar")
    assert VALUE not in (tmp_path / "b.tar").read_bytes()
    assert [line.split(":")[0] for line in sorted(backup.told.left_out)] == ["etc/keys", "etc/secrets.env"]

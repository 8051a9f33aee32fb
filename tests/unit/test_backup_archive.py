"""The archive of a backup: hostile members, damage at any byte, what no backup is. All of it in one line."""

from __future__ import annotations

import io
import random
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from helpers.worked_home import WorkedHome
from overnight.backup import create, layout, restore
from overnight.backup.layout import BadBackup
from overnight.backup.reader import Reader, open_archive
from overnight.backup.writer import Writer, packed
from overnight.paths import Paths


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A closed home with two done cells."""
    home = WorkedHome(tmp_path_factory.mktemp("w") / "h")
    home.submit(cells=2)
    home.run_all()
    home.close()
    return home.paths


@pytest.fixture(scope="module")
def whole(worked: Paths, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return b"".join(create.Backup(worked, tmp_path_factory.mktemp("c") / "copy").pieces())


def refused(data: bytes, folder: Path) -> str:
    """The line with which both commands refuse it; nothing is left of the try."""
    said = []
    with pytest.raises(BadBackup) as error:
        restore.check(io.BytesIO(data))
    said.append(str(error.value))
    with pytest.raises(BadBackup) as error:
        restore.restore(io.BytesIO(data), Paths.of(folder))
    said.append(str(error.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert not folder.exists()
    return said[0]


def archive(*members: tuple[tarfile.TarInfo, bytes], about: bool = True) -> bytes:
    """An archive as somebody else could make it, with sums that are right, so that they are no help."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if about:
            data = b'{"v": 1, "schema": 1}'
            info = tarfile.TarInfo(layout.ABOUT)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


CELL = "var/results/g/k"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (member("/etc/passwd", data=b"x"), "leave the home"),
        (member("../up", data=b"x"), "leave the home"),
        (member(f"{CELL}/../../../../up", data=b"x"), "leave the home"),
        (member("etc/./x", data=b"x"), "leave the home"),
        (member("bin/x", data=b"x"), "no backup brings"),
        (member("var/run/daemon.lock", data=b"x"), "no backup brings"),
        (member("etcetera/x", data=b"x"), "no backup brings"),
        (member("var/queue.db", tarfile.DIRTYPE), "is no file"),
        (member("var/queue.db", tarfile.SYMTYPE, "/dev/zero"), "leave the folder of its cell"),
        (member(f"{CELL}/f", tarfile.SYMTYPE, "/etc/passwd"), "leave the folder of its cell"),
        (member(f"{CELL}/f", tarfile.SYMTYPE, "../other/f"), "leave the folder of its cell"),
        (member(f"{CELL}/f", tarfile.SYMTYPE, "a/../../../x"), "leave the folder of its cell"),
        (member(f"{CELL}/a/f", tarfile.SYMTYPE, "b/../.."), "leave the folder of its cell"),
        (member(CELL, tarfile.SYMTYPE, "../h"), "leave the folder of its cell"),
        (member("etc/f", tarfile.SYMTYPE, "g"), "leave the folder of its cell"),
        (member(f"{CELL}/f", tarfile.LNKTYPE, "etc/x"), "no file, folder or link"),
        (member(f"{CELL}/f", tarfile.FIFOTYPE), "no file, folder or link"),
        (member(f"{CELL}/f", tarfile.CHRTYPE), "no file, folder or link"),
        (member(f"{CELL}/f", tarfile.BLKTYPE), "no file, folder or link"),
        (member(f"{CELL}/f", tarfile.GNUTYPE_SPARSE), ""),
    ],
)
def test_hostile_members(tmp_path: Path, what: tuple[tarfile.TarInfo, bytes], said: str) -> None:
    assert said in refused(archive(what), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Each link stays inside; a member behind one, or in the place of one, is refused all the same."""
    link = member(f"{CELL}/d", tarfile.SYMTYPE, "elsewhere")
    with pytest.raises(BadBackup, match="through what is no folder"):
        restore.restore(io.BytesIO(archive(link, member(f"{CELL}/d/f", data=b"x"))), Paths.of(tmp_path / "r"))
    for again in (member(f"{CELL}/d", data=b"x"), member(f"{CELL}/d", tarfile.DIRTYPE), link):
        with pytest.raises(BadBackup, match="twice"):
            restore.restore(io.BytesIO(archive(link, again)), Paths.of(tmp_path / "r"))
    assert list(tmp_path.iterdir()) == []


def test_no_archive_of_ours(tmp_path: Path, worked: Paths) -> None:
    assert "not a backup of Overnight" in refused(archive(member("etc/x", data=b"x"), about=False), tmp_path / "r")
    assert "damaged or cut off" in refused(b"", tmp_path / "r")
    assert "damaged or cut off" in refused(b"SQLite format 3\0" * 99, tmp_path / "r")
    assert "no end" in refused(archive(), tmp_path / "r")


def test_a_newer_schema_or_format_is_refused(tmp_path: Path, whole: bytes) -> None:
    def with_about(text: bytes) -> bytes:
        return archive(member(layout.ABOUT, data=text), member("etc/x"), about=False)

    assert "its schema is 999" in refused(with_about(b'{"v": 1, "schema": 999}'), tmp_path / "r")
    assert "its format is 2" in refused(with_about(b'{"v": 2}'), tmp_path / "r")
    assert "its schema is None" in refused(with_about(b'{"v": 1}'), tmp_path / "r")


@pytest.mark.parametrize(
    "change",
    [
        {"cells": None},
        {"cells": {"done": "many"}},
        {"cells": ...},
        {"models": ...},
        {"models": [{}]},
        {"models": ["m"]},
        {"models": [{"name": 1}]},
        {"models_included": "no"},
        {"grids": -1},
        {"made_at": "a\nb"},
    ],
)
def test_an_archive_that_does_not_say_what_it_should(tmp_path: Path, worked: Paths, change: dict[str, Any]) -> None:
    """With sums that are right: what is printed of it later has to be there."""
    about = {"v": 1, "schema": 1, "made_at": "then", "grids": 1, "cells": {"done": 2}, "models": []}
    merged = {**about, "models_included": False, **change}
    told = {name: value for name, value in merged.items() if value is not ...}
    writer = Writer()
    out = [*writer.json(layout.ABOUT, told, 0.0)]
    queue = worked.queue.read_bytes()
    out += [*writer.file(layout.QUEUE, 0o600, 0.0, len(queue), [queue]), *writer.end({}, 0.0)]
    assert "'overnight-backup/about.json' does not say what it should" in refused(b"".join(out), tmp_path / "r")


def test_a_header_of_impossible_size(tmp_path: Path) -> None:
    """A pax header of a gibibyte, of which nothing is there, and one that leads backwards."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    assert "impossible size" in refused(archive()[:1024] + info.tobuf(), tmp_path / "r")
    info.type, info.size = tarfile.REGTYPE, 0
    backwards = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    backwards[124:136] = b"\xff" * 8 + (2**32 - 4096).to_bytes(4, "big")
    backwards[148:156] = b"%06o\0 " % (sum(backwards[:148]) + sum(backwards[156:]) + 8 * 32)
    refused(archive()[:1024] + bytes(backwards), tmp_path / "r")


def test_a_backup_cut_off_anywhere(tmp_path: Path, whole: bytes) -> None:
    dice = random.Random(5)
    end = len(whole) - 1024
    for size in {0, 1, 511, 512, 1024, end - 1, *(dice.randrange(end) for _ in range(60))}:
        refused(whole[:size], tmp_path / "r")
    assert restore.check(io.BytesIO(whole[:end])).untrue == []  # but the zeros that tar ends with


def test_a_backup_with_a_flipped_bit(tmp_path: Path, whole: bytes) -> None:
    """Found wherever it is, but in bytes that mean nothing: padding, owners, times and modes."""
    dice = random.Random(6)
    found = 0
    for _ in range(150):
        at = dice.randrange(len(whole) - 1024)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << dice.randrange(8)
        try:
            restore.check(io.BytesIO(bytes(damaged)))
        except BadBackup:
            found += 1
        else:
            block = whole[at // 512 * 512 :][:512]
            line = block[block.rfind(b"\n", 0, at % 512) + 1 :].split(b"\n")[0]
            assert (
                block[at % 512 :].strip(b"\0") == b""
                or at % 512 in range(257, 512)
                or block[257:262] == b"ustar"
                or re.fullmatch(rb"\d+ mtime=[\d.]+", line)
            )
    assert found > 100


@pytest.mark.parametrize("suffix", layout.SUFFIXES)
def test_packed_and_damaged(tmp_path: Path, whole: bytes, suffix: str) -> None:
    path = tmp_path / f"b{suffix}"
    data = b"".join(packed([whole], suffix))
    path.write_bytes(data)
    with open_archive(path) as stream:
        assert restore.check(stream).untrue == []
    path.write_bytes(data[:-700] if suffix == ".tar" else data[:-30])
    if suffix != ".tar":
        with open_archive(path) as stream, pytest.raises(BadBackup, match="damaged or cut off"):
            restore.check(stream)
    path.write_bytes(data + b"more")
    with open_archive(path) as stream, pytest.raises(BadBackup):
        restore.check(stream)


def test_sums_come_after_every_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SUMS_EVERY", 3)
    writer = Writer()
    out = [*writer.json(layout.ABOUT, {"v": 1}, 0.0)]
    for number in range(10):
        out += writer.file(f"etc/{number}", 0o600, 0.0, number, [b"x" * number])
    out += writer.end({}, 0.0)
    with tarfile.open(fileobj=io.BytesIO(b"".join(out))) as tar:
        names = tar.getnames()
    assert [name for name in names if "sums" in name] == [layout.sums_name(number) for number in (1, 2, 3, 4)]
    reader = Reader(io.BytesIO(b"".join(out)))
    assert [len(b"".join(pieces)) for _, pieces in reader.members()] == list(range(10))
    assert (reader.count, reader.end["sums"]) == (11, 4)

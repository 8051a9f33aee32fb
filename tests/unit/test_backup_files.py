"""Making and bringing back a backup: odd files, disks that fail or are full, homes that have something to lose."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.worked_home import WorkedHome
from overnight import durable
from overnight.backup import create, files, restore
from overnight.backup.layout import BadBackup
from overnight.backup.reader import open_archive, unpacked
from overnight.backup.truth import Sums
from overnight.backup.writer import packed
from overnight.dispatch.lock import DaemonLock
from overnight.dispatch.recover import forget_half_written
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.store import Queue


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


# -- what is copied ------------------------------------------------------------------------------------------


def test_odd_files_come_back(tmp_path: Path) -> None:
    home = WorkedHome(tmp_path / "h")
    home.submit(cells=1)
    home.run_all()
    folder = home.paths.cell_results("night", "c1")
    odd = {
        b"\xff\xfe name": b"1",
        b"name\nwith lines": b"2",
        ("ü" * 100).encode(): b"",
        b"big": os.urandom(3 << 20),
    }
    for name, data in odd.items():
        (folder / os.fsdecode(name)).write_bytes(data)
    (folder / "deep").mkdir(mode=0o500)
    (folder / "tool").write_bytes(b"#!/bin/sh\n")
    (folder / "tool").chmod(0o4777)
    (folder / "inside").symlink_to("deep")
    (folder / "absolute").symlink_to(folder / "big")
    (folder / "outside").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("../c1/big")
    (folder / ".result.json.77.tmp").write_bytes(b"half")
    os.mkfifo(folder / os.fsdecode(b"pipe\xff"))
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    (home.paths.etc / "linked.toml").symlink_to(home.paths.config)
    home.close()
    backup = create.create(home.paths, tmp_path / "b.tar.gz")
    assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in backup.told.left_out) == [
        "outside",
        os.fsdecode(b"pipe\xff"),
        "socket",
    ]
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    with open_archive(tmp_path / "b.tar.gz") as stream:
        restore.restore(stream, Paths.of(tmp_path / "r"))
    again = Paths.of(tmp_path / "r").cell_results("night", "c1")
    for name, data in odd.items():
        assert (again / os.fsdecode(name)).read_bytes() == data
    assert (again / "inside").readlink() == Path("deep")
    assert (again / "absolute").readlink() == Path("big")
    assert (again / "up").readlink() == Path("../c1/big")
    assert (again / "tool").stat().st_mode & 0o7777 == 0o755
    assert not (again / ".result.json.77.tmp").exists()
    assert (tmp_path / "r" / "etc" / "linked.toml").read_bytes() == home.paths.config.read_bytes()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "r" / "var").glob("*")} == {0}


def test_results_on_another_disk_are_followed(tmp_path: Path) -> None:
    home = WorkedHome(tmp_path / "h")
    home.submit(cells=1)
    home.run_all()
    home.close()
    home.paths.results.rename(tmp_path / "disk")
    home.paths.results.symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "night").rename(tmp_path / "night")
    (tmp_path / "disk" / "night").symlink_to(tmp_path / "night")
    create.create(home.paths, tmp_path / "b.tar")
    with open_archive(tmp_path / "b.tar") as stream:
        assert restore.restore(stream, Paths.of(tmp_path / "r")).untrue == []
    assert Paths.of(tmp_path / "r").result("night", "c1").is_file()


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", 0),
        (b"half", 0),
        (b"a\n", 2),
        (b"a\nhalf", 2),
        (b"a\n" + b"x" * 200_000, 2),
        (b"x" * 200_000 + b"\nb", 200_001),
    ],
)
def test_whole_lines(tmp_path: Path, data: bytes, whole: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(data)
    with path.open("rb") as stream:
        assert files.last_line_end(stream.fileno(), len(data)) == whole


def test_a_file_that_shrinks_or_fails_while_it_is_read(
    worked: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive stays an archive: what is gone is zeros, and that is said."""
    folder = worked.cell_results("night", "c2")
    victims = {"shrinks": b"s" * (3 << 20), "fails": b"f" * (3 << 20), "bad": b"b"}
    for name, data in victims.items():
        (folder / name).write_bytes(data)
    pread = os.pread

    def failing(fd: int, size: int, at: int) -> bytes:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if name == "bad" or (name == "fails" and at > 0):
            raise OSError(errno.EIO, "Input/output error")
        if name == "shrinks" and at > 0:
            (folder / name).write_bytes(b"")
        return pread(fd, size, at)

    monkeypatch.setattr(files.os, "pread", failing)
    try:
        backup = create.create(worked, tmp_path / "b.tar")
    finally:
        monkeypatch.undo()
        for name in victims:
            (folder / name).unlink()
    assert backup.told.changing == 1
    assert backup.told.unread_count == 2
    with open_archive(tmp_path / "b.tar") as stream:
        found = restore.restore(stream, Paths.of(tmp_path / "r"))
    assert len(found.end["unread"]) == 2
    again = Paths.of(tmp_path / "r").cell_results("night", "c2")
    assert (again / "shrinks").read_bytes() == b"s" * (1 << 20) + bytes(2 << 20)
    assert not (again / "bad").exists()


# -- the file that is written --------------------------------------------------------------------------------


def test_where_no_backup_is_written(worked: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.tar").write_bytes(b"old")
    (tmp_path / "link").symlink_to(worked.results)
    for target, said in (
        (tmp_path / "b.zip", "a name that ends with .tar, .tar.gz"),
        (tmp_path / ".tar", "a name that ends with"),
        (tmp_path / "there.tar", "is there already; choose another name, or --replace"),
        (tmp_path / "missing" / "b.tar", "no such folder"),
        (worked.results / "b.tar", "inside of what is to be backed up"),
        (worked.etc / "b.tar", "inside of what is to be backed up"),
        (tmp_path / "link" / "night" / "b.tar", "inside of what is to be backed up"),
    ):
        with pytest.raises(UserError, match=said):
            create.create(worked, target)
    assert (tmp_path / "there.tar").read_bytes() == b"old"
    left = tmp_path / ".there.tar.999999999.tmp"
    left.write_bytes(b"of one that was killed")
    create.create(worked, tmp_path / "there.tar", replace=True)
    assert (tmp_path / "there.tar").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there.tar"]


def test_no_queue_no_backup(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no queue yet"):
        create.create(Paths.of(tmp_path / "h"), tmp_path / "b.tar")
    assert list(tmp_path.iterdir()) == []


class Failing(durable.Calls):
    """The disk fails at one of these calls."""

    def __init__(self, at: int, code: int) -> None:
        self.left, self._code = at, code

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self._code, os.strerror(self._code))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._step()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: memoryview) -> int:
        self._step()
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._step()
        super().fsync(fd)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def mkdir(self, folder: Path) -> None:
        self._step()
        super().mkdir(folder)


def every_call(do: Callable[[], object], monkeypatch: pytest.MonkeyPatch, code: int, step: int = 1) -> Iterator[str]:
    """Do it with each of its calls failing in turn; gives the line that it said."""
    at = 1
    while True:
        disk = Failing(at, code)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "calls", disk)
            try:
                do()
            except UserError as error:
                said = str(error)
            else:
                assert disk.left > 0, f"call {at} failed, and nobody said so"
                return
        yield said
        at += step


def test_a_full_disk_leaves_no_half_backup(worked: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "b.tar"
    said = list(every_call(lambda: create.create(worked, target, replace=True), monkeypatch, errno.ENOSPC))
    assert len(said) >= 4
    # The last call is the sync of the folder: the backup is there then, only its name is not known to be durable.
    assert all("No space left on device; no backup was made" in line for line in said)
    target.unlink()
    for _ in every_call(lambda: create.create(worked, target), monkeypatch, errno.EIO):
        left = [path.name for path in tmp_path.iterdir()]
        assert left in ([], ["b.tar"])
        target.unlink(missing_ok=True)


def test_a_failing_disk_leaves_no_half_home(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails: there is no home afterwards, or one that the next restore takes for unfinished."""
    paths = Paths.of(tmp_path / "r")
    tries = 0

    def bring_back() -> None:
        restore.restore(io.BytesIO(whole), paths)

    for said in every_call(bring_back, monkeypatch, errno.ENOSPC, step=2):
        tries += 1
        assert "No space left on device" in said
        assert not list(paths.home.glob(".overnight-restore-*"))
        if paths.queue.exists():  # the last calls only make durable what is in its place
            assert len(list(paths.results.glob("*/*/result.json"))) == 2
            return
    assert tries > 20


def test_a_home_that_has_something_to_lose(whole: bytes, tmp_path: Path) -> None:
    paths = Paths.of(tmp_path / "r").ensure()
    (paths.results / "mine").mkdir()
    with pytest.raises(UserError, match="holds results"):
        restore.restore(io.BytesIO(whole), paths)
    (paths.results / "mine").rmdir()
    paths.queue.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already"):
        restore.restore(io.BytesIO(whole), paths)
    assert paths.queue.read_bytes() == b"mine"
    paths.queue.unlink()
    paths.config.write_text("# mine\n")
    (paths.results / ".restoring").touch()  # and a restore that was killed just before the queue
    (paths.results / "night").mkdir()
    (paths.results / "night" / "mine").write_text("of a night that came after it, whose queue was lost")
    (paths.home / ".overnight-restore-999999999").mkdir()
    with pytest.raises(BadBackup):
        restore.restore(io.BytesIO(whole[: len(whole) // 2]), paths)
    assert (paths.results / "night" / "mine").exists(), "a bad archive has taken results away"
    found = restore.restore(io.BytesIO(whole), paths)
    aside = paths.var / "results.unfinished-restore"
    assert found.kept == [str(paths.etc / "overnight.toml.before-restore"), str(aside)]
    assert (aside / "night" / "mine").read_text().startswith("of a night")
    assert (paths.etc / "overnight.toml.before-restore").read_text() == "# mine\n"
    assert not paths.restoring.exists()
    assert sorted(path.name for path in paths.results.iterdir()) == ["night"]
    assert not list(paths.home.glob(".overnight-restore-*"))
    with pytest.raises(UserError, match="is there already"):
        restore.restore(io.BytesIO(whole), paths)


def test_a_mark_of_an_old_restore_goes_when_a_daemon_starts(worked: Paths, tmp_path: Path) -> None:
    """Else results that came after it would pass for its leftovers."""
    paths = Paths.of(tmp_path / "r").ensure()
    paths.restoring.touch()
    forget_half_written(paths)
    assert paths.restoring.exists(), "without a queue it is still true"
    shutil.copyfile(worked.queue, paths.queue)
    forget_half_written(paths)
    assert not paths.restoring.exists()


def test_a_queue_without_a_cell_is_nothing_to_lose(whole: bytes, tmp_path: Path) -> None:
    """Whoever looked at a new home, or started a daemon in it, has made one."""
    paths = Paths.of(tmp_path / "r").ensure()
    Queue.open(paths.queue).close()
    with Queue.open(paths.queue), pytest.raises(UserError, match="which cannot be replaced"):
        restore.restore(io.BytesIO(whole), paths)
    assert not list(paths.results.iterdir())
    restore.restore(io.BytesIO(whole), paths)
    with Queue.open(paths.queue, check=True) as queue:
        assert sum(1 for _ in queue.cells("night")) == 2
    assert not list(paths.var.glob("queue.db?*"))


def test_a_queue_that_was_made_meanwhile_is_not_replaced(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit was told that its cells are queued: they are."""
    paths = Paths.of(tmp_path / "r").ensure()

    class Submitting(durable.Calls):
        def link(self, source: Path, target: Path) -> None:
            monkeypatch.setattr(durable, "calls", durable.Calls())
            Queue.open(paths.queue).close()
            super().link(source, target)

    monkeypatch.setattr(durable, "calls", Submitting())
    with pytest.raises(UserError, match="was made while the backup was read"):
        restore.restore(io.BytesIO(whole), paths)
    assert not list(paths.results.iterdir())
    with Queue.open(paths.queue, check=True) as queue:
        assert queue.grids() == []


def test_where_there_are_no_hard_links(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Linkless(durable.Calls):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(durable, "calls", Linkless())
    assert restore.restore(io.BytesIO(whole), Paths.of(tmp_path / "r")).untrue == []


def test_no_room_for_the_sums_is_one_line(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Sums, name: str, sha256: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Sums, "note", full)
    with pytest.raises(UserError, match=r"r: database or disk is full; .*r was not restored"):
        restore.restore(io.BytesIO(whole), Paths.of(tmp_path / "r"))
    with pytest.raises(UserError, match=r"database or disk is full; the archive was not read .*TMPDIR=DIR"):
        restore.check(io.BytesIO(whole))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_a_packed_archive_from_a_pipe(whole: bytes, suffix: str) -> None:
    reading, writing = os.pipe()
    data = b"".join(packed([whole], suffix))
    with ThreadPoolExecutor(1) as pool, open(reading, "rb") as stream:  # noqa: PTH123 - a descriptor
        feeding = pool.submit(lambda: Path(f"/dev/fd/{writing}").write_bytes(data))
        feeding.add_done_callback(lambda _: os.close(writing))
        assert restore.check(unpacked(stream)).untrue == []


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(BadBackup, match="a folder; a file that `overnight backup` made is expected"):
        open_archive(tmp_path)


def test_no_restore_beside_a_daemon(whole: bytes, tmp_path: Path) -> None:
    paths = Paths.of(tmp_path / "r").ensure()
    with DaemonLock(paths.lock), pytest.raises(UserError, match="another daemon runs"):
        restore.restore(io.BytesIO(whole), paths)
    assert not paths.queue.exists()


def test_what_fails_half_way_is_taken_back(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rename or folder fails: the files of the home have their names again, and nothing is beside them."""
    paths = Paths.of(tmp_path / "r").ensure()
    paths.config.write_text("# mine\n")
    paths.restoring.touch()
    (paths.results / "mine").mkdir()

    def listed() -> list[str]:
        return sorted(str(path.relative_to(paths.home)) for path in paths.home.rglob("*"))

    paths.lock.touch()
    before, tries = listed(), 0
    for said in every_call(lambda: restore.restore(io.BytesIO(whole), paths), monkeypatch, errno.EIO):
        tries += 1
        if paths.queue.exists():
            assert "everything is in its place, but the disk did not confirm it" in said
            break
        assert said.endswith(f"{paths.home} was not restored")
        assert listed() == before
        assert paths.config.read_text() == "# mine\n"
    assert tries > 40


def test_files_that_the_queue_does_not_know_are_told(worked: Paths, tmp_path: Path) -> None:
    """A home that was damaged before its backup comes back as it was, and that is said."""
    path = worked.transcript("night", "c1")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\n", 0, -1) + 1])
    worked.transcript("night", "c2").rename(tmp_path / "away")
    try:
        create.create(worked, tmp_path / "b.tar")
    finally:
        path.write_bytes(data)
        (tmp_path / "away").rename(worked.transcript("night", "c2"))
    with open_archive(tmp_path / "b.tar") as stream:
        found = restore.check(stream)
    assert found.untrue == [
        "night/c1: done, but its transcript.jsonl is not the one that was recorded",
        "night/c2: done, but its transcript.jsonl is missing",
    ]

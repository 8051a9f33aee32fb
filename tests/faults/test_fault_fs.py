"""The file system that fails on purpose: what its faults do, and what its power cuts may and may not leave."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from helpers.fault_fs import FaultFs, mounting, why_not

pytestmark = pytest.mark.root

Mounted = Callable[..., FaultFs]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(FaultFs.mounted(tmp_path / "disk", tmp_path / "m", **how))
    assert mounting.device_of(tmp_path / "m") is None, "the mount is gone"


@pytest.fixture
def fs(mounted: Mounted) -> FaultFs:
    return mounted()


def put(path: Path, data: bytes, *, sync: bool = False, flags: int = os.O_TRUNC) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        os.write(fd, data)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def image(fs: FaultFs, keep: str, seed: int = 0, numbers: Iterator[int] = count()) -> dict[str, bytes]:  # noqa: B008
    """A power cut's files by name."""
    target = fs.point.parent / f"image-{next(numbers)}"
    fs.power_cut(target, keep, seed=seed)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-E", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


WRITER = """import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b"one")
os.write(fd, b"two")
"""


# -- a file system like any other -----------------------------------------------------------------------------


def test_it_holds_what_is_put_into_it_and_leaves_it_in_the_backing_folder(fs: FaultFs) -> None:
    m = fs.point
    (m / "a" / "b").mkdir(parents=True)
    put(m / "a" / "b" / "f", b"x" * 300_000)
    (m / "a" / "b" / "f").rename(m / "a" / "g")
    os.truncate(m / "a" / "g", 299_999)
    (m / "a" / "b").rmdir()
    (m / "link").symlink_to("a/g")
    (m / "a" / "g").chmod(0o640)
    assert sorted(path.name for path in m.rglob("*")) == ["a", "g", "link"]
    assert (m / "link").read_bytes() == b"x" * 299_999 == (fs.backing / "a" / "g").read_bytes()
    assert (m / "a" / "g").stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError):
        (m / "a" / "b" / "f").read_bytes()
    with pytest.raises(OSError, match="not empty"):
        (m / "a").rmdir()


def test_a_file_without_a_name_can_still_be_used(fs: FaultFs) -> None:
    with (fs.point / "f").open("w+b", buffering=0) as stream:
        (fs.point / "f").unlink()
        stream.write(b"still here")
        assert os.pread(stream.fileno(), 20, 0) == b"still here"
        assert os.fstat(stream.fileno()).st_size == 10


def test_two_processes_share_a_database_with_its_log(fs: FaultFs) -> None:
    path = fs.point / "q.db"
    program = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)\n"
        "db.execute('PRAGMA synchronous = FULL')\n"
        "for n in range(50): db.execute('INSERT INTO t VALUES (?)', (n,))\n"
    )
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    db.execute("CREATE TABLE t (n)")
    writers = [subprocess.Popen([sys.executable, "-S", "-c", program, str(path)]) for _ in range(2)]
    assert [writer.wait(30) for writer in writers] == [0, 0]
    assert db.execute("SELECT count(*) FROM t").fetchone() == (100,)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_calls_are_traced_with_their_caller(fs: FaultFs) -> None:
    done = python(WRITER + "os.fsync(fd); os.rename(sys.argv[1], sys.argv[1] + '2')", fs.point / "f")
    assert done.returncode == 0, done.stderr
    calls = fs.calls(forget=True)
    assert [(call.kind, call.path, call.offset, call.length) for call in calls] == [
        ("create", "f", 0, 0),
        ("write", "f", 0, 3),
        ("write", "f", 3, 3),
        ("fsync", "f", 0, 0),
        ("rename", "f", 0, 0),
    ]
    assert calls[-1].to == "f2"
    (pid,) = {call.pid for call in calls}
    assert pid not in (0, os.getpid())
    assert fs.calls() == []


def test_nobody_hangs_when_the_server_is_killed(mounted: Mounted, tmp_path: Path) -> None:
    fs = mounted()
    put(fs.point / "f", b"x")
    fs._server.kill()
    with pytest.raises(OSError) as raised:
        put(fs.point / "g", b"x")
    assert raised.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)


# -- faults ---------------------------------------------------------------------------------------------------


def test_the_nth_call_fails_once(fs: FaultFs) -> None:
    fs.fail(2, errno.ENOSPC, ("write",), "f*")
    put(fs.point / "other", b"x")
    put(fs.point / "f1", b"one")
    with pytest.raises(OSError, match="No space left") as raised:
        put(fs.point / "f2", b"two")
    assert raised.value.errno == errno.ENOSPC
    put(fs.point / "f3", b"three")
    assert fs.lift() == 1
    assert [(fs.point / name).read_bytes() for name in ("f1", "f2", "f3")] == [b"one", b"", b"three"]


def test_a_lasting_fault_is_there_until_it_is_lifted(fs: FaultFs) -> None:
    fs.fail(1, errno.EIO, ("fsync", "mkdir"), lasting=True)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            put(fs.point / "f", b"x", sync=True)
        with pytest.raises(OSError, match="Input/output"):
            (fs.point / "d").mkdir()
    assert fs.lift() == 6
    put(fs.point / "f", b"x", sync=True)


def test_a_folder_that_cannot_be_synced(fs: FaultFs) -> None:
    fs.fail(1, errno.EIO, ("fsyncdir",))
    put(fs.point / "f", b"x")
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(fs.point)


def test_a_short_write_says_how_much_it_wrote(fs: FaultFs) -> None:
    fs.shorten(1)
    fd = os.open(fs.point / "f", os.O_RDWR | os.O_CREAT)
    assert os.write(fd, b"0123456789") == 5
    assert os.write(fd, b"x") == 1
    assert os.pread(fd, 20, 0) == b"01234x"
    os.close(fd)


@pytest.mark.parametrize(("when", "left"), [("before", b"one"), ("after", b"onetwo")])
def test_the_caller_is_killed(fs: FaultFs, when: str, left: bytes) -> None:
    fs.kill(2, when, ("write",))
    assert python(WRITER, fs.point / "f").returncode == -signal.SIGKILL
    assert fs.lift() == 1
    assert (fs.point / "f").read_bytes() == left


# -- power ----------------------------------------------------------------------------------------------------


def test_what_was_there_at_the_start_is_durable(mounted: Mounted, tmp_path: Path) -> None:
    (tmp_path / "disk" / "d").mkdir(parents=True)
    put(tmp_path / "disk" / "d" / "f", b"old")
    fs = mounted()
    put(fs.point / "d" / "f", b"new!", flags=0)
    assert image(fs, "none") == {"d/f": b"old"}
    assert image(fs, "all") == {"d/f": b"new!"}


def test_bytes_are_durable_up_to_the_last_fsync(fs: FaultFs) -> None:
    put(fs.point / "f", b"synced;", sync=True)
    put(fs.point / "f", b"lost", flags=os.O_APPEND)
    assert fs.sure_bytes("f") == b"synced;"
    assert image(fs, "none") == {"f": b"synced;"}
    assert image(fs, "all") == {"f": b"synced;lost"}
    for seed in range(50):
        assert image(fs, "some", seed)["f"].startswith(b"synced;"), "what was synced is in every image"


def test_a_file_that_was_never_synced_may_be_missing_empty_or_there(fs: FaultFs) -> None:
    put(fs.point / "f", b"x" * 2000)
    seen = {image(fs, "some", seed).get("f") for seed in range(60)}
    assert {None, b"", b"x" * 2000} <= seen
    torn = seen - {None, b"", b"x" * 2000}
    assert any(data and data.rstrip(b"x").strip(b"\0") == b"" and len(data.rstrip(b"\0")) % 512 == 0 for data in torn)


def test_the_same_seed_gives_the_same_image(fs: FaultFs) -> None:
    for name in "abcdef":
        put(fs.point / name, name.encode() * 3000)
    assert image(fs, "some", 5) == image(fs, "some", 5)
    assert len({tuple(sorted(image(fs, "some", seed).items())) for seed in range(20)}) > 10


def test_an_fsync_of_a_new_file_makes_its_name_durable_but_no_later_one(fs: FaultFs) -> None:
    (fs.point / "d").mkdir()
    put(fs.point / "d" / "f", b"x", sync=True)
    put(fs.point / "later", b"x")
    assert image(fs, "none") == {"d/f": b"x"}


def test_strictly_only_an_fsync_of_the_folder_does(mounted: Mounted) -> None:
    fs = mounted(strict=True)
    (fs.point / "d").mkdir()
    put(fs.point / "d" / "f", b"x", sync=True)
    assert image(fs, "none") == {}
    sync_folder(fs.point / "d")
    assert image(fs, "none") == {}, "the folder itself has no durable name"
    sync_folder(fs.point)
    assert image(fs, "none") == {"d/f": b"x"}


@pytest.mark.parametrize("strict", [False, True])
def test_a_rename_is_durable_after_an_fsync_of_its_folder(mounted: Mounted, strict: bool) -> None:
    fs = mounted(strict=strict)
    put(fs.point / "f", b"old", sync=True)
    sync_folder(fs.point)
    put(fs.point / "new", b"new", sync=True)
    (fs.point / "new").rename(fs.point / "f")
    seen = {image(fs, "some", seed)["f"] for seed in range(20)}
    assert seen == {b"old", b"new"}, "either, and never a mixture"
    sync_folder(fs.point)
    assert image(fs, "none") == {"f": b"new"} == image(fs, "some", 3)


def test_names_arrive_in_order(fs: FaultFs) -> None:
    for number in range(6):
        (fs.point / f"{number}").mkdir()
        put(fs.point / f"{number}" / "f", b"")
    counts = set()
    for seed in range(40):
        found = sorted(image(fs, "some", seed))
        assert found == [f"{number}/f" for number in range(len(found))]
        counts.add(len(found))
    assert counts >= {0, 6}


def test_a_removed_file_may_come_back_until_its_folder_is_synced(fs: FaultFs) -> None:
    put(fs.point / "f", b"x" * 100, sync=True)
    (fs.point / "f").unlink()
    assert image(fs, "none") == {"f": b"x" * 100}
    assert image(fs, "all") == {}
    sync_folder(fs.point)
    assert image(fs, "none") == {}


def test_after_a_failed_fsync_the_bytes_are_lost_whatever_is_synced_later(fs: FaultFs) -> None:
    put(fs.point / "f", b"one;", sync=True)
    fs.fail(1, errno.EIO, ("fsync",))
    with pytest.raises(OSError, match="Input/output"):
        put(fs.point / "f", b"two;", sync=True, flags=os.O_APPEND)
    put(fs.point / "f", b"three;", sync=True, flags=os.O_APPEND)
    assert (fs.point / "f").read_bytes() == b"one;two;three;"
    assert fs.sure_bytes("f") == b"one;\0\0\0\0three;"


def test_paths_can_be_left_out_of_an_image(fs: FaultFs, tmp_path: Path) -> None:
    (fs.point / "run").mkdir()
    put(fs.point / "run" / "pid", b"1", sync=True)
    put(fs.point / "f", b"", sync=True)
    assert fs.power_cut(tmp_path / "i", "all", without=("run/*",)) == 1
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == ["f", "run"]

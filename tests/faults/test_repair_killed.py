"""A repair that is killed before any of its disk calls: nothing is lost, and the next one finishes it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import small_home
from overnight import durable
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair import queue_file, repair
from overnight.repair.deep import Deep
from overnight.repair.originals import Originals


class Killed(BaseException):
    """As SIGKILL: nothing is cleaned up behind it."""


class Deadly(durable.Calls):
    """Ends the process before the disk call number `at`, or has that call fail."""

    def __init__(self, at: int, error: int | None = None) -> None:
        self.at, self.error = at, error
        self.count = 0
        self.dead = False

    def _step(self) -> None:
        self.count += 1
        if self.error is not None and self.count >= self.at:
            raise OSError(self.error, os.strerror(self.error))
        if self.dead or self.count == self.at:
            self.dead = True
            raise Killed

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._step()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: memoryview) -> int:
        self._step()
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._step()

    def ftruncate(self, fd: int, size: int) -> None:
        self._step()
        super().ftruncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        if not self.dead:
            self._step()
            super().unlink(path)

    def mkdir(self, folder: Path) -> None:
        self._step()
        super().mkdir(folder)


@pytest.fixture(scope="module", autouse=True)
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a bit of everything to mend, and a log beside its queue."""
    home = tmp_path_factory.mktemp("damaged") / "h"
    paths = small_home.build(home)
    keeper = Queue.open(paths.queue)
    keeper.counts()
    with Queue.open(paths.queue) as queue, queue._db.write() as db:
        db.execute("UPDATE grid_counts SET n = n + 1 WHERE status = 'done'")
    kept = {suffix: Path(f"{paths.queue}{suffix}").read_bytes() for suffix in ("", "-wal")}
    keeper.close()
    for suffix, data in kept.items():
        Path(f"{paths.queue}{suffix}").write_bytes(data)
    assert len(kept["-wal"]) > 4096
    middle = paths.transcript("night", "baseline_script_run1")
    data = bytearray(middle.read_bytes())
    data[data.index(b'"turn":3') + 7] ^= 1
    middle.write_bytes(data)
    paths.result("night", "baseline_script_run2").unlink()
    with paths.transcript("night", "baseline_script_run5").open("ab") as torn:
        torn.write(b'{"kind":"turn","tu')
    (paths.cell_results("sweep", "x1") / "files" / "kept.txt").write_text("something else")
    (paths.cell_results("night", "baseline_script_run3") / ".result.json.1234.tmp").write_text("half")
    (paths.run / ".daemon.json.1234.tmp").write_text("half")
    return home


def mended(paths: Paths, undisturbed: dict[str, bytes]) -> None:
    """What must hold after a repair that came to its end, and after the cells' end."""
    assert [str(found) for found in Deep(paths, None).findings() if not found.note] == []
    assert not repair.run(paths).mended
    small_home.run(paths)
    assert small_home.results(paths) == undisturbed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    paths = small_home.build(tmp_path_factory.mktemp("undisturbed") / "h")
    small_home.run(paths)
    return small_home.results(paths)


def copied(damaged: Path, folder: Path) -> Paths:
    shutil.copytree(damaged, folder)
    return Paths.of(folder)


def calls_of(damaged: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    counting = Deadly(-1)
    with monkeypatch.context() as patched:
        patched.setattr(durable, "calls", counting)
        repair.run(copied(damaged, folder))
    return counting.count


def test_it_mends_all_of_it(damaged: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    paths = copied(damaged, tmp_path / "h")
    before = small_home.tree(paths.var)
    outcome = repair.run(paths)
    assert outcome.folder is not None
    assert not [step for step in outcome.left if "leave no trace" not in step.what]
    report = json.loads((outcome.folder / "report.json").read_text())
    assert report["state"] == "finished"
    assert len(report["steps"]) == len(outcome.steps) >= 7
    for name, sha256 in small_home.tree(outcome.folder).items():
        assert name == "report.json" or before[name] == sha256, name
    assert small_home.statuses(paths)["night/baseline_script_run1"] is Status.PENDING
    assert not list(paths.var.glob("run/.*.tmp")) + list(paths.results.glob("*/*/.*.tmp"))
    mended(paths, undisturbed)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_call(
    damaged: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    total = calls_of(damaged, tmp_path / "count", monkeypatch)
    assert total > 60
    before = small_home.tree(damaged / "var")
    changed = 0
    for at in range(1, total + 1, every):
        paths = copied(damaged, tmp_path / f"h{at}")
        with monkeypatch.context() as patched:
            patched.setattr(durable, "calls", Deadly(at))
            patched.setattr(Originals, "tidy", lambda self: None)  # whoever is killed tidies nothing
            with pytest.raises(Killed):
                repair.run(paths)
        after = small_home.tree(paths.var, without=lambda path: "repair" in path.parts)
        copies = small_home.tree(paths.var / "repair") if (paths.var / "repair").exists() else {}
        held = {(name.split("/", 1)[-1], sha256) for name, sha256 in copies.items() if not name.startswith(".")}
        for name, sha256 in before.items():
            if after.get(name) != sha256:
                changed += 1
                assert (name, sha256) in held, f"call {at}: {name} was changed without a copy"
        outcome = repair.run(paths)
        assert not [step for step in outcome.left if "leave no trace" not in step.what], f"call {at}"
        mended(paths, undisturbed)
        shutil.rmtree(paths.home)
    assert changed > total / every  # it was killed behind its changes often enough to prove something


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_is_full_while_copying_changes_nothing(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    paths = copied(damaged, tmp_path / "h")
    before = small_home.tree(paths.var)
    for at in range(2, 30, 3):
        with monkeypatch.context() as patched:
            patched.setattr(durable, "calls", Deadly(at, error))
            with pytest.raises(UserError, match="nothing was changed") as caught:
                repair.run(paths)
        assert caught.value.exit_code == 2
        assert os.strerror(error) in str(caught.value)
        now = small_home.tree(paths.var, without=lambda path: "repair" in path.parts)
        assert now == before


def test_killed_in_the_middle_of_the_swap_no_command_opens_it(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call of the swap: what can be opened is whole."""
    seen = set()
    for at in range(1, 20):
        paths = copied(damaged, tmp_path / f"h{at}")
        started = False

        def install(new: Path, queue: Path, at: int = at) -> None:
            nonlocal started
            started = True
            durable.calls = Deadly(at)
            INSTALL(new, queue)

        with monkeypatch.context() as patched:
            patched.setattr(queue_file, "install", install)
            patched.setattr(durable, "calls", durable.calls)
            patched.setattr(Originals, "tidy", lambda self: None)
            try:
                repair.run(paths)
                seen.add("past")
            except Killed:
                pass
        assert started
        try:
            with Queue.open(paths.queue, create=False) as queue:
                sound = not queue.contradictions()
                cells = len(queue.cells())
            assert cells == 9
            seen.add("new" if sound else "old")
        except UserError:
            seen.add("refused")
    assert {"old", "new", "refused"} <= seen


INSTALL = queue_file.install

"""What a backup promises: whatever was happening, the queue in it is true of the files in it, and work goes on from it
to the same bytes."""

from __future__ import annotations

import io
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import queue_worker
from helpers.queue_cells import used_queue
from helpers.queue_checks import assert_sound
from helpers.worked_home import Stop, WorkedHome
from overnight.backup import create, restore, snapshot
from overnight.backup.reader import open_archive
from overnight.cells import idle_loop
from overnight.errors import QueueError, UserError
from overnight.paths import Paths
from overnight.queue.migrate import LATEST
from overnight.queue.states import Status
from overnight.queue.store import Queue

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells collect garbage after each turn. Theirs is little, that of a test session takes a tenth of a second."""
    monkeypatch.setattr(idle_loop.gc, "collect", lambda: 0)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[WorkedHome]:
    found = WorkedHome(tmp_path / "h")
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the files of the grid are in the end."""
    home = WorkedHome(tmp_path_factory.mktemp("undisturbed"))
    home.submit()
    home.run_all()
    home.close()
    return home.files()


def restored(archive: bytes, folder: Path) -> tuple[WorkedHome, restore.Found]:
    found = restore.restore(io.BytesIO(archive), Paths.of(folder))
    assert not list(folder.glob(".overnight-restore-*"))
    assert_sound(folder / "var" / "queue.db")
    return WorkedHome(folder), found


def pieces(home: WorkedHome, scratch: Path, at: int | None = None, do: Callable[[], None] = lambda: None) -> bytes:
    """The archive; `do` is called before its piece number `at`."""
    done = []
    for number, piece in enumerate(create.Backup(home.paths, scratch).pieces()):
        if number == at:
            do()
        done.append(piece)
    return b"".join(done)


def assert_goes_on(archive: bytes, folder: Path, expected: dict[str, bytes]) -> WorkedHome:
    """Restored, its queue is true, and its cells end as those of an undisturbed run."""
    again, found = restored(archive, folder)
    try:
        assert found.untrue == []
        again.run_all()
        assert again.files() == expected
    finally:
        again.close()
    return again


def test_a_backup_of_cells_in_every_state(home: WorkedHome, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """One done; one that the queue calls running and whose files are complete; one killed at its third turn, with half
    a line behind it; one that has not begun."""
    home.submit()
    home.run_one()
    claimed = home.claim()
    assert claimed is not None
    home.work(claimed)
    claimed = home.claim()
    assert claimed is not None
    with pytest.raises(Stop):
        home.work(claimed, stop_after=3)
    torn = home.paths.transcript("night", "c3")
    with torn.open("ab") as stream:
        stream.write(b'{"kind":"turn","half of')
    archive = pieces(home, tmp_path / "copy")
    again, _ = restored(archive, tmp_path / "r")
    assert again.statuses() == [Status.DONE, Status.RUNNING, Status.RUNNING, Status.PENDING]
    assert torn.read_bytes() == (again.paths.transcript("night", "c3")).read_bytes() + b'{"kind":"turn","half of'
    again.run_all()
    assert again.files() == undisturbed
    again.close()


class Turns:
    """Work that goes on by one step at a time, as beside a backup."""

    def __init__(self, home: WorkedHome) -> None:
        self.home = home
        self._steps = self._work()

    def __call__(self) -> None:
        next(self._steps, None)

    def _work(self) -> Iterator[None]:
        while claimed := self.home.claim():
            yield
            for turn in range(1, 6):
                try:
                    done = self.home.work(claimed, stop_after=turn)
                except Stop:
                    yield
                    continue
            done = self.home.work(claimed)
            yield
            self.home.finish(claimed, done)
            yield


def test_cells_that_go_on_between_any_two_pieces(
    home: WorkedHome, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """At each moment of the work, a backup during which it goes on by a step at every piece."""
    home.submit()
    turns = Turns(home)
    taken = 0
    while Status.PENDING in home.statuses() or Status.RUNNING in home.statuses():
        done = []
        for piece in create.Backup(home.paths, tmp_path / "copy").pieces():
            done.append(piece)
            if len(done) % 12 == 0:
                turns()
        taken += 1
        assert_goes_on(b"".join(done), tmp_path / f"r{taken}", undisturbed)
    assert taken > 3


def test_results_that_are_moved_aside_between_any_two_pieces(
    home: WorkedHome, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """A reset in the middle, and the first cell begins anew: the archive holds the queue after it, and the old results
    where the reset has moved them."""
    home.submit()
    home.run_all()
    count = sum(1 for _ in create.Backup(home.paths, tmp_path / "copy").pieces())

    def reset() -> None:
        home.reset()
        claimed = home.claim()
        assert claimed is not None
        with pytest.raises(Stop):
            home.work(claimed, stop_after=2)

    for at in sorted({1, 2, count // 2, count - 7, count - 1}):
        home.run_all()
        archive = pieces(home, tmp_path / "copy", at, reset)
        again = assert_goes_on(archive, tmp_path / f"r{at}", undisturbed)
        assert again.old_files() == {
            (name.split("/")[1], data) for name, data in undisturbed.items() if name.endswith("transcript.jsonl")
        }


def test_a_changed_specification_between_any_two_pieces(home: WorkedHome, tmp_path: Path) -> None:
    """--replace: new transcripts stand where the queue of before knew the old ones, and the other way round."""
    home.submit(cells=2)
    home.run_all()
    count = sum(1 for _ in create.Backup(home.paths, tmp_path / "copy").pieces())
    for seed, at in enumerate((1, count // 2, count - 12, count - 6, count - 1), 100):

        def replace(seed: int = seed) -> None:
            home.submit(cells=2, seed=seed, replace=True)
            home.run_one()

        archive = pieces(home, tmp_path / "copy", at, replace)
        home.run_all()
        assert_goes_on(archive, tmp_path / f"r{at}", home.files())


def test_resets_without_end_are_told(home: WorkedHome, tmp_path: Path) -> None:
    home.submit(cells=1)
    home.run_all()
    target = tmp_path / "b.tar"
    backup = create.Backup(home.paths, tmp_path / "copy")
    with pytest.raises(UserError, match=r"were moved aside in each of 30 looks .*no backup was made"):
        seen = 0
        for _ in backup.pieces():
            if backup.passes > seen:
                seen = backup.passes
                home.run_all()
                home.reset()
    assert backup.passes == 30
    assert not target.exists()


def test_a_reset_under_way_is_waited_for(home: WorkedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves files before it commits: whoever looks for it in between must not miss it."""
    home.submit()
    home.run_all()
    taken = snapshot.take(home.paths.queue, tmp_path / "copy")
    assert not snapshot.moved_aside_since(home.paths.queue, taken)
    monkeypatch.setattr(snapshot, "_WAIT_S", 0.05)
    seen = []

    def aside(keys: object) -> None:
        with pytest.raises(QueueError, match="locked"):
            snapshot.moved_aside_since(home.paths.queue, taken)
        seen.append(keys)

    home.queue.reset("night", aside=aside)
    assert seen
    assert snapshot.moved_aside_since(home.paths.queue, taken)


def test_a_queue_that_is_replaced_meanwhile_is_told(home: WorkedHome, tmp_path: Path) -> None:
    """As a repair does: the files may be of another time than the copy."""
    home.submit()

    def replace() -> None:
        home.close()
        shutil.copyfile(home.paths.queue, tmp_path / "new")
        (tmp_path / "new").replace(home.paths.queue)

    with pytest.raises(QueueError, match=r"replaced while it was backed up .*no backup was made"):
        pieces(home, tmp_path / "copy", 5, replace)


def test_copies_of_a_queue_that_is_never_at_rest(tmp_path: Path) -> None:
    """Another process commits without end, and is killed: each copy is sound, and newer than the one before."""
    path = tmp_path / "queue.db"
    used_queue(path, 400)
    worker = queue_worker.start("churn", path, 3)
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        events = []
        for number in range(12):
            for _ in range(40):
                worker.stdout.readline()
            if number == 9:
                worker.kill()
                worker.wait()
            taken = snapshot.take(path, tmp_path / "copy.db")
            assert_sound(taken.file)
            events.append(taken.last_event)
        assert events == sorted(events)
        assert len(set(events)) >= 9
    finally:
        worker.kill()
        worker.wait()
        worker.stdin.close()  # type: ignore[union-attr]
        worker.stdout.close()  # type: ignore[union-attr]


def test_a_large_queue_is_copied_from_one_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In many steps, with a commit of somebody else after each: it neither begins anew nor sees them."""
    path = tmp_path / "queue.db"
    used_queue(path, 600)
    monkeypatch.setattr(snapshot, "_STEP_PAGES", 4)
    with Queue.open(path) as other:
        before = other.counts()
        steps = 0

        class Stepped(sqlite3.Connection):
            def backup(self, target: sqlite3.Connection, **options: object) -> None:
                def step(*_: int) -> None:
                    nonlocal steps
                    steps += 1
                    other.cancel([600 - steps])

                super().backup(target, progress=step, **options)  # type: ignore[arg-type]

        connect = sqlite3.connect
        monkeypatch.setattr(snapshot.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Stepped))
        taken = snapshot.take(path, tmp_path / "copy.db")
        assert steps > 10
        assert taken.cells == {str(status): count for status, count in before.items()}
        assert other.counts() != before


@pytest.mark.parametrize("version", range(1, LATEST))
def test_an_old_queue_is_backed_up_as_it_is(tmp_path: Path, version: int) -> None:
    """It is not upgraded by that, neither here nor in the archive; only by the first who works with it."""
    paths = Paths.of(tmp_path / "h").ensure()
    db = sqlite3.connect(paths.queue)
    db.executescript((DATA / f"queue_version_{version}.sql").read_text("utf-8"))
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    before = paths.queue.read_bytes()
    found = create.create(paths, tmp_path / "b.tar.gz")
    assert found.queue is not None
    assert found.queue.schema == version
    assert paths.queue.read_bytes() == before
    with open_archive(tmp_path / "b.tar.gz") as archive:
        told = restore.restore(archive, Paths.of(tmp_path / "r"))
    assert told.about["schema"] == version
    assert told.untrue != []  # its done cells never had files
    with Queue.open(tmp_path / "r" / "var" / "queue.db") as queue:
        assert {row.status for row in queue.cells()} == set(Status)
        assert queue.recover() != []
    assert_sound(tmp_path / "r" / "var" / "queue.db")

"""Damaged queues: every row that can be read is in the new one, which a daemon opens."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import small_home
from helpers.queue_checks import assert_sound
from overnight.paths import Paths
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair import queue_file, repair, salvage_read
from overnight.repair.deep import Deep

TABLES = ("grids", "warms", "specs", "cells", "attempts", "events")
PAGE = 4096


@pytest.fixture(scope="module", autouse=True)
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small home, with a grid of four hundred cells more, each tried once."""
    paths = small_home.build(tmp_path_factory.mktemp("built") / "h")
    with Queue.open(paths.queue) as queue:
        many = [small_home.Cell(f"y{n}", {"y": n}, small_home.commands()[0].template, n) for n in range(1, 401)]
        queue.enqueue("many", cells=many, spec={"name": "many"}, policy=small_home.POLICY)
        # All that is pending waits for an hour: a test that runs cells runs those that a repair put back, and no other.
        while (claimed := queue.claim(boot_id="boot", daemon="d1")) is not None:
            queue.finish(claimed.attempt_id, small_home.Outcome.LOST, reason="it was so", run_s=1.0, delay_s=3600.0)
    return paths.home


@pytest.fixture
def paths(built: Path, tmp_path: Path) -> Paths:
    shutil.copytree(built, tmp_path / "h")
    return Paths.of(tmp_path / "h")


def rows(path: Path) -> dict[str, dict[int, Any]]:
    """All rows by table and id, of a closed queue."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        return {
            table: {row[0]: row for row in db.execute(f"SELECT * FROM {table} WHERE kind <> 'queue_repaired'"
                    if table == "events" else f"SELECT * FROM {table}")}
            for table in TABLES
        }  # fmt: skip
    finally:
        db.close()


def roots(path: Path) -> dict[str, int]:
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        return dict(db.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0"))
    finally:
        db.close()


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def mend(paths: Paths) -> repair.Outcome:
    outcome = repair.run(paths)
    assert outcome.folder is not None
    assert_sound(paths.queue)
    with Queue.open(paths.queue, check=True):
        pass
    left = {step.where for step in outcome.left}
    assert [str(f) for f in Deep(paths, None).findings() if not f.note and f.where not in left] == []
    assert not repair.run(paths).mended
    return outcome


def header(path: Path) -> None:
    write(path, 0, os.urandom(100))


def magic(path: Path) -> None:
    write(path, 0, b"sQLite format 3\0")


def application(path: Path) -> None:
    write(path, 68, bytes(4))


def schema(path: Path) -> None:
    write(path, 100, os.urandom(3996))


def index(path: Path) -> None:
    write(path, (roots(path)["cells_by_status"] - 1) * PAGE, os.urandom(PAGE))


def unique_index(path: Path) -> None:
    write(path, (roots(path)["sqlite_autoindex_cells_1"] - 1) * PAGE, os.urandom(PAGE))


def counters(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("UPDATE grid_counts SET n = n + 1 WHERE status = 'done'")
    db.commit()
    db.close()


def root_of_cells(path: Path) -> None:
    """An interior page: what it led to is only found page by page."""
    write(path, (roots(path)["cells"] - 1) * PAGE, os.urandom(PAGE))


def root_of_events(path: Path) -> None:
    write(path, (roots(path)["events"] - 1) * PAGE, os.urandom(PAGE))


@pytest.mark.parametrize(
    "damage",
    [header, magic, application, schema, index, unique_index, counters, root_of_cells, root_of_events],
    ids=lambda damage: damage.__name__,
)
def test_no_row_is_lost_where_only_what_leads_to_them_is_damaged(paths: Paths, damage: Callable[[Path], None]) -> None:
    before = rows(paths.queue)
    damage(paths.queue)
    damaged = paths.queue.read_bytes()
    outcome = mend(paths)
    assert rows(paths.queue) == before
    assert outcome.folder is not None
    assert (outcome.folder / "queue.db").read_bytes() == damaged


def test_a_page_of_cells_costs_its_own_rows_alone(paths: Paths) -> None:
    """The others stay, those with a transcript come back from it, and what is gone is named."""
    before = rows(paths.queue)
    leaf = next(
        number
        for number in range(1, paths.queue.stat().st_size // PAGE)
        if paths.queue.read_bytes()[number * PAGE] == 0x0D
        and b"many" not in paths.queue.read_bytes()[number * PAGE : (number + 1) * PAGE]
        and paths.queue.read_bytes()[number * PAGE : (number + 1) * PAGE].count(b'{"y":') > 5
    )
    write(paths.queue, leaf * PAGE, os.urandom(PAGE))
    outcome = mend(paths)
    after = rows(paths.queue)
    lost = before["cells"].keys() - after["cells"].keys()
    assert 0 < len(lost) < 60
    kept = before["cells"].keys() & after["cells"].keys()
    assert all(after["cells"][number] == before["cells"][number] for number in kept)
    assert any("`overnight submit FILE` adds cells that are missing" in step.todo for step in outcome.left)
    assert set(small_home.statuses(paths)) >= {f"night/{cell.key}" for cell in small_home.cells()}


def test_rows_that_refer_to_nothing_are_dropped_and_named(paths: Paths) -> None:
    db = sqlite3.connect(paths.queue)
    db.execute("DELETE FROM attempts WHERE cell_id = 1")
    db.execute("UPDATE events SET cell_id = 100000 WHERE id = (SELECT max(id) FROM events WHERE cell_id = 20)")
    db.commit()
    db.close()
    outcome = mend(paths)
    assert any("events" in step.what for step in outcome.steps)
    with Queue.open(paths.queue) as queue:
        assert queue.cell(1).status is Status.DONE  # as its transcript proves
        assert [row.reason_code for row in queue.attempts(1)] == [""]
        assert queue.events(1)[-1].new is Status.DONE


def test_a_damaged_specification_is_restored_from_a_transcript(paths: Paths) -> None:
    before = rows(paths.queue)
    data = paths.queue.read_bytes()
    at = data.index(b"You have nothing to do for the next")
    write(paths.queue, at, b"Y0u")
    outcome = mend(paths)
    assert rows(paths.queue)["specs"] == before["specs"]
    assert rows(paths.queue)["cells"] == before["cells"]
    assert not outcome.left or all("leave no trace" in step.what for step in outcome.left)


def test_a_damaged_reference_to_a_specification(paths: Paths) -> None:
    """Its transcript tells which one it was."""
    before = rows(paths.queue)
    db = sqlite3.connect(paths.queue)
    db.execute("UPDATE cells SET spec_id = 65 WHERE id = 1")
    db.commit()
    db.close()
    mend(paths)
    assert rows(paths.queue) == before


@pytest.mark.parametrize("text", [b"UPDATE grid_counts SET n = n - 1, run_ms", b"claim_source", b"cells_pending ON"])
def test_a_damaged_definition(paths: Paths, text: bytes) -> None:
    """A trigger, a column, an index: SQLite itself does not look at what they should be."""
    before = rows(paths.queue)
    data = paths.queue.read_bytes()
    write(paths.queue, data.index(text) + 3, b"\xe9")
    assert [str(found) for found in Deep(paths, None).findings() if found.area == "queue"]
    with pytest.raises(repair.QueueError):
        Queue.open(paths.queue, check=True)
    mend(paths)
    assert rows(paths.queue) == before


def test_text_that_is_no_text(paths: Paths) -> None:
    """In JSON, which SQLite takes for JSON all the same; the transcript tells what it was."""
    data = paths.queue.read_bytes()
    write(paths.queue, data.index(b'"run":4,') + 1, b"\xf2")
    assert any("UTF-8" in str(found) for found in Deep(paths, None).findings())
    mend(paths)
    with Queue.open(paths.queue) as queue:
        assert queue.find_cell("baseline_script_run4")[0].coords["run"] == 4
    assert len(small_home.statuses(paths)) == 409


def test_a_damaged_status_becomes_what_is_proven(paths: Paths) -> None:
    db = sqlite3.connect(paths.queue)
    db.execute("PRAGMA ignore_check_constraints = ON")
    db.execute("UPDATE cells SET status = 'dons' WHERE id = 2")
    db.commit()
    db.close()
    mend(paths)
    assert small_home.statuses(paths)["night/baseline_script_run2"] is Status.PENDING
    small_home.run(paths)
    assert small_home.statuses(paths)["night/baseline_script_run2"] is Status.DONE


@pytest.mark.parametrize("how", ["missing", "empty", "text"])
def test_beyond_salvage_it_is_made_of_the_results(paths: Paths, how: str) -> None:
    if how == "missing":
        paths.queue.unlink()
    else:
        paths.queue.write_bytes(b"" if how == "empty" else b"these are no rows\n" * 1000)
    outcome = mend(paths)
    found = small_home.statuses(paths)
    assert found == {
        **{f"night/baseline_script_run{n}": Status.DONE for n in (1, 2, 3)},
        **{f"night/baseline_script_run{n}": Status.PENDING for n in (4, 5, 6)},
    }
    assert any("2 results stood in the queue alone" in step.what for step in outcome.left)
    # What the user is told to do.
    small_home.submit(paths)
    small_home.run(paths)
    assert set(small_home.statuses(paths).values()) == {Status.DONE}
    assert len(small_home.statuses(paths)) == 9


@pytest.mark.parametrize("how", ["result", "turn", "tail"])
def test_what_is_not_proven_is_not_done(paths: Paths, how: str) -> None:
    """A transcript with all its turns is not enough where the result says something else, or a line is not right."""
    paths.queue.unlink()
    key = "baseline_script_run2"
    before = small_home.results(paths)
    if how == "result":
        paths.result("night", key).write_text("{}")
    elif how == "turn":
        data = bytearray(paths.transcript("night", key).read_bytes())
        data[-200] ^= 1
        paths.transcript("night", key).write_bytes(data)
    else:
        with paths.transcript("night", key).open("ab") as stream:
            stream.write(b"more")
    repair.run(paths)
    assert small_home.statuses(paths)[f"night/{key}"] is Status.PENDING
    assert small_home.statuses(paths)["night/baseline_script_run1"] is Status.DONE
    small_home.run(paths)
    assert small_home.results(paths).items() >= {k: v for k, v in before.items() if key in k}.items()


@pytest.mark.parametrize(
    ("statement", "becomes"),
    [
        ("UPDATE cells SET end_reason = 'target_reached' WHERE id = 1", Status.DONE),
        ("UPDATE cells SET reason = 'another' WHERE id = 1", Status.DONE),
        ("UPDATE cells SET transcript_sha256 = '{other}' WHERE id = 1", Status.DONE),
        ("UPDATE attempts SET transcript_sha256 = '{other}' WHERE cell_id = 1", Status.DONE),
        ("UPDATE cells SET output_tokens = 7 WHERE id = 1", Status.DONE),
        ("UPDATE attempts SET outcome = 'lost' WHERE cell_id = 1", Status.PENDING),
    ],
)
def test_an_end_that_is_told_in_two_ways(paths: Paths, statement: str, becomes: Status) -> None:
    """What is on disk decides; nothing that it does not prove stays done."""
    before = small_home.results(paths)
    db = sqlite3.connect(paths.queue)
    db.execute(statement.format(other="ab" * 32))
    db.commit()
    db.close()
    mend(paths)
    assert small_home.statuses(paths)["night/baseline_script_run1"] is becomes
    small_home.run(paths)
    assert small_home.statuses(paths)["night/baseline_script_run1"] is Status.DONE
    assert small_home.results(paths).items() >= before.items()


def test_a_cut_transcript_of_a_cell_that_failed(paths: Paths) -> None:
    """It stays failed, and its figures everywhere are those of the turns that are left."""
    path = paths.transcript("night", "baseline_script_run5")
    data = bytearray(path.read_bytes())
    data[data.index(b'"turn":1') + 7] ^= 1
    path.write_bytes(data)
    mend(paths)
    with Queue.open(paths.queue) as queue:
        row = queue.find_cell("baseline_script_run5")[0]
        assert (row.status, row.turns, row.output_tokens) == (Status.FAILED, 0, 0)
        assert [attempt.turns for attempt in queue.attempts(row.id)] == [0]


def test_the_tree_is_read_around_what_cannot_be(paths: Paths) -> None:
    """Rows behind a damaged page are found by their numbers, without looking at every page."""
    data = paths.queue.read_bytes()
    (leaf,) = [
        number
        for number in range(1, len(data) // PAGE)
        if data[number * PAGE] == 0x0D and b'{"y":200}' in data[number * PAGE : (number + 1) * PAGE]
    ]
    write(paths.queue, leaf * PAGE, bytes(PAGE))
    db = salvage_read.connect(paths.queue)
    found = list(salvage_read.by_tree(db, "cells", ["key"]))
    db.close()
    gaps = [each for each in found if isinstance(each, salvage_read.Gap)]
    numbers = [each[0] for each in found if not isinstance(each, salvage_read.Gap)]
    assert len(gaps) == 1
    assert gaps[0].last is not None
    assert numbers == [number for number in range(1, 410) if not gaps[0].first <= number <= gaps[0].last]
    assert max(numbers) == 409


def test_an_empty_queue_with_a_log_that_holds_it(paths: Paths) -> None:
    keeper = sqlite3.connect(paths.queue)
    keeper.execute("SELECT count(*) FROM cells").fetchone()
    keeper.execute("UPDATE grids SET created_at = created_at")
    keeper.commit()
    kept = {suffix: Path(f"{paths.queue}{suffix}").read_bytes() for suffix in ("", "-wal")}
    keeper.close()
    paths.queue.write_bytes(b"")
    Path(f"{paths.queue}-wal").write_bytes(kept["-wal"])
    outcome = mend(paths)
    assert outcome.folder is not None
    assert (outcome.folder / "queue.db-wal").read_bytes() == kept["-wal"]
    assert set(small_home.statuses(paths)) >= {f"night/{cell.key}" for cell in small_home.cells()}


@pytest.mark.parametrize("at", [0, 5, 9, 14, 18, 25, 30])
def test_a_damaged_header_of_the_log_costs_nothing(paths: Paths, at: int) -> None:
    keeper = sqlite3.connect(paths.queue)
    keeper.execute("SELECT count(*) FROM cells").fetchone()
    with Queue.open(paths.queue) as queue:
        queue.cancel(row.id for row in queue.cells("many", "pending"))
    kept = {suffix: Path(f"{paths.queue}{suffix}").read_bytes() for suffix in ("", "-wal")}
    keeper.close()
    before = rows(paths.queue)
    log = bytearray(kept["-wal"])
    log[at] ^= 0x40
    paths.queue.write_bytes(kept[""])
    Path(f"{paths.queue}-wal").write_bytes(log)
    mend(paths)
    assert rows(paths.queue) == before


def test_links_are_not_written_through(paths: Paths, tmp_path: Path) -> None:
    """A copy of a link would be no copy of what is changed."""
    path, elsewhere = paths.transcript("night", "baseline_script_run1"), tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(path.read_bytes()[:-5])
    path.unlink()
    path.symlink_to(elsewhere)
    outcome = repair.run(paths)
    assert [step.todo for step in outcome.left] == ["put the file itself there"]
    assert elsewhere.read_bytes()[-1:] != b"\n"
    counters(paths.queue)
    paths.queue.replace(tmp_path / "queue.db")
    paths.queue.symlink_to(tmp_path / "queue.db")
    with pytest.raises(repair.QueueError, match="a symbolic link"):
        repair.run(paths)


def test_an_older_schema_that_is_damaged(tmp_path: Path, repository: Path) -> None:
    """The new queue has the newest schema, and all rows."""
    paths = Paths.of(tmp_path / "h").ensure()
    db = sqlite3.connect(paths.queue)
    db.executescript((repository / "tests" / "data" / "queue_version_1.sql").read_text())
    db.close()
    before = {name: len(held) for name, held in rows(paths.queue).items()}
    cells = [row[:6] for row in rows(paths.queue)["cells"].values()]
    index(paths.queue)
    repair.run(paths)
    assert_sound(paths.queue)
    after = {name: len(held) for name, held in rows(paths.queue).items()}
    assert {name: after[name] for name in ("grids", "specs", "cells")} == {
        name: before[name] for name in ("grids", "specs", "cells")
    }
    assert [row[:6] for row in rows(paths.queue)["cells"].values()] == cells


def test_a_newer_queue_and_another_programs_are_left_alone(paths: Paths, tmp_path: Path) -> None:
    write(paths.queue, 60, (7).to_bytes(4, "big"))
    before = small_home.tree(paths.var)
    with pytest.raises(repair.QueueError, match="upgrade overnight"):
        repair.run(paths)
    assert small_home.tree(paths.var) == before
    paths.queue.unlink()
    db = sqlite3.connect(paths.queue)
    db.execute("CREATE TABLE books (title)")
    db.commit()
    db.close()
    before = small_home.tree(paths.var)
    with pytest.raises(repair.QueueError, match="not a queue of Overnight"):
        repair.run(paths)
    assert small_home.tree(paths.var) == before


def test_whoever_writes_meanwhile_is_not_overwritten(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    counters(paths.queue)
    keep = repair.Originals.keep

    def slow(self: repair.Originals, *args: Any) -> Path:
        folder = keep(self, *args)
        counters(paths.queue)
        return folder

    monkeypatch.setattr(repair.Originals, "keep", slow)
    with pytest.raises(repair.QueueError, match="written meanwhile"):
        repair.run(paths)
    monkeypatch.undo()
    mend(paths)


def test_between_the_renames_every_command_refuses(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step of the swap it was killed at, the queue is the old one, the new one, or refused."""
    keeper = sqlite3.connect(paths.queue)
    keeper.execute("UPDATE grid_counts SET n = n + 1 WHERE status = 'done'")
    keeper.commit()
    kept = {suffix: Path(f"{paths.queue}{suffix}").read_bytes() for suffix in ("", "-wal")}
    keeper.close()
    for suffix, data in kept.items():
        Path(f"{paths.queue}{suffix}").write_bytes(data)
    work = paths.var / "new.db"
    work.write_bytes(kept[""])
    monkeypatch.setattr(queue_file, "finish", lambda queue: None)
    queue_file.install(work, paths.queue)
    monkeypatch.undo()
    with pytest.raises(repair.QueueError):
        Queue.open(paths.queue)
    assert queue_file.interrupted(paths.queue)
    outcome = repair.run(paths)
    assert "interrupted" in outcome.steps[0].what
    assert_sound(paths.queue)
    assert not any(Path(f"{paths.queue}{suffix}").exists() for suffix in ("-wal", "-shm", ".repaired"))


@pytest.mark.parametrize("seed", range(25))
def test_noise_in_pages_loses_no_readable_row(paths: Paths, seed: int) -> None:
    """A flipped bit in each of three pages: at most the rows that hold these are changed or gone."""
    before = rows(paths.queue)
    chance = random.Random(seed)
    data = bytearray(paths.queue.read_bytes())
    for _ in range(3):
        data[chance.randrange(PAGE, len(data))] ^= 1 << chance.randrange(8)
    paths.queue.write_bytes(data)
    repair.run(paths)
    with Queue.open(paths.queue, check=True) as queue:
        assert queue.contradictions() == []
    after = rows(paths.queue)
    for table in ("grids", "specs", "cells"):
        gone = before[table].keys() - after[table].keys()
        assert len(gone) <= 3, (table, gone)

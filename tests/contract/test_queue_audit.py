"""What of a queue stands in two places is compared: a value that nobody wrote is found though SQLite is content."""

from __future__ import annotations

import contextlib
import io
import sqlite3
from pathlib import Path

import pytest

from helpers.queue_cells import used_queue
from overnight.cli.main import main
from overnight.errors import QueueError
from overnight.paths import Paths
from overnight.queue import audit, probe
from overnight.queue.store import Queue


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.of(tmp_path / "h").ensure()
    used_queue(found.queue)
    return found


def change(path: Path, statement: str) -> None:
    """Change a value without what is kept in step with it. Checks are off, as a flipped bit asks for none."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA ignore_check_constraints = ON")
    assert db.execute(statement).rowcount > 0
    db.commit()
    db.close()


DAMAGES = {
    "other cells or times": "UPDATE grid_counts SET n = n + 1 WHERE status = 'done'",
    "a status that there is not": "UPDATE grid_counts SET status = 'dome' WHERE status = 'done' AND grid_id = 1",
    "another status than its last event": "UPDATE events SET new_status = 'failed' WHERE new_status = 'done'",
    "the attempts that it counts": "UPDATE cells SET attempts = attempts + 1 WHERE status = 'done'",
    "its open attempt": "UPDATE attempts SET outcome = 'lost', ended_at = 1 WHERE outcome IS NULL",
    "other turns or tokens": "UPDATE cells SET turns = turns + 64 WHERE status = 'done'",
    "tells of its end otherwise": "UPDATE cells SET transcript_sha256 = 'ab' WHERE status = 'done'",
    "another warm server": "UPDATE specs SET warm_id = (SELECT max(id) FROM warms) WHERE id = 1",
    "does not have its hash": "UPDATE specs SET json = replace(json, '0.8', '0.9')",
    "warm specification": "UPDATE warms SET json = replace(json, 'float32', 'float33')",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_contradiction_is_found_named_and_not_built_upon(paths: Paths, what: str) -> None:
    with Queue.open(paths.queue, check=True) as queue:
        assert queue.contradictions() == []
    change(paths.queue, DAMAGES[what])
    with Queue.open(paths.queue) as queue:
        assert any(what in sentence for sentence in queue.contradictions())
    before = paths.queue.read_bytes()
    with pytest.raises(QueueError, match="damaged") as refused:
        Queue.open(paths.queue, check=True)
    assert "\n" not in str(refused.value)
    assert paths.queue.read_bytes() == before
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["--home", str(paths.home), "verify"]) == 1
    assert what in said.getvalue()


def test_an_error_that_a_sound_queue_never_gives_is_the_files_fault(paths: Paths) -> None:
    change(paths.queue, "UPDATE grid_counts SET status = 'dome' WHERE status = 'done' AND grid_id = 1")
    with Queue.open(paths.queue) as queue, pytest.raises(QueueError, match="a status that there is not"):
        queue.counts()


def test_a_broken_constraint_of_a_damaged_queue_is_named_as_damage(paths: Paths) -> None:
    change(paths.queue, "UPDATE grid_counts SET n = 0 WHERE status = 'pending'")
    with Queue.open(paths.queue) as queue, pytest.raises(QueueError, match="counts other cells or times"):
        queue.claim(boot_id="boot", daemon="d1")


def test_our_own_mistake_on_a_sound_queue_stays_one(paths: Paths) -> None:
    with Queue.open(paths.queue) as queue:
        with pytest.raises(ValueError, match="not a valid Status"):
            queue.cells("night", "dome")
        with pytest.raises(sqlite3.IntegrityError), queue._db.write() as db:
            db.execute("UPDATE cells SET alone = 7")


def test_text_that_is_no_utf8_is_one_line(paths: Paths) -> None:
    data = paths.queue.read_bytes()
    assert b'"system"' in data
    paths.queue.write_bytes(data.replace(b'"system"', b'"s\xffstem"'))
    for check in (True, False):
        with pytest.raises(QueueError, match="damaged"), Queue.open(paths.queue, check=check) as queue:
            for cell in queue.cells():
                queue.cell_spec(cell.id)


def test_a_large_queue_is_not_looked_through_after_an_error(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it is opened: a daemon that read gigabytes would be silent for so long that it is restarted."""
    change(paths.queue, "UPDATE grid_counts SET status = 'dome' WHERE status = 'done' AND grid_id = 1")
    with Queue.open(paths.queue) as queue:
        monkeypatch.setattr(probe, "CHECK_LIMIT_BYTES", paths.queue.stat().st_size)
        with pytest.raises(QueueError, match="a status that there is not"):
            queue.counts()
        monkeypatch.setattr(probe, "CHECK_LIMIT_BYTES", paths.queue.stat().st_size - 1)
        monkeypatch.setattr(audit, "contradictions", lambda db: pytest.fail("looked through"))
        with pytest.raises(QueueError, match="ValueError: 'dome' is not a valid Status"):
            queue.counts()

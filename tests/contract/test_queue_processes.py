"""Several processes at one queue, and killed ones: nothing is claimed twice, nothing committed is lost."""

from __future__ import annotations

import random
import select
import sqlite3
import subprocess
import time
from pathlib import Path

from helpers import queue_worker
from helpers.queue_cells import submit
from helpers.queue_checks import assert_sound
from overnight.queue.migrate import LATEST
from overnight.queue.states import Status
from overnight.queue.store import Queue

KILLS = 20


def ended(workers: list[subprocess.Popen[str]]) -> list[list[list[str]]]:
    """The words that each worker said, line by line, once all have left in good order."""
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return [[line.split() for line in text.splitlines()] for text in said]


def test_two_processes_claim_each_cell_once(tmp_path: Path) -> None:
    path, cells = tmp_path / "queue.db", 400
    with Queue.open(path) as queue:
        submit(queue, count=cells)
    workers = [queue_worker.start("drain", path) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "open\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    claims = [[int(line[1]) for line in lines if line[0] == "claimed"] for lines in ended(workers)]
    assert all(claims)  # both had their share
    assert sorted(claims[0] + claims[1]) == list(range(1, cells + 1))
    with Queue.open(path) as queue:
        assert queue.counts()[Status.DONE] == cells
        assert {row.attempts for row in queue.cells()} == {1}
    assert_sound(path)


def test_several_processes_make_the_queue_at_once(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"{number}.db"
        workers = [queue_worker.start("open", path) for _ in range(4)]
        assert ended(workers) == [[["open"]]] * 4
        assert_sound(path)
        db = sqlite3.connect(path)
        assert db.execute("SELECT count(*) FROM migrations").fetchone() == (LATEST,)
        db.close()


def killed_after(worker: subprocess.Popen[str], delay_s: float) -> list[list[str]]:
    """Let it begin, wait, SIGKILL; every line that it could still say."""
    assert worker.stdout is not None
    first = worker.stdout.readline()
    assert first == "open\n", first
    deadline_s = time.monotonic() + delay_s
    lines = ""
    while (left_s := deadline_s - time.monotonic()) > 0:
        if select.select([worker.stdout], [], [], left_s)[0]:
            lines += worker.stdout.readline()
    worker.kill()
    lines += worker.stdout.read()
    worker.wait()
    worker.stdout.close()
    return [line.split() for line in lines.splitlines()]


def test_kill_9_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    path, dice = tmp_path / "queue.db", random.Random(20240)
    with Queue.open(path) as queue:
        submit(queue, count=30)
    claimed: dict[int, int] = {}
    finished: dict[int, str] = {}
    for number in range(KILLS):
        for line in killed_after(queue_worker.start("churn", path, number), dice.uniform(0, 0.1)):
            if line[0] == "claimed":
                claimed[int(line[2])] = int(line[1])
            elif line[0] == "finished":
                finished[int(line[1])] = line[2]
        assert_sound(path)
        db = sqlite3.connect(path)
        attempts = {row[0]: row[1:] for row in db.execute("SELECT id, cell_id, outcome FROM attempts")}
        db.close()
        assert {attempt: attempts[attempt][0] for attempt in claimed} == claimed
        assert {attempt: attempts[attempt][1] for attempt in finished} == finished
    assert len(finished) > KILLS
    with Queue.open(path) as queue:
        queue.recover()
        assert queue.counts()[Status.RUNNING] == 0
    assert_sound(path)

"""A queue on a disk that fails: one script of everything that changes it, and what it holds after each step."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from campaigns.base import Finding, Violation
from helpers.disk_faults import Fault
from helpers.fault_fs import FaultFs
from helpers.queue_cells import Clock, planned, submit, take
from helpers.queue_checks import assert_sound
from overnight.errors import QueueError
from overnight.queue.rows import Peak
from overnight.queue.states import Outcome
from overnight.queue.store import Queue, StaleAttempt

Held = tuple[str, ...]
"""All rows of all tables, as text."""

_numbers = itertools.count()


def _claim(queue: Queue) -> None:
    take(queue)


def _finish(outcome: Outcome, attempt: int, **how: object) -> Callable[[Queue], None]:
    return lambda queue: _ignore(queue.finish(attempt, outcome, **how))  # type: ignore[arg-type]


def _ignore(_value: object) -> None:
    return None


STEPS: tuple[tuple[str, Callable[[Queue], None]], ...] = (
    ("submit", lambda queue: submit(queue, "night", 4)),
    ("claim 1", _claim),
    ("started", lambda queue: queue.started(1, pid=4711, start_ticks=99)),
    ("claim 2", _claim),
    ("extend", lambda queue: queue.extended(2, 2**30, None)),
    ("finish 1", _finish(Outcome.COMPLETED, 1, turns=3, learn=Peak("kind", "family", 2**28, True))),
    ("finish 2", _finish(Outcome.FAILED, 2, reason="it was so", delay_s=60.0)),
    ("cancel", lambda queue: _ignore(queue.cancel([3, 4]))),
    ("retry", lambda queue: _ignore(queue.retry([3, 4]))),
    ("claim 3", _claim),
    ("recover", lambda queue: _ignore(queue.recover())),
    ("claim 4", _claim),
    ("finish 4", _finish(Outcome.CORRUPT, 4)),
    ("submit more", lambda queue: submit(queue, "day", 2, model="360m")),
    ("replace", lambda queue: _replace(queue)),
)


def _replace(queue: Queue) -> None:
    cells = list(planned(2, model="360m", seed=9))
    queue.enqueue("day", cells=cells, spec={"name": "day"}, policy={"tries": 3}, replace=True)


def held(path: Path) -> Held:
    """Read past the code under test. Empty for no queue yet."""
    if not path.exists() or path.stat().st_size == 0:
        return ()
    db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=10)
    try:
        db.execute("BEGIN")
        tables = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            if not name.startswith("sqlite_")
        ]
        return tuple(f"{name} {row}" for name in tables for row in db.execute(f"SELECT * FROM {name} ORDER BY 1, 2"))
    finally:
        db.close()


class QueueTries:
    """The script on `fs`, each try with a file of its own. beside: another process has the file open all the time, so
    that closing it does not move the log into it."""

    def __init__(self, fs: FaultFs, images: Path, *, beside: bool) -> None:
        self.fs, self._images = fs, images
        self.name = "queue, open elsewhere too" if beside else "queue"
        self._other = Beside() if beside else None
        self.states: list[Held] = []
        self._home = "reference"
        self._make()
        queue: Queue | None = None
        for number in range(len(STEPS) + 1):
            queue = self._step(queue, number)
            self.states.append(held(self._path))
        assert queue is not None
        queue.close()
        self.calls = [call for call in fs.calls(forget=True) if call.path.startswith("reference/")]
        if len(set(self.states)) != len(self.states):
            raise Violation("a step of the script changes nothing")

    def end(self) -> None:
        if self._other is not None:
            self._other.end()

    @property
    def _path(self) -> Path:
        return self.fs.point / self._home / "queue.db"

    def _make(self) -> None:
        self._path.parent.mkdir()
        fd = os.open(self.fs.point, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def _step(self, queue: Queue | None, number: int) -> Queue:
        """Step 0 opens the queue, all others are of the script."""
        if queue is None:
            queue = Queue.open(self._path, clock=Clock(), busy_timeout_s=2.0)
            if self._other is not None:
                self._other.hold(self._path)
        if number:
            STEPS[number - 1][1](queue)
        return queue

    # -- errors -----------------------------------------------------------------------------------------------

    def try_error(self, fault: Fault, nth: int, finding: Finding) -> None:
        """The script with a fault at its nth call. The step that met it is done again, then all that follow."""
        self._home = f"n{next(_numbers)}"
        self._make()
        what = f"{self.name}, {fault.name} at call {nth}"
        fault.set(self.fs, nth, f"{self._home}/*")
        queue: Queue | None = None
        failed_at = None
        for number in range(len(STEPS) + 1):
            try:
                queue = self._step(queue, number)
            except QueueError as error:
                if failed_at is not None:
                    raise Violation(f"{what}: {_name(number)} failed without a fault: {error}") from None
                failed_at = number
                finding.expect("\n" not in str(error), f"{what}: more than one line: {error}")
                self.fs.lift()
                self._after_error(number, finding, f"{what}, in {_name(number)}")
                queue = self._again(queue, number, what)
            self._expect_sure(number, finding, f"{what}, after {_name(number)}", failed_at)
        assert queue is not None
        queue.close()
        finding.count("failed calls")
        self.fs.lift()
        self._expect(self._path, len(STEPS), len(STEPS), finding, f"{what}, at the end")
        self._expect_sure(len(STEPS), finding, f"{what}, closed", failed_at)
        shutil.rmtree(self._path.parent)

    def _again(self, queue: Queue | None, number: int, what: str) -> Queue:
        try:
            return self._step(queue, number)
        except StaleAttempt:
            if queue is not None and held(self._path) == self.states[number]:
                return queue  # it had been done
            raise Violation(f"{what}: {_name(number)} was half done") from None
        except QueueError as error:
            raise Violation(f"{what}: {_name(number)} fails without the fault too: {error}") from None

    def _after_error(self, number: int, finding: Finding, what: str) -> None:
        """Nothing has changed, but opening may have made it; a power cut leaves what was before, or all of the step."""
        self._expect(self._path, number - 1, max(0, number - 1), finding, what)
        for keep, seed in (("none", 0), ("some", number), ("all", 0)):
            self._expect_image(keep, seed, number - 1, number, finding, what)

    def _expect_sure(self, number: int, finding: Finding, what: str, failed_at: int | None) -> None:
        """Every step that returned survives a power cut. Looked at around the fault, and at the end."""
        if failed_at is not None and (number == failed_at or number == len(STEPS)):
            self._expect_image("none", 0, number, number, finding, what)

    # -- kills ------------------------------------------------------------------------------------------------

    def try_kill(self, fault: Fault, nth: int, finding: Finding) -> None:
        """The script in a process that is killed at its nth call, then the rest of it here."""
        self._home = f"n{next(_numbers)}"
        self._make()
        what = f"{self.name}, {fault.name} call {nth}"
        fault.set(self.fs, nth, f"{self._home}/*")
        done = self._in_a_child()
        if not self.fs.lift():
            raise Violation(f"{what}: the call was not made")
        finding.count("kills at a call")
        what += f", in {_name(done + 1)}"
        under_way = min(done + 1, len(STEPS))
        for keep, seed in (("none", 0), ("some", nth), ("all", 0)):
            self._expect_image(keep, seed, done, under_way, finding, what)
        self._expect(self._path, done, under_way, finding, what)
        began = held(self._path)
        queue: Queue | None = None
        for number in range(done + 1, len(STEPS) + 1):
            if number and began == self.states[number]:
                continue
            queue = self._step(queue, number)
        if queue is not None:
            queue.close()
        self._expect(self._path, len(STEPS), len(STEPS), finding, f"{what}, at the end")
        self._expect_image("none", 0, len(STEPS), len(STEPS), finding, f"{what}, at the end")
        shutil.rmtree(self._path.parent)

    def _in_a_child(self) -> int:
        """The number of the last step that returned, -1 for none."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._be_the_child(writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            said = stream.read()
        os.waitpid(pid, 0)
        if b"!" in said:
            raise Violation(f"{self.name}: the script failed in its process")
        return len(said) - 1

    def _be_the_child(self, writer: int) -> NoReturn:
        queue: Queue | None = None
        try:
            for number in range(len(STEPS) + 1):
                queue = self._step(queue, number)
                os.write(writer, b".")
            assert queue is not None
            queue.close()
        except BaseException:  # noqa: BLE001 - nobody else runs below this fork
            traceback.print_exc()
            os.write(writer, b"!")
        finally:
            os._exit(0)

    # -- looking ----------------------------------------------------------------------------------------------

    def _expect_image(self, keep: str, seed: int, least: int, most: int, finding: Finding, what: str) -> None:
        image = self._images / f"i{next(_numbers)}"
        self.fs.power_cut(image, keep, seed=seed, within=self._home)
        finding.count("power cuts")
        self._expect(image / self._home / "queue.db", least, most, finding, f"{what}; power cut, {keep} kept")
        shutil.rmtree(image)

    def _expect(self, path: Path, least: int, most: int, finding: Finding, what: str) -> None:
        """The queue holds what it held after step `least`, or `most`; -1 = nothing yet."""
        try:
            found = held(path)
            if found:
                assert_sound(path)
        except (sqlite3.Error, AssertionError) as error:
            finding.expect(False, f"{what}: not sound: {type(error).__name__}: {error}")
            return
        allowed = [() if number < 0 else self.states[number] for number in range(least, most + 1)]
        if found in allowed:
            return
        nearest = next((number for number, state in enumerate(self.states) if state == found), None)
        is_ = "nothing" if not found else "no step's" if nearest is None else f"that of {_name(nearest)}"
        finding.expect(False, f"{what}: its state should be that of {_name(least)} to {_name(most)}, is {is_}")


def _name(number: int) -> str:
    if number > len(STEPS):
        return "closing"
    return "no step" if number < 0 else f"step {number} ({STEPS[number - 1][0] if number else 'open'})"


class Beside:
    """A process that holds a connection to one queue after the other."""

    _PROGRAM = """import sqlite3, sys
db = None
for line in sys.stdin:
    if db is not None: db.close()
    db = sqlite3.connect(line.rstrip(), isolation_level=None)
    db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    print("held", flush=True)
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", self._PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hold(self, path: Path) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "held\n":
            raise Violation(f"{path}: cannot be read by another process")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

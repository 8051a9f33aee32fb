"""The fault points themselves, in small processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.fault_points import FaultPoints
from helpers.fault_points.control import SITE

WRITE = """
import sys
from pathlib import Path
from overnight import durable
for number in range(int(sys.argv[2])):
    durable.write_atomic(Path(sys.argv[1], "result.json"), b'{"number": %d}' % number)
"""


@pytest.fixture
def points(tmp_path: Path) -> FaultPoints:
    return FaultPoints(tmp_path / "points")


def run(points: FaultPoints, folder: Path, times: int) -> int:
    """A process that calls itself the daemon and writes a result so many times; its exit status."""
    command = [sys.executable, "-c", WRITE, str(folder), str(times), "overnight", "daemon"]
    return subprocess.run(command, env=points.environment(), check=False, timeout=60).returncode


def test_every_step_is_passed_in_order(points: FaultPoints, tmp_path: Path) -> None:
    assert run(points, tmp_path, 1) == 0
    passed = [one.what for one in points.trace()]
    steps = ("open.result", "write.result", "fsync.result", "replace.result", "fsync.folder")
    wanted = [f"daemon {step}.{when}" for step in steps for when in ("before", "after")]
    assert [each for each in passed if "within" not in each] == wanted
    assert "daemon write.result.within" in passed


def test_it_ends_at_the_wanted_passage_and_not_after(points: FaultPoints, tmp_path: Path) -> None:
    number = points.arm("daemon", "replace.result.before", times=3)
    assert run(points, tmp_path, 5) == -signal.SIGKILL
    assert (tmp_path / "result.json").read_bytes() == b'{"number": 1}'
    struck = points.struck()[number]
    assert (struck.role, struck.point, struck.label) == ("daemon", "replace.result.before", "-")
    assert run(points, tmp_path, 5) == 0  # an entry is used once


def test_the_passages_of_several_processes_are_counted_together(points: FaultPoints, tmp_path: Path) -> None:
    points.arm("daemon", "write.result.after", times=3, signal="TERM")
    assert [run(points, tmp_path, 2) for _ in range(3)] == [0, -signal.SIGTERM, 0]


def test_within_a_write_half_of_it_is_in_the_file(points: FaultPoints, tmp_path: Path) -> None:
    points.arm("daemon", "write.result.within")
    assert run(points, tmp_path, 1) == -signal.SIGKILL
    (half,) = tmp_path.glob(".result.json.*.tmp")
    assert half.read_bytes() == b'{"numb'


def test_who_is_stopped_goes_on_with_the_same_bytes(points: FaultPoints, tmp_path: Path) -> None:
    points.arm("daemon", "write.result.within", signal="STOP")
    command = [sys.executable, "-c", WRITE, str(tmp_path), "1", "overnight", "daemon"]
    with subprocess.Popen(command, env=points.environment()) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    assert (tmp_path / "result.json").read_bytes() == b'{"number": 0}'


def test_other_roles_and_other_points_go_on(points: FaultPoints, tmp_path: Path) -> None:
    points.arm("cell", "write.result.before")
    points.arm("daemon", "write.transcript.before")
    disarmed = points.arm("daemon", "write.result.before")
    points.disarm(disarmed)
    assert run(points, tmp_path, 1) == 0
    assert points.struck() == {}


def test_a_sitecustomize_that_is_there_is_run_too(points: FaultPoints, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.theirs = 1")
    base = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.theirs)"], env=points.environment(base), check=True
    )
    assert done.returncode == 0


def test_a_process_that_is_none_of_ours_pays_next_to_nothing(points: FaultPoints) -> None:
    program = (
        "import sys; print(len(sys.meta_path), 'overnight_fault_points.points' in sys.modules, 'json' in sys.modules)"
    )
    plain = {**os.environ, "PYTHONPATH": str(SITE)}
    plain.pop("OVERNIGHT_FAULT_POINTS", None)
    without = subprocess.run(
        [sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True
    ).stdout
    count = without.split()[0]
    assert without.split() == [count, "False", "False"]
    env = points.environment()
    with_them = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert with_them.split() == [count, "True", "False"]
    assert points.trace() == []

"""A queue that was lost or emptied beside its results: every command that looks says so, no backup takes the place of a
good one, and a repair finds the results also after a submit has begun the queue anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import small_home
from helpers.home import Home
from helpers.queue_checks import assert_sound
from helpers.waiting import until
from overnight.backup import create, snapshot
from overnight.cli import up
from overnight.cli.main import main
from overnight.doctor import facts, home_checks
from overnight.doctor.row import Status as Row
from overnight.paths import Paths
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair import repair

SAID = "results/night"


@pytest.fixture(scope="module", autouse=True)
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_home.build(tmp_path_factory.mktemp("built") / "h").home


@pytest.fixture
def paths(built: Path, tmp_path: Path) -> Paths:
    shutil.copytree(built, tmp_path / "h")
    return Paths.of(tmp_path / "h")


def removed(paths: Paths) -> None:
    paths.queue.unlink()


def emptied(paths: Paths) -> None:
    paths.queue.write_bytes(b"")


def begun_anew(paths: Paths) -> None:
    """Another grid was submitted since."""
    paths.queue.unlink()
    with Queue.open(paths.queue) as queue:
        queue.enqueue("sweep", cells=small_home.commands(), spec={"name": "sweep"}, policy=small_home.POLICY)


LOST = pytest.mark.parametrize("lose", [removed, emptied, begun_anew], ids=lambda lose: lose.__name__)


@LOST
def test_whoever_looks_says_so(paths: Paths, lose: Callable[[Paths], None], capsys: pytest.CaptureFixture[str]) -> None:
    lose(paths)
    row = home_checks.queue_check(facts.queue(paths))
    assert (row.check, row.status) == ("queue", Row.BAD)
    assert SAID in row.found
    assert "overnight repair" in row.advice
    assert lose is not removed or not paths.queue.exists(), "a look makes no queue"
    home = ("--home", str(paths.home))
    assert main([*home, "verify"]) == 1
    assert f"{SAID} holds 6 cells that the queue does not know: `overnight repair`" in capsys.readouterr().out
    assert main([*home, "verify", "--deep"]) == 1
    assert f"\n{SAID}: holds 6 cells that the queue does not know; `overnight repair`" in f"\n{capsys.readouterr().out}"
    (line,) = up._check(paths)
    assert line.startswith(f"warning: {SAID}")


def test_a_sound_home_has_nothing_of_it(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    for empty in ("mine", "another/cell"):  # what holds no cell's results is nobody's loss
        (paths.results / empty).mkdir(parents=True)
    row = home_checks.queue_check(facts.queue(paths))
    assert (row.status, row.found) == (Row.OK, "knows 2 grids")
    assert main(["--home", str(paths.home), "verify"]) == 0
    assert "0 with a problem" in capsys.readouterr().out
    assert up._check(paths) == []
    assert home_checks.queue_check(facts.queue(Paths.of(paths.home / "none"))).status is Row.OK
    paths.queue.write_bytes(b"no queue" * 1000)
    assert home_checks.queue_check(facts.queue(paths)).status is Row.BAD


@LOST
def test_no_backup_takes_the_place_of_a_good_one(
    paths: Paths, tmp_path: Path, lose: Callable[[Paths], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the empty queue that another command made is there already or not."""
    archive = tmp_path / "b.tar.gz"
    backup = ("--home", str(paths.home), "backup", "--replace", str(archive))
    assert main(backup) == 0
    good = archive.read_bytes()
    lose(paths)
    capsys.readouterr()
    for _ in range(2):
        assert main(backup) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert SAID in said
        assert "overnight repair" in said
        assert "no backup was made" in said
        assert archive.read_bytes() == good
        Queue.open(paths.queue).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "h"]
    assert main([*backup, "--incomplete"]) == 0
    assert archive.read_bytes() != good


def test_a_grid_that_comes_while_the_backup_begins_is_no_lost_one(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = snapshot.take

    def taken(*args: Any) -> snapshot.Snapshot:
        found = take(*args)
        (paths.results / "new" / "x1").mkdir(parents=True)
        (paths.results / "new" / "x1" / "result.json").touch()
        return found

    monkeypatch.setattr(create.snapshot, "take", taken)
    create.create(paths, tmp_path / "b.tar")


@pytest.mark.parametrize("linked", [False, True])
def test_repair_puts_back_what_a_submit_has_hidden(paths: Paths, tmp_path: Path, linked: bool) -> None:
    """Whole grids alone, also on another disk; what is in the queue stays as it is."""
    before = small_home.results(paths)
    begun_anew(paths)
    if linked:
        paths.grid_results("night").rename(tmp_path / "disk")
        paths.grid_results("night").symlink_to(tmp_path / "disk")
    with Queue.open(paths.queue) as queue:
        known = queue.cells("sweep")
    dry = [str(step) for step in repair.run(paths, dry_run=True).steps]
    outcome = repair.run(paths)
    assert [str(step) for step in outcome.steps] == dry
    done, under_way = "done, as its transcript and its result prove", "pending, with the turns that it has"
    assert [step.what.rpartition(": ")[2] for step in outcome.mended] == [done] * 3 + [under_way] * 3
    assert [step.todo.partition(" adds")[0] for step in outcome.left] == ["`overnight submit FILE`"]
    assert_sound(paths.queue)
    assert outcome.folder is not None
    assert (outcome.folder / "queue.db").is_file()
    with Queue.open(paths.queue, check=True) as queue:
        assert queue.cells("sweep") == known
    assert repair.run(paths).steps == []
    small_home.run(paths)
    assert set(small_home.statuses(paths).values()) == {Status.DONE}
    after = small_home.results(paths)
    assert all(after[name].startswith(data) for name, data in before.items()), "they go on where they stopped"
    assert main(["--home", str(paths.home), "verify", "--deep"]) == 0


def test_repair_tells_what_it_cannot_put_back(paths: Paths) -> None:
    """Commands stood in the queue alone. Of a grid that it knows, a folder too many may be anybody's."""
    shutil.rmtree(paths.grid_results("night"))
    paths.queue.unlink()
    with Queue.open(paths.queue) as queue:
        queue.enqueue("night", cells=small_home.cells(), spec={"name": "night"}, policy=small_home.POLICY)
    (paths.grid_results("night") / "strange").mkdir(parents=True)
    for _ in range(2):
        outcome = repair.run(paths)
        assert outcome.folder is None, "nothing was changed"
        assert [step.what for step in outcome.left] == ["the commands of 2 results stood in the queue alone"]
        assert [step.where for step in outcome.steps if step.note] == ["results/night"]


def left(paths: Paths, grid: str, key: str, name: str) -> None:
    paths.cell_results(grid, key).mkdir(parents=True, exist_ok=True)
    (paths.cell_results(grid, key) / name).write_text("{}")


def test_analyses_are_no_loss(paths: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody may submit a grid of their name: no advice says so, and no backup waits for it."""
    left(paths, "night.analysis", "baseline_script_run1.1", "result.json")
    home = ("--home", str(paths.home))
    assert main([*home, "verify"]) == 0
    assert main([*home, "backup", str(tmp_path / "b.tar.gz")]) == 0
    (note,) = repair.run(paths).steps
    assert (note.where, note.note) == ("results/night.analysis", True)
    assert "may be moved away" in note.todo
    assert "`overnight analyze night`" in note.todo
    removed(paths)
    told = {step.where: step.todo for step in repair.run(paths).left}
    assert told["results/night.analysis"] == note.todo
    assert "`overnight submit FILE`" in told["results/sweep"]
    left(paths, "sweep.analysis", "mine", "result.json")  # a grid that somebody named so
    capsys.readouterr()
    assert main([*home, "backup", str(tmp_path / "c.tar.gz")]) == 2
    assert "results/sweep.analysis" in capsys.readouterr().err


def test_imports_are_imported_again(paths: Paths) -> None:
    """One line a grid, also of a grid that the queue knows; no submit would add them."""
    for grid in ("old", "night"):
        for run in (1, 2):
            left(paths, grid, f"values_only_8b_run{run}", "conversation.json")
    steps = {step.where: step for step in repair.run(paths).steps}
    assert sorted(steps) == ["results/night", "results/old"]
    assert (steps["results/night"].note, steps["results/old"].note) == (True, False)
    removed(paths)
    lost = [step for step in repair.run(paths).left if "imported" in step.what]
    assert [step.where for step in lost] == ["results/night", "results/old"]
    for step in (*steps.values(), *lost):
        grid = step.where.removeprefix("results/")
        assert f"`overnight import FOLDER --grid {grid}`" in step.todo
        assert "submit" not in step.todo


def test_the_daemon_warns_at_its_start(home: Home) -> None:
    (home.paths.results / "lost" / "x1").mkdir(parents=True)
    (home.paths.results / "lost" / "x1" / "result.json").touch()
    home.start()
    until(lambda: home.log("results_unknown"), 30)
    assert home.stop() == 0
    (line,) = home.log("results_unknown")
    assert (line["level"], line["grids"]) == ("warning", ["lost"])

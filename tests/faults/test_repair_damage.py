"""Any file of var/ is damaged anyhow; then a repair, its look afterwards, and the cells run to their end.

What must hold is read from `overnight repair --help` and docs/guarantees.md (7 and 15), not from the code.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import small_home
from overnight.cells.transcript import Reader
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair import repair
from overnight.repair.deep import Deep

KINDS = ("bit", "bits", "cut", "zeros", "noise", "remove", "double")


@pytest.fixture(scope="module", autouse=True)
def private() -> Iterator[None]:
    """As the command line has it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose queue is closed."""
    return small_home.build(tmp_path_factory.mktemp("settled") / "h").home


@pytest.fixture(scope="module")
def killed(settled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with the queue's last changes in its log alone, as a killed daemon leaves them."""
    home = tmp_path_factory.mktemp("killed") / "h"
    shutil.copytree(settled, home)
    paths = Paths.of(home)
    for path in paths.var.glob("queue.db*"):
        path.unlink()
    shutil.rmtree(paths.results)
    shutil.rmtree(home / "w", ignore_errors=True)
    work = small_home_with_log(home / "w")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{work.queue}{suffix}", f"{paths.queue}{suffix}")
    shutil.copytree(work.results, paths.results)
    shutil.rmtree(home / "w")
    return home


def small_home_with_log(folder: Path) -> Paths:
    """Built while another connection keeps the log from being moved into the database."""
    paths = Paths.of(folder).ensure()
    keeper = Queue.open(paths.queue)
    keeper.counts()  # now it has the log open
    small_home.build(folder)
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{paths.queue}{suffix}", f"{paths.queue}.kept{suffix}")
    keeper.close()
    for suffix in ("", "-wal"):
        Path(f"{paths.queue}.kept{suffix}").replace(f"{paths.queue}{suffix}")
    return paths


@pytest.fixture(scope="module")
def undisturbed(settled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What all cells leave when nothing happens to them."""
    home = tmp_path_factory.mktemp("undisturbed") / "h"
    shutil.copytree(settled, home)
    with Queue.open(Paths.of(home).queue) as queue:
        queue.retry(row.id for row in queue.cells())
    small_home.run(Paths.of(home))
    return small_home.results(Paths.of(home))


def damage(paths: Paths, chance: random.Random) -> str:
    """Damage one file; says which and how."""
    files = [path for path in paths.var.rglob("*") if path.is_file() and path.name not in ("daemon.lock", ".gitkeep")]
    queue = [path for path in files if path.name.startswith("queue.db")]
    path = chance.choice(sorted(queue if queue and chance.random() < 0.5 else files))
    kind = chance.choice(KINDS)
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data)) if data else 0
    if kind == "remove" or not data:
        path.unlink()
    else:
        if kind in ("bit", "bits"):
            for _ in range(1 if kind == "bit" else 5):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[at : at + 500]
        else:
            length = chance.choice((16, 600, 5000))
            new = (
                bytes(len(data[at : at + length])) if kind == "zeros" else chance.randbytes(len(data[at : at + length]))
            )
            data[at : at + length] = new
        path.write_bytes(data)
    return f"{kind} of {path.relative_to(paths.var)} at {at}"


def good_lines(data: bytes) -> bytes:
    reader = Reader(io.BytesIO(data))
    for _ in reader:
        pass
    return data[: reader.good_bytes]


def transcripts(paths: Paths) -> dict[str, bytes]:
    found = {path.relative_to(paths.results): path.read_bytes() for path in paths.results.glob("*/*/transcript.jsonl")}
    return {str(name): data for name, data in found.items()}


def check_round(home: Path, work: Path, seed: int, undisturbed: dict[str, bytes]) -> str:
    """Returns what was done, for the message of a failure."""
    shutil.copytree(home, work)
    paths = Paths.of(work)
    chance = random.Random(seed)
    what = "; ".join(damage(paths, chance) for _ in range(chance.choice((1, 1, 1, 2, 3))))
    before = {path.relative_to(paths.var): path.read_bytes() for path in paths.var.rglob("*") if path.is_file()}
    good = {name: good_lines(data) for name, data in transcripts(paths).items()}
    planned = repair.run(paths, dry_run=True)
    now = {path.relative_to(paths.var): path.read_bytes() for path in paths.var.rglob("*") if path.is_file()}
    assert now == before, f"{what}: a dry run changed something"
    try:
        outcome = repair.run(paths)
    except UserError as error:
        assert "upgrade overnight" in str(error), f"{what}: {error}"
        return what
    told = [str(step) for step in outcome.steps]
    assert [str(step) for step in planned.steps] == told, f"{what}: the plan was another"
    # Every original is there.
    if outcome.folder is not None:
        for path in outcome.folder.rglob("*"):
            if path.is_file() and path.name != "report.json":
                assert path.read_bytes() == before[path.relative_to(outcome.folder)], f"{what}: {path}"
    # No whole turn is lost.
    after = transcripts(paths)
    for name, lines in good.items():
        assert after.get(name) == lines or after.get(name) == before[Path("results") / name], f"{what}: {name}"
    # No cell is lost without a word, and nothing is left that was not told.
    left = {step.where for step in outcome.left}
    for found in Deep(paths, None).findings():
        if not found.note:
            told_of = found.where in left or found.area == "model"
            assert told_of, f"{what}: left without a word: {found}; said {told}"
    keys = set(small_home.statuses(paths))
    missing = {f"{cell}" for cell in ALL} - keys
    said = outcome.left or any(step.note for step in outcome.steps)
    assert not missing or said, f"{what}: {missing} are gone without a word"
    again = repair.run(paths)
    assert not again.mended, f"{what}: found again {[str(step) for step in again.steps]}, after {told}"
    # All goes on to the same bytes.
    small_home.run(paths)
    ended = small_home.statuses(paths)
    done = small_home.results(paths)
    for name, data in undisturbed.items():
        cell = "/".join(name.split("/")[:2])
        if ended.get(cell) is Status.DONE and cell not in left:
            assert done.get(name) == data, f"{what}: {name} ended otherwise; said {told}"
    return what


ALL = [f"night/{cell.key}" for cell in small_home.cells()] + [f"sweep/{cell.key}" for cell in small_home.commands()]


@pytest.mark.parametrize("state", ["settled", "killed"])
@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_mended_or_told(
    seed: int, state: str, request: pytest.FixtureRequest, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    home: Path = request.getfixturevalue(state)
    for number in range(4):
        check_round(home, tmp_path / f"h{number}", 100 * seed + number, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["settled", "killed"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("REPAIR_SEEDS", "50"))))
def test_damage_anywhere_many_times(
    seed: int, state: str, request: pytest.FixtureRequest, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    home: Path = request.getfixturevalue(state)
    for number in range(10):
        check_round(home, tmp_path / f"h{number}", 10_000 + 100 * seed + number, undisturbed)
        shutil.rmtree(tmp_path / f"h{number}")


def test_the_helper_damages(settled: Path, tmp_path: Path) -> None:
    shutil.copytree(settled, tmp_path / "h")
    paths = Paths.of(tmp_path / "h")
    before = small_home.tree(paths.var)
    damage(paths, random.Random(1))
    assert small_home.tree(paths.var) != before

"""`overnight repair` and `verify --deep` on homes of a real daemon, which then runs them to their end."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import small_home
from helpers.home import Home
from helpers.waiting import until
from overnight.queue.states import Status
from overnight.queue.store import Queue
from overnight.repair.deep import Deep

KEYS = [f"{scaffold}_script_run{n}" for scaffold in ("baseline", "values_only") for n in (1, 2)]


def sweep() -> list[str]:
    """Options of two commands, each with a result and a file that is kept."""
    program = "import json, sys; open('k.txt', 'w').write(sys.argv[1]); print(json.dumps({'x': sys.argv[1]}))"
    command = f"{sys.executable} -S -c {shlex.quote(program.replace('{', '{{').replace('}', '}}'))} {{x}}"
    return ["--command", command, "--name", "sweep", "--axis", "x=1..2", "--cwd", "scratch", "--keep", "*.txt"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose cells are done and whose daemon has stopped."""
    home = Home(tmp_path_factory.mktemp("done") / "h")
    try:
        home.submit(options={"delay_s": 0}, runs=2)
        home("submit", *sweep(), cwd=home.paths.home)
        home.start()
        home.wait_done()
        assert home.stop() == 0
        yield home.paths.home
    finally:
        home.end()


@pytest.fixture
def home(done: Path, tmp_path: Path) -> Iterator[Home]:
    shutil.copytree(done, tmp_path / "h")
    home = Home(tmp_path / "h")
    yield home
    home.end()


def run_on(home: Home) -> None:
    home.start()
    home.wait_done()
    assert home.stop() == 0


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def line_start(path: Path, line: int) -> int:
    return sum(len(each) for each in path.read_bytes().splitlines(keepends=True)[:line])


def test_nothing_to_do(home: Home) -> None:
    before = small_home.tree(home.paths.var / "results")
    assert "nothing to mend" in home("repair").stdout
    assert "0 problems" in home("verify", "--deep").stdout
    assert small_home.tree(home.paths.var / "results") == before
    assert not (home.paths.var / "repair").exists()


@pytest.mark.parametrize("line", [0, 1, 3, 6])
def test_a_flipped_bit_costs_the_turns_behind_it_alone(home: Home, line: int) -> None:
    """The same bytes as undisturbed in the end."""
    before = home.transcripts()
    path = home.paths.transcript("night", KEYS[0])
    flip(path, line_start(path, line) + 30)
    damaged = path.read_bytes()
    assert f"night/{KEYS[0]}" in home("verify", "--deep", code=1).stdout
    said = home("repair").stdout
    assert f"cut to its {max(0, line - 1)} whole turns" in said
    assert path.read_bytes() == before[KEYS[0]][: line_start_of(before[KEYS[0]], line)]
    (folder,) = (home.paths.var / "repair").iterdir()
    assert (folder / "results" / "night" / KEYS[0] / "transcript.jsonl").read_bytes() == damaged
    run_on(home)
    assert home.transcripts() == before
    assert "0 problems" in home("verify", "--deep").stdout


def line_start_of(data: bytes, line: int) -> int:
    return sum(len(each) for each in data.splitlines(keepends=True)[:line])


def test_a_quarantined_transcript_goes_on_where_it_is_whole(home: Home) -> None:
    before = home.transcripts()
    with Queue.open(home.paths.queue) as queue:
        queue.reset("night", aside=None)
    flip(home.paths.transcript("night", KEYS[1]), line_start(home.paths.transcript("night", KEYS[1]), 4) + 20)
    home.start()
    until(lambda: home.statuses()["quarantined"] == 1 and not home.statuses()["pending"], 60)
    until(lambda: not home.statuses()["running"], 60)
    assert home.stop() == 0
    assert home("verify", "--deep", code=1).returncode == 1
    assert "cut to its 3 whole turns" in home("repair").stdout
    run_on(home)
    assert home.transcripts() == before


def test_the_queue_is_lost(home: Home) -> None:
    """Rebuilt from the results; the grid files add what stood in the queue alone."""
    before = home.transcripts()
    home.paths.queue.write_bytes(b"this is no database " * 400)
    assert "repair" in home("verify", "--deep", code=1).stdout
    home("status", code=2)
    said = home("repair", code=1).stdout
    assert said.count("done, as its transcript and its result prove") == 4
    assert "2 results stood in the queue alone" in said
    home.submit(options={"delay_s": 0}, runs=2)
    assert home.statuses() == {"done": 4}
    assert "results/sweep: holds 2 cells that the queue does not know" in home("verify", "--deep", code=1).stdout
    home("submit", *sweep(), cwd=home.paths.home)
    assert "0 problems" in home("verify", "--deep").stdout
    run_on(home)
    assert home.transcripts() == before


def test_results_are_made_again(home: Home) -> None:
    before = small_home.results(home.paths)
    home.paths.result("night", KEYS[0]).unlink()
    home.paths.result("night", KEYS[1]).write_text("{}")
    kept = home.paths.cell_results("sweep", "x1") / "files" / "k.txt"
    kept.write_text("another")
    home("repair")
    assert small_home.results(home.paths).items() <= before.items()
    with Queue.open(home.paths.queue) as queue:
        assert queue.find_cell("x1")[0].status is Status.PENDING
        assert all(row.status is Status.DONE for row in queue.cells("night"))
    (folder,) = (home.paths.var / "repair").iterdir()
    assert (folder / "results" / "sweep" / "x1" / "files" / "k.txt").read_text() == "another"
    run_on(home)
    assert small_home.results(home.paths) == before
    assert (home.paths.cell_results("sweep", "x1") / "files" / "k.txt").read_text() == "1"


def test_a_dry_run_changes_nothing(home: Home) -> None:
    flip(home.paths.transcript("night", KEYS[0]), 700)
    home.paths.result("night", KEYS[1]).unlink()
    flip(home.paths.queue, 4096 * 3 + 5)
    before = small_home.tree(home.paths.var)
    said = home("repair", "--dry-run", code=None)
    assert said.returncode in (0, 1)
    assert "nothing was changed" in said.stdout
    assert small_home.tree(home.paths.var) == before
    assert said.stdout.splitlines()[:-1] == home("repair", code=None).stdout.splitlines()[:-1]


def test_while_a_daemon_runs_it_is_refused_and_verify_is_not(home: Home) -> None:
    home.submit("long", options={"delay_s": 0.05}, limits={"max_iterations": 40}, runs=3)
    home.start()
    until(lambda: home.statuses()["running"], 30)
    for args in ((), ("--dry-run",)):
        refused = home("repair", *args, code=2)
        assert refused.stdout == ""
        assert len(refused.stderr.splitlines()) == 1
        assert "overnight down" in refused.stderr
    assert home.json("verify", "--deep")["problems"] == []
    looks = 0
    while {"pending", "running"} & home.statuses().keys():
        assert [str(found) for found in Deep(home.paths, None).findings() if not found.note] == []
        looks += 1
    assert looks > 2  # each takes as long as the machine lets it; the cells work for seconds
    home.wait_done()
    assert home.stop() == 0


def test_json_and_unknown_grids(home: Home) -> None:
    home("verify", "--deep", "nigth", code=2)
    home("repair", "nigth", code=2)
    (home.paths.results / "strange").mkdir()
    (home.paths.cell_results("night", KEYS[0]) / "mine.txt").write_text("x")
    (home.paths.cell_results("night", KEYS[1]) / "transcript.jsonl.cut-1").write_text("x")
    found = json.loads(home("verify", "--deep", "--json", code=1).stdout)
    assert found["checked"]["cells"] == 6
    assert [(each["where"], each["what"]) for each in found["problems"]] == [
        (f"night/{KEYS[0]}", "mine.txt does not belong there; move it away")
    ]
    assert {each["where"] for each in found["notes"]} == {f"night/{KEYS[1]}", "results/strange"}
    assert "night" in home("verify", "--deep", "night", code=1).stdout

"""Cells that need more than was thought, more than there is, or what was learned: in real memory cgroups."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.home import Home
from helpers.waiting import until

MIB = 2**20


@pytest.fixture
def make_home(tmp_path: Path) -> Iterator[Callable[..., Home]]:
    homes: list[Home] = []

    def make(name: str, **options: Any) -> Home:
        homes.append(Home(tmp_path / name, **options))
        return homes[-1]

    yield make
    for home in homes:
        home.end()


def ended(home: Home, deadline_s: float = 60.0) -> dict[str, dict[str, Any]]:
    until(lambda: not {"pending", "running"} & home.statuses().keys(), deadline_s, "the end of all cells")
    return {f"{cell['grid']}/{cell['key']}": cell for cell in home.cells()}


SPIKES: dict[str, Any] = {
    "scaffolds": [1],
    "limits": {"max_iterations": 4},
    "options": {"delay_s": 0.02, "spike_at_turn": 3, "spike_bytes": 500 * MIB},
}


@pytest.mark.root
def test_one_that_needs_more_than_its_claim_goes_on_at_its_last_turn_with_a_larger_one(
    make_home: Callable[..., Home],
) -> None:
    """A neighbour has claimed most of the room, so its claim cannot be extended while it runs; later it can."""
    calm = make_home("calm", settings="[memory]\ncaps = 'none'\n")
    calm.submit(**SPIKES)
    calm.start()
    calm.wait_done()
    home = make_home("tight", settings="[memory]\nbudget = '1GiB'\n")
    home("submit", "--command", "sleep 3", "--memory", "560MiB", "--name", "neighbour", "--cwd", "/")
    home.start()
    until(lambda: home.log("cell_begun"))
    home.submit(**SPIKES, memory="100MiB")
    cells = ended(home)
    cell = cells["night/baseline_script_run1"]
    assert {each["status"] for each in cells.values()} == {"done"}
    assert home.transcripts() == calm.transcripts(), "a cap changes no byte"
    attempts = home.json("show", "night/baseline_script_run1")["attempts"]
    assert [attempt["outcome"] for attempt in attempts[:-1]] == ["over_cap"] * (len(attempts) - 1)
    assert len(attempts) > 1
    assert attempts[1]["claim_bytes"] >= 1.5 * attempts[0]["claim_bytes"]
    for attempt in attempts[:-1]:
        assert attempt["evidence"]["confidence"] == "certain"
        assert "at its own cap" in attempt["reason"]
    resumed = [line["turn"] for line in home.log("cell_resumed")]
    assert resumed == [2] * (len(attempts) - 1), "nothing is done again"
    assert cell["tries_used"] == 0


@pytest.mark.root
def test_one_that_is_larger_than_the_limit_is_quarantined_with_the_figure_and_its_neighbours_finish(
    make_home: Callable[..., Home],
) -> None:
    home = make_home("h", slots=3, settings="[memory]\nbudget = '400MiB'\nprior = '64MiB'\n")
    home.submit("hog", scaffolds=[1], options={"grow_bytes": 500 * MIB}, limits={"max_iterations": 1})
    home.submit("small", scaffolds=[1, 2, 3], limits={"max_iterations": 4})
    home.start()
    cells = ended(home)
    hog = cells.pop("hog/baseline_script_run1")
    assert {cell["status"] for cell in cells.values()} == {"done"}
    assert (hog["status"], hog["reason_code"]) == ("quarantined", "too_large")
    assert "needs at least " in hog["reason"]
    assert "the limit is " in hog["reason"]
    largest = max(attempt["cap_bytes"] for attempt in home.json("show", "hog/baseline_script_run1")["attempts"])
    assert 0.6 * 400 * MIB < largest < 0.8 * 400 * MIB, "it was tried with all that there is but the reserve"


READS = """
import mmap, resource, sys, time
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
began, passes, calm = time.monotonic(), 0, 0
while calm < 20 and time.monotonic() < began + 40:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    mapped[::mmap.PAGESIZE]
    waited = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
    passes, calm = passes + 1, 0 if waited else calm + 1
print('{"passes": %d, "calm": %d}' % (passes, calm))
"""
"""A file is mapped and read until 20 passes in a row had not to wait for the disk."""


@pytest.mark.root
def test_one_that_reads_more_than_its_cap_again_and_again_gets_a_larger_cap_and_no_larger_claim(
    make_home: Callable[..., Home], tmp_path: Path
) -> None:
    program, data = tmp_path / "reads.py", tmp_path / "data"
    program.write_text(READS)
    with data.open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * MIB)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # to be charged to the cell
    home = make_home("h", settings="[memory]\nbudget = '1GiB'\n")
    command = f"{sys.executable} -S -E {program} {data}"
    home("submit", "--command", command, "--axis", "seed=1", "--name", "reads", "--cwd", "/", "--memory", "24MiB")
    home.start()
    (cell,) = ended(home).values()
    assert cell["status"] == "done", cell
    (attempt,) = home.json("show", cell["key"])["attempts"]
    loosened = home.log("cap_loosened")
    assert loosened, "it waited for the disk all the time"
    assert all(line["refault_bytes_per_s"] > 4 * MIB for line in loosened)
    assert loosened[-1]["cap_bytes"] == attempt["cap_bytes"] > 200 * MIB
    assert attempt["claim_bytes"] == 24 * MIB
    (result,) = (json.loads(path.read_bytes()) for path in home.paths.results.glob("*/*/result.json"))
    assert result["result"]["calm"] == 20, result


PLATEAU = (
    "import mmap,time; m = mmap.mmap(-1, {mib} << 20, flags=2 | 32); m[::4096] = b'x' * len(m[::4096]); time.sleep(0.4)"
)


@pytest.mark.root
def test_the_second_grid_of_a_kind_claims_what_the_first_one_took(make_home: Callable[..., Home]) -> None:
    home = make_home("h", slots=4, settings="[memory]\nprior = '64MiB'\n")
    program = f"{sys.executable} -S -E -c {shlex.quote(PLATEAU)}"
    home(
        "submit", "--command", program, "--axis", "mib=150,300", "--axis", "seed=1..2", "--name", "first", "--cwd", "/"
    )
    home.start()
    assert {cell["status"] for cell in ended(home).values()} == {"done"}
    home(
        "submit", "--command", program, "--axis", "mib=150,300", "--axis", "seed=3..4", "--name", "second", "--cwd", "/"
    )
    cells = ended(home)
    for mib in (150, 300):
        for seed in (3, 4):
            (attempt,) = home.json("show", f"second/mib{mib}_seed{seed}")["attempts"]
            assert attempt["outcome"] == "completed"
            assert attempt["claim_source"] == "learned"
            assert 1.0 <= attempt["claim_bytes"] / (mib * MIB) < 1.15
    assert all(cell["attempts"] == 1 for key, cell in cells.items() if key.startswith("second/"))

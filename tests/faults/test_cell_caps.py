"""Real OOM kills and plain SIGKILLs, mixed, in slots that are used again: each is named for what it was."""

from __future__ import annotations

import mmap
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.memory_cgroup import MemoryCgroup, Unavailable
from overnight.dispatch.cell_cgroups import CellCgroups
from overnight.dispatch.oom import OomWatch
from overnight.dispatch.verdicts import Ending, judge

pytestmark = [pytest.mark.root, pytest.mark.alone]

MIB = 2**20
CAP_BYTES = 16 * MIB
AROUND_BYTES = 40 * MIB
"""What the cells of the small ward have together."""
Named = tuple[str, str, str]

_held: list[mmap.mmap] = []


def hold(mib: int) -> None:
    """Anonymous memory, touched."""
    for _ in range(mib):
        _held.append(mmap.mmap(-1, MIB))
        _held[-1].write(b"x" * MIB)


def grow() -> None:
    while True:
        hold(1)


@dataclass(frozen=True)
class Ward:
    """Slots below a cgroup with a limit of its own, and the counter of those in it who have no slot."""

    cgroup: MemoryCgroup
    slots: CellCgroups
    oom: OomWatch

    def dies(
        self, work: Callable[[], None], cap_bytes: int | None = CAP_BYTES, *, slot: bool = True, kill: bool = False
    ) -> Named:
        """Have a child do its work, kill it then (or see it killed), and judge. Without a slot it lives in the ward."""
        taken = self.slots.take(cap_bytes) if slot else None
        before = self.oom.look()
        status = died(str(self.cgroup.folder) if taken is None else taken.folder, work, kill=kill)
        verdict = judge(
            Ending(
                status=status,
                cgroup=None if taken is None else taken.evidence(),
                oom_above=self.oom.look().rose_since(before),
            )
        )
        assert taken is None or self.slots.give_back(taken)
        return verdict.outcome, verdict.reason_code, verdict.confidence


def died(folder: str, work: Callable[[], None], *, kill: bool) -> int:
    """The wait status of a child that joined the cgroup first."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            Path(folder, "cgroup.procs").write_text(str(os.getpid()))
            work()
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    if kill:
        assert os.read(read, 1) == b"x"
        os.kill(pid, signal.SIGKILL)
    os.close(read)
    return os.waitpid(pid, 0)[1]


@pytest.fixture
def wards() -> Iterator[tuple[Ward, Ward]]:
    """A large one and a small one."""
    with ExitStack() as stack:
        found = []
        for limit in (256 * MIB, AROUND_BYTES):
            try:
                cgroup = stack.enter_context(MemoryCgroup.made(limit))
            except Unavailable as reason:
                pytest.skip(str(reason))
            slots = CellCgroups(cgroup.folder, 1 if cgroup.kind == "cgroup1" else 2)
            stack.callback(slots.close)
            found.append(Ward(cgroup, slots, OomWatch([cgroup.folder])))
        yield found[0], found[1]


def campaign(wards: tuple[Ward, Ward], tmp_path: Path, each: int) -> list[tuple[str, Named, Named]]:
    """`each` rounds of five OOM kills and five plain ones, shuffled: (what it was, expected, named)."""
    large, small = wards
    file = tmp_path / "file"

    def write_files() -> None:
        """More than the cap: page cache meets it too, and is thrown out."""
        with file.open("wb", buffering=0) as out:
            for _ in range(2 * CAP_BYTES // MIB):
                out.write(b"x" * MIB)

    def files_then_grow() -> None:
        write_files()
        grow()

    def meets_its_cap_with_files() -> None:
        write_files()
        hold(4)

    def in_one_piece() -> None:
        _held.append(mmap.mmap(-1, 4 * CAP_BYTES))
        _held[-1].write(b"x" * 4 * CAP_BYTES)

    def give_back() -> None:
        hold(CAP_BYTES // MIB - 2)
        _held.clear()

    cap, above = ("over_cap", "cgroup_cap", "certain"), ("oom_killed", "kernel_oom", "certain")
    lost = ("lost", "killed", "certain")
    rounds: list[tuple[str, Named, Callable[[], Named]]] = [
        ("its cap", cap, lambda: large.dies(grow)),
        ("its cap, after files", cap, lambda: large.dies(files_then_grow)),
        ("the cgroup above, capped", above, lambda: small.dies(grow, 10 * AROUND_BYTES)),
        ("the cgroup above, uncapped", above, lambda: small.dies(grow, None)),
        ("its cap, in one piece", cap, lambda: large.dies(in_one_piece)),
        ("kill -9 at rest", lost, lambda: large.dies(lambda: None, kill=True)),
        ("kill -9 near its cap", lost, lambda: large.dies(lambda: hold(CAP_BYTES // MIB - 2), kill=True)),
        ("kill -9 after its files met the cap", lost, lambda: large.dies(meets_its_cap_with_files, kill=True)),
        ("kill -9 without a cap", lost, lambda: small.dies(lambda: hold(8), None, kill=True)),
        ("kill -9 after it gave much back", lost, lambda: large.dies(give_back, kill=True)),
    ]
    order = rounds * each
    random.Random(7).shuffle(order)
    return [(what, expected, run()) for what, expected, run in order]


def wrong(results: list[tuple[str, Named, Named]]) -> list[tuple[str, Named, Named]]:
    return [each for each in results if each[1] != each[2]]


def test_every_death_is_named_for_what_it_was(wards: tuple[Ward, Ward], tmp_path: Path) -> None:
    results = campaign(wards, tmp_path, 1)
    assert len(results) == 10
    assert wrong(results) == []


@pytest.mark.slow
def test_fifty_of_each_are_named_for_what_they_were(wards: tuple[Ward, Ward], tmp_path: Path) -> None:
    results = campaign(wards, tmp_path, 10)
    print(f"\nverdicts: {len(results) - len(wrong(results))} of {len(results)} deaths named rightly")
    assert len(results) == 100
    assert wrong(results) == []


def test_without_a_slot_the_counter_around_it_tells(wards: tuple[Ward, Ward]) -> None:
    _, small = wards
    assert small.dies(grow, slot=False) == ("oom_killed", "kernel_oom", "inferred")
    assert small.dies(lambda: hold(8), slot=False, kill=True) == ("lost", "killed", "inferred")


def test_a_neighbours_oom_kill_is_not_taken_for_ones_own(wards: tuple[Ward, Ward]) -> None:
    large, _ = wards
    before, neighbour = large.oom.look(), large.slots.take(CAP_BYTES)
    assert large.dies(grow) == ("over_cap", "cgroup_cap", "certain")
    assert neighbour.evidence().oom_kills == 0
    assert not large.oom.look().rose_since(before)


def test_a_killed_worker_of_a_command_that_fails_because_of_it(wards: tuple[Ward, Ward]) -> None:
    """A tree: the child is killed at the cap, its parent sees that and leaves with a status of its own."""
    slot = wards[0].slots.take(CAP_BYTES)

    def command() -> None:
        if (worker := os.fork()) == 0:
            grow()
        os._exit(3 if os.WIFSIGNALED(os.waitpid(worker, 0)[1]) else 0)

    status = died(slot.folder, command, kill=False)
    if slot.evidence().oom_kills == 2:  # v2 kills all of a cell
        assert os.WTERMSIG(status) == signal.SIGKILL
        return
    assert os.waitstatus_to_exitcode(status) == 3
    told = {"outcome": "failed", "reason_code": "exit_status", "reason": "exit status 3", "evidence": {"exit_code": 3}}
    verdict = judge(Ending(report=told, status=70 << 8, cgroup=slot.evidence()))
    assert (verdict.outcome, verdict.reason_code, verdict.confidence) == ("over_cap", "cgroup_cap", "inferred")
    assert verdict.reason.endswith("it held 16.0 MiB of 16.0 MiB; exit status 3")


def test_a_cap_that_is_raised_in_time_is_not_met(wards: tuple[Ward, Ward]) -> None:
    slot = wards[0].slots.take(CAP_BYTES)
    slot.set_cap(2 * CAP_BYTES)
    status = died(slot.folder, lambda: hold(24), kill=True)
    assert judge(Ending(status=status, cgroup=slot.evidence())).outcome == "lost"
    assert slot.evidence().high_water_bytes > CAP_BYTES
    assert wards[0].slots.give_back(slot)

"""Deaths in and around the cgroups of cells, beyond those of the campaign `verdicts`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from helpers.memory_cgroup import Unavailable
from helpers.wards import CAP_BYTES, Ward, died, grow, hold
from helpers.wards import wards as made_wards
from overnight.dispatch.verdicts import Ending, judge

pytestmark = [pytest.mark.root, pytest.mark.alone]


@pytest.fixture
def wards() -> Iterator[tuple[Ward, Ward]]:
    """A large one and a small one."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(made_wards())
        except Unavailable as reason:
            pytest.skip(str(reason))


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

"""Faults that the campaign `disk_calls` has found, each at the very call that showed it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from campaigns.base import Finding
from helpers.disk_cells import IdleLoop, try_fault
from helpers.disk_faults import STAYS_BROKEN, UNSYNCED, Fault
from helpers.disk_queue import Beside, held
from helpers.fault_fs import FaultFs, why_not
from helpers.queue_cells import submit, take
from overnight.queue.store import Queue, QueueUnavailable

pytestmark = pytest.mark.root


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[FaultFs]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    with FaultFs.mounted(tmp_path / "disk", tmp_path / "m") as found:
        yield found


def at(cells: IdleLoop, fault: Fault, kind: str, name: str, which: int = 0) -> int:
    """The number of a call among those that a fault can strike."""
    struck = [call for call in cells.calls if call.kind in fault.kinds]
    return [n for n, call in enumerate(struck, 1) if call.kind == kind and call.path.endswith(name)][which]


@pytest.mark.parametrize("line", range(4))
def test_a_line_that_could_be_neither_synced_nor_cut_off_is_on_disk_when_the_cell_goes_on(
    fs: FaultFs, line: int
) -> None:
    # It was read back from the page cache, and the next turns were synced behind a hole.
    cells, finding = IdleLoop(fs), Finding()
    try_fault(cells, STAYS_BROKEN, at(cells, STAYS_BROKEN, "fsync", "transcript.jsonl", line), finding)
    assert finding.violations == []


@pytest.mark.parametrize("fault", [UNSYNCED, STAYS_BROKEN], ids=["once", "from there on"])
def test_a_result_whose_name_could_not_be_synced_is_written_again(fs: FaultFs, fault: Fault) -> None:
    # It was found whole and left alone: done, and a power cut could take it.
    cells, finding = IdleLoop(fs), Finding()
    try_fault(cells, fault, at(cells, fault, "fsyncdir", "/cell", -1), finding)
    assert finding.violations == []


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "open elsewhere"])
@pytest.mark.parametrize("change", [take, lambda queue: submit(queue, "day", 2)], ids=["claim", "submit"])
def test_a_change_that_was_refused_by_a_broken_disk_is_not_made_behind_our_back(
    fs: FaultFs, beside: bool, change: Callable[[Queue], object]
) -> None:
    # The log held it whole; the only connection was closed, and the next one took the log for what had happened:
    # a cell was running that nobody ran.
    path, other = fs.point / "queue.db", Beside() if beside else None
    try:
        with Queue.open(path) as queue:
            submit(queue)
            if other is not None:
                other.hold(path)
            before = held(path)
            fs.fail(1, errno.EIO, ("fsync",), lasting=True)
            with pytest.raises(QueueUnavailable):
                change(queue)
            fs.lift()
            assert held(path) == before
            change(queue)
            after = held(path)
            assert after != before
        fs.power_cut(fs.point.parent / "image", "none")
        assert held(fs.point.parent / "image" / "queue.db") == after
    finally:
        if other is not None:
            other.end()

"""Memory cgroups with slots for cells in them, and children that die there in every way there is."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.memory_cgroup import MemoryCgroup
from overnight.dispatch.cell_cgroups import CellCgroups
from overnight.dispatch.oom import OomWatch
from overnight.dispatch.verdicts import Ending, judge

MIB = 2**20
CAP_BYTES = 16 * MIB
AROUND_BYTES = 40 * MIB
"""What the cells of the small ward have together."""
Named = tuple[str, str, str]

held: list[mmap.mmap] = []


def hold(mib: int) -> None:
    """Anonymous memory, touched."""
    for _ in range(mib):
        held.append(mmap.mmap(-1, MIB))
        held[-1].write(b"x" * MIB)


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


@contextmanager
def wards() -> Iterator[tuple[Ward, Ward]]:
    """A large one and a small one. Raises helpers.memory_cgroup.Unavailable."""
    with ExitStack() as stack:
        found = []
        for limit in (256 * MIB, AROUND_BYTES):
            cgroup = stack.enter_context(MemoryCgroup.made(limit))
            slots = CellCgroups(cgroup.folder, 1 if cgroup.kind == "cgroup1" else 2)
            stack.callback(slots.close)
            found.append(Ward(cgroup, slots, OomWatch([cgroup.folder])))
        yield found[0], found[1]

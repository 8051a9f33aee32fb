"""A memory cgroup of its own for every running cell: the cap that the kernel enforces, and its word on why a cell died.

    BUDGET_CGROUP/cell-1, cell-2, ...      slots: taken for one attempt, then used again

A removed memory cgroup lives on in the kernel as long as anything is charged to it, and such dying ones accumulate; so
a slot that is empty again is used again, page cache that the next cap has no room for being thrown out first. One in
which a cell left what cannot be thrown out (a file in /dev/shm) is removed instead: the next cell would pay for it.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Literal

from overnight import procfs
from overnight.dispatch import budget_cgroup
from overnight.dispatch.budget_cgroup import LIMIT_FILE, PROC, SYS, Missing
from overnight.dispatch.slot import NO_LIMIT, CgroupEvidence, Slot

__all__ = ["CellCgroups", "CgroupEvidence", "Missing", "Slot"]

PREFIX = "cell-"
_EMPTY_S = 1.0


class CellCgroups:
    """The slots below one folder. `folder` belongs to this home alone."""

    def __init__(self, folder: Path, version: Literal[1, 2], *, keep_folder: bool = True) -> None:
        self.folder, self.version = folder, version
        self._keep_folder = keep_folder
        self._free: list[Slot] = []
        self._taken: list[Slot] = []
        self._aside: list[Slot] = []
        self._take_over()

    @classmethod
    def open(cls, home: Path, *, proc_root: Path = PROC, sys_root: Path = SYS) -> CellCgroups:
        """In the budget's cgroup, which is made without a limit when this process is not in it: then there is no
        budget. What a killed daemon left is taken over. Raises Missing where cells can have no cgroups."""
        own, folder = budget_cgroup.place(home, proc_root=proc_root, sys_root=sys_root)
        inside = folder == own.folder or folder in own.folder.parents
        made = False
        try:
            if own.version == 2:
                budget_cgroup.allow_memory(folder.parent)
            if not folder.is_dir():
                folder.mkdir()
                made = True
            if not (folder / LIMIT_FILE[own.version]).exists():
                raise Missing(f"{folder}: no memory controller in it")
            if not inside:
                (folder / LIMIT_FILE[own.version]).write_text(NO_LIMIT[own.version])
            if own.version == 2:
                budget_cgroup.allow_memory(folder)
            cgroups = cls(folder, own.version, keep_folder=inside)
            cgroups._rehearse()
        except (OSError, Missing) as error:
            if made:
                budget_cgroup.remove(folder)
            if isinstance(error, Missing):
                raise
            raise Missing(f"{error.filename or folder}: {error.strerror}") from None
        return cgroups

    def take(self, cap_bytes: int | None) -> Slot:
        """A slot for one attempt. Raises OSError: then the cell has to do without one."""
        self.settle()
        slot = self._clean_one(cap_bytes) or self._make()
        try:
            slot.set_cap(cap_bytes)
            slot.begin()
        except OSError:
            self._retire(slot)
            raise
        self._taken.append(slot)
        return slot

    def give_back(self, slot: Slot) -> bool:
        """Free again, once it is empty: False while somebody is in it, and it is looked at again later."""
        if slot not in self._taken:
            return True
        self._taken.remove(slot)
        self._aside.append(slot)
        self.settle()
        return slot not in self._aside

    def settle(self) -> None:
        """Those that were not empty when they were given back may be so now. Nobody is killed here: who is still in
        one is told of by `leftovers`."""
        for slot in [each for each in self._aside if not each.processes()]:
            self._aside.remove(slot)
            self._free.append(slot)

    def leftovers(self) -> list[tuple[int, int]]:
        """(pid, start time in clock ticks) of whoever is in a slot that is no running attempt's."""
        pids = [pid for slot in self._aside for pid in slot.processes()]
        return [(pid, ticks) for pid in pids if (ticks := procfs.start_ticks(pid)) is not None]

    def close(self) -> str | None:
        """Remove all slots, and the folder where it is not the budget's. Returns what went wrong, or None."""
        deadline = time.monotonic() + _EMPTY_S
        stay = [*self._free, *self._aside, *self._taken]
        self._free, self._aside, self._taken = [], [], []
        while stay := [slot for slot in stay if not slot.remove()]:
            if time.monotonic() >= deadline:
                return f"cannot remove {', '.join(slot.folder for slot in stay)}: somebody is in it"
            time.sleep(0.02)  # who has just ended is counted a moment longer
        if not self._keep_folder and (why := budget_cgroup.remove(self.folder)) is not None:
            return f"cannot remove {self.folder}: {os.strerror(why)}"
        return None

    def _take_over(self) -> None:
        """What it was capped at is not known: without a cap it can be given any."""
        for folder in sorted(self.folder.glob(f"{PREFIX}*")):
            slot = Slot(folder, self.version)
            try:
                slot.set_cap(None)
            except OSError:
                pass  # it fails again when it is taken, and is removed then
            self._aside.append(slot)
        self.settle()

    def _rehearse(self) -> None:
        """One slot, made and kept: whoever may not make it learns that now. Raises OSError."""
        if not self._free:
            self._free.append(self._make())

    def _clean_one(self, cap_bytes: int | None) -> Slot | None:
        while self._free:
            slot = self._free.pop(0)
            if slot.clean(cap_bytes):
                return slot
            slot.throw_out(cap_bytes)
            if slot.clean(cap_bytes):
                return slot
            self._retire(slot)
        return None

    def _retire(self, slot: Slot) -> None:
        if not slot.remove() and Path(slot.folder).is_dir():
            self._aside.append(slot)

    def _make(self) -> Slot:
        """Raises OSError."""
        number = 1
        while True:
            folder = self.folder / f"{PREFIX}{number}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        slot = Slot(folder, self.version)
        try:
            slot.act_as_one()
            slot.begin()
        except OSError as error:
            slot.remove()
            if error.errno == errno.ENOENT:
                raise FileNotFoundError(errno.ENOENT, "no memory controller in it", str(folder)) from None
            raise
        return slot

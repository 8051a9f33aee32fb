"""Texts of the kernel, from a machine of files: the watchdog's eye and trees, and the daemon's own readers.

Input: the content of one of its files, whose name stands before the first NUL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz.target import Case, Target, expect
from helpers.fake_machine import FREE, GIB, FakeMachine, Watched
from overnight import cgroup_memory, memory, procfs
from overnight.cells import command_tree
from overnight.dispatch import budget_cgroup, leftovers, rlimits
from overnight.dispatch.oom import OomWatch
from overnight.doctor import facts
from overnight.engines import model_sizes
from overnight.warm import meter
from overnight_watchdog import act, tree
from overnight_watchdog.gauges import FOLDERS_S, LIMITS_S, StallGauge
from overnight_watchdog.own_cgroup import OwnCgroup
from overnight_watchdog.sample import SampleError

MIB = 2**20
_PID = 7


def wreck(world: FakeMachine) -> None:
    """v1 and v2 at once, nested, with swap: every file that is ever read."""
    world.meminfo(**FREE, SwapTotal=4 * GIB, SwapFree=GIB, SUnreclaim=MIB)
    world.lives_in(v1="/old", v2="/new/leaf")
    swap = {"memsw__limit_in_bytes": 3 * GIB, "memsw__usage_in_bytes": GIB, "swappiness": 60}
    stat = {"total_cache": GIB, "total_rss": GIB, "total_shmem": 0, "total_mapped_file": MIB, "total_dirty": MIB}
    stat |= {"total_workingset_refault_file": 5}
    world.v1("old", limit=2 * GIB, charged=GIB, kmem__usage_in_bytes=20 * MIB, use_hierarchy=1, stat=stat, **swap)
    world.v2("new", limit=GIB, charged=MIB, stat={"anon": MIB, "file": 0})
    inner = {"anon": MIB, "file": 0, "kernel": 7, "workingset_refault_anon": 3}
    world.v2("new/leaf", limit="max", charged=MIB, stat=inner, swap__max=GIB, swap__current=0, events={"oom_kill": 1})
    world.write("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=123\nfull avg10=0.00 total=1\n")
    world.write("proc/vmstat", "nr_free_pages 5\nworkingset_refault_file 8\noom_kill 2\n")
    world.process(_PID, 1, 100 * MIB, start_ticks=900)
    world.process(8, _PID, 150 * MIB, forked=True)
    world.write(f"proc/{_PID}/environ", "A=1\0OVERNIGHT_ATTEMPT=0123abcd:5\0")
    world.write("sys/fs/cgroup/new/leaf/cgroup.procs", "7\n8\n")


class _Machine(Target):
    tokens = (
        *(
            b" kB\n",
            b"MemTotal:",
            b"max\n",
            b"total_rss ",
            b"anon ",
            b"- cgroup2 cgroup2 rw",
            b" - ",
            b"0::/",
            b"\\040",
            b")",
        ),
        *(
            b"18446744073709551616",
            b"-1",
            b"1e9",
            b"\xd9\xa3",
            b"\xc2\xb2",
            b"VmData:",
            b"RssAnon:",
            b"some ",
            b"total=",
        ),
    )
    world: FakeMachine

    def _files(self) -> list[Path]:
        return sorted(path for path in self.world.folder.rglob("*") if path.is_file())

    def seeds(self) -> Sequence[bytes]:
        return [os.fsencode(path.relative_to(self.world.folder)) + b"\0" + data for path, data in self._whole.items()]

    def _remember(self) -> None:
        self._whole = {path: path.read_bytes() for path in self._files()}

    def _damaged(self, case: Case) -> Path:
        """The damaged file is in its place."""
        name, _, content = case.data.partition(b"\0")
        path = self.world.folder / os.fsdecode(name)
        if path not in self._whole:
            path = list(self._whole)[len(content) % len(self._whole)]
        path.write_bytes(content)
        return path


class Eye(_Machine):
    """The watchdog's measuring: nothing but SampleError, and never a headroom that cannot be."""

    name = "kernel files (watchdog)"
    share = 0.4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = self._watched = Watched(folder)
        wreck(self.world)
        self._watched.root = _PID
        self._eye = self._watched.eye(budget_bytes=512 * MIB)
        self._remember()

    def read(self, case: Case) -> str:
        path = self._damaged(case)
        shape = ""
        try:
            for after_s in (LIMITS_S, FOLDERS_S):
                self._watched.now_s += after_s
                shape += self._look()
            self._others()
        finally:
            path.write_bytes(self._whole[path])
        return shape

    def _look(self) -> str:
        try:
            sample = self._eye.look()
        except SampleError:
            return "blind "
        expect(0 <= sample.headroom_bytes <= sample.firm_headroom_bytes <= sample.limit_bytes, "an impossible headroom")
        expect(0 < sample.limit_bytes <= 512 * MIB and sample.usage_bytes >= 0, "an impossible limit")
        return f"{sample.headroom_source.split(':')[0]} "

    def _others(self) -> None:
        root = self.world.proc
        counted = tree.Tree(_PID, own_root=True, cgroup=str(self.world.sys / "fs/cgroup/new/leaf"), proc_root=root)
        expect(0 <= counted.measure(1.0) < 2**80, "an impossible tree")
        counted.refaulted_at_cap()
        counted.close()
        for folder in ("memory/old", "new/leaf"):
            own = OwnCgroup(str(self.world.sys / "fs/cgroup" / folder), root)
            expect(own.firm_bytes() >= 0 and own.refaulted_at_cap() >= 0, "less than nothing")
            own.close()
        stalls = StallGauge(root)
        for figure in (stalls.stalled_us(""), stalls.refaulted_pages()):
            expect(figure is None or figure >= 0, "less than nothing")
        kernel = act.LinuxKernel(root)
        kernel.catches(_PID, 10)
        kernel.stopped(_PID)

    def close(self) -> None:
        self._eye._machine.close()


class Daemon(_Machine):
    """What the daemon, warm servers and `doctor` read of /proc and cgroups."""

    name = "kernel files (daemon)"
    share = 0.4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = FakeMachine(folder)
        wreck(self.world)
        self.world.write(f"proc/{os.getpid()}/task/{os.getpid()}/children", "")  # this kernel has such files
        self._remember()

    def read(self, case: Case) -> str:
        path = self._damaged(case)
        try:
            return self._read()
        finally:
            path.write_bytes(self._whole[path])

    def _read(self) -> str:
        root, sys_root = self.world.proc, self.world.sys
        said: list[Any] = []
        for folder in ("memory/old", "new/leaf"):
            counters = cgroup_memory.CgroupMemory(sys_root / "fs/cgroup" / folder, proc_root=root)
            said += [counters.read() is None, counters.refaulted_bytes() is None]
            counters.close()
        said.append(command_tree.member_of(_PID, root) is None)
        said += [len(command_tree.descendants(_PID, root)), len(leftovers.find("0123abcd", root))]
        said.append(len(command_tree.in_cgroup(sys_root / "fs/cgroup/new/leaf", root)))
        said.append(command_tree.oldest_child(_PID, root) is None)
        said += [meter.held_bytes(_PID, root) is None, meter._forked(_PID, root)]
        try:
            said.append(budget_cgroup.find_own(root, sys_root).folder.name)
        except budget_cgroup.Missing:
            said.append("no cgroup")
        watch = OomWatch.of_own(proc_root=root, sys_root=sys_root)
        watch.remember(1.0)
        said.append(watch.struck())
        said.append(model_sizes.memory_limit_bytes(root) > 0)
        text = (root / "self" / "mountinfo").read_bytes()
        said.append(facts.file_system(os.fsdecode(text), Path("/sys/fs/cgroup/x")))
        said.append(str(facts.psi_of(os.fsdecode(text))))
        with mock.patch.object(rlimits, "PROC", root):
            said.append(rlimits.vm_data(_PID) is None)
        stat = (root / str(_PID) / "stat").read_bytes()
        with mock.patch.object(procfs.Path, "read_bytes", lambda path: stat):
            said += [procfs.start_ticks(_PID) is None, procfs.parent(_PID) is None, procfs.stopped(_PID)]
        status = (root / str(_PID) / "status").read_bytes()
        with mock.patch.object(memory.Path, "read_bytes", lambda path: status):
            said.append(memory.anonymous_bytes() >= 0)
        return json.dumps(said)

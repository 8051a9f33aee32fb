"""A machine of files: /proc and /sys in a temporary folder, with memory cgroups of both versions and processes.

A file that is written again keeps its inode, so that whoever holds it open sees the new contents, as with the kernel's.
"""

from __future__ import annotations

import os
from pathlib import Path

from overnight_watchdog.gauges import Eye
from overnight_watchdog.tree import PAGE_BYTES

GIB = 2**30
FREE = {"MemTotal": 16 * GIB, "MemFree": 10 * GIB, "MemAvailable": 12 * GIB, "Cached": 2 * GIB}
"""Of a machine of 16 GiB with 12 GiB to be had."""

V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER_MOUNTS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
)


class FakeMachine:
    def __init__(self, folder: Path) -> None:
        self.folder, self.proc, self.sys = folder, folder / "proc", folder / "sys"

    def write(self, path: str, text: str | bytes) -> Path:
        """`path` is below the folder: `proc/...` or `sys/...`."""
        where = self.folder / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(text if isinstance(text, bytes) else text.encode())
        return where

    def meminfo(self, **figures_bytes: int) -> None:
        lines = (f"{name + ':':<16}{size // 1024:>8} kB\n" for name, size in figures_bytes.items())
        self.write("proc/meminfo", "".join(lines))

    def lives_in(self, *, v1: str | None = None, v2: str | None = None, root: str = "/", hybrid: bool = False) -> None:
        """Membership and mounts. root: the cgroup that the mounts begin at; hybrid: v2 is beside v1, without memory."""
        members, mounts = "", OTHER_MOUNTS
        if v1 is not None:
            members += f"9:name=systemd:/\n4:cpu,cpuacct:/x\n3:memory:{v1}\n"
            mounts += V1_MOUNT.format(root=root)
        if v2 is not None:
            members += f"0::{v2}\n"
            mounts += V2_MOUNT.format(root=root, point="/sys/fs/cgroup/unified" if hybrid else "/sys/fs/cgroup")
        self.write("proc/self/cgroup", members)
        self.write("proc/self/mountinfo", mounts)

    def v1(self, name: str, *, limit: int | str, charged: int = 0, **files: int | str | dict[str, int]) -> Path:
        """A v1 memory cgroup. files: `stat={...}`, or `kmem__usage_in_bytes=5` for memory.kmem.usage_in_bytes."""
        return self._cgroup("memory/" + name, {"limit_in_bytes": limit, "usage_in_bytes": charged, **files})

    def v2(self, name: str, *, limit: int | str, charged: int = 0, **files: int | str | dict[str, int]) -> Path:
        return self._cgroup(name, {"max": limit, "current": charged, **files})

    def _cgroup(self, name: str, files: dict[str, int | str | dict[str, int]]) -> Path:
        folder = f"sys/fs/cgroup/{name}".rstrip("/")
        for file, content in files.items():
            text = "".join(f"{key} {value}\n" for key, value in content.items()) if isinstance(content, dict) else ""
            self.write(f"{folder}/memory.{file.replace('__', '.')}", text or f"{content}\n")
        return self.folder / folder

    def process(
        self,
        pid: int,
        parent: int,
        anonymous_bytes: int,
        *,
        forked: bool = False,
        shmem_bytes: int = 0,
        state: str = "S",
        start_ticks: int = 0,
        name: str = "python",
    ) -> None:
        """One process; it is its parent's child, and has none itself yet."""
        flags = 0x400040 if forked else 0x400000
        before = f"{state} {parent} {pid} {pid} 0 -1 {flags} 100 0 7 0 0 0 0 0 20 0 1 0"
        self.write(f"proc/{pid}/stat", f"{pid} ({name}) {before} {start_ticks or 1000 + pid} 0 0\n")
        self.holds(pid, anonymous_bytes, shmem_bytes)
        self.write(f"proc/{pid}/task/{pid}/children", "")
        siblings = self.proc / str(parent) / "task" / str(parent) / "children"
        if siblings.exists() and str(pid) not in siblings.read_text().split():
            siblings.write_text(siblings.read_text() + f"{pid} ")

    def holds(self, pid: int, anonymous_bytes: int, shmem_bytes: int = 0) -> None:
        """What it holds from now on, beside 3 MiB of mapped files."""
        shared = (shmem_bytes + 3 * 2**20) // PAGE_BYTES
        resident = anonymous_bytes // PAGE_BYTES + shared
        self.write(f"proc/{pid}/statm", f"99999 {resident} {shared} 100 0 5000 0\n")
        status = f"Name:\tpython\nRssAnon:\t{anonymous_bytes // 1024} kB\nRssFile:\t3072 kB\n"
        self.write(f"proc/{pid}/status", status + f"RssShmem:\t{shmem_bytes // 1024} kB\n")

    def ends(self, pid: int) -> None:
        """Its files are gone, and whoever holds one open reads nothing any more."""
        for file in sorted((self.proc / str(pid)).rglob("*"), reverse=True):
            if file.is_dir():
                file.rmdir()
            else:
                os.truncate(file, 0)
                file.unlink()
        (self.proc / str(pid)).rmdir()


class Watched(FakeMachine):
    """A fake machine of 16 GiB with 12 GiB to be had, and an eye with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.now_s = 100.0
        self.root: int | None = None
        self.meminfo(**FREE)

    def eye(self, budget_bytes: int | None = None) -> Eye:
        return Eye(
            budget_bytes=budget_bytes,
            tree_root=lambda: self.root,
            clock=lambda: self.now_s,
            proc_root=self.proc,
            sys_root=self.sys,
        )

    def source(self, name: str) -> str:
        return f"cgroup:{self.sys}/fs/cgroup/{name}".rstrip("/")

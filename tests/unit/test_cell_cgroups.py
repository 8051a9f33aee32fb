"""Slots: made, capped, used again, taken over. v2 on a fake tree, v1 on a fake one and on the kernel's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from helpers.memory_cgroup import MemoryCgroup
from overnight import procfs
from overnight.cgroup_memory import CgroupMemory
from overnight.dispatch import budget_cgroup
from overnight.dispatch.budget_cgroup import name_of
from overnight.dispatch.cell_cgroups import CellCgroups, CgroupEvidence, Missing
from overnight.dispatch.slot import LEFT_BYTES, SWAP_BYTES, Slot

MIB = 2**20
HOME = Path("/srv/night")
V1_MOUNT = "35 32 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
FILES_1 = {
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.memsw.limit_in_bytes": "9223372036854771712",
    "memory.usage_in_bytes": "0",
    "memory.max_usage_in_bytes": "0",
    "memory.failcnt": "0",
    "memory.memsw.failcnt": "0",
    "memory.kmem.usage_in_bytes": "0",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    "memory.stat": "cache 0\nrss 0\ntotal_cache 0\ntotal_rss 0\ntotal_shmem 0\n",
}
FILES_2 = {
    "cgroup.controllers": "cpu memory\n",
    "cgroup.subtree_control": "",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "memory.current": "0",
    "memory.peak": "0",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.stat": "anon 0\nfile 0\nkernel 0\nshmem 0\nslab_reclaimable 0\n",
}


class FakeCgroups:
    """Folders get the kernel's files when they are made, and lose them when they are removed."""

    def __init__(self, folder: Path, version: Literal[1, 2], monkeypatch: pytest.MonkeyPatch) -> None:
        self.version: Literal[1, 2] = version
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        membership, mount = ("4:memory:/a/b\n0::/\n", V1_MOUNT) if version == 1 else ("0::/a/b\n", V2_MOUNT)
        (self.proc / "self/cgroup").write_text(membership)
        (self.proc / "self/mountinfo").write_text(mount)
        self.files = dict(FILES_1 if version == 1 else FILES_2)
        real_mkdir, real_rmdir = Path.mkdir, Path.rmdir

        def mkdir(path: Path, *args: Any) -> None:
            real_mkdir(path, *args)
            self._furnish(path)

        def rmdir(path: Path) -> None:
            if (path / "cgroup.procs").read_text():
                raise OSError(16, "Device or resource busy", str(path))
            for file in [one for one in path.iterdir() if one.is_file()]:
                file.unlink()
            real_rmdir(path)

        at = self.sys / ("fs/cgroup/memory" if version == 1 else "fs/cgroup")
        for part in ("", "a", "b"):
            at = at / part
            os.makedirs(at)  # noqa: PTH103 - Path.mkdir is replaced
            self._furnish(at)
        self.ours = at
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)

    def _furnish(self, path: Path) -> None:
        (path / "cgroup.procs").write_text("")
        for name, content in self.files.items():
            (path / name).write_text(content)

    @property
    def events(self) -> str:
        """The file with the count of OOM kills."""
        return "memory.oom_control" if self.version == 1 else "memory.events"

    def open(self) -> CellCgroups:
        return CellCgroups.open(HOME, proc_root=self.proc, sys_root=self.sys)


@pytest.fixture(params=[1, 2])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroups:
    return FakeCgroups(tmp_path, request.param, monkeypatch)


@pytest.fixture
def fake1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroups:
    return FakeCgroups(tmp_path, 1, monkeypatch)


@pytest.fixture
def fake2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroups:
    return FakeCgroups(tmp_path, 2, monkeypatch)


def text(folder: str, name: str) -> str:
    return Path(folder, name).read_text().strip()


# -- on fake trees --------------------------------------------------------------------------------------------


def test_they_live_in_the_budgets_cgroup_and_go_with_the_daemon(fake: FakeCgroups) -> None:
    cgroups = fake.open()
    parent = fake.ours if fake.version == 1 else fake.ours.parent
    assert cgroups.folder == parent / name_of(HOME)
    slot = cgroups.take(None)
    assert slot.folder == str(cgroups.folder / "cell-1")
    assert cgroups.close() is None
    assert not cgroups.folder.exists()


def test_the_controller_is_given_on_and_a_kill_takes_all_of_a_cell(fake2: FakeCgroups) -> None:
    cgroups = fake2.open()
    assert text(str(cgroups.folder), "cgroup.subtree_control") == "+memory"
    assert text(str(cgroups.folder.parent), "cgroup.subtree_control") == "+memory"
    assert text(cgroups.take(None).folder, "memory.oom.group") == "1"


def test_a_joined_budget_keeps_its_limit_and_its_folder(fake: FakeCgroups) -> None:
    joined = budget_cgroup.join(HOME, 2**30, proc_root=fake.proc, sys_root=fake.sys)
    limit = "memory.limit_in_bytes" if fake.version == 1 else "memory.max"
    name = name_of(HOME)
    member = f"4:memory:/a/b/{name}\n" if fake.version == 1 else f"0::/a/{name}/main\n"
    (fake.proc / "self/cgroup").write_text(member)
    cgroups = fake.open()
    assert cgroups.folder == joined.folder
    assert text(str(cgroups.folder), limit) == str(2**30)
    (joined.leaf / "cgroup.procs").write_text("")  # a fake one does not notice that we leave
    assert cgroups.close() is None
    assert cgroups.folder.exists()
    assert joined.leave() is None
    assert not joined.folder.exists()


def test_an_old_budgets_limit_is_lifted_when_there_is_none(fake: FakeCgroups) -> None:
    folder = fake.open().folder
    limit = "memory.limit_in_bytes" if fake.version == 1 else "memory.max"
    (folder / limit).write_text("1073741824")
    assert text(str(fake.open().folder), limit) == ("-1" if fake.version == 1 else "max")


def test_caps_are_set_raised_and_lifted(fake: FakeCgroups) -> None:
    slot = fake.open().take(64 * MIB)
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max")

    def caps() -> list[str]:
        return [text(slot.folder, name) for name in names if Path(slot.folder, name).exists()]

    swap = str(64 * MIB + SWAP_BYTES) if fake.version == 1 else "0"
    assert caps() == [str(64 * MIB), swap]
    slot.set_cap(96 * MIB)
    assert slot.cap_bytes == 96 * MIB
    assert caps()[0] == str(96 * MIB)
    slot.set_cap(None)
    assert caps() == (["-1", "-1"] if fake.version == 1 else ["max", "max"])


@pytest.mark.parametrize("when", ["before", "meanwhile", "never"])
def test_a_cap_that_was_met_is_not_raised(fake: FakeCgroups, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whoever was killed at it is judged by it."""
    slot = fake.open().take(64 * MIB)
    counters, real = Path(slot.folder, fake.events), slot.set_cap

    def killed() -> None:
        counters.write_text("max 3\noom 1\noom_kill 1\n")

    def set_cap(cap_bytes: int | None) -> None:
        real(cap_bytes)
        if when == "meanwhile":
            killed()

    monkeypatch.setattr(slot, "set_cap", set_cap)
    if when == "before":
        killed()
    assert slot.raise_cap(96 * MIB) is (when == "never")
    cap = (96 if when == "never" else 64) * MIB
    name = "memory.limit_in_bytes" if fake.version == 1 else "memory.max"
    assert (slot.cap_bytes, text(slot.folder, name)) == (cap, str(cap))


def test_memory_with_swap_is_never_less_than_memory(fake1: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = fake1.open().take(None)
    written = []
    monkeypatch.setattr(slot, "_write", lambda name, limit, **_: written.append((name.split(".")[1], int(limit))))
    for cap in (64 * MIB, 96 * MIB, 32 * MIB, None, 16 * MIB):
        slot.set_cap(cap)
    memory, both = 2**62, 2**62
    for name, limit in written:
        limit = 2**62 if limit < 0 else limit
        memory, both = (memory, limit) if name == "memsw" else (limit, both)
        assert memory <= both, written


def test_without_swap_accounting_the_cap_is_memorys_alone(fake: FakeCgroups) -> None:
    for name in ("memory.memsw.limit_in_bytes", "memory.memsw.failcnt", "memory.swap.max"):
        fake.files.pop(name, None)
    slot = fake.open().take(64 * MIB)
    assert slot.evidence().limit_hits == 0
    assert not Path(slot.folder, "memory.memsw.limit_in_bytes").exists()
    assert not Path(slot.folder, "memory.swap.max").exists()


def test_evidence_is_of_this_attempt_alone_v1(fake1: FakeCgroups) -> None:
    cgroups = fake1.open()
    slot = cgroups.take(None)
    folder = Path(slot.folder)
    (folder / "memory.failcnt").write_text("5\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    cgroups.give_back(slot)
    again = cgroups.take(64 * MIB)
    assert Path(again.folder) == folder
    assert again.evidence() == CgroupEvidence(0, 0, 0, 0, 64 * MIB)
    (folder / "memory.failcnt").write_text("8\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (folder / "memory.max_usage_in_bytes").write_text(f"{64 * MIB - 4096}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{3 * MIB}\n")
    (folder / "memory.stat").write_text(f"cache 1\ntotal_cache {2 * MIB}\ntotal_rss 0\ntotal_shmem {MIB}\n")
    found = again.evidence()
    assert found == CgroupEvidence(1, 3, 3 * MIB, 64 * MIB - 4096, 64 * MIB, file_bytes=MIB)
    assert found.at_cap


def test_evidence_is_of_this_attempt_alone_v2(fake2: FakeCgroups) -> None:
    cgroups = fake2.open()
    slot = cgroups.take(None)
    folder = Path(slot.folder)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 1\n")
    cgroups.give_back(slot)
    again = cgroups.take(64 * MIB)
    assert (again.folder, again.evidence().oom_kills) == (str(folder), 0)
    # Inside it a cgroup of the command's own kills one of its processes at its own limit.
    (folder / "memory.events.local").write_text("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 1\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1\n")
    (folder / "memory.peak").write_text(f"{50 * MIB}\n")
    found = again.evidence()
    assert (found.oom_kills, found.limit_hits, found.oom_calls, found.at_cap) == (1, 0, 0, False)
    assert found.high_water_bytes == 50 * MIB
    (folder / "memory.events.local").write_text("low 0\nhigh 0\nmax 6\noom 2\noom_kill 3\noom_group_kill 2\n")
    found = again.evidence()
    assert (found.limit_hits, found.oom_calls, found.at_cap) == (2, 1, True)


def test_a_peak_that_cannot_be_reset_counts_when_it_rose(fake2: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.12 nobody may write memory.peak."""
    cgroups, real = fake2.open(), os.open

    def refuse(path: str, flags: int, *args: int) -> int:
        if str(path).endswith("memory.peak") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    slot = cgroups.take(64 * MIB)
    folder = Path(slot.folder)
    (folder / "memory.peak").write_text(f"{40 * MIB}\n")
    assert slot.evidence().high_water_bytes == 40 * MIB
    slot.begin()
    (folder / "memory.current").write_text(f"{MIB}\n")
    assert slot.evidence().high_water_bytes == MIB  # 40 MiB were another attempt's
    (folder / "memory.peak").write_text(f"{41 * MIB}\n")
    assert slot.evidence().high_water_bytes == 41 * MIB


def test_slots_are_used_again_and_numbered_without_gaps(fake: FakeCgroups) -> None:
    cgroups = fake.open()
    first, second = cgroups.take(None), cgroups.take(None)
    assert [Path(slot.folder).name for slot in (first, second)] == ["cell-1", "cell-2"]
    assert cgroups.give_back(first)
    assert cgroups.take(None) is first
    assert Path(cgroups.take(None).folder).name == "cell-3"


def test_one_that_somebody_is_in_waits_aside(fake: FakeCgroups) -> None:
    cgroups = fake.open()
    slot = cgroups.take(None)
    Path(slot.folder, "cgroup.procs").write_text(f"{os.getpid()}\n0\n")
    assert slot.processes() == [os.getpid()]
    assert not cgroups.give_back(slot)
    assert cgroups.leftovers() == [(os.getpid(), procfs.start_ticks(os.getpid()))]
    assert cgroups.take(None) is not slot
    Path(slot.folder, "cgroup.procs").write_text("")
    assert cgroups.take(None) is slot
    assert cgroups.leftovers() == []


def test_what_a_killed_daemon_left_is_taken_over(fake: FakeCgroups) -> None:
    cgroups = fake.open()
    slots = [cgroups.take(64 * MIB) for _ in range(2)]
    Path(slots[1].folder, "cgroup.procs").write_text(f"{os.getpid()}\n")
    found = fake.open()
    assert found.leftovers() == [(os.getpid(), procfs.start_ticks(os.getpid()))]
    assert found.take(None).folder == slots[0].folder
    assert Path(found.take(None).folder).name == "cell-3"


def test_a_cgroup_that_a_command_made_inside_is_seen_and_removed(fake: FakeCgroups) -> None:
    cgroups = fake.open()
    slot = cgroups.take(None)
    inner = Path(slot.folder, "inner")
    inner.mkdir()
    (inner / "cgroup.procs").write_text("4711\n")
    assert slot.processes() == [4711]
    assert not cgroups.give_back(slot)
    (inner / "cgroup.procs").write_text("")
    cgroups.settle()
    assert cgroups.take(None).folder == slot.folder
    assert not inner.exists()


class Reclaiming:
    """What the kernel does for a fake slot: page cache goes when it is told so; `pinned` stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, pinned: int = 0, usage: str = "") -> None:
        self.asked: list[str] = []
        real = Slot._write

        def write(slot: Slot, name: str, limit: str, **how: Any) -> None:
            if name not in ("memory.force_empty", "memory.reclaim"):
                real(slot, name, limit, **how)
                return
            self.asked.append(limit)
            now = slot.usage_bytes()
            left = 0 if name == "memory.force_empty" else now - int(limit)
            Path(slot.folder, usage).write_text(str(max(pinned, left)))
            if now == pinned:
                raise BlockingIOError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(Slot, "_write", write)


def with_cache(cgroups: CellCgroups, usage: str, held: int, **stat: int) -> Slot:
    """A slot that was given back with `held` bytes of page cache in it."""
    slot = cgroups.take(None)
    folder = Path(slot.folder)
    (folder / "old").write_text("")
    (folder / usage).write_text(str(held))
    with (folder / "memory.stat").open("a") as lines:
        lines.writelines(f"{name} {figure}\n" for name, figure in stat.items())
    assert cgroups.give_back(slot)
    return slot


def used_again(slot: Slot) -> bool:
    return Path(slot.folder, "old").exists()


def test_page_cache_is_thrown_out_rather_than_the_slot(fake: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = "memory.usage_in_bytes" if fake.version == 1 else "memory.current"
    cgroups = fake.open()
    slot = with_cache(cgroups, usage, 193 * MIB)
    kernel = Reclaiming(monkeypatch, usage=usage)
    assert cgroups.take(64 * MIB) is slot
    assert used_again(slot)
    # v2 keeps what there is room for: the next cell may read the same files.
    assert kernel.asked == (["0"] if fake.version == 1 else [str(64 * MIB), str(64 * MIB), str(33 * MIB)])
    cgroups.give_back(slot)
    assert cgroups.take(None) is slot, "without a cap there is nothing to throw out"
    assert len(kernel.asked) == (1 if fake.version == 1 else 3)


@pytest.mark.parametrize("why", ["pinned", "shmem", "dirty", "much"])
def test_a_slot_goes_when_throwing_out_does_not_help_or_might_take_long(
    fake: FakeCgroups, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    usage = "memory.usage_in_bytes" if fake.version == 1 else "memory.current"
    names = {"shmem": "shmem", "dirty": "file_dirty", "much": "file"}
    if fake.version == 1:
        fake.files["memory.stat"] = "total_rss 0\n"
        names = {"shmem": "total_shmem", "dirty": "total_dirty", "much": "total_cache"}
    else:
        fake.files["memory.stat"] = "anon 0\nkernel 0\nslab_reclaimable 0\n"
    cgroups = fake.open()
    stat = {names[why]: 3 * 2**30} if why in names else {}
    slot = with_cache(cgroups, usage, 40 * MIB, **stat)
    kernel = Reclaiming(monkeypatch, pinned=40 * MIB if why == "pinned" else 0, usage=usage)
    assert cgroups.take(64 * MIB) is not slot
    assert not used_again(slot)
    assert bool(kernel.asked) == (why == "pinned")


def test_throwing_out_takes_no_longer_than_that(fake2: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = with_cache(fake2.open(), "memory.current", 1900 * MIB)
    kernel = Reclaiming(monkeypatch, usage="memory.current")
    times = iter([0.0, 0.1, 0.15, 0.25])
    slot.throw_out(64 * MIB, clock=lambda: next(times))
    assert len(kernel.asked) == 2


@pytest.mark.parametrize("left", ["shmem", "page cache"])
def test_the_next_cell_does_not_pay_for_what_was_left(fake: FakeCgroups, left: str) -> None:
    cgroups = fake.open()
    slot = cgroups.take(None)
    folder = Path(slot.folder)
    marker = folder / "old"
    marker.write_text("")
    if left == "shmem":
        name, other = ("total_shmem", "total_rss") if fake.version == 1 else ("shmem", "anon")
        (folder / "memory.stat").write_text(f"{other} 0\n{name} {LEFT_BYTES + 1}\n")
    else:
        usage = "memory.usage_in_bytes" if fake.version == 1 else "memory.current"
        (folder / usage).write_text(f"{33 * MIB}\n")
    cgroups.give_back(slot)
    cgroups.take(64 * MIB)
    assert not marker.exists()


def test_a_cap_that_is_refused_costs_the_slot_and_nothing_else(
    fake: FakeCgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups = fake.open()

    def refuse(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as context:
        context.setattr("overnight.dispatch.slot.Slot.set_cap", refuse)
        with pytest.raises(OSError, match="busy"):
            cgroups.take(MIB)
    assert Path(cgroups.take(MIB).folder).name == "cell-1"
    assert cgroups.close() is None


@pytest.mark.parametrize("lack", ["membership", "limit file", "rights"])
def test_where_there_can_be_none_that_is_said_and_nothing_is_left(
    fake: FakeCgroups, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    if lack == "membership":
        (fake.proc / "self/cgroup").write_text("")
    if lack == "limit file":
        for name in ("memory.limit_in_bytes", "memory.max"):
            fake.files.pop(name, None)
    if lack == "rights":
        real = Path.mkdir

        def refuse(path: Path, *args: Any) -> None:
            if path.name.startswith("cell-"):
                raise PermissionError(13, "Permission denied", str(path))
            real(path, *args)

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Missing) as missing:
        fake.open()
    assert "\n" not in str(missing.value)
    assert not list(fake.sys.rglob("overnight-*"))


def test_where_the_controller_is_not_delegated_that_is_said(fake2: FakeCgroups) -> None:
    (fake2.ours.parent / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(Missing, match="the memory controller is not delegated to it"):
        fake2.open()
    assert not list(fake2.sys.rglob("overnight-*"))


def test_a_slot_that_cannot_be_made_is_an_os_error(fake1: FakeCgroups) -> None:
    """Whoever takes a slot does without one when he sees an OSError."""
    cgroups = fake1.open()
    cgroups.take(None)
    del fake1.files["memory.max_usage_in_bytes"]
    with pytest.raises(FileNotFoundError, match="no memory controller in it"):
        cgroups.take(None)
    assert not (cgroups.folder / "cell-2").exists()


def test_settling_kills_nobody(fake: FakeCgroups) -> None:
    cgroups = fake.open()
    slot = cgroups.take(None)
    with inside(slot.folder, lambda: None) as pid:
        Path(slot.folder, "cgroup.procs").write_text(f"{pid}\n")
        assert not cgroups.give_back(slot)
        cgroups.settle()
        assert [one for one, _ in cgroups.leftovers()] == [pid]
        os.kill(pid, 0)
        assert procfs.start_ticks(pid) is not None


def test_a_closing_that_fails_says_who_is_in_it(fake: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.dispatch.cell_cgroups._EMPTY_S", 0.0)
    cgroups = fake.open()
    slot = cgroups.take(None)
    Path(slot.folder, "cgroup.procs").write_text("4711\n")
    assert cgroups.close() == f"cannot remove {slot.folder}: somebody is in it"


# -- the kernel's own -----------------------------------------------------------------------------------------


@contextmanager
def inside(folder: str, work: Callable[[], None]) -> Iterator[int]:
    """A forked child in a cgroup that has done its work and waits; it is killed in the end."""
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
    try:
        assert os.read(read, 1) == b"x"
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def real(cgroup: MemoryCgroup) -> Iterator[CellCgroups]:
    cgroups = CellCgroups(cgroup.folder, 1 if cgroup.kind == "cgroup1" else 2)
    yield cgroups
    assert cgroups.close() is None


_held: list[object] = []


@pytest.mark.root
def test_memory_is_anonymous_and_shared_but_no_page_cache(real: CellCgroups, tmp_path: Path) -> None:
    slot = real.take(128 * MIB)
    memory = CgroupMemory(slot.folder)
    with inside(slot.folder, lambda: _held.append(bytearray(b"x") * (20 * MIB))) as pid:
        assert slot.processes() == [pid]
        anonymous = memory.read()
        assert anonymous is not None
        assert 20 * MIB <= anonymous < 24 * MIB
    shared = Path("/dev/shm", f"overnight-test-{os.getpid()}")

    def write() -> None:
        for path in (shared, tmp_path / "file"):
            path.write_bytes(b"x" * 10 * MIB)

    try:
        with inside(slot.folder, write):
            held = slot.memory_bytes()
            assert held is not None
            # Half of what was written are files, and the bytes that were written themselves were held for a moment.
            assert 10 * MIB <= held < 24 * MIB
        evidence = slot.evidence()
        assert evidence.oom_kills == 0
        assert evidence.usage_bytes >= 19 * MIB
        assert evidence.file_bytes >= 9 * MIB
        assert evidence.high_water_bytes >= evidence.usage_bytes
        assert real.give_back(slot)
        fresh = real.take(128 * MIB)
        assert (fresh is slot, fresh.evidence().usage_bytes < MIB) == (False, True)
    finally:
        shared.unlink()
    memory.close()


@pytest.mark.root
def test_page_cache_that_a_cell_left_does_not_cost_the_slot(real: CellCgroups, tmp_path: Path) -> None:
    slot = real.take(None)

    def write() -> None:
        with (tmp_path / "file").open("wb") as file:
            file.write(b"x" * 48 * MIB)
            file.flush()
            os.fsync(file.fileno())

    with inside(slot.folder, write):
        pass
    if slot.evidence().file_bytes < 40 * MIB:
        pytest.skip("what is written here is no page cache of the cgroup's")
    assert real.give_back(slot)
    assert real.take(64 * MIB) is slot
    assert slot.usage_bytes() <= 32 * MIB


@pytest.mark.root
def test_a_slot_is_taken_over_with_who_is_in_it(real: CellCgroups, cgroup: MemoryCgroup) -> None:
    slot = real.take(64 * MIB)
    with inside(slot.folder, lambda: None) as pid:
        other = CellCgroups(cgroup.folder, real.version)
        assert other.leftovers() == [(pid, procfs.start_ticks(pid))]
        assert not real.give_back(slot)
    assert real.take(64 * MIB) is slot

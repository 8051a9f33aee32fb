"""What a cell holds by /proc: a tree of our own making, a child that is really forked; and how often a server looks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overnight.cgroup_memory import PAGE_BYTES
from overnight.warm import server
from overnight.warm.meter import Meter, held_bytes
from overnight.warm.server import LONGEST_PAUSE_S, PAUSE_LOOKS, TELL_BYTES, WEIGH_CALM_S, WEIGH_S, Server

MIB = 2**20
FORKED, EXECED = 0x40, 0


class Proc:
    """A proc_root; sizes in MiB. Without `children` it is a kernel's without CONFIG_PROC_CHILDREN."""

    def __init__(self, root: Path, *, children: bool = True) -> None:
        self.root, self._children = root, children
        self.put(os.getpid(), 1, 0)

    def put(self, pid: int, parent: int, mib: int, *, flags: int = EXECED, start: int = 0) -> None:
        folder = self.root / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        fields = f"{parent} {pid} 0 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start or pid} 0 0"
        (folder / "stat").write_text(f"{pid} (a) b) S {fields}\n")
        (folder / "status").write_text(f"Name:\ta\nRssAnon:\t{mib * 1024} kB\nRssFile:\t99 kB\nVmPTE:\t0 kB\n")
        self._tell()

    def end(self, pid: int) -> None:
        for file in [*self.root.glob(f"{pid}/task/{pid}/children"), *self.root.glob(f"{pid}/sta*")]:
            file.unlink()
        self._tell()

    def _tell(self) -> None:
        if not self._children:
            return
        below: dict[int, list[str]] = {}
        for stat in self.root.glob("*/stat"):
            below.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(stat.parent.name)
        for folder in self.root.glob("*/task/*"):
            (folder / "children").write_text(" ".join(below.get(int(folder.name), [])))


@pytest.fixture(params=[True, False], ids=["children", "no children files"])
def proc(request: pytest.FixtureRequest, tmp_path: Path) -> Proc:
    return Proc(tmp_path, children=request.param)


def meter(proc: Proc, **how: Any) -> Meter:
    return Meter(10, cgroup=None, tree=how.pop("tree", True), proc_root=proc.root, **how)


def test_the_whole_tree_is_weighed(proc: Proc) -> None:
    proc.put(10, 1, 30, flags=FORKED)
    found = meter(proc)
    proc.put(10, 1, 35, flags=FORKED)
    proc.put(11, 10, 7)
    proc.put(12, 11, 2)
    proc.put(13, 1, 1000)
    assert found.look() == 14 * MIB  # what the runner had at its birth is its parent's
    assert meter(proc, tree=False).look() == 0
    proc.end(12)
    proc.end(11)
    assert (found.look(), found.peak_bytes) == (5 * MIB, 14 * MIB)
    proc.end(10)
    assert found.look() == 5 * MIB, "the last figure stays when nobody is there any more"


def test_a_child_has_its_parents_pages_until_its_exec(proc: Proc) -> None:
    proc.put(10, 1, 10)
    found = meter(proc)
    proc.put(11, 10, 8, flags=FORKED)
    assert found.look() == 10 * MIB
    proc.put(11, 10, 9, flags=FORKED)
    assert found.look() == 11 * MIB
    proc.put(11, 10, 3)
    assert found.look() == 13 * MIB


def test_a_pid_that_is_used_again_is_another_process(proc: Proc) -> None:
    proc.put(10, 1, 10)
    found = meter(proc)
    proc.put(11, 10, 8, flags=FORKED, start=100)
    found.look()
    proc.put(11, 10, 20, flags=FORKED, start=200)  # another fork: it has all that from its parent
    assert found.look() == 10 * MIB
    proc.end(11)
    found.look()
    assert list(found._members) == [(10, 10)], "who has gone is forgotten"


def test_who_is_missed_once_is_no_newcomer(proc: Proc) -> None:
    """A daemon of its own between two parents: the one has just ended, the other is not yet told."""
    proc.put(10, 1, 10)
    found = meter(proc)
    proc.put(11, 10, 8, flags=FORKED)
    found.look()
    proc.put(11, 1, 12, flags=FORKED)
    assert found.look() == 10 * MIB
    proc.put(11, 10, 12, flags=FORKED)
    assert found.look() == 14 * MIB


def test_how_long_a_look_takes(proc: Proc) -> None:
    proc.put(10, 1, 10)
    times = iter([1.0, 1.03])
    found = meter(proc, clock=lambda: next(times))
    assert found.took_s == 0
    found.look()
    assert found.took_s == pytest.approx(0.03)


@pytest.fixture
def child() -> Iterator[tuple[int, int, int]]:
    """A forked child that takes 20 MiB when a byte is written to it, and says so: (pid, to it, from it)."""
    theirs, go = os.pipe()
    told, tell = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(go)  # or it would never read the end
            os.read(theirs, 1)
            held = bytearray(b"x") * (20 * MIB)
            os.write(tell, held[:1])
            os.read(theirs, 1)
        finally:
            os._exit(0)
    os.close(theirs)
    os.close(tell)
    yield pid, go, told
    os.close(go)  # it reads the end, and leaves
    os.close(told)
    os.waitpid(pid, 0)


def test_a_forked_child_holds_what_it_took_itself(child: tuple[int, int, int]) -> None:
    pid, go, told = child
    found = Meter(pid, cgroup=None, tree=False)
    whole = Meter(os.getpid(), cgroup=None, tree=True)
    before = whole.look()
    assert found.look() < 4 * MIB < (held_bytes(pid) or 0)
    os.write(go, b"g")
    assert os.read(told, 1) == b"x"
    assert 20 * MIB <= found.look() < 26 * MIB
    assert whole.look() - before >= 19 * MIB, "a descendant counts"
    assert found.took_s > 0


# -- what a cap throws out --------------------------------------------------------------------------------------


class Refaults:
    """A meter over a cgroup's counter, `now` seconds after its beginning. The cgroup was another cell's before."""

    def __init__(self, folder: Path) -> None:
        self.now, self._stat = 100.0, folder / "memory.stat"
        self.meter = Meter(10, cgroup=str(folder), tree=True, clock=lambda: self.now)
        self.pages: int | None = 7000

    def look(self, *, after_s: float = 0.0, mib: float = 0.0) -> int:
        self.now += after_s
        counted = ""
        if self.pages is not None:
            self.pages += round(mib * MIB / PAGE_BYTES)
            counted = f"workingset_refault_anon 0\nworkingset_refault_file {self.pages}\n"
        self._stat.write_text(f"anon {5 * MIB}\nfile {9 * MIB}\n{counted}")
        assert self.meter.look() == 5 * MIB
        return self.meter.refault_bytes_per_s

    def told(self) -> bool:
        """Is all told? From here on it is."""
        before, self.meter.refaults_told = self.meter.refaults_told, True
        return before


@pytest.fixture
def refaults(tmp_path: Path) -> Iterator[Refaults]:
    found = Refaults(tmp_path)
    yield found
    found.meter.close()


def test_the_rate_of_refaults_is_taken_over_a_second(refaults: Refaults) -> None:
    assert refaults.look() == 0, "what was counted before is not this cell's"
    for _ in range(4):
        assert refaults.look(after_s=0.2, mib=10) == 0
    assert refaults.look(after_s=0.2, mib=10) == 50 * MIB
    assert refaults.look(after_s=0.9, mib=0) == 50 * MIB
    assert refaults.look(after_s=1.1, mib=20) == 10 * MIB
    refaults.pages = 0  # another counter
    assert refaults.look(after_s=1.0) == 0


def test_a_kernel_that_does_not_count_refaults_has_none(refaults: Refaults) -> None:
    refaults.pages = None
    assert [refaults.look(after_s=1.0) for _ in range(3)] == [0, 0, 0]
    assert refaults.told()


def test_refaults_are_news_every_second_until_they_have_ended(refaults: Refaults) -> None:
    refaults.look()
    assert refaults.told(), "none are no news"
    for _ in range(3):
        refaults.look(after_s=1.0, mib=8)
        assert not refaults.told()
        refaults.look(after_s=0.5, mib=4)
        assert refaults.told()
        refaults.look(after_s=0.5, mib=4)
        assert not refaults.told(), "the same rate again is told again"
    refaults.look(after_s=1.0)
    assert not refaults.told(), "that it has ended"
    refaults.look(after_s=1.0)
    assert refaults.told()


def test_refaults_are_told_until_they_are_heard(scene: Scene) -> None:
    scene.after(1.0)
    assert scene.rates == []
    scene.meter.refault_bytes_per_s, scene.meter.refaults_told, scene.heard = 9 * MIB, False, False
    scene.after(1.0)
    scene.heard = True
    scene.after(1.0)
    scene.after(1.0)
    assert (scene.rates, scene.offered, scene.meter.refaults_told) == ([9 * MIB] * 2, [0, 0], True)


# -- how often ------------------------------------------------------------------------------------------------


class Scripted(Meter):
    """A meter whose figure stays as a test has set it, and whose looks take as long as the scene says."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(os.getpid(), cgroup=None, tree=False)
        self._scene = scene

    def look(self) -> int:
        self._scene.looks += 1
        self._scene.now += self._scene.takes_s
        self.took_s = self._scene.takes_s
        return self.bytes


class Scene:
    """A server with one child, whose meter and clock are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks, self.takes_s, self.heard = 100.0, 0, 0.0, True
        self.offered: list[int] = []
        self.rates: list[int] = []
        self.meter = Scripted(self)
        monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: self.now))
        read, self._write = os.pipe()
        channel = SimpleNamespace(fileno=lambda: read, offer=self._offer)
        self.server = Server(channel, None)  # type: ignore[arg-type]
        self.server._children[1] = SimpleNamespace(meter=self.meter, cap_bytes=None, attempt=1)  # type: ignore[assignment]
        self.close = lambda: (self.server._selector.close(), os.close(read), os.close(self._write))

    def _offer(self, kind: str, **fields: int) -> bool:
        self.offered.append(fields["bytes"])
        self.rates.append(fields["refault_bytes_per_s"])
        return self.heard

    def after(self, seconds: float) -> int:
        """How many looks `seconds` later have been made."""
        self.now += seconds
        self.server._weigh()
        return self.looks


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    found = Scene(monkeypatch)
    yield found
    found.close()


def test_a_slow_look_is_not_made_often(scene: Scene) -> None:
    assert scene.after(WEIGH_S) == 1
    assert scene.after(WEIGH_CALM_S) == 2, "a quick one is"
    scene.takes_s = 0.03
    assert scene.after(WEIGH_CALM_S) == 3
    assert scene.after(PAUSE_LOOKS * 0.03 - 0.01) == 3
    assert scene.after(0.02) == 4
    scene.takes_s = 60.0  # the machine stood still
    assert scene.after(1.0) == 5
    scene.takes_s = 0.0
    assert scene.after(LONGEST_PAUSE_S + 0.01) == 6
    assert scene.after(WEIGH_CALM_S + 0.01) == 7


def test_what_was_not_heard_is_told_again(scene: Scene) -> None:
    scene.meter.bytes, scene.heard = 2 * TELL_BYTES, False
    scene.after(1.0)
    assert (scene.offered, scene.meter.told_bytes) == ([2 * TELL_BYTES], 0)
    scene.heard = True
    scene.after(1.0)
    assert (len(scene.offered), scene.meter.told_bytes) == (2, 2 * TELL_BYTES)
    scene.after(1.0)
    assert len(scene.offered) == 2

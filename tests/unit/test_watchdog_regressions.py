"""Found by review and by breaking it: each of these once did the wrong thing."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_kernel import MIB
from helpers.fake_machine import FREE, GIB, FakeMachine
from helpers.watchdog_world import World
from overnight_watchdog.gauges import Eye
from overnight_watchdog.journal import EventLog
from overnight_watchdog.limits import Bound
from overnight_watchdog.roster import read_small
from overnight_watchdog.scribe import MOST_WAITING, VERDICT_S, LaterHeartbeat, LaterLog, PatientRing, Scribe
from overnight_watchdog.tree import MEMBERS_S, PAGE_BYTES, Tree
from overnight_watchdog.verdicts import VerdictRing, read_ring

TERM, KILL, STOP = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP
DEADLINE_S = 10.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- thrashing ----------------------------------------------------------------------------------------------------


class Stalls:
    """Thrashes for as long as more than `bearable` cells live."""

    def __init__(self, world: World, bearable: int) -> None:
        self.world, self.bearable = world, bearable
        self.pages = self.us = 0
        self.last_s = world.now_s

    def _pass(self) -> None:
        seconds, self.last_s = self.world.now_s - self.last_s, self.world.now_s
        if len(list(self.world.kernel.processes())) > self.bearable:
            self.pages += round(seconds * 1000 * MIB / PAGE_BYTES)
            self.us += round(seconds * 0.5e6)

    def refaulted_pages(self) -> int:
        self._pass()
        return self.pages

    def stalled_us(self, folder: str) -> int:
        del folder
        self._pass()
        return self.us


@pytest.mark.parametrize("bearable", [4, 3])
def test_whoever_thrashes_goes_one_at_a_time(tmp_path: Path, bearable: int) -> None:
    """The figures of the second before are no reason to take the next one: whether it goes on is seen first."""
    world = World(tmp_path)
    stalls: Any = Stalls(world, bearable)
    world.watchdog._stalls = stalls
    world.eye.limit_source = "machine"
    for pid in range(20, 25):
        world.start(pid, 20, freezes=False)
    world.until(lambda: bool(world.named("evicted")), 30)
    world.lasts(4)
    assert len(world.named("evicted")) == 1
    world.lasts(40)
    gone = world.named("evicted")
    assert len(gone) == 5 - bearable and {event["trigger"] for event in gone} == {"thrash"}
    if bearable == 3:
        assert gone[1]["monotonic_s"] - gone[0]["monotonic_s"] >= 9.0  # since the second before, at the most


@pytest.mark.parametrize(("charge", "taken"), [(64, 0), (60, 0), (30, 2)])
def test_who_thrashes_at_a_cap_of_his_own_does_not_thrash_for_want_of_the_limit(
    tmp_path: Path, charge: int, taken: int
) -> None:
    """His refaults and his standing still are counted in the limit's cgroup, too: the whole machine was free."""
    world = World(tmp_path)
    stalls: Any = Stalls(world, bearable=0)
    world.watchdog._stalls = stalls
    world.eye.limit_source = "machine"
    own = tmp_path / "cell-1"
    own.mkdir()
    (own / "memory.max").write_text(f"{64 * MIB}\n")
    (own / "memory.current").write_text(f"{charge * MIB}\n")

    def see(_number: int) -> None:
        pages = 5_000_000 + stalls.refaulted_pages()
        (own / "memory.stat").write_text(f"anon {20 * MIB}\nfile {charge * MIB}\nworkingset_refault_file {pages}\n")

    world.eye.at_look = see
    for pid, cgroup in ((20, str(own)), (21, None)):
        world.start(pid, 20, role="command", freezes=False, cgroup=cgroup)
    world.lasts(60)
    assert len(world.named("evicted")) == taken
    assert bool(world.named("thrashing")) is bool(taken)


def test_under_a_smaller_limit_the_machines_refaults_are_not_ours(world: World) -> None:
    """A budget of which nobody counts the refaults: somebody else's backup is no reason to take anyone out."""
    stalls: Any = Stalls(world, bearable=0)
    world.watchdog._stalls = stalls
    for pid in (20, 21):
        world.start(pid, 20)
    world.lasts(30)
    assert not world.named("thrashing", "evicted")


# -- leases, victims ----------------------------------------------------------------------------------------------


def test_a_blind_watchdog_still_ends_its_leases(world: World) -> None:
    frozen = world.start(20, 870, ramp_mib=5)
    world.until(lambda: frozen.state == "T", 10)
    world.eye.blind = True
    world.lasts(3.5)
    assert frozen.state != "T"
    assert world.named("thawed")[-1]["trigger"] == "lease_over"


def test_a_blind_watchdog_still_sees_off_whom_it_told_to_go(world: World) -> None:
    world.start(20, 960, stubborn=[TERM, KILL])
    world.until(lambda: bool(world.named("killed")), 5)
    world.eye.blind = True
    world.kernel.end(20)
    world.lasts(2.5)
    assert world.named("victim_gone")


def test_one_that_never_dies_keeps_nobody_awake(world: World) -> None:
    world.start(20, 300, stubborn=[KILL, TERM])
    world.eye.other_bytes = 660 * MIB
    world.until(lambda: bool(world.named("victim_stays")), 30)
    world.eye.other_bytes = 0
    world.lasts(1)
    assert world.watchdog.pause_s() > 0.05


def test_the_children_of_whoever_has_the_victims_pid_now_are_nobodys(world: World) -> None:
    """The root of a tree ends when asked to, a child does not; then a stranger gets the root's pid, and children."""
    world.start(20, 930, role="command", freezes=False)
    child = world.kernel.start(21, parent=20, own_bytes=5 * MIB, stubborn=[TERM])
    world.until(lambda: bool(world.named("evicted")), 5)
    assert child.alive
    world.kernel.start(20, own_bytes=MIB)
    stranger = world.kernel.start(22, parent=20, own_bytes=MIB)
    world.until(lambda: not child.alive, 30)
    world.lasts(2)
    assert stranger.alive
    assert not [call for call in world.kernel.calls if call[0] == "send" and call[1] == 22]


def test_an_orphan_is_stopped_before_it_is_killed(world: World) -> None:
    world.start(20, 930, role="command", freezes=False)
    child = world.kernel.start(21, parent=20, own_bytes=5 * MIB, stubborn=[TERM])
    world.until(lambda: bool(world.named("evicted")), 5)
    world.until(lambda: not child.alive, 30)
    sent = [call[2] for call in world.kernel.calls if call[:2] == ("send", 21)]
    assert sent == [TERM, STOP, KILL]


# -- counting -----------------------------------------------------------------------------------------------------


def test_shared_memory_of_a_tree_exists_once(tmp_path: Path) -> None:
    """Five workers that map the same 60 MiB hold 60, not 300; without a word of the machine's total, all is counted."""
    machine = FakeMachine(tmp_path)
    machine.process(10, 1, 20 * MIB)
    for pid in range(11, 16):
        machine.process(pid, 10, 2 * MIB, shmem_bytes=60 * MIB)
    tree = Tree(10, proc_root=machine.proc)
    assert tree.measure(0.0) == (20 + 5 * 2 + 300) * MIB
    machine.meminfo(MemTotal=GIB, Shmem=70 * MIB)
    assert tree.measure(MEMBERS_S) == (20 + 5 * 2 + 70) * MIB
    machine.meminfo(MemTotal=GIB, Shmem=900 * MIB)
    assert tree.measure(2 * MEMBERS_S) == (20 + 5 * 2 + 300) * MIB
    machine.meminfo(MemTotal=GIB, Shmem=MIB)
    assert tree.measure(3 * MEMBERS_S) == (20 + 5 * 2 + 60) * MIB


def test_names_of_files_are_no_firm_memory_of_a_v1_cgroup(tmp_path: Path) -> None:
    """A hundred thousand empty files are 150 MiB of kernel memory that can be had for the asking, or nearly so."""
    machine = FakeMachine(tmp_path)
    machine.meminfo(**FREE, SUnreclaim=20 * MIB, KernelStack=2 * MIB, PageTables=3 * MIB, Percpu=MIB)
    machine.lives_in(v1="/a")
    stat = {"total_rss": 3 * MIB, "total_cache": 0}
    machine.v1("a", limit=192 * MIB, charged=160 * MIB, kmem__usage_in_bytes=154 * MIB, stat=stat)
    eye = Eye(budget_bytes=None, tree_root=lambda: None, proc_root=machine.proc, sys_root=machine.sys)
    sample = eye.look()
    assert sample.firm_headroom_bytes == (192 - 3 - 26) * MIB
    assert (sample.usage_bytes, sample.headroom_bytes) == (157 * MIB, 35 * MIB)
    assert eye.limit_cgroup() == Bound("cgroup1", 192 * MIB, machine.sys / "fs/cgroup/memory/a")


def test_a_registration_is_a_file_and_not_a_link_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "7.json").symlink_to("/dev/null")
    assert read_small(tmp_path / "7.json", 100) == b""


# -- the scribe: nobody waits for a disk ----------------------------------------------------------------------------


@pytest.fixture
def stuck() -> Any:
    """A scribe whose disk stands still until the event is set."""
    scribe, goes_on = Scribe(), threading.Event()
    scribe.put(lambda: goes_on.wait(DEADLINE_S))
    yield scribe, goes_on
    goes_on.set()
    assert scribe.finish(DEADLINE_S)


def test_a_verdict_is_on_disk_before_the_signal(tmp_path: Path) -> None:
    scribe, ring = Scribe(), VerdictRing(tmp_path / "ring", "b")
    ring.open()
    assert all(PatientRing(ring, scribe).write({"pid": pid}) for pid in (5, 6, 7)) or ring.sequence == 3
    assert scribe.finish(DEADLINE_S)
    assert [record["pid"] for record in read_ring((tmp_path / "ring").read_bytes())] == [5, 6, 7]


def test_a_disk_that_stands_still_holds_nobody_up(tmp_path: Path, stuck: tuple[Scribe, threading.Event]) -> None:
    scribe, goes_on = stuck
    ring, log = VerdictRing(tmp_path / "ring", "b"), EventLog(tmp_path / "log.jsonl")
    ring.open()
    began_s = time.monotonic()
    assert PatientRing(ring, scribe).write({"pid": 5}) is False
    assert time.monotonic() - began_s >= VERDICT_S
    assert LaterLog(log, scribe, clock=lambda: 86400.0).write("info", "evicted", pid=5) is True
    assert not ring.sequence and not (tmp_path / "log.jsonl").exists()
    goes_on.set()
    assert scribe.finish(DEADLINE_S)
    assert [record["pid"] for record in read_ring((tmp_path / "ring").read_bytes())] == [5]
    assert (tmp_path / "log.jsonl").read_text().startswith('{"ts": "1970-01-02T00:00:00.000Z"')


def test_only_the_newest_heartbeat_waits(stuck: tuple[Scribe, threading.Event]) -> None:
    scribe, goes_on = stuck
    written: list[int] = []

    class Kept:
        def write(self, record: dict[str, Any]) -> bool:
            written.append(record["sequence"])
            return True

    heartbeat = LaterHeartbeat(Kept(), scribe)
    assert [heartbeat.write({"sequence": number}) for number in (1, 2, 3)] == [True, False, False]
    goes_on.set()
    assert scribe.finish(DEADLINE_S)
    assert written == [3]


def test_what_was_lost_is_told_and_a_job_that_fails_ends_nobody(tmp_path: Path) -> None:
    scribe, log = Scribe(), EventLog(tmp_path / "log.jsonl")

    def fails() -> None:
        raise RuntimeError

    scribe.put(fails)
    assert scribe.do(lambda: True, wait_s=DEADLINE_S)
    later = LaterLog(log, scribe, clock=lambda: 0.0)
    assert later.write("info", "first") and later.write("info", "second")
    assert scribe.finish(DEADLINE_S)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("writes_lost") for line in lines] == [1, None]


def test_no_heartbeat_is_ever_the_last_by_accident() -> None:
    """Two threads, changed at every instruction: the newest one is written whenever the other looked in between."""
    written = [0]

    class Kept:
        def write(self, record: dict[str, Any]) -> bool:
            written[0] = record["sequence"]
            return True

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            scribe = Scribe()
            heartbeat = LaterHeartbeat(Kept(), scribe)
            for number in range(1, 501):
                heartbeat.write({"sequence": number})
            assert scribe.finish(DEADLINE_S)
            assert written[0] == 500
    finally:
        sys.setswitchinterval(before)


def test_what_nobody_takes_is_lost_and_counted(stuck: tuple[Scribe, threading.Event]) -> None:
    scribe, _ = stuck
    taken = sum(scribe.put(lambda: None) for _ in range(MOST_WAITING + 50))
    assert taken + scribe.lost == MOST_WAITING + 50 and 50 <= scribe.lost <= 51

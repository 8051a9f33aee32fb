"""Real leaks in real memory cgroups, the real watchdog beside them: nobody meets the kernel's OOM killer.

Watchdog and leaks live in one limited cgroup, as in a container. The quiet ones, who must be left alone, run side by
side, each in a cgroup with a watchdog of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.arena import GIB, MIB, Arena, Workload, hold_on
from helpers.memory_cgroup import Unavailable
from helpers.ramp import Ramp, run_ramp
from helpers.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.alone]

Make = Callable[[int], Arena]
QUIET_S = 10.0
LIMIT = 512 * MIB
OURS = 30 * MIB
"""What the interpreters of leak and watchdog take, which are charged as well."""


@pytest.fixture(scope="module")
def ramp_200(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Arena, Ramp]]:
    """200 MiB/s in 2 GiB: has to survive in any case."""
    with ExitStack() as stack:
        try:
            arena = stack.enter_context(Arena.made(2 * GIB, tmp_path_factory.mktemp("leak") / "h"))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield arena, run_ramp(arena, 200, prefill_bytes=GIB, freezes=False)


def test_a_leak_of_200_mib_a_second_never_meets_the_oom_killer(ramp_200: tuple[Arena, Ramp]) -> None:
    arena, ramp = ramp_200
    assert ramp.survived, ramp
    assert ramp.steps and ramp.steps[0] in ("evict", "kill")
    assert ramp.status < 0, "a signal ended it"
    assert 150 < ramp.measured_mib_s < 210, "the leak did what it was asked, on a busy machine too"
    assert ramp.least_headroom_bytes > 0
    killed = arena.verdicts()[-1]
    assert killed["role"] == "cell" and killed["cell"] == "cell_1" and killed["attempt"] == 1
    assert killed["limit_bytes"] == 2 * GIB and killed["limit_source"].endswith(arena.cgroup.folder.name)
    assert killed["own_bytes"] > GIB and killed["peak_bytes"] >= killed["own_bytes"]
    assert 0 < killed["headroom_bytes"] < 2 * GIB // 4
    assert 100 * MIB < killed["slope_bytes_per_s"] < 400 * MIB
    assert killed["exhaustion_s"] < 2.0


def test_the_verdict_stands_before_the_signal(ramp_200: tuple[Arena, Ramp]) -> None:
    """Decided, then ended, then gone; and the log's `victim_gone` agrees with what was seen from outside."""
    arena, ramp = ramp_200
    assert ramp.decided_s is not None and ramp.ended_s is not None and ramp.gone_s is not None
    assert ramp.decided_s <= ramp.gone_s
    (gone,) = arena.events("victim_gone")
    assert gone["freed_bytes"] > GIB
    assert gone["after_s"] == pytest.approx(ramp.gone_s - ramp.decided_s, abs=0.5)
    assert not arena.events("victim_stays")


def test_a_leak_of_500_mib_a_second_in_half_a_gib(arena: Make, ramp_200: tuple[Arena, Ramp]) -> None:
    """It survives, or its headroom lasts for less time than the same watchdog took beside the slower leak."""
    fast, slow = run_ramp(arena(LIMIT), 500, freezes=False), ramp_200[1]
    needed_s = sum(part or 0.0 for part in (slow.sample_s, slow.kill_s, slow.reap_s))
    outside = fast.headroom_bytes <= fast.measured_mib_s * MIB * needed_s
    assert fast.survived or outside, (fast, needed_s)


def test_a_cell_that_may_be_frozen_is_frozen_before_it_is_killed(arena: Make) -> None:
    """A pause costs nothing; and it is bounded: in the end the leak goes, or everybody else would wait for ever."""
    made = arena(LIMIT)
    ramp = run_ramp(made, 50, prefill_bytes=380 * MIB)
    assert ramp.survived, ramp
    frozen = made.events("frozen")
    assert frozen and frozen[0]["pid"] == made.verdicts()[0]["pid"]
    assert ramp.frozen_s is not None and ramp.decided_s is not None and ramp.frozen_s < ramp.decided_s
    until(lambda: made.pressure()["frozen"] == 0, what="nobody frozen")


def test_a_cell_that_must_not_be_frozen_never_is(ramp_200: tuple[Arena, Ramp]) -> None:
    arena, ramp = ramp_200
    assert ramp.frozen_s is None and not arena.events("frozen")


def test_the_one_that_leaks_is_taken_and_not_the_larger_one(arena: Make) -> None:
    """The steady one holds more and has a minute's work to lose; the leak has just finished a turn."""
    made = arena(LIMIT)
    now_s = time.monotonic()
    steady = made.leak(
        "--prefill", 230 * MIB, "plateau", 0, cell="steady", last_turn_s=now_s - 60.0, started_s=now_s - 90.0
    )
    leak = made.leak("--prefill", 100 * MIB, "ramp", 100, cell="leak", started_s=now_s - 80.0)
    made.watch()
    steady.go()
    leak.go()
    leak.wait(60.0)
    assert [record["cell"] for record in made.verdicts()] == ["leak"] * len(made.verdicts())
    assert made.verdicts() and made.cgroup.oom_kills() == 0
    hold_on(steady.alive, 1.0, made.acts)
    assert not steady.stopped()


def test_a_command_cells_whole_tree_counts_as_one(arena: Make) -> None:
    """The registered parent holds next to nothing: its grandchild leaks, and all three go."""
    made = arena(LIMIT)
    tree = made.leak("--prefill", 200 * MIB, "tree", 100, role="command", exact=False, cell="tree")
    bystander = made.leak("plateau", 60 * MIB, cell="bystander")
    made.watch()
    bystander.go()
    tree.go()
    tree.wait(60.0)
    assert made.cgroup.oom_kills() == 0
    assert {record["pid"] for record in made.verdicts()} == {tree.started}
    assert made.verdicts()[0]["own_bytes"] > 200 * MIB
    assert tree.status() != 0
    hold_on(bystander.alive, 1.0, made.acts)
    assert set(made.cgroup.pids()) == {bystander.pid, made.watchdog and made.watchdog.pid}


def test_what_a_command_keeps_in_shm_is_its_own_and_the_server_of_commands_is_no_victim(arena: Make) -> None:
    """No process shows it; the server of commands would free more than that, and take the bystander with it."""
    made = arena(LIMIT)
    given: dict[str, Any] = {"role": "command", "exact": False, "engine": "command", "freezes": False}
    server = made.leak("plateau", 40 * MIB, role="warm", engine="command", cells=1, cell="server", freezes=False)
    bystander = made.leak("plateau", 100 * MIB, cell="bystander", **given)
    own = made.cgroup.folder / "cell-1"
    own.mkdir()
    if not (own / "memory.stat").exists():
        own.rmdir()
        pytest.skip("a v2 cgroup with processes in it has no memory controller for those below it")
    hog = made.leak("shm", 100, cell="hog", cgroup=str(own), **given)
    try:
        (own / "cgroup.procs").write_text(str(hog.pid))
        made.watch()
        for each in (server, bystander, hog):
            each.go()
        hog.wait(60.0)
        hold_on(lambda: server.alive() and bystander.alive(), 1.0, made.acts)
        assert {record["cell"] for record in made.verdicts()} == {"hog"}
        assert made.verdicts()[0]["own_bytes"] > 200 * MIB
        assert made.cgroup.oom_kills() == 0
    finally:
        if hog.alive():
            os.kill(hog.pid, signal.SIGKILL)
        until(lambda: removed(own), what="an empty cgroup")


def removed(folder: Path) -> bool:
    """Those who have just died are counted a moment longer."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_one_that_does_not_leave_when_asked_is_killed(arena: Make) -> None:
    """It takes its SIGTERM as a request to go on for a minute, and goes on growing."""
    made = arena(LIMIT)
    stubborn = made.leak(
        "--prefill", 410 * MIB, "--on-term", 60, "ramp", 20, role="command", exact=False, cell="stubborn", freezes=False
    )
    made.watch()
    stubborn.go()
    stubborn.wait(60.0)
    assert made.cgroup.oom_kills() == 0
    assert stubborn.status() == -9
    assert [record["step"] for record in made.verdicts()] in (["evict", "kill"], ["kill"])


def test_one_that_gives_back_when_asked_goes_on(arena: Make) -> None:
    """On its way to 87 %, a third of it a cache: SIGUSR1 is all it takes."""
    made = arena(LIMIT)
    polite = made.leak("--prefill", 150 * MIB, "--gives-back", "plateau", 290 * MIB, 80, shrinks=True, cell="polite")
    made.watch()
    polite.go()
    until(lambda: made.events("shrink_asked"), what="a request to shrink")
    # It is still held back: what rose so far within one turn may do so again.
    until(lambda: made.pressure()["level"] in ("ok", "hold"), what="no pressure any more")
    hold_on(polite.alive, 1.0, made.acts)
    assert made.cgroup.firm_bytes() < 0.7 * LIMIT
    assert not made.verdicts() and not made.events("frozen")


def test_mapped_weights_that_do_not_fit_are_seen_named_and_acted_on(arena: Make) -> None:
    """A file larger than the cgroup, read at random: it never fails a charge for good, it only never gets on."""
    made = arena(LIMIT // 2)
    weights = made.home / "weights"
    with weights.open("wb", buffering=0) as file:
        for _ in range(384):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # written out here, to be charged in there
    reader = made.leak("thrash", weights, cell="weights")
    made.watch()
    reader.go()
    reader.wait(60.0)
    weights.unlink()
    assert made.events("thrashing")
    assert {(record["cell"], record["trigger"]) for record in made.verdicts()} == {("weights", "thrash")}
    assert made.cgroup.oom_kills() == 0


QUIET: dict[str, tuple[object, ...]] = {
    "plateau of 75 %": ("plateau", int(0.75 * LIMIT) - OURS, 150),
    "flat 88 %": ("--prefill", int(0.88 * LIMIT) - OURS, "plateau", 0),
    "sawtooth of 60 %": ("sawtooth", 60, 5, LIMIT),
    "files of twice the limit": ("files", 2 * LIMIT, "--keep"),
}
"""The flat one is there before the watchdog looks: on its way up it would be rightly frozen for a moment."""


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Arena, Workload]]]:
    """All of them at once, for QUIET_S seconds."""
    with ExitStack() as stack:
        rows = {}
        for name, arguments in QUIET.items():
            try:
                arena = stack.enter_context(Arena.made(LIMIT, tmp_path_factory.mktemp("quiet") / "h"))
            except Unavailable as reason:
                pytest.skip(str(reason))
            rows[name] = (arena, arena.leak(*arguments))
            arena.watch()
        for _, workload in rows.values():
            workload.go()
        writer = rows["files of twice the limit"][1]
        began = time.monotonic()
        assert writer.says() == "done"
        rest_s = max(0.0, QUIET_S - (time.monotonic() - began))
        hold_on(
            lambda: all(each.alive() for _, each in rows.values()), rest_s, lambda: [a.acts() for a, _ in rows.values()]
        )
        yield rows


@pytest.mark.parametrize("name", QUIET)
def test_nobody_is_touched_without_need(quiet: dict[str, tuple[Arena, Workload]], name: str) -> None:
    arena, workload = quiet[name]
    assert workload.alive() and not workload.stopped()
    assert arena.verdicts() == []
    assert arena.events("frozen", "evicted", "killed", "thrashing") == []
    assert arena.cgroup.oom_kills() == 0
    assert arena.watchdog is not None and arena.watchdog.poll() is None


def test_the_quiet_ones_were_what_they_claim_to_be(quiet: dict[str, tuple[Arena, Workload]]) -> None:
    """Else nobody would have had a reason to touch them anyway."""
    arena, _ = quiet["flat 88 %"]
    assert 0.86 * LIMIT < arena.cgroup.firm_bytes() < 0.9 * LIMIT
    arena, _ = quiet["plateau of 75 %"]
    assert 0.73 * LIMIT < arena.cgroup.firm_bytes() < 0.77 * LIMIT
    _, saw = quiet["sawtooth of 60 %"]
    held = [entry.held_bytes for entry in saw.entries()]
    assert max(held) > 0.59 * LIMIT and held.count(0) >= 2
    arena, files = quiet["files of twice the limit"]
    charged = [entry.charged_bytes for entry in files.entries()]
    assert files.entries()[-1].held_bytes == 0 and max(charged) > 0.97 * LIMIT, "page cache to the brim"


def test_a_budget_is_a_limit_like_any_other(arena: Make) -> None:
    """No cgroup near: the budget counts the tree below the process that stands in for supervisord."""
    made = arena(GIB)  # the net under it
    parent = (sys.executable, "-S", "-E", "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))")
    leak = made.leak("--prefill", 200 * MIB, "ramp", 100, through=parent, freezes=False)
    (made.home / "var" / "run" / "supervisord.pid").write_text(f"{leak.started}\n")
    made.watch("--budget", "512MiB", inside=False)
    leak.go()
    leak.wait(60.0)
    (first, *_) = made.verdicts()
    assert (first["pid"], first["limit_source"], first["limit_bytes"]) == (leak.pid, "budget", 512 * MIB)
    assert made.cgroup.oom_kills() == 0
    assert max(entry.held_bytes for entry in leak.entries()) < 512 * MIB

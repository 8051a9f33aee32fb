"""What an attempt's registration says, and who survives a recovery."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overnight import procfs
from overnight.dispatch.attempt import Attempt, Grant
from overnight.dispatch.claims import Claim
from overnight.dispatch.pool import Pool
from overnight.dispatch.recover import recover
from overnight.dispatch.registry import Registration, Registry
from overnight.dispatch.signals import Handle


def attempt(*, turns: int = 0, run_s: float = 0.0, timeout_s: float | None = None) -> Attempt:
    cell: Any = SimpleNamespace(turns=turns, output_tokens=10 * turns, run_s=run_s, key="a")
    claimed: Any = SimpleNamespace(
        cell=cell, attempt_id=3, grid="night", policy={"timeout_s": timeout_s}, spec={"kind": "idle_loop", "threads": 1}
    )
    server: Any = SimpleNamespace(state="ready", shrinks=True, freezes=False, promise="exact", warm={"engine": "x"})
    return Attempt(claimed, server, Grant(Claim(64 << 20, "prior"), 64 << 20))


def begins(found: Attempt, turn: int, replay_s: float, now_s: float = 50.0) -> None:
    found.begins({"turn": turn, "output_tokens": 0, "replay_s": replay_s}, now_s)


def test_replaying_is_estimated_from_this_attempts_own_replay() -> None:
    found = attempt(turns=8, run_s=300.0)
    begins(found, turn=8, replay_s=4.0)
    assert found.replay_estimate_s() == 4.0
    found.turn, found.last_turn_s = 12, 90.0
    assert found.replay_estimate_s() == 6.0


def test_without_a_replay_it_is_a_share_of_the_time_that_the_turns_took() -> None:
    found = attempt()
    begins(found, turn=0, replay_s=0.001)
    assert found.replay_estimate_s() == 0.0
    found.turn, found.last_turn_s = 5, 150.0
    assert found.replay_estimate_s() == pytest.approx(7.0)


def test_while_it_still_replays_it_is_a_share_of_all_attempts_before() -> None:
    assert attempt(turns=8, run_s=300.0).replay_estimate_s() == pytest.approx(21.0)


def test_the_registration_carries_it() -> None:
    found = attempt(turns=8, run_s=300.0)
    found.handle = Handle.open(os.getpid())
    entry = found.registration()
    assert (entry.role, entry.replay_s, entry.freezes, entry.shrinks) == ("cell", 21.0, False, True)
    assert entry.by == "overnight"


def test_the_load_of_its_model_is_no_work_of_the_cell() -> None:
    found = attempt()
    found.handle = Handle.open(os.getpid())
    found.started_s, found.forked_s = 100.0, 160.0
    assert found.registration().started_s == 160.0


def test_time_spent_frozen_is_not_its_own() -> None:
    found = attempt(timeout_s=10.0)
    found.forked_s = 100.0
    for now_s, frozen in ((104.0, True), (105.0, True), (107.0, False), (108.0, False)):
        found.look(now_s, frozen=frozen)
    assert found.frozen_s == 3.0
    assert not found.overdue(113.0)
    assert found.overdue(113.1)


def test_a_recovery_kills_what_was_left_but_never_a_daemon_nor_what_is_not_ours(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    left, other, foreign = (subprocess.Popen(["sleep", "600"]) for _ in range(3))
    beats: list[int] = []
    queue: Any = SimpleNamespace(recover=lambda **_: [1, 2])
    log: Any = SimpleNamespace(warning=lambda *_, **__: None, error=lambda *_, **__: None)
    try:
        for pid, role in ((left.pid, "cell"), (other.pid, "daemon"), (os.getpid(), "daemon")):
            registry.put(Registration(pid=pid, start_ticks=procfs.start_ticks(pid) or 0, pgid=pid, role=role))
        ticks = procfs.start_ticks(foreign.pid) or 0
        by_hand = {"v": 1, "boot_id": procfs.boot_id(), "pid": foreign.pid, "start_ticks": ticks, "role": "command"}
        (tmp_path / f"{foreign.pid}.json").write_text(json.dumps(by_hand))
        assert recover(queue, registry, log, beat=lambda: beats.append(1)) == 2
        assert left.wait(5) == -9
        assert (other.poll(), foreign.poll()) == (None, None)
        assert [path.name for path in tmp_path.iterdir()] == [f"{foreign.pid}.json"]
    finally:
        for process in (left, other, foreign):
            process.kill()
            process.wait()


def test_a_warm_servers_registration_follows_its_cells(tmp_path: Path) -> None:
    told: list[str] = []
    log: Any = SimpleNamespace(warning=lambda event, **_: told.append(event))
    pool = Pool(tmp_path, tmp_path / "err", Registry(tmp_path / "cells"), log)
    server: Any = SimpleNamespace(
        handle=Handle.open(os.getpid()),
        pid=os.getpid(),
        state="loading",
        attempts={1, 2},  # they wait for its load
        forked=set(),
        told=None,
        warm={"engine": "x"},
        started=1.0,
    )

    def registered() -> tuple[int, bool]:
        entry = json.loads((tmp_path / "cells" / f"{os.getpid()}.json").read_bytes())
        return entry["cells"], entry["shrinks"]

    pool.register(server)
    pool.register(server)
    assert told == ["registration_failed"]  # the folder is not there: told once, tried again
    (tmp_path / "cells").mkdir()
    pool.register(server)
    assert registered() == (0, False)
    server.state, server.forked = "ready", {1, 2}
    pool.register(server)
    assert registered() == (2, True)
    server.forked = {2}
    pool.register(server)
    assert registered() == (2, True)  # whether it has any is what counts: not a file more for each
    server.forked = set()
    pool.register(server)
    assert registered() == (0, True)
    (tmp_path / "cells" / f"{os.getpid()}.json").unlink()
    pool.register(server)  # nothing changed: nothing is written
    assert list((tmp_path / "cells").iterdir()) == []
    pool._servers["x"] = server
    pool.refresh()  # ... but somebody emptied the folder
    assert registered() == (0, True)
    assert told == ["registration_failed"]

"""What the watchdog writes before it signals is what the daemon reads afterwards: one contract, two programs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.watchdog_world import World
from overnight import procfs
from overnight.dispatch import evictions
from overnight_watchdog.verdicts import RECORD_BYTES, RECORDS, VerdictRing, read_ring


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, boot_id=procfs.boot_id())


def ring_of(world: World) -> Path:
    return world.home / "var" / "run" / "verdicts.ring"


def test_both_speak_of_the_same_file() -> None:
    assert evictions.SLOT_BYTES == RECORD_BYTES == 1024 and RECORDS == 64


def test_the_daemon_can_tell_why_a_cell_was_evicted(world: World) -> None:
    process = world.start(20, 300, ramp_mib=60)
    world.start(21, 200)
    world.until(lambda: not process.alive, 60)
    found = evictions.read(ring_of(world), 20, process.ticks)
    assert found is not None
    assert (found.step, found.trigger, found.level) == ("evict", "headroom", "evict")
    (verdict,) = world.verdicts()
    for name in ("limit_bytes", "limit_source", "headroom_bytes", "own_bytes", "peak_bytes", "loss_s", "exhaustion_s"):
        assert getattr(found, name) == verdict[name]
    assert found.slope_bytes_per_s == verdict["slope_bytes_per_s"]
    assert "took it out" in found.sentence() and "60.0 MiB/s" in found.sentence()
    assert evictions.read(ring_of(world), 21, process.ticks) is None
    assert evictions.read(ring_of(world), 20, process.ticks + 1) is None


def test_evict_and_then_kill_are_two_records_and_the_newer_counts(world: World) -> None:
    process = world.start(20, 940, stubborn=[signal.SIGTERM])
    world.until(lambda: not process.alive, 5)
    assert [each["step"] for each in world.verdicts()] == ["evict", "kill"]
    found = evictions.read(ring_of(world), 20, process.ticks)
    assert found is not None and (found.step, found.trigger) == ("kill", "grace_over")


def test_the_verdict_is_there_when_the_signal_arrives(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon may see the death and read the ring before the watchdog runs again."""
    process = world.start(20, 990)
    send, seen = world.kernel.send, []

    def sent(pidfd: int, number: int) -> bool:
        seen.append(evictions.read(ring_of(world), 20, process.ticks))
        return send(pidfd, number)

    monkeypatch.setattr(world.kernel, "send", sent)
    world.step()
    assert not process.alive
    assert [each is not None and each.step for each in seen] == ["kill"]


def test_a_restart_of_the_daemon_is_no_eviction(world: World) -> None:
    daemon = world.start(5, 10, role="daemon")
    world.actor.note({"pid": 5, "start_ticks": daemon.ticks, "role": "daemon", "step": "restart", "trigger": "leak"})
    assert len(world.verdicts()) == 1
    assert evictions.read(ring_of(world), 5, daemon.ticks) is None


figures = st.integers(-(2**62), 2**62)
sizes = st.integers(0, 2**62)


@settings(max_examples=60, deadline=None)
@given(
    verdicts=st.lists(
        st.fixed_dictionaries(
            {
                "pid": st.sampled_from([7, 8]),
                "start_ticks": st.sampled_from([70, 80]),
                "role": st.sampled_from(["cell", "command", "warm"]),
                "cell": st.text(max_size=300),
                "attempt": st.integers(0, 10**6),
                "step": st.sampled_from(["evict", "kill"]),
                "trigger": st.sampled_from(["headroom", "forecast", "thrash", "grace_over"]),
                "level": st.sampled_from(["evict", "kill"]),
                "limit_bytes": sizes,
                "limit_source": st.text(max_size=300),
                "headroom_bytes": sizes,
                "slope_bytes_per_s": st.none() | figures,
                "exhaustion_s": st.none() | st.floats(0, 1e6),
                "own_bytes": sizes,
                "peak_bytes": sizes,
                "loss_s": st.floats(0, 1e9),
            }
        ),
        min_size=1,
        max_size=80,
    )
)
def test_any_verdict_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, verdicts: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ring"
    path.unlink(missing_ok=True)
    ring = VerdictRing(path, procfs.boot_id())
    assert ring.open()
    assert all(ring.write(verdict) for verdict in verdicts)
    ring.close()
    assert len(read_ring(path.read_bytes())) == min(64, len(verdicts))
    for pid in (7, 8):
        for ticks in (70, 80):
            kept = [each for each in verdicts[-64:] if (each["pid"], each["start_ticks"]) == (pid, ticks)]
            found = evictions.read(path, pid, ticks)
            assert (found is None) is (not kept)
            if found is not None:
                newest = kept[-1]
                assert (found.step, found.trigger, found.level) == (newest["step"], newest["trigger"], newest["level"])
                assert found.headroom_bytes == newest["headroom_bytes"] and found.own_bytes == newest["own_bytes"]
                assert found.slope_bytes_per_s == newest["slope_bytes_per_s"]
                assert (found.exhaustion_s, found.loss_s) == (newest["exhaustion_s"], newest["loss_s"])
                assert found.sentence()

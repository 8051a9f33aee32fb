"""Damaged counters of all kinds: the eye raises nothing but SampleError, and never sees a headroom that cannot be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fake_machine import FREE, GIB, Watched
from overnight_watchdog.gauges import FOLDERS_S, LIMITS_S, MachineGauge
from overnight_watchdog.sample import SampleError

MIB = 2**20


@pytest.fixture(scope="module")
def wreck() -> Iterator[Watched]:
    """v1 and v2 at once, nested, with swap, a budget by its tree: every file that is ever read."""
    with tempfile.TemporaryDirectory() as folder:
        world = Watched(Path(folder))
        world.meminfo(**FREE, SwapTotal=4 * GIB, SwapFree=GIB)
        world.lives_in(v1="/old", v2="/new/leaf")
        swap = {"memsw__limit_in_bytes": 3 * GIB, "memsw__usage_in_bytes": GIB, "swappiness": 60}
        stat = {"total_cache": GIB, "total_rss": GIB, "total_mapped_file": MIB, "total_dirty": MIB}
        world.v1("old", limit=2 * GIB, charged=GIB, kmem__usage_in_bytes=MIB, use_hierarchy=1, stat=stat, **swap)
        world.v2("new", limit=GIB, charged=MIB, stat={"anon": MIB, "file": 0})
        world.v2("new/leaf", limit="max", charged=MIB, stat={"anon": MIB, "file": 0}, swap__max=GIB, swap__current=0)
        world.process(7, 1, 100 * MIB)
        world.process(8, 7, 150 * MIB, forked=True)
        world.root = 7
        yield world


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What can happen to a file: cut off, bytes changed, put in or taken out, a number made absurd, all of it other."""
    place, junk = draw(st.floats(0, 1)), draw(st.binary(max_size=12))
    how = draw(st.sampled_from(["cut", "change", "insert", "remove", "number", "all", "nothing"]))
    number = draw(st.sampled_from([b"-1", b"0", b"max", b"18446744073709551615", b"9" * 30, b"1e9", b" ", b"\n"]))

    def damage(data: bytes) -> bytes:
        at = int(place * len(data))
        end = next((i for i in range(at, len(data)) if not data[i : i + 1].isdigit()), len(data))
        return {
            "cut": data[:at],
            "change": data[:at] + junk + data[at + len(junk) :],
            "insert": data[:at] + junk + data[at:],
            "remove": data[:at] + data[at + len(junk) + 1 :],
            "number": data[:at] + number + data[end:],
            "all": junk,
            "nothing": b"",
        }[how]

    return damage


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), damages()), min_size=1, max_size=4))
def test_no_damage_raises_anything_but_a_sample_error_or_gives_an_impossible_headroom(
    wreck: Watched, hits: list[tuple[int, Callable[[bytes], bytes]]]
) -> None:
    files = sorted(path for path in wreck.folder.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    eye = wreck.eye(budget_bytes=512 * MIB)
    try:
        for after_s in (0.0, LIMITS_S, FOLDERS_S):  # the first look is at a machine that is well
            wreck.now_s += after_s
            try:
                sample = eye.look()
            except SampleError:
                continue
            finally:
                for number, damage in hits:
                    path = files[number % len(files)]
                    path.write_bytes(damage(whole[path]))
            assert 0 <= sample.headroom_bytes <= sample.firm_headroom_bytes <= sample.limit_bytes
            assert 0 < sample.limit_bytes <= 512 * MIB
            assert sample.usage_bytes >= 0
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
        wreck.now_s += FOLDERS_S
        eye.look()  # and it gets over it


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages())
def test_a_damaged_meminfo_alone(wreck: Watched, damage: Callable[[bytes], bytes]) -> None:
    path = wreck.proc / "meminfo"
    whole = path.read_bytes()
    gauge = MachineGauge(wreck.proc)
    try:
        path.write_bytes(damage(whole))
        usage = gauge.measure()
        assert usage is None or min(usage.firm_bytes, usage.slow_bytes, usage.swap_room_bytes) >= 0
    finally:
        path.write_bytes(whole)
        gauge.close()

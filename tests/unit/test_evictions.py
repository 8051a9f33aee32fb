"""The reader of the verdict ring: the newest whole record of this very process, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.verdict_ring import EMPTY, SLOT_BYTES, slot, verdict, write_ring
from overnight.dispatch import evictions

PID, TICKS = 4711, 123456


def found(path: Path) -> int | None:
    """The headroom in the record that counts, which these tests tell records apart by."""
    eviction = evictions.read(path, PID, TICKS)
    return None if eviction is None else eviction.headroom_bytes


def test_no_file_and_an_empty_ring_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.ring"
    assert found(path) is None
    for data in (b"", EMPTY * 64, b"\0" * SLOT_BYTES * 64, b"\0" * 100):
        path.write_bytes(data)
        assert found(path) is None


def test_the_newest_of_the_process_counts_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.ring"
    write_ring(
        path,
        verdict(PID, TICKS, 66, step="kill", trigger="grace_over", headroom_bytes=3),
        verdict(PID + 1, TICKS, 67, headroom_bytes=9),
        verdict(PID, TICKS, 65, headroom_bytes=2),
    )
    eviction = evictions.read(path, PID, TICKS)
    assert eviction is not None
    assert (eviction.step, eviction.headroom_bytes) == ("kill", 3)


@pytest.mark.parametrize(
    "foreign",
    [
        verdict(PID, TICKS + 1),
        verdict(PID + 1, TICKS),
        verdict(PID, TICKS, boot_id="another"),
        verdict(PID, TICKS, v=2),
        verdict(PID, TICKS, step="restart", role="daemon"),
        verdict(PID, TICKS, sequence="many"),
        {name: value for name, value in verdict(PID, TICKS).items() if name != "own_bytes"},
        verdict(PID, TICKS, loss_s="long"),
    ],
    ids=["start time", "pid", "boot", "version", "step", "sequence", "field missing", "field of another kind"],
)
def test_what_is_not_about_this_process_says_nothing(tmp_path: Path, foreign: dict[str, object]) -> None:
    path = tmp_path / "verdicts.ring"
    write_ring(path, foreign)
    assert found(path) is None


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 3 * SLOT_BYTES - 1), byte=st.integers(0, 255), cut=st.integers(0, 3 * SLOT_BYTES))
def test_damage_is_never_believed_and_hides_no_other_slot(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int
) -> None:
    """One byte changed and the file cut anywhere: each slot that is still whole counts, a damaged one never does."""
    path = tmp_path_factory.getbasetemp() / "verdicts.ring"
    slots = [slot(verdict(PID, TICKS, number, headroom_bytes=number)) for number in (1, 2, 3)]
    data = bytearray(b"".join(slots))
    data[at] = byte
    data = data[:cut]
    path.write_bytes(data)
    seen = found(path)
    whole = [n for n in (1, 2, 3) if data[(n - 1) * SLOT_BYTES : n * SLOT_BYTES] == slots[n - 1]]
    if whole:
        assert seen is not None
        assert seen >= max(whole)  # a damaged slot may still be whole: its padding does not matter
    assert seen in (None, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "warm", "sentence"),
    [
        (
            {},
            False,
            "the watchdog took it out: 181.2 MiB of 2.0 GiB (budget) were left and going at 52.3 MiB/s; "
            "it held 310.0 MiB alone, and 1.2 s of work were lost",
        ),
        (
            {"slope_bytes_per_s": None, "limit_source": "machine", "loss_s": 75.0},
            False,
            "the watchdog took it out: 181.2 MiB of 2.0 GiB (machine) were left; "
            "it held 310.0 MiB alone, and 1 m 15 s of work were lost",
        ),
        (
            {"trigger": "forecast", "exhaustion_s": 3.46},
            False,
            "the watchdog took it out: 181.2 MiB of 2.0 GiB (budget) were left and going at 52.3 MiB/s, gone in 3.5 s; "
            "it held 310.0 MiB alone, and 1.2 s of work were lost",
        ),
        (
            {"trigger": "thrash", "slope_bytes_per_s": -5, "limit_source": "cgroup:/sys/fs/cgroup/memory/a"},
            False,
            "the watchdog took it out, since memory in use was read from the disk again and again: "
            "181.2 MiB of 2.0 GiB (/sys/fs/cgroup/memory/a) were left; "
            "it held 310.0 MiB alone, and 1.2 s of work were lost",
        ),
        (
            {"step": "kill", "trigger": "grace_over", "slope_bytes_per_s": 0},
            False,
            "the watchdog took it out by force, since it did not leave when asked to: "
            "181.2 MiB of 2.0 GiB (budget) were left; it held 310.0 MiB alone, and 1.2 s of work were lost",
        ),
        (
            {"role": "warm"},
            True,
            "the watchdog took out its warm server, and the cell with it: "
            "181.2 MiB of 2.0 GiB (budget) were left and going at 52.3 MiB/s; "
            "the server held 310.0 MiB alone, and 1.2 s of work were lost",
        ),
    ],
)
def test_the_sentence(tmp_path: Path, changes: dict[str, object], warm: bool, sentence: str) -> None:
    path = tmp_path / "verdicts.ring"
    write_ring(path, verdict(PID, TICKS, **changes))
    eviction = evictions.read(path, PID, TICKS, warm=warm)
    assert eviction is not None
    assert eviction.sentence() == sentence
    assert eviction.reason_code == ("thrashing" if changes.get("trigger") == "thrash" else "memory_pressure")
    assert "level" not in eviction.evidence()  # a log line has a level of its own

"""What counts as growth in a soak."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaigns import soak_marks
from campaigns.base import Finding
from campaigns.soak_marks import Mark
from helpers import growth
from helpers.vitals import KIB, Vitals

CALM = Vitals(
    pid=7,
    pss_bytes=30_000 * KIB,
    held_bytes=28_000 * KIB,
    private_bytes=29_000 * KIB,
    descriptors=34,
    threads=1,
    zombies=0,
    cpu_s=1.0,
)


def marks(**changes: list[object]) -> list[Mark]:
    """Twelve of them, whose daemon has these values one after the other (fewer are spread over them)."""
    found = []
    for at in range(12):
        each = {name: values[at * len(values) // 12] for name, values in changes.items()}
        found.append(
            Mark(
                cells=250 * (at + 1),
                at_s=float(at),
                processes={"daemon": replace(CALM, **each), "watchdog": CALM},
                registrations=0,
                slots=8,
                database_bytes=250_000 * (at + 1),
                wal_bytes=4_000_000,
                run_bytes=70_000,
                attempt=260 * (at + 1),
            )
        )
    return found


def judged(seen: list[Mark]) -> list[str]:
    found = Finding()
    soak_marks.judge(found, seen, most_kib=1024)
    return found.violations


def test_a_calm_one_breaks_nothing() -> None:
    assert judged(marks()) == []


def test_a_leak_is_seen_and_odd_marks_are_not_one() -> None:
    leak = [28_000 * KIB + at * 128 * KIB for at in range(12)]
    assert "what it holds has grown by 1152 KiB" in judged(marks(held_bytes=leak))[0]
    odd = [28_000 * KIB] * 11 + [32_000 * KIB]
    assert judged(marks(held_bytes=odd)) == []


def test_libraries_that_others_map_are_no_growth() -> None:
    shared = [(30_000 + 300 * at) * KIB for at in range(12)]
    found = Finding()
    soak_marks.judge(found, marks(pss_bytes=shared), most_kib=1024)
    assert found.violations == []
    assert found.figures["daemon: growth of its PSS, KiB"] == 2700


def test_one_descriptor_more_is_too_many() -> None:
    assert "1 more descriptors" in judged(marks(descriptors=[34, 34, 34, 35]))[0]


def test_descriptors_of_a_further_slot_are_none() -> None:
    seen = marks(descriptors=[34, 38])
    later = [replace(mark, slots=9) for mark in seen[6:]]
    assert judged(seen[:6] + later) == []


@pytest.mark.parametrize(
    ("what", "values", "said"),
    [
        ("threads", [1, 2], "the number of its threads changed"),
        ("zombies", [0, 3], "3 of its children are dead"),
        ("pid", [7, 8], "it was started again"),
    ],
)
def test_what_else_may_not_happen(what: str, values: list[object], said: str) -> None:
    assert said in judged(marks(**{what: values}))[0]


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("registrations", 1, "left in var/run/cells"),
        ("wal_bytes", 2**24, "queue.db-wal came to"),
        ("run_bytes", 90_000, "var/run has grown"),
    ],
)
def test_files_are_bounded(what: str, value: int, said: str) -> None:
    seen = marks()
    later = [replace(mark, **{what: value}) for mark in seen[6:]]
    assert said in judged(seen[:6] + later)[0]


def test_growth_compares_ends_that_never_overlap() -> None:
    assert growth.growth([1, 2]) == 1
    assert growth.growth([5, 1, 1, 1, 9, 9, 9, 1]) == 8
    assert growth.ratio([2, 2, 2, 7, 7, 4, 4, 4]) == 2


def test_a_trend_rises_in_every_quarter() -> None:
    assert growth.rises([1, 1, 2, 2, 3, 3, 4, 4])
    assert not growth.rises([1, 1, 2, 2, 2, 2, 4, 4])
    assert not growth.rises([1, 2, 3])

"""Caps that throw out what a cell reads again and again: which of them are raised, how far, and that claims are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from overnight.dispatch.attempt import Grant
from overnight.dispatch.claims import Claim
from overnight.dispatch.crew import Crew
from overnight.dispatch.planner import Planner

MIB = 2**20
GIB = 2**30


def attempt(cap_mib: int | None = 64, rate_mib: float = 100, *, most_mib: int = 800, **given: Any) -> Any:
    cap_bytes = None if cap_mib is None else cap_mib * MIB
    slot = given.pop("slot", SimpleNamespace(raise_cap=lambda cap_bytes: True))
    grant = Grant(Claim(24 * MIB, "hint"), 24 * MIB, cap_bytes, slot, server_bytes=20 * MIB, most_bytes=most_mib * MIB)
    fields: dict[str, Any] = {"over": False, "intent": "", "extended_s": 0.0, "claim_noted": True, **given}
    return SimpleNamespace(grant=grant, refault_bytes_per_s=round(rate_mib * MIB), **fields)


def loosened(*attempts: Any, headroom_mib: int | None = 900, room_mib: int = 500) -> list[int | None]:
    """The new cap of each attempt in MiB, None for one that keeps its own. 200 MiB are the reserve."""
    told: Any = None
    if headroom_mib is not None:
        left = headroom_mib * MIB
        told = SimpleNamespace(limit_bytes=GIB, hold_bytes=200 * MIB, headroom_bytes=left, age_s=0.0)
    config: Any = SimpleNamespace(memory=SimpleNamespace(reserve=None))
    crew: Any = SimpleNamespace(attempts=dict(enumerate(attempts)))
    paths: Any = None
    queue: Any = None
    planner = Planner(paths, config, queue, crew, SimpleNamespace(pressure=told))  # type: ignore[arg-type]
    planner._found_limit = lambda: GIB  # type: ignore[method-assign]
    planner.view = lambda delay_left_s=0.0: SimpleNamespace(room_bytes=room_mib * MIB)  # type: ignore
    found = {id(each): cap_bytes // MIB for each, cap_bytes in planner.loosenings()}
    return [found.get(id(each)) for each in attempts]


@pytest.mark.parametrize(
    ("cap_mib", "rate_mib", "larger_mib"),
    [
        *((64, 100, 128), (64, 6.5, 128), (64, 6.3, None), (16, 3.9, None), (16, 4.1, 32), (16, 0, None)),
        *((300, 29, None), (300, 31, 600), (500, 100, 780), (780, 100, None), (779.5, 100, None)),
    ],
)
def test_a_cap_is_doubled_when_more_than_a_tenth_of_it_is_read_again_in_a_second(
    cap_mib: float, rate_mib: float, larger_mib: int | None
) -> None:
    thrashes = attempt(64, rate_mib)
    thrashes.grant.cap_bytes = round(cap_mib * MIB)
    assert loosened(thrashes) == [larger_mib]


@pytest.mark.parametrize(
    ("headroom_mib", "larger_mib"), [(264, 128), (263, None), (200, None), (50, None), (None, 128)]
)
def test_what_is_free_beyond_the_reserve_must_leave_it(headroom_mib: int | None, larger_mib: int | None) -> None:
    assert loosened(attempt(), headroom_mib=headroom_mib) == [larger_mib]


def test_where_nobody_measures_what_is_promised_to_nobody_must_leave_it() -> None:
    assert loosened(attempt(), headroom_mib=None, room_mib=64) == [128]
    assert loosened(attempt(), headroom_mib=None, room_mib=63) == [None]


def test_the_same_room_is_not_given_twice() -> None:
    assert loosened(attempt(), attempt(100), attempt(30), headroom_mib=300) == [128, None, 60]


@pytest.mark.parametrize(
    "kept", [{"cap_mib": None}, {"slot": None}, {"over": True}, {"intent": "cancelled"}, {"most_mib": 60}]
)
def test_who_has_no_cap_of_the_kernels_or_leaves_keeps_what_he_has(kept: dict[str, Any]) -> None:
    assert loosened(attempt(**kept), attempt()) == [None, 128]


@pytest.mark.parametrize("met", [False, True])
def test_only_the_cap_grows_and_the_rate_is_unknown_then(met: bool) -> None:
    given: list[int] = []
    thrashes = attempt(slot=SimpleNamespace(raise_cap=lambda cap_bytes: (given.append(cap_bytes), not met)[1]))
    crew: Any = None
    assert Crew.loosen(crew, thrashes, 128 * MIB) is not met
    grant = thrashes.grant
    assert (given, grant.cap_bytes, grant.claim_bytes) == ([128 * MIB], (64 if met else 128) * MIB, 24 * MIB)
    assert (thrashes.refault_bytes_per_s == 0) is not met
    assert thrashes.claim_noted is met, "the queue is told of the new cap"


def test_without_a_slot_there_is_nothing_to_loosen() -> None:
    crew: Any = None
    assert not Crew.loosen(crew, attempt(slot=None), 128 * MIB)

"""Whom it takes, and what it does to him: tables of situations, and properties of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overnight_watchdog.assess import Level
from overnight_watchdog.decide import Action, Candidate, Policy, Situation, Step, decide, in_order

MIB = 2**20
LIMIT = 2048 * MIB
NOW = 1000.0
POLICY = Policy()


def cell(pid: int, mib: float = 100, **changes: Any) -> Candidate:
    given = {"loss_s": 5.0, "started_s": 900.0 + pid, **changes}
    return Candidate(pid=pid, role=given.pop("role", "cell"), own_bytes=round(mib * MIB), **given)


def now(level: Level, trigger: str = "headroom", **changes: Any) -> Situation:
    given: dict[str, Any] = {"limit_bytes": LIMIT, "need_bytes": 80 * MIB, "now_s": NOW, **changes}
    return Situation(level=level, trigger=trigger, **given)


def order(situation: Situation, *candidates: Candidate) -> list[int]:
    return [each.pid for each in in_order(situation, candidates, POLICY)]


def act(situation: Situation, *candidates: Candidate) -> Action | None:
    """The decision; the order in which processes are listed must not matter."""
    found = decide(situation, candidates, POLICY)
    assert decide(situation, tuple(reversed(candidates)), POLICY) == found
    return found


EVICT, KILL, FREEZE, SHRINK, HOLD, OK = (
    now(level) for level in (Level.EVICT, Level.KILL, Level.FREEZE, Level.SHRINK, Level.HOLD, Level.OK)
)


# -- the order of victims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        pytest.param([cell(1, loss_s=60), cell(2, loss_s=2)], [2, 1], id="less work lost"),
        pytest.param([cell(1, 200), cell(2, 100)], [1, 2], id="more bytes freed for the same work"),
        pytest.param([cell(1, 400, loss_s=35), cell(2, 100, loss_s=5)], [2, 1], id="seconds per byte decide"),
        pytest.param([cell(1), cell(3), cell(2)], [3, 2, 1], id="of equals the newest"),
        pytest.param([cell(1, 90), cell(2, 500, role="warm", cells=0)], [2, 1], id="an idle warm server first"),
        pytest.param([cell(1), cell(2, 900, role="warm", cells=1)], [1, 2], id="a busy warm server last"),
        pytest.param(
            [cell(1, 20), cell(2, 200, loss_s=900)], [2, 1], id="one that frees enough before one that is cheap"
        ),
        pytest.param(
            [cell(1, 30, loss_s=0), cell(2, 60, loss_s=10)], [1, 2], id="none frees enough: the cheapest first"
        ),
        pytest.param(
            [cell(1, 100, loss_s=1), cell(2, 40, loss_s=2, slope_bytes_per_s=50 * MIB)], [2, 1], id="the leak's growth"
        ),
        pytest.param(
            [cell(1, 900, role="daemon"), cell(2, 6), cell(3, 100)], [3, 1, 2], id="a daemon that is the leak"
        ),
        pytest.param([cell(1, 400, role="daemon"), cell(2)], [2], id="a daemon that is not"),
        pytest.param([cell(1, 5), cell(2, 0), cell(3, 0.7)], [1], id="whose death frees next to nothing"),
        pytest.param([cell(1, killed_s=NOW), cell(2)], [2], id="who is dead already"),
        pytest.param(
            [cell(1, 900, role="warm", cells=1, commands=True, loss_s=0), cell(2, 30, role="command")],
            [2],
            id="the server of commands is no victim while it has any",
        ),
        pytest.param([cell(1, 20, role="warm", commands=True), cell(2)], [1, 2], id="an idle one is as any other"),
    ],
)
def test_the_order_of_victims(candidates: list[Candidate], expected: list[int]) -> None:
    assert order(EVICT, *candidates) == expected
    assert order(EVICT, *reversed(candidates)) == expected


def test_an_idle_warm_server_that_hardly_matters_does_not_go_first() -> None:
    """Reloading a model to gain 5 MiB of 80 would be waste."""
    assert order(EVICT, cell(1, 5, role="warm"), cell(2, 100)) == [2, 1]


def test_the_leaker_goes_before_a_bystander_with_unsaved_work() -> None:
    leaker = cell(1, 300, loss_s=20, slope_bytes_per_s=100 * MIB)
    bystander = cell(2, 310, loss_s=21)
    assert order(EVICT, bystander, leaker) == [1, 2]
    # and even when the bystander holds several times as much
    assert order(EVICT, cell(3, 900, loss_s=21), leaker)[0] == 1


def test_thrashing_takes_who_reads_again_and_again() -> None:
    thrash = now(Level.EVICT, "thrash", need_bytes=0)
    assert order(thrash, cell(1, 100), cell(2, 5, major_faults_per_s=5000))[0] == 2
    assert order(thrash, cell(1, 0)) == [1], "what it holds alone says little of what it maps"


@pytest.mark.parametrize("trigger", ["headroom", "forecast", "thrash"])
def test_nobody_left_but_the_server_of_commands_is_nobody(trigger: str) -> None:
    server, killed = cell(1, 900, role="warm", cells=1, commands=True), cell(2, role="command", killed_s=NOW)
    assert act(now(Level.KILL, trigger), server) is None
    assert act(now(Level.KILL, trigger, falling=True), server, killed) is None


def test_where_little_is_needed_little_matters() -> None:
    assert order(now(Level.EVICT, need_bytes=100 * MIB), cell(1, 2)) == [1]
    assert order(now(Level.EVICT, need_bytes=300 * MIB), cell(1, 2)) == []


# -- ending somebody --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "step"), [(EVICT, Step.EVICT), (KILL, Step.KILL), (now(Level.EVICT, "forecast"), Step.EVICT)]
)
def test_the_level_says_how(situation: Situation, step: Step) -> None:
    assert act(situation, cell(1)) == Action(step, 1, situation.trigger)


@pytest.mark.parametrize("level", [Level.OK, Level.HOLD, Level.SHRINK, Level.FREEZE])
def test_nobody_is_ended_below_evict(level: Level) -> None:
    found = act(now(level), cell(1, slope_bytes_per_s=MIB), cell(2, 900, role="warm"), cell(3, 900, role="daemon"))
    assert found is None or found.step not in (Step.EVICT, Step.KILL, Step.RESTART)


@pytest.mark.parametrize("level", [Level.EVICT, Level.KILL])
def test_a_leaking_daemon_is_restarted_and_not_killed(level: Level) -> None:
    assert act(now(level), cell(1, 900, role="daemon"), cell(2, 5)) == Action(Step.RESTART, 1, "leak")


@pytest.mark.parametrize(("mib", "limit_mib"), [(255, 512), (511, 2048), (900, 8192)])
def test_a_daemon_of_usual_size_is_never_touched(mib: int, limit_mib: int) -> None:
    assert act(now(Level.KILL, limit_bytes=limit_mib * MIB), cell(1, mib, role="daemon")) is None


@pytest.mark.parametrize(
    ("role", "grace_s"), [("cell", 2.0), ("warm", 2.0), ("command", 10.0)], ids=["cell", "warm", "command"]
)
def test_grace_and_then_kill(role: str, grace_s: float) -> None:
    leaving = cell(1, role=role, leaving_s=NOW - grace_s + 0.01)
    assert act(EVICT, leaving, cell(2)) is None
    over = replace(leaving, leaving_s=NOW - grace_s)
    for level in Level:  # also when the pressure has gone: it was told to go, and half a cell is of no use
        if level is not Level.KILL:
            assert act(now(level), over, cell(2)) == Action(Step.KILL, 1, "grace_over")


@pytest.mark.parametrize(
    ("role", "wanted_s", "grace_s"),
    [
        *(("command", None, 10.0), ("command", 3.0, 3.0), ("command", 30.0, 30.0), ("command", 3600.0, 60.0)),
        *(("command", 0.0, 0.0), ("command", -5.0, 0.0), ("cell", 30.0, 2.0), ("warm", 30.0, 2.0)),
    ],
)
def test_a_command_may_want_another_grace_within_limits(role: str, wanted_s: float | None, grace_s: float) -> None:
    leaving = cell(1, role=role, grace_s=wanted_s, leaving_s=NOW - grace_s)
    assert act(EVICT, leaving, cell(2)) == Action(Step.KILL, 1, "grace_over")
    assert act(EVICT, replace(leaving, leaving_s=NOW - grace_s + 0.01), cell(2)) is None
    assert act(KILL, replace(leaving, leaving_s=NOW - grace_s + 0.01), cell(2)) == Action(Step.KILL, 1, "headroom")


def test_at_kill_there_is_no_grace() -> None:
    assert act(KILL, cell(1, role="command", leaving_s=NOW), cell(2)) == Action(Step.KILL, 1, "headroom")


def test_one_at_a_time_unless_headroom_falls_on() -> None:
    dying = cell(1, killed_s=NOW - 0.5)
    assert act(EVICT, dying, cell(2)) is None
    assert act(KILL, dying, cell(2)) is None
    assert act(now(Level.EVICT, falling=True), dying, cell(2)) == Action(Step.EVICT, 2, "headroom")
    assert act(EVICT, replace(dying, killed_s=NOW - 1.0), cell(2)) == Action(Step.EVICT, 2, "headroom")


def test_who_is_dead_but_stays_is_not_killed_again() -> None:
    assert act(now(Level.KILL, falling=True), cell(1, killed_s=NOW - 60, leaving_s=NOW - 70)) is None


def test_who_leaves_is_waited_for_even_while_headroom_falls() -> None:
    """His grace is short; and at kill he is killed at once."""
    assert act(now(Level.EVICT, falling=True), cell(1, leaving_s=NOW - 0.1), cell(2)) is None


# -- freezing, thawing, shrinking -------------------------------------------------------------------------------

GROWS = float(MIB)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([cell(1, slope_bytes_per_s=GROWS), cell(2, slope_bytes_per_s=GROWS), cell(3)], 2),
        ([cell(1, slope_bytes_per_s=99 * GROWS), cell(2, slope_bytes_per_s=GROWS)], 2),
        ([cell(1, slope_bytes_per_s=GROWS - 1)], None),
        ([cell(1, slope_bytes_per_s=-9 * GROWS)], None),
        ([cell(1, slope_bytes_per_s=GROWS, freezes=False)], None),
        ([cell(1, slope_bytes_per_s=GROWS, frozen_s=NOW - 1)], None),
        ([cell(1, slope_bytes_per_s=GROWS, leaving_s=NOW - 0.1)], None),
        ([cell(1, slope_bytes_per_s=GROWS, killed_s=NOW - 0.1)], None),
        ([cell(1, slope_bytes_per_s=GROWS, thawed_s=NOW - 4.99)], None),
        ([cell(1, slope_bytes_per_s=GROWS, thawed_s=NOW - 5.0)], 1),
        ([cell(1, slope_bytes_per_s=GROWS, thawed_s=NOW - 1), cell(0, slope_bytes_per_s=GROWS)], 0),
    ],
)
def test_freezing(candidates: list[Candidate], expected: int | None) -> None:
    assert act(FREEZE, *candidates) == (None if expected is None else Action(Step.FREEZE, expected, "headroom"))
    for calm in (OK, HOLD, SHRINK):
        assert decide(calm, [each for each in candidates if each.frozen_s is None], POLICY) is None


def test_stopping_somebody_does_not_help_against_thrashing() -> None:
    assert act(now(Level.FREEZE, "thrash"), cell(1, slope_bytes_per_s=GROWS)) is None


@pytest.mark.parametrize("level", list(Level))
def test_a_lease_ends_at_every_level(level: Level) -> None:
    frozen = cell(1, frozen_s=NOW - 3.0)
    found = act(now(level), frozen)
    if level >= Level.EVICT:  # being ended ends it, too, and SIGTERM comes before SIGCONT
        assert found is not None and found.step in (Step.EVICT, Step.KILL)
    else:
        assert found == Action(Step.THAW, 1, "lease_over")


def test_nothing_that_is_done_to_others_holds_up_the_end_of_a_lease() -> None:
    frozen = cell(1, frozen_s=NOW - 3.0, loss_s=900)
    for level in (Level.EVICT, Level.KILL):
        assert act(now(level), frozen, cell(2, loss_s=0)) == Action(Step.THAW, 1, "lease_over")
        assert act(now(level), frozen, cell(2, 900, role="daemon")) != Action(Step.RESTART, 2, "leak")
    assert act(EVICT, frozen, cell(2, leaving_s=NOW - 1)) == Action(Step.THAW, 1, "lease_over")


def test_who_has_been_frozen_longest_is_let_go_first() -> None:
    assert act(OK, cell(1, frozen_s=NOW - 1), cell(2, frozen_s=NOW - 2)) == Action(Step.THAW, 2, "relief")


def test_relief_waits_half_a_second() -> None:
    assert act(SHRINK, cell(1, frozen_s=NOW - 0.49)) is None
    assert act(SHRINK, cell(1, frozen_s=NOW - 0.5)) == Action(Step.THAW, 1, "relief")
    assert act(FREEZE, cell(1, frozen_s=NOW - 2.99)) is None


@pytest.mark.parametrize("level", [Level.SHRINK, Level.FREEZE])
def test_shrinking_asks_the_largest_that_can_and_each_seldom(level: Level) -> None:
    situation = now(level)
    able = [cell(1, 50, shrinks=True), cell(2, 80, shrinks=True), cell(3, 900)]
    assert act(situation, *able) == Action(Step.SHRINK, 2, "headroom")
    asked = replace(able[1], shrunk_s=NOW - 29.9)
    assert act(situation, able[0], asked, able[2]) == Action(Step.SHRINK, 1, "headroom")
    assert act(situation, asked, able[2]) is None
    assert act(situation, replace(asked, shrunk_s=NOW - 30)) == Action(Step.SHRINK, 2, "headroom")
    assert act(HOLD, *able) is None


@pytest.mark.parametrize("state", [{"frozen_s": NOW - 1}, {"leaving_s": NOW}, {"killed_s": NOW}])
def test_who_could_not_hear_it_is_not_asked_to_shrink(state: dict[str, float]) -> None:
    assert act(FREEZE, cell(1, shrinks=True, **state)) is None


def test_freezing_comes_before_shrinking_and_both_are_tried() -> None:
    grows = cell(1, shrinks=True, slope_bytes_per_s=GROWS)
    assert act(FREEZE, grows) == Action(Step.FREEZE, 1, "headroom")
    assert act(FREEZE, replace(grows, thawed_s=NOW)) == Action(Step.SHRINK, 1, "headroom")


# -- properties of any situation --------------------------------------------------------------------------------

moments = st.none() | st.floats(NOW - 60, NOW)


@st.composite
def any_candidate(draw: st.DrawFn, pid: int) -> Candidate:
    role = draw(st.sampled_from(["cell", "cell", "command", "warm", "daemon"]))
    return Candidate(
        pid=pid,
        role=role,
        own_bytes=draw(st.integers(0, 2 * LIMIT)),
        loss_s=draw(st.floats(0, 1e6)),
        started_s=draw(st.sampled_from([0.0, 500.0, 900.0]) | st.floats(0, NOW)),
        cells=draw(st.integers(0, 3)) if role == "warm" else 0,
        slope_bytes_per_s=draw(st.sampled_from([0.0, GROWS - 1, GROWS]) | st.floats(-1e10, 1e10)),
        shrinks=draw(st.booleans()),
        freezes=role in ("cell", "command") and draw(st.booleans()),
        major_faults_per_s=draw(st.floats(0, 1e5)),
        shrunk_s=draw(moments),
        frozen_s=draw(moments),
        thawed_s=draw(moments),
        leaving_s=draw(moments),
        killed_s=draw(moments),
    )


@st.composite
def any_crowd(draw: st.DrawFn) -> list[Candidate]:
    pids = draw(st.lists(st.integers(2, 2**22), max_size=5, unique=True))
    return [draw(any_candidate(pid)) for pid in pids]


situations = st.builds(
    Situation,
    now_s=st.just(NOW),
    level=st.sampled_from(list(Level)),
    trigger=st.sampled_from(["headroom", "forecast", "thrash"]),
    limit_bytes=st.just(LIMIT),
    need_bytes=st.integers(0, LIMIT),
    falling=st.booleans(),
)


def of(pid: int, crowd: Sequence[Candidate]) -> Candidate:
    (found,) = [each for each in crowd if each.pid == pid]
    return found


@given(situations, any_crowd())
def test_whatever_is_done_is_done_to_a_registered_one_in_a_state_for_it(
    situation: Situation, crowd: list[Candidate]
) -> None:
    action = decide(situation, crowd, POLICY)
    if action is None:
        return
    who = of(action.pid, crowd)
    assert who.killed_s is None
    match action.step:
        case Step.KILL:
            assert situation.level is Level.KILL or who.leaving_s is not None
            assert who.role != "daemon" or who.leaving_s is not None
        case Step.EVICT:
            assert situation.level is Level.EVICT
            assert who.leaving_s is None and who.role != "daemon"
        case Step.RESTART:
            assert (who.role, action.trigger) == ("daemon", "leak")
            assert who.own_bytes >= LIMIT // 4 and situation.level >= Level.EVICT and who.leaving_s is None
        case Step.FREEZE:
            assert who.freezes and who.frozen_s is None and who.leaving_s is None
            assert who.slope_bytes_per_s >= GROWS and situation.level >= Level.FREEZE
        case Step.THAW:
            assert who.frozen_s is not None and who.leaving_s is None
        case Step.SHRINK:
            assert who.shrinks and who.frozen_s is None and who.leaving_s is None
            assert situation.level >= Level.SHRINK


@given(situations, any_crowd())
def test_victims_are_registered_and_in_the_order_of_their_kinds(situation: Situation, crowd: list[Candidate]) -> None:
    victims = in_order(situation, crowd, POLICY)
    assert len({each.pid for each in victims}) == len(victims)
    assert all(each in crowd and each.killed_s is None for each in victims)

    def matters(each: Candidate) -> bool:
        freed = each.own_bytes + max(0.0, each.slope_bytes_per_s) * 10
        freed += each.major_faults_per_s * MIB if situation.trigger == "thrash" else 0
        return freed * 10 >= max(1, situation.need_bytes)

    kinds = {"cell": 1, "command": 1, "daemon": 3}
    ranks = [kinds.get(each.role, 0 if each.cells == 0 else 2) for each in victims if matters(each)]
    assert ranks == sorted(ranks)
    assert [matters(each) for each in victims] == sorted((matters(each) for each in victims), reverse=True)
    assert all(each.own_bytes >= LIMIT // 4 for each in victims if each.role == "daemon")


@given(situations, any_crowd())
def test_less_work_lost_never_makes_a_cell_safer(situation: Situation, crowd: list[Candidate]) -> None:
    victims = in_order(situation, crowd, POLICY)
    assume(victims)
    last = victims[-1]
    cheaper = [replace(each, loss_s=0.0) if each is last else each for each in crowd]
    again = [each.pid for each in in_order(situation, cheaper, POLICY)]
    assert again.index(last.pid) <= len(victims) - 1
    others = [each.pid for each in victims if each is not last]
    assert [pid for pid in again if pid != last.pid] == others


@given(situations, any_crowd())
def test_while_one_is_on_its_way_out_nobody_else_is(situation: Situation, crowd: list[Candidate]) -> None:
    leaving = [each for each in crowd if each.leaving_s is not None and each.killed_s is None]
    dying = [each for each in crowd if each.killed_s is not None and NOW - each.killed_s < POLICY.dying_s]
    waits = bool(dying and not situation.falling) or bool(leaving and situation.level < Level.KILL)
    action = decide(situation, crowd, POLICY)
    if waits and action is not None and action.step in (Step.EVICT, Step.KILL, Step.RESTART):
        assert action.pid in [each.pid for each in leaving]

"""Admission: as a table, and as properties over any view."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.dispatch.admission import (
    BACKFILL_MOST,
    MOST_REMEMBERED,
    PATIENCE_S,
    SMALLEST_CELL_BYTES,
    Decision,
    Passed,
    Running,
    Server,
    View,
    Wanted,
    decide,
    extension,
)

MIB = 2**20
QUIET = View(
    slots=4,
    pressure="ok",
    watchdog_required=True,
    limit_bytes=1000 * MIB,
    headroom_bytes=1000 * MIB,
    reserve_bytes=100 * MIB,
    running=(),
    servers={},
    max_servers=1,
)
CELL = Wanted(cell_id=1, warm_key="mine", threads=1, claim_bytes=100 * MIB, server_bytes=200 * MIB)
COMMAND = Wanted(cell_id=2, warm_key="", threads=1, claim_bytes=100 * MIB)
ADMIT = Decision("admit", cap_bytes=100 * MIB)


def running(
    claim: int, *, used: int | None = None, key: str = "mine", threads: int = 1, alone: bool = False
) -> Running:
    return Running(claim * MIB, (claim if used is None else used) * MIB, key, threads, alone)


def server(size: int, *, cells: int = 0, **fields: bool) -> Server:
    return Server(cells, claim_bytes=size * MIB, used_bytes=size * MIB, **fields)


BUSY = replace(QUIET, running=(running(100),), servers={"mine": server(200, cells=1)})
OTHER = replace(QUIET, running=(running(100, key="other"),), servers={"other": server(200, cells=1)})


@pytest.mark.parametrize(
    ("view", "cell", "decision"),
    [
        (QUIET, CELL, ADMIT),
        (BUSY, CELL, ADMIT),
        (QUIET, replace(CELL, threads=8), ADMIT),  # more threads than slots: alone rather than never
        (BUSY, replace(CELL, threads=4), Decision("wait", "slots")),
        (replace(BUSY, slots=1), CELL, Decision("wait", "slots")),
        (replace(QUIET, pressure=None), CELL, Decision("wait", "watchdog_silent")),
        (replace(QUIET, pressure=None, headroom_bytes=None, watchdog_required=False), CELL, ADMIT),
        (replace(QUIET, pressure="hold"), CELL, Decision("wait", "pressure_hold")),
        (replace(QUIET, pressure="kill", watchdog_required=False), CELL, Decision("wait", "pressure_kill")),
        (replace(QUIET, delay_left_s=0.5), CELL, Decision("wait", "delay")),
        # Models: one at a time here.
        (OTHER, CELL, Decision("wait", "warm_servers")),
        (OTHER, COMMAND, ADMIT),  # the command server takes no model's place
        (replace(QUIET, servers={"other": server(200)}), CELL, Decision("let_go", "model_change", "other")),
        (replace(QUIET, servers={"": server(24, model=False)}), CELL, ADMIT),
        (replace(QUIET, servers={"mine": server(200, leaving=True)}), CELL, Decision("wait", "warm_server_leaving")),
        (replace(QUIET, servers={"other": server(200, leaving=True)}), CELL, Decision("wait", "warm_server_leaving")),
        (replace(QUIET, servers={"other": server(200, loading=True)}), CELL, Decision("wait", "warm_servers")),
        (replace(OTHER, max_servers=2), CELL, ADMIT),
        # Memory: 900 MiB for all, a server counted once.
        (BUSY, replace(CELL, claim_bytes=600 * MIB), Decision("admit", cap_bytes=600 * MIB)),
        (BUSY, replace(CELL, claim_bytes=601 * MIB), Decision("wait", "memory")),
        (replace(BUSY, base_bytes=MIB), replace(CELL, claim_bytes=600 * MIB), Decision("wait", "memory")),
        (replace(OTHER, max_servers=2), replace(CELL, claim_bytes=400 * MIB), Decision("admit", cap_bytes=400 * MIB)),
        (replace(OTHER, max_servers=2), replace(CELL, claim_bytes=401 * MIB), Decision("wait", "memory")),
        # One that holds more than it claimed counts as what it holds.
        (replace(BUSY, running=(running(100, used=700),)), CELL, Decision("wait", "memory")),
        # Measured: what is claimed and not yet held is spoken for, a loading server's weights too.
        (replace(BUSY, headroom_bytes=200 * MIB), CELL, ADMIT),
        (replace(BUSY, headroom_bytes=200 * MIB - 1), CELL, Decision("wait", "memory")),
        (replace(BUSY, running=(running(100, used=60),), headroom_bytes=239 * MIB), CELL, Decision("wait", "memory")),
        (replace(BUSY, running=(running(100, used=60),), headroom_bytes=240 * MIB), CELL, ADMIT),
        (
            replace(BUSY, servers={"mine": Server(1, loading=True, claim_bytes=200 * MIB)}, headroom_bytes=300 * MIB),
            CELL,
            Decision("wait", "memory"),
        ),
        # Nobody else: admitted whatever it claims, with all that there is.
        (QUIET, replace(CELL, claim_bytes=5000 * MIB), Decision("admit", cap_bytes=700 * MIB, alone=True)),
        (replace(QUIET, headroom_bytes=120 * MIB), CELL, ADMIT),
        (
            replace(QUIET, servers={"other": server(200)}, max_servers=2),
            replace(CELL, claim_bytes=600 * MIB),
            Decision("let_go", "memory", "other"),
        ),
        (
            replace(QUIET, servers={"other": server(200, leaving=True)}, max_servers=2),
            replace(CELL, claim_bytes=600 * MIB),
            Decision("wait", "warm_server_leaving"),
        ),
        # An idle server goes beside running cells only if that is enough.
        (
            replace(BUSY, servers={**BUSY.servers, "other": server(300)}, max_servers=2),
            replace(CELL, claim_bytes=600 * MIB),
            Decision("let_go", "memory", "other"),
        ),
        (
            replace(BUSY, servers={**BUSY.servers, "other": server(300)}, max_servers=2),
            replace(CELL, claim_bytes=601 * MIB),
            Decision("wait", "memory"),
        ),
        # Alone.
        (BUSY, replace(CELL, alone=True), Decision("wait", "alone")),
        (QUIET, replace(CELL, alone=True), replace(ADMIT, alone=True)),
        (replace(BUSY, running=(running(100, alone=True),)), CELL, Decision("wait", "alone")),
        (replace(QUIET, servers={"": server(24, model=False)}), replace(CELL, alone=True), Decision("let_go", "alone")),
        # Too large: a model that leaves no room for any cell.
        (QUIET, replace(CELL, server_bytes=900 * MIB), Decision("too_large", "server")),
        (BUSY, replace(CELL, warm_key="huge", server_bytes=900 * MIB), Decision("too_large", "server")),
    ],
)
def test_the_head_of_the_queue(view: View, cell: Wanted, decision: Decision) -> None:
    assert decide(view, [cell]) == decision


def test_an_empty_queue_waits_for_nothing() -> None:
    assert decide(QUIET, []) == Decision("wait", "")


BIG = replace(CELL, claim_bytes=700 * MIB)
SMALL = replace(CELL, cell_id=3, claim_bytes=50 * MIB)


@pytest.mark.parametrize(
    ("view", "wanted", "decision"),
    [
        (BUSY, [BIG, SMALL], Decision("admit", index=1, cap_bytes=50 * MIB)),
        (BUSY, [BIG, BIG, SMALL], Decision("admit", index=2, cap_bytes=50 * MIB)),
        (replace(BUSY, passed=BACKFILL_MOST - 1), [BIG, SMALL], Decision("admit", index=1, cap_bytes=50 * MIB)),
        (replace(BUSY, passed=BACKFILL_MOST), [BIG, SMALL], Decision("wait", "memory")),
        (replace(BUSY, passed=1, passed_s=PATIENCE_S), [BIG, SMALL], Decision("wait", "memory")),
        (BUSY, [replace(CELL, threads=4), SMALL], Decision("admit", index=1, cap_bytes=50 * MIB)),
        (BUSY, [replace(CELL, alone=True), SMALL], Decision("wait", "alone")),
        (BUSY, [BIG, replace(SMALL, alone=True)], Decision("wait", "memory")),
        (replace(BUSY, pressure="hold"), [BIG, SMALL], Decision("wait", "pressure_hold")),
        # Cells of the loaded model go before it is let go, and before another one is loaded beside it.
        (
            replace(QUIET, servers={"other": server(200)}),
            [CELL, replace(SMALL, warm_key="other")],
            Decision("admit", index=1, cap_bytes=50 * MIB),
        ),
        (
            replace(QUIET, servers={"other": server(200)}, passed=BACKFILL_MOST),
            [CELL, replace(SMALL, warm_key="other")],
            Decision("let_go", "model_change", "other"),
        ),
        (
            replace(BUSY, max_servers=2),
            [BIG, replace(SMALL, warm_key="new", server_bytes=MIB), SMALL],
            Decision("admit", index=2, cap_bytes=50 * MIB),
        ),
        # Nobody takes the room that was just made for the head.
        (
            replace(BUSY, servers={**BUSY.servers, "other": server(300, leaving=True)}, max_servers=2),
            [replace(CELL, claim_bytes=600 * MIB), SMALL],
            Decision("wait", "warm_server_leaving"),
        ),
        # Of several idle servers the one that nobody waits for goes, else the one that is wanted last.
        (
            replace(QUIET, servers={"a": server(100), "b": server(50)}, max_servers=2, passed=BACKFILL_MOST),
            [CELL, replace(SMALL, warm_key="a")],
            Decision("let_go", "model_change", "b"),
        ),
        (
            replace(QUIET, servers={"a": server(100), "b": server(50)}, max_servers=2, passed=BACKFILL_MOST),
            [CELL, replace(SMALL, warm_key="b"), replace(SMALL, warm_key="a")],
            Decision("let_go", "model_change", "a"),
        ),
    ],
)
def test_who_passes_the_head(view: View, wanted: list[Wanted], decision: Decision) -> None:
    assert decide(view, wanted) == decision


@pytest.mark.parametrize(
    ("view", "used", "extended"),
    [
        (BUSY, 79, None),
        (BUSY, 80, 125),
        (BUSY, 100, 125),
        (replace(BUSY, running=(running(100), running(580))), 90, 120),  # what is left
        (replace(BUSY, running=(running(100), running(600))), 90, None),
        (replace(BUSY, headroom_bytes=110 * MIB), 90, 110),
        (replace(BUSY, pressure="hold"), 90, None),
        (replace(BUSY, pressure=None), 90, None),
        (replace(BUSY, delay_left_s=5.0), 90, 125),
        (replace(BUSY, running=(running(100, alone=True),)), 90, 125),
    ],
)
def test_a_growing_cell_is_given_more(view: View, used: int, extended: int | None) -> None:
    assert extension(view, 0, used * MIB) == (None if extended is None else extended * MIB)


def test_the_room_of_a_head_that_was_passed_too_often_is_its_own() -> None:
    head = replace(CELL, claim_bytes=580 * MIB)
    assert extension(BUSY, 0, 90 * MIB, head) == 125 * MIB
    assert extension(replace(BUSY, passed=BACKFILL_MOST), 0, 90 * MIB, head) == 120 * MIB
    assert extension(replace(BUSY, passed=BACKFILL_MOST), 0, 90 * MIB, replace(head, claim_bytes=600 * MIB)) is None


def test_passing_is_counted_for_each_head() -> None:
    passed = Passed()
    queue = [BIG, SMALL, COMMAND]
    assert passed.see(BUSY, queue, 5.0).passed == 0
    passed.admitted(queue, 1, 5.0)
    passed.admitted([BIG, COMMAND], 1, 8.0)
    seen = passed.see(BUSY, [BIG], 9.0)
    assert (seen.passed, seen.passed_s) == (2, 4.0)
    assert passed.see(BUSY, [COMMAND, BIG], 9.0).passed == 0  # somebody came before it
    passed.admitted([COMMAND], 0, 10.0)
    assert passed.see(BUSY, [BIG], 11.0).passed == 2  # and is gone: what it has endured still counts
    passed.admitted([BIG], 0, 12.0)
    assert passed.see(BUSY, [BIG], 13.0).passed == 0


def test_what_is_remembered_of_passing_is_bounded() -> None:
    passed = Passed()
    for number in range(MOST_REMEMBERED + 10):
        passed.admitted([replace(BIG, cell_id=100 + number), SMALL], 1, 5.0)
    assert passed.see(BUSY, [replace(BIG, cell_id=109)], 6.0).passed == 0
    assert passed.see(BUSY, [replace(BIG, cell_id=110)], 6.0).passed == 1


# -- properties -----------------------------------------------------------------------------------------------

sizes = st.integers(1, 1200).map(lambda mib: mib * MIB)
keys = st.sampled_from(["", "a", "b", "c"])
cells = st.builds(
    Wanted,
    cell_id=st.integers(1, 99),
    warm_key=keys,
    threads=st.integers(1, 6),
    claim_bytes=sizes,
    server_bytes=st.integers(0, 1000).map(lambda mib: mib * MIB),
    alone=st.booleans(),
)


@st.composite
def views(draw: st.DrawFn) -> View:
    at_work = draw(st.lists(st.builds(Running, sizes, sizes, keys, st.integers(1, 4), st.booleans()), max_size=4))
    servers = {}
    for key in {each.warm_key for each in at_work} | draw(st.sets(keys, max_size=3)):
        mine = sum(each.warm_key == key for each in at_work)
        loading, leaving = draw(st.booleans()), draw(st.booleans())
        used = None if loading else draw(sizes)
        servers[key] = Server(mine, leaving, loading, draw(sizes), used, model=bool(key))
    return View(
        slots=draw(st.integers(1, 6)),
        pressure=draw(st.sampled_from(["ok", "ok", "ok", None, "hold"])),
        watchdog_required=draw(st.booleans()),
        limit_bytes=draw(st.integers(100, 4000)) * MIB,
        headroom_bytes=draw(st.none() | sizes),
        reserve_bytes=draw(st.integers(0, 200)) * MIB,
        running=tuple(at_work),
        servers=servers,
        max_servers=draw(st.integers(1, 3)),
        passed=draw(st.sampled_from([0, 0, BACKFILL_MOST])),
    )


queues = st.lists(cells, min_size=1, max_size=5)


@settings(deadline=None)
@given(views(), queues)
def test_claims_never_exceed_the_limit_but_for_one_cell_alone(view: View, wanted: list[Wanted]) -> None:
    decision = decide(view, wanted)
    if decision.kind != "admit":
        return
    cell = wanted[decision.index]
    servers = sum(each.size_bytes for each in view.servers.values())
    if cell.warm_key not in view.servers:
        servers += cell.server_bytes
    claimed = sum(each.size_bytes for each in view.running) + servers
    alone = not view.running and set(view.servers) <= {cell.warm_key}
    assert SMALLEST_CELL_BYTES <= decision.cap_bytes <= cell.claim_bytes or decision.cap_bytes == cell.claim_bytes
    assert claimed + decision.cap_bytes <= view.most_bytes
    assert alone or decision.cap_bytes == cell.claim_bytes
    if view.headroom_bytes is not None and not alone:
        assert view.need_bytes(cell) <= view.headroom_bytes - view.reserve_bytes
    assert not any(each.alone for each in view.running)
    assert not (cell.alone and view.running)


@settings(deadline=None)
@given(views(), queues, sizes)
def test_more_headroom_never_keeps_the_head_out(view: View, wanted: list[Wanted], more: int) -> None:
    if view.headroom_bytes is None:
        return
    before, after = decide(view, wanted), decide(replace(view, headroom_bytes=view.headroom_bytes + more), wanted)
    if before.kind == "admit" and before.index == 0:
        assert after == before
    if before.kind == "admit" and not any(each.leaving for each in view.servers.values()):
        assert after.kind == "admit"


@settings(deadline=None)
@given(views(), sizes)
def test_more_headroom_never_gives_a_smaller_extension(view: View, more: int) -> None:
    if view.headroom_bytes is None or not view.running:
        return
    used = view.running[0].used_bytes
    before = extension(view, 0, used) or 0
    assert before <= (extension(replace(view, headroom_bytes=view.headroom_bytes + more), 0, used) or 0)
    if before:
        gain = before - view.running[0].size_bytes
        assert gain <= view.room_bytes


@settings(deadline=None)
@given(views(), queues)
def test_the_machine_drains_for_any_head(view: View, wanted: list[Wanted]) -> None:
    """Whatever is there: when running cells end and servers that are let go leave, the head's turn comes."""
    view = replace(view, pressure="ok", passed=BACKFILL_MOST)
    for _ in range(20):
        decision = decide(view, wanted)
        if decision.kind in ("admit", "too_large"):
            assert decision.index == 0
            return
        left = view.running[1:]
        counts = {key: sum(each.warm_key == key for each in left) for key in view.servers}
        view = replace(
            view,
            running=left,
            servers={
                key: replace(each, cells=counts[key], loading=False)
                for key, each in view.servers.items()
                if not (each.leaving and not counts[key]) and key != decision.key
            },
        )
    pytest.fail(f"never admitted: {decide(view, wanted)}")

"""The ladder through time: any sequence of levels, growth, arrivals and deaths, on a simulated clock.

Whatever happens: nobody stays frozen beyond his lease, nobody is asked for what he cannot do, nobody is acted upon
again and again, and when the pressure is gone everything comes to rest.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from overnight_watchdog.assess import Level
from overnight_watchdog.decide import Action, Candidate, Policy, Situation, Step, decide

MIB = 2**20
LIMIT = 1024 * MIB
POLICY = Policy()
ROLES = st.sampled_from(["cell", "cell", "cell", "command", "warm", "daemon"])
SLOPES = st.sampled_from([2.0 * MIB, 0.0, 500.0 * MIB])
NEVER = 1e9
LEVELS = st.sampled_from([*Level, *[Level.FREEZE] * 4, Level.EVICT])
CALM = Situation(0.0, Level.OK, "", LIMIT, 0)
ENDS = (Step.EVICT, Step.KILL, Step.RESTART)


class Lifetimes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.pid = 1
        self.alive: dict[int, Candidate] = {}
        self.ends_s: dict[int, float] = {}
        self.fates: dict[int, tuple[float, float]] = {}
        self.done: dict[int, list[tuple[float, Action]]] = defaultdict(list)
        self.last_tick_s = 0.0

    # -- what happens to the machine --------------------------------------------------------------------------

    @rule(
        role=ROLES,
        mib=st.sampled_from([0, 5, 40, 300, 900]),
        shrinks=st.booleans(),
        freezes=st.sampled_from([True, True, False]),
        on_term_s=st.sampled_from([0.0, 0.02, 2.0, NEVER]),
        on_kill_s=st.sampled_from([0.0, 0.02, 3.0, NEVER]),
        slope=SLOPES,
    )
    def arrives(
        self, role: str, mib: int, shrinks: bool, freezes: bool, on_term_s: float, on_kill_s: float, slope: float
    ) -> None:
        if role == "daemon" and any(each.role == "daemon" for each in self.alive.values()):
            return
        self.pid += 1
        self.alive[self.pid] = Candidate(
            pid=self.pid,
            role=role,
            own_bytes=mib * MIB,
            loss_s=float(self.pid % 5),
            started_s=self.now_s,
            slope_bytes_per_s=slope,
            shrinks=shrinks,
            freezes=freezes and role in ("cell", "command"),
        )
        self.fates[self.pid] = (on_term_s, on_kill_s)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), slope=SLOPES)
    def grows(self, data: st.DataObject, slope: float) -> None:
        pid = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive[pid] = replace(self.alive[pid], slope_bytes_per_s=slope)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ends_by_itself(self, data: st.DataObject) -> None:
        del self.alive[data.draw(st.sampled_from(sorted(self.alive)))]

    @rule(
        times=st.sampled_from([1, 10, 60, 100]),
        tick_s=st.sampled_from([0.01, 0.05, 0.1]),
        situation=st.builds(
            Situation,
            now_s=st.just(0.0),
            level=LEVELS,
            trigger=st.sampled_from(["headroom", "headroom", "headroom", "forecast", "thrash"]),
            limit_bytes=st.just(LIMIT),
            need_bytes=st.sampled_from([0, 20 * MIB, 500 * MIB]),
            falling=st.booleans(),
        ),
        skips=st.booleans(),
    )
    def passes(self, times: int, tick_s: float, situation: Situation, skips: bool) -> None:
        """skips: whenever somebody is to be ended, the second look finds that the pressure has fallen."""
        for _ in range(times):
            self.tick(tick_s, situation, skips=skips)

    @rule(tick_s=st.sampled_from([0.02, 0.1]), level=st.sampled_from([Level.FREEZE, Level.FREEZE, Level.EVICT]))
    def stays_short(self, tick_s: float, level: Level) -> None:
        """Long enough for a lease, the rest after it, and another lease."""
        for _ in range(round(10.0 / tick_s)):
            self.tick(tick_s, replace(CALM, level=level, trigger="headroom", need_bytes=20 * MIB))

    # -- one look, as the loop does it ------------------------------------------------------------------------

    def tick(self, tick_s: float, situation: Situation = CALM, *, skips: bool = False) -> None:
        self.now_s += tick_s
        self.last_tick_s = tick_s
        for pid in [pid for pid, end_s in self.ends_s.items() if end_s <= self.now_s]:
            del self.ends_s[pid]
            self.alive.pop(pid, None)
        self.look(replace(situation, now_s=self.now_s), skips=skips)
        self.nobody_is_frozen_beyond_his_lease()
        self.whoever_was_asked_to_leave_is_killed_after_his_grace()

    def look(self, situation: Situation, *, skips: bool) -> None:
        action = self.decide(situation)
        if action is None:
            return
        if skips and action.step in ENDS and action.trigger != "grace_over":
            self.decide(replace(situation, level=Level.FREEZE))
        else:
            self.carry_out(action)

    def decide(self, situation: Situation) -> Action | None:
        """The ends of leases use up no look."""
        for _ in range(len(self.alive) + 1):
            action = decide(situation, list(self.alive.values()), POLICY)
            if action is None or action.trigger != "lease_over":
                return action
            self.carry_out(action)
        raise AssertionError("it goes on thawing")

    def carry_out(self, action: Action) -> None:
        who, before = self.alive[action.pid], self.done[action.pid]
        assert who.killed_s is None, f"{action}: dead already"
        earlier = [each.step for _, each in before]
        match action.step:
            case Step.SHRINK:
                assert who.shrinks
                assert all(self.now_s - at_s >= 30.0 for at_s, each in before if each.step is Step.SHRINK)
                who = replace(who, shrunk_s=self.now_s)
            case Step.FREEZE:
                assert who.freezes and who.frozen_s is None and who.leaving_s is None
                assert who.role in ("cell", "command")
                assert all(self.now_s - at_s >= 5.0 for at_s, each in before if each.step is Step.THAW)
                who = replace(who, frozen_s=self.now_s)
            case Step.THAW:
                assert who.frozen_s is not None
                who = replace(who, frozen_s=None, thawed_s=self.now_s)
            case Step.EVICT | Step.RESTART:
                assert action.step not in earlier, "asked to leave twice"
                assert (action.step is Step.RESTART) is (who.role == "daemon")
                who = replace(who, leaving_s=self.now_s, frozen_s=None)
                self.ends_s[who.pid] = self.now_s + self.fates[who.pid][0]
            case Step.KILL:
                assert Step.KILL not in earlier, "killed twice"
                assert who.role != "daemon" or Step.RESTART in earlier
                who = replace(who, killed_s=self.now_s, frozen_s=None)
                self.ends_s[who.pid] = self.now_s + self.fates[who.pid][1]
        self.alive[who.pid] = who
        before.append((self.now_s, action))

    # -- what holds at every moment -------------------------------------------------------------------------------

    def nobody_is_frozen_beyond_his_lease(self) -> None:
        for each in self.alive.values():
            if each.frozen_s is not None:
                assert self.now_s - each.frozen_s < POLICY.freeze_lease_s + self.last_tick_s

    def whoever_was_asked_to_leave_is_killed_after_his_grace(self) -> None:
        overdue = [
            each
            for each in self.alive.values()
            if each.leaving_s is not None and each.killed_s is None and self.now_s - each.leaving_s > 12.0
        ]
        assert not overdue

    def teardown(self) -> None:
        """The pressure is gone: all that was begun is brought to its end, and then nothing more is done."""
        for _ in range(150):
            self.tick(0.1)
        assert not [each for each in self.alive.values() if each.frozen_s is not None]
        assert not [each for each in self.alive.values() if each.leaving_s is not None and each.killed_s is None]
        counts = {pid: len(actions) for pid, actions in self.done.items()}
        for _ in range(20):
            self.tick(1.0)
        assert counts == {pid: len(actions) for pid, actions in self.done.items()}


Lifetimes.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_lifetimes = Lifetimes.TestCase

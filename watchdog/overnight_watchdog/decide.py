"""What to do, and to whom: level + registered processes -> one Action, or none. Pure.

    thaw     a lease is over, or the level has fallen
    kill     a victim outlived its grace; or the level is kill
    evict    the level is evict
    freeze   one that grows, the newest first
    shrink   one that can, the largest first

One action a look: after each the memory is looked at again before anybody else is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from overnight_watchdog.assess import Level


class Step(StrEnum):
    SHRINK = "shrink"
    FREEZE = "freeze"
    THAW = "thaw"
    EVICT = "evict"
    KILL = "kill"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered process, as a decision sees it.

    role: cell, command, warm, daemon. cells: how many cells run in it (a warm server). commands: it is the server of
        commands, which has loaded nothing.
    own_bytes: what is free once it is dead. slope_bytes_per_s: how fast that grows.
    loss_s: seconds of work that would be lost. *_s: when something was done to it last, None = never.
    leaving_s: it got SIGTERM then. killed_s: SIGKILL.
    grace_s: of a command: how long it wants from the one to the other, None = as usual.
    """

    pid: int
    role: str
    own_bytes: int
    loss_s: float
    started_s: float = 0.0
    cells: int = 0
    commands: bool = False
    slope_bytes_per_s: float = 0.0
    shrinks: bool = False
    freezes: bool = True
    major_faults_per_s: float = 0.0
    shrunk_s: float | None = None
    frozen_s: float | None = None
    thawed_s: float | None = None
    leaving_s: float | None = None
    killed_s: float | None = None
    grace_s: float | None = None

    @property
    def runs(self) -> bool:
        """Neither frozen nor on its way out."""
        return (self.frozen_s, self.leaving_s, self.killed_s) == (None, None, None)


@dataclass(frozen=True, slots=True)
class Action:
    """trigger: `headroom`, `forecast`, `thrash`, `grace_over`, `lease_over`, `relief` or `leak`."""

    step: Step
    pid: int
    trigger: str


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds.

    freeze_lease_s: nobody is stopped longer. freeze_rest_s: nobody is stopped again sooner. freeze_least_s: so long at
        least, since a burst that stops looks like a calm.
    cell_grace_s, command_grace_s: from SIGTERM to SIGKILL, when there is time for it. An exact cell has nothing to
        save and dies at once, but tearing down 8 GiB took half a second (*measured*).
    command_most_s: a command that wants another grace gets no more than that: memory is short.
    dying_s: how long a SIGKILLed process is waited for before somebody else is taken; less when headroom falls on.
    shrink_again_s: who was asked to give memory back is not asked again so soon.
    restart_cost_s: what every eviction costs beside the lost work: being claimed and forked again.
    horizon_s: how much of a process's growth its death is credited with.
    matters_bytes: whoever frees less than this, and less than a hundredth of what is needed, is left alone.
    leak_share, leak_bytes: of the limit, and at least: a daemon that holds so much is the leak itself.
    """

    freeze_lease_s: float = 3.0
    freeze_rest_s: float = 5.0
    freeze_least_s: float = 0.5
    cell_grace_s: float = 2.0
    command_grace_s: float = 10.0
    command_most_s: float = 60.0
    dying_s: float = 1.0
    shrink_again_s: float = 30.0
    restart_cost_s: float = 1.0
    horizon_s: float = 10.0
    grows_bytes_per_s: int = 2**20
    matters_bytes: int = 16 * 2**20
    leak_share: float = 0.25
    leak_bytes: int = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Situation:
    """now_s: monotonic. need_bytes: how much must come free to leave the level. falling: headroom still falls after the
    last kill, so that waiting for that one's death is not enough."""

    now_s: float
    level: Level
    trigger: str
    limit_bytes: int
    need_bytes: int
    falling: bool = False


def decide(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    """The one thing to do now, or None."""
    end = _overdue(now, candidates, policy) or _end(now, candidates, policy)
    over = _lease_over(now, candidates, policy)
    if over is not None and (end is None or end.pid != over.pid):
        return over  # a lease is a promise: somebody else's end, which may come to nothing, does not hold it up
    return (
        end or _relief(now, candidates, policy) or _freeze(now, candidates, policy) or _shrink(now, candidates, policy)
    )


def in_order(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> list[Candidate]:
    """Those who may be taken out, the first victim first.

    Work lost per byte freed decides; of equals the newest goes. What a death frees is what the process holds alone and
    what it would have taken within the horizon. Before that: an idle warm server goes before any cell, a warm server
    with cells after all of them, the daemon last and only when it is the leak; one that frees enough goes before those
    that do not; and somebody whose death would hardly matter is no victim while there is another.
    """
    mortal = [each for each in candidates if each.killed_s is None and _may_die(each, now, policy)]
    return sorted(mortal, key=lambda each: _rank(each, now, policy))


def _freed(each: Candidate, now: Situation, policy: Policy) -> float:
    """Bytes that its death is credited with."""
    freed = max(0, each.own_bytes) + max(0.0, each.slope_bytes_per_s) * policy.horizon_s
    if now.trigger == "thrash":
        freed += each.major_faults_per_s * 2**20  # what it holds says little; what it reads again says more
    return freed


def _rank(each: Candidate, now: Situation, policy: Policy) -> tuple[bool, int, bool, float, float]:
    freed = _freed(each, now, policy)
    need = max(1, now.need_bytes)
    order = {"warm": 0 if each.cells == 0 else 2, "daemon": 3}.get(each.role, 1)
    cost_s = each.loss_s + policy.restart_cost_s
    return (freed * 10 < need, order, freed < need, cost_s / max(1.0, freed), -each.started_s)


def _may_die(each: Candidate, now: Situation, policy: Policy) -> bool:
    if each.role == "warm" and each.commands and each.cells:
        return False  # it gives nothing back, and takes everybody else's command with it
    if each.role != "daemon":
        # Where others have filled the machine, the death of somebody who holds next to nothing is only a death.
        freed = _freed(each, now, policy)
        return freed >= policy.matters_bytes or freed * 100 >= now.need_bytes or now.trigger == "thrash"
    return each.own_bytes >= policy.leak_bytes and each.own_bytes >= policy.leak_share * now.limit_bytes


def _overdue(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    """Whoever was asked to leave and is still there: after his grace, or at once when there is no time for it."""
    for each in candidates:
        if each.leaving_s is None or each.killed_s is not None:
            continue
        if now.now_s - each.leaving_s >= _grace_s(each, policy):
            return Action(Step.KILL, each.pid, "grace_over")
        if now.level is Level.KILL:
            return Action(Step.KILL, each.pid, now.trigger)
    return None


def _grace_s(each: Candidate, policy: Policy) -> float:
    if each.role in ("cell", "warm"):
        return policy.cell_grace_s
    if each.role != "command" or each.grace_s is None:
        return policy.command_grace_s
    return min(max(0.0, each.grace_s), policy.command_most_s)


def _end(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    if now.level < Level.EVICT:
        return None
    if any(_awaited(each, now, policy) for each in candidates):
        return None  # one is on its way out: what it gives back comes first
    victims = [each for each in in_order(now, candidates, policy) if each.leaving_s is None]
    if not victims:
        return None
    victim = victims[0]
    if victim.role == "daemon":
        return Action(Step.RESTART, victim.pid, "leak")
    return Action(Step.KILL if now.level is Level.KILL else Step.EVICT, victim.pid, now.trigger)


def _awaited(each: Candidate, now: Situation, policy: Policy) -> bool:
    if each.killed_s is not None:
        return now.now_s - each.killed_s < policy.dying_s and not now.falling
    # SIGTERM: at level kill `_overdue` has dealt with it already.
    return each.leaving_s is not None and now.level < Level.KILL


def _lease_over(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    over = _frozen_for(policy.freeze_lease_s, now, candidates)
    return None if over is None else Action(Step.THAW, over.pid, "lease_over")


def _relief(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    eased = _frozen_for(policy.freeze_least_s, now, candidates) if now.level < Level.FREEZE else None
    return None if eased is None else Action(Step.THAW, eased.pid, "relief")


def _frozen_for(seconds: float, now: Situation, candidates: Sequence[Candidate]) -> Candidate | None:
    """The one that has been frozen so long, and longest."""
    frozen = [
        (each.frozen_s, each.pid, each)
        for each in candidates
        if each.frozen_s is not None and each.leaving_s is None and each.killed_s is None
    ]
    since_s, _, longest = min(frozen, key=lambda one: one[:2], default=(0.0, 0, None))
    return longest if now.now_s - since_s >= seconds else None


def _freeze(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    if now.level < Level.FREEZE or now.trigger == "thrash":
        return None
    growing = [
        each
        for each in candidates
        if each.freezes
        and each.runs
        and each.slope_bytes_per_s >= policy.grows_bytes_per_s
        and (each.thawed_s is None or now.now_s - each.thawed_s >= policy.freeze_rest_s)
    ]
    if not growing:
        return None
    return Action(Step.FREEZE, max(growing, key=lambda each: (each.started_s, each.pid)).pid, now.trigger)


def _shrink(now: Situation, candidates: Sequence[Candidate], policy: Policy) -> Action | None:
    if now.level < Level.SHRINK:
        return None
    able = [
        each
        for each in candidates
        if each.shrinks and each.runs and (each.shrunk_s is None or now.now_s - each.shrunk_s >= policy.shrink_again_s)
    ]
    if not able:
        return None
    return Action(Step.SHRINK, max(able, key=lambda each: (each.own_bytes, each.pid)).pid, now.trigger)

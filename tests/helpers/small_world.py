"""A machine in a few hundred lines: simulated cells with memory curves under the real admission, claims and retries.

One tick is a second: every cell whose warm server is loaded tries one turn, during which its memory goes to the curve's
next value; the watchdog takes out the newest cell while headroom is short; then cells are admitted. Memory in MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from overnight.dispatch import admission, claims, retries
from overnight.dispatch.admission import Running, Server, View, Wanted
from overnight.queue.states import INTERRUPTED, USES_A_TRY, Outcome, Status, after

MIB = 2**20
ENDED = (Status.DONE, Status.FAILED, Status.QUARANTINED, Status.CANCELLED)
STEPS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Peak:
    peak_bytes: int
    whole: bool


@dataclass
class Cell:
    """curve: what it holds during each of its turns. durable: finished turns count (else it begins anew each time).
    capped: its cap is enforced. kind: cells of one kind and key learn from each other. fails: how many
    tries end in a failure of its own."""

    id: int
    key: str
    curve: tuple[int, ...]
    threads: int = 1
    durable: bool = True
    capped: bool = True
    fails: int = 0
    hint: int | None = None
    kind: str = ""
    status: Status = Status.PENDING
    not_before: float = 0.0
    turns: int = 0
    tries_used: int = 0
    stalled: int = 0
    evictions: int = 0
    alone: bool = False
    raised: int | None = None
    completed: int = 0
    cancel: bool = False
    reason: str = ""
    attempts: int = 0


@dataclass
class Attempt:
    cell: Cell
    claim: int
    cap: int
    alone: bool
    turn: int
    used: int = 0
    peak: int = 0

    def running(self) -> Running:
        return Running(self.claim, self.used, self.cell.key, self.cell.threads, self.alone)


@dataclass
class Warm:
    """predicted, real: what it was thought to take and what it takes once it is loaded."""

    predicted: int
    real: int
    loading: bool = True
    leaving: bool = False


@dataclass
class World:
    limit: int
    reserve: int
    models: dict[str, tuple[int, int]]  # key -> predicted, real; bytes
    base: int = 0
    slots: int = 2
    max_servers: int = 1
    window: int = 8
    prior: int = 64 * MIB
    foreign: int = 0
    now_s: float = 0.0
    ticks: int = 0
    cells: list[Cell] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    servers: dict[str, Warm] = field(default_factory=dict)
    passed: admission.Passed = field(default_factory=admission.Passed)
    peaks: dict[str, list[Peak]] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=list)
    kills: int = 0

    # -- what is there ----------------------------------------------------------------------------------------

    def headroom(self) -> int:
        held = sum(each.used for each in self.running)
        held += sum(0 if each.loading else each.real for each in self.servers.values())
        return self.limit - self.base - self.foreign - held

    def pressure(self) -> str:
        headroom = self.headroom()
        return "evict" if headroom < self.reserve // 2 else "hold" if headroom < self.reserve else "ok"

    def view(self) -> View:
        count = {key: sum(each.cell.key == key for each in self.running) for key in self.servers}
        return View(
            slots=self.slots,
            pressure=self.pressure(),
            watchdog_required=True,
            limit_bytes=self.limit,
            headroom_bytes=self.headroom(),
            reserve_bytes=self.reserve,
            base_bytes=self.base,
            running=[each.running() for each in self.running],
            servers={
                key: Server(
                    count[key],
                    leaving=each.leaving,
                    loading=each.loading,
                    claim_bytes=each.predicted,
                    used_bytes=None if each.loading else each.real,
                    model=bool(key),
                )
                for key, each in self.servers.items()
            },
            max_servers=self.max_servers,
        )

    def queue(self) -> list[Cell]:
        ready = [each for each in self.cells if each.status is Status.PENDING and each.not_before <= self.now_s]
        return sorted(ready, key=lambda each: (each.not_before, each.id))[: self.window]

    def over(self) -> bool:
        return all(each.status in ENDED for each in self.cells)

    # -- a tick -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.ticks += 1
        self.now_s += 1.0
        self._serve()
        for attempt in list(self.running):
            if not self.servers[attempt.cell.key].loading:
                self._turn(attempt)
        self._watch()
        self._admit()
        if not self.running and not any(each.leaving or each.loading for each in self.servers.values()):
            waiting = [each.not_before for each in self.cells if each.status is Status.PENDING]
            self.now_s = max(self.now_s, min(waiting, default=0.0))  # nothing happens before that

    def _serve(self) -> None:
        for key, warm in list(self.servers.items()):
            if warm.leaving:
                del self.servers[key]
            warm.loading, warm.predicted = False, warm.real
            self.models[key] = (warm.real, warm.real)  # from now on its size is known

    def _turn(self, attempt: Attempt) -> None:
        cell, start = attempt.cell, attempt.used
        goal = cell.curve[attempt.turn] * MIB
        for step in STEPS:
            attempt.used = start + int((goal - start) * step)
            if cell.capped and attempt.used > attempt.cap:
                attempt.used = attempt.cap
                attempt.peak = max(attempt.peak, attempt.used)
                self.end(attempt, Outcome.OVER_CAP)
                return
            attempt.peak = max(attempt.peak, attempt.used)
            self._extend(attempt)
        if cell.tries_used < cell.fails:
            self.end(attempt, Outcome.FAILED)
            return
        attempt.turn += 1
        if attempt.turn == len(cell.curve):
            self.end(attempt, Outcome.COMPLETED)

    def _extend(self, attempt: Attempt) -> None:
        view = self.view()
        waiting = [self._wanted(cell, view) for cell in self.queue()[:1]]
        view = self.passed.see(view, waiting, self.now_s)
        larger = admission.extension(view, self.running.index(attempt), attempt.used, *waiting)
        if larger is not None:
            assert larger > attempt.claim
            attempt.claim = attempt.cap = larger
            self.check()

    def _watch(self) -> None:
        while self.pressure() == "evict" and self.running:
            self.end(self.running[-1], Outcome.EVICTED)
        if self.pressure() == "evict":
            for warm in self.servers.values():
                warm.leaving = True

    def _admit(self) -> None:
        for _ in range(20):
            view = self.view()
            wanted = [self._wanted(cell, view) for cell in self.queue()]
            view = self.passed.see(view, wanted, self.now_s)
            decision = admission.decide(view, wanted)
            if decision.kind == "let_go":
                assert not any(each.cell.key == decision.key for each in self.running)
                self.servers[decision.key].leaving = True
            if decision.kind == "too_large":
                self._cell(wanted[decision.index]).status = Status.QUARANTINED
            if decision.kind == "admit":
                self.passed.admitted(wanted, decision.index, self.now_s)
                self._start(self._cell(wanted[decision.index]), wanted[decision.index], decision)
            if decision.kind in ("wait", "let_go"):
                return

    def _wanted(self, cell: Cell, view: View) -> Wanted:
        server = self.models[cell.key][0]
        claim = claims.claim(
            self.peaks.get(cell.key + cell.kind, []),
            raised=cell.raised,
            hint=None if cell.hint is None else cell.hint * MIB,
            predicted=None,
            prior=self.prior,
            most=view.most_bytes,
        )
        return Wanted(cell.id, cell.key, cell.threads, claim.bytes, server, cell.alone)

    def _cell(self, wanted: Wanted) -> Cell:
        return next(each for each in self.cells if each.id == wanted.cell_id)

    def _start(self, cell: Cell, wanted: Wanted, decision: admission.Decision) -> None:
        assert cell.status is Status.PENDING
        if cell.key not in self.servers:
            self.servers[cell.key] = Warm(*self.models[cell.key])
        cell.status = Status.RUNNING
        cell.attempts += 1
        self.admitted.append(cell.id)
        turn = cell.turns if cell.durable else 0
        self.running.append(Attempt(cell, decision.cap_bytes, decision.cap_bytes, decision.alone, turn))
        self.check()

    # -- an end -----------------------------------------------------------------------------------------------

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        cell = attempt.cell
        self.running.remove(attempt)
        progressed = cell.durable and attempt.turn > cell.turns
        interrupted = 0 if progressed else cell.stalled + (outcome in INTERRUPTED)
        evictions = 0 if progressed else cell.evictions + (outcome is Outcome.EVICTED)
        follows = retries.consequence(
            str(outcome),
            attempted=retries.Attempted(
                claim_bytes=attempt.claim,
                cap_bytes=attempt.cap if cell.capped else None,
                server_bytes=self.models[cell.key][0],
                most_bytes=self.view().most_bytes,
                peak_bytes=attempt.peak,
                alone=attempt.alone,
            ),
            evictions=evictions,
            tries_used=cell.tries_used,
            interrupted=interrupted,
            retry_delay_s=5.0,
            no_space_delay_s=30.0,
        )
        cell.tries_used += outcome in USES_A_TRY
        cell.status = after(outcome, cell.tries_used, 3, cancel_requested=cell.cancel)
        if follows.quarantine:
            cell.status, cell.reason = Status.QUARANTINED, follows.reason or ""
        cell.completed += outcome is Outcome.COMPLETED
        if progressed:
            cell.alone, cell.turns = False, attempt.turn
        cell.alone = cell.alone if follows.alone is None else follows.alone
        cell.raised = cell.raised if follows.raised_claim_bytes is None else follows.raised_claim_bytes
        cell.stalled, cell.evictions = interrupted, evictions
        cell.not_before = self.now_s + follows.delay_s if follows.delay_s else 0.0
        self.peaks.setdefault(cell.key + cell.kind, []).insert(0, Peak(attempt.peak, outcome is Outcome.COMPLETED))

    # -- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Claims never exceed the limit but for one cell alone; nobody joins a cell that is alone."""
        view = self.view()
        claimed = sum(each.size_bytes for each in view.running) + sum(each.size_bytes for each in view.servers.values())
        alone = len(self.running) == 1 and set(self.servers) == {self.running[0].cell.key}
        assert alone or claimed <= view.most_bytes
        assert len(self.running) == 1 or not any(each.alone for each in self.running)

    def settle(self, most_ticks: int) -> None:
        """Run until every cell has ended. Raises AssertionError when that takes longer than `most_ticks`."""
        for _ in range(most_ticks):
            if self.over():
                return
            self.tick()
        waiting: Sequence[Any] = [each for each in self.cells if each.status not in ENDED]
        raise AssertionError(f"after {most_ticks} ticks these have not ended: {waiting}")

"""Pure: which of the waiting cells may begin, with what cap, and if none, why not.

A claim must fit twice, since a claim is a promise and a measurement is late:

    static     base + warm servers + claims of running cells + this one          <= limit - reserve
    measured   what they have claimed and do not hold yet + this one             <= headroom - reserve

A cell that would not fit beside anybody is admitted when nobody else is there, with all that there is as its cap: so
claims never exceed the limit but for one cell alone, and a cell of any size is tried in the end.

First come, first served, with bounded backfill: while the head of the queue waits for memory, CPU slots or its model,
later cells may pass it, those of loaded models first, so that models are not loaded back and forth. After
BACKFILL_MOST of them, or PATIENCE_S, the machine drains for the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

BACKFILL_MOST = 32
PATIENCE_S = 600.0
"""A head is passed by so often, or for so long, at most."""
SMALLEST_CELL_BYTES = 4 * 2**20
"""Less room than this beside its warm server is no room for any cell: an interpreter's copied pages alone take more."""
EXTEND_FROM = 0.8
EXTEND_BY = 1.25
"""A cell that holds this share of its claim is given this much more: little, since what one has claimed and does not
hold keeps others waiting, and its cap leaves time to ask again. Late enough that most cells never ask, early
enough that one that grows is asked about several times before it meets its cap."""
SMALLEST_GAIN_BYTES = 2**20
PASSABLE = frozenset({"memory", "slots", "warm_servers", "model_change"})
"""While the head waits for these, or before an idle server is let go for them, later cells may pass it: worth a look at
more of the queue than its head."""
MOST_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt under way, or one that waits for its warm server to load. used_bytes: what it holds by itself, as of
    when the headroom was taken. alone: nobody may join it."""

    claim_bytes: int
    used_bytes: int
    warm_key: str
    threads: int = 1
    alone: bool = False

    @property
    def size_bytes(self) -> int:
        return max(self.claim_bytes, self.used_bytes)


@dataclass(frozen=True, slots=True)
class Server:
    """One warm server. cells: attempts that run in it or wait for it. leaving: it is asked or forced to end, takes no
    more cells, and its memory is not free until it is gone. claim_bytes: what it was predicted to take; used_bytes:
    what it holds, None while that is unknown. model: False for the command server, which `max_servers` does not count.
    """

    cells: int
    leaving: bool = False
    loading: bool = False
    claim_bytes: int = 0
    used_bytes: int | None = None
    model: bool = True

    @property
    def size_bytes(self) -> int:
        return max(self.claim_bytes, self.used_bytes or 0)

    @property
    def idle(self) -> bool:
        return self.cells == 0 and not self.leaving and not self.loading


@dataclass(frozen=True, slots=True)
class Wanted:
    """A cell that is ready. server_bytes: what its warm server costs if it is not there yet. alone: nobody else may
    run meanwhile."""

    cell_id: int
    warm_key: str
    threads: int
    claim_bytes: int
    server_bytes: int = 0
    alone: bool = False


@dataclass(frozen=True)
class View:
    """All that admission looks at.

    slots: CPU slots of the machine; a cell takes as many as it has threads. pressure: the watchdog's level, or None
    when it is silent. headroom_bytes: None when nobody measures. reserve_bytes: what is kept free, at least the hold
    level. base_bytes: what we hold that neither is a cell nor ever leaves (daemon, watchdog). servers: by warm key.
    passed, passed_s: how often and for how long the head of the queue has been passed by.
    """

    slots: int
    pressure: str | None
    watchdog_required: bool
    limit_bytes: int
    headroom_bytes: int | None
    reserve_bytes: int
    running: Sequence[Running]
    servers: Mapping[str, Server]
    max_servers: int
    delay_left_s: float = 0.0
    passed: int = 0
    passed_s: float = 0.0
    base_bytes: int = 0

    @property
    def most_bytes(self) -> int:
        """What all cells and warm servers together may come to."""
        return self.limit_bytes - self.reserve_bytes - self.base_bytes

    @property
    def patient(self) -> bool:
        return self.passed < BACKFILL_MOST and self.passed_s < PATIENCE_S

    @cached_property
    def slots_used(self) -> int:
        return sum(each.threads for each in self.running)

    @cached_property
    def room_bytes(self) -> int:
        """What both rules leave; negative when there is more than fits."""
        servers = self.servers.values()
        left = self.most_bytes - sum(e.size_bytes for e in self.running) - sum(e.size_bytes for e in servers)
        if self.headroom_bytes is None:
            return left
        to_come = sum(max(0, each.claim_bytes - each.used_bytes) for each in self.running)
        to_come += sum(max(0, each.claim_bytes - (each.used_bytes or 0)) for each in servers if each.loading)
        return min(left, self.headroom_bytes - self.reserve_bytes - to_come)

    def server_bytes(self, cell: Wanted) -> int:
        """What the cell's warm server takes, there or not."""
        mine = self.servers.get(cell.warm_key)
        return cell.server_bytes if mine is None else mine.size_bytes

    def need_bytes(self, cell: Wanted) -> int:
        """What comes on top of what is there when the cell begins."""
        return cell.claim_bytes + (0 if cell.warm_key in self.servers else cell.server_bytes)


@dataclass(frozen=True)
class Decision:
    """`admit` the cell at `index`, with its cap; or `wait`, with the reason; or `let_go` of an idle warm server first,
    with its key; or the cell at `index` is `too_large`: its warm server leaves no room for any cell, ever.

    alone: the admitted cell takes all that there is, or asked to be alone: nobody joins it."""

    kind: Literal["admit", "wait", "let_go", "too_large"]
    why: str = ""
    key: str = ""
    index: int = 0
    cap_bytes: int = 0
    alone: bool = False


def decide(view: View, wanted: Sequence[Wanted]) -> Decision:
    """wanted: the first of the queue, in its order. Ask again after an `admit`: the view has changed."""
    if (why := _closed(view)) or not wanted:
        return Decision("wait", why)
    first = _head(view, wanted)
    if first.kind in ("admit", "too_large") or first.why not in PASSABLE or wanted[0].alone or not view.patient:
        return first
    later = range(1, len(wanted))
    for index in sorted(later, key=lambda at: wanted[at].warm_key not in view.servers):  # stable: loaded ones first
        cell = wanted[index]
        if not cell.alone and _obstacle(view, cell) is None:
            return Decision("admit", index=index, cap_bytes=cell.claim_bytes)
    return first


def _closed(view: View) -> str:
    """Why nobody may begin, whoever it is."""
    if view.delay_left_s > 0:
        return "delay"
    if view.pressure is None and view.watchdog_required:
        return "watchdog_silent"
    if view.pressure not in (None, "ok"):
        return f"pressure_{view.pressure}"
    return "alone" if any(each.alone for each in view.running) else ""


def _head(view: View, wanted: Sequence[Wanted]) -> Decision:
    cell = wanted[0]
    largest = view.most_bytes - view.server_bytes(cell)
    if largest < SMALLEST_CELL_BYTES:
        return Decision("too_large", "server")
    if view.running and cell.alone:
        return Decision("wait", "alone")
    why = _obstacle(view, cell)
    if why == "warm_servers":
        return _make_room(view, wanted, "model_change") or Decision("wait", why)
    if why in ("slots", "warm_server_leaving"):
        return Decision("wait", why)
    others = [server for key, server in view.servers.items() if key != cell.warm_key]
    if not view.running and others and (cell.alone or why == "memory"):
        return _make_room(view, wanted, "alone" if cell.alone else "memory") or Decision("wait", "warm_servers")
    if view.running and why == "memory":
        going = sum(each.size_bytes for each in others if each.leaving)
        idle = sum(each.size_bytes for each in others if each.idle)
        helps = view.need_bytes(cell) <= view.room_bytes + going + idle
        return (_make_room(view, wanted, why) if helps else None) or Decision("wait", why)
    return Decision("admit", cap_bytes=min(cell.claim_bytes, largest), alone=cell.alone or cell.claim_bytes > largest)


def _obstacle(view: View, cell: Wanted) -> str | None:
    """Why a cell cannot begin beside what is there."""
    # A cell with more threads than the machine has slots runs alone rather than never.
    if view.slots_used and view.slots_used + cell.threads > view.slots:
        return "slots"
    mine = view.servers.get(cell.warm_key)
    if mine is not None and mine.leaving:
        return "warm_server_leaving"
    if mine is None and cell.warm_key and sum(each.model for each in view.servers.values()) >= view.max_servers:
        return "warm_servers"
    return None if view.need_bytes(cell) <= view.room_bytes else "memory"


def _make_room(view: View, wanted: Sequence[Wanted], why: str) -> Decision | None:
    """Let an idle warm server go for the head of the queue, the one that is least wanted; None when there is none.
    While one is leaving nobody passes the head: it would take the room that was made for it."""
    others = {key: each for key, each in view.servers.items() if key != wanted[0].warm_key}
    if why == "model_change":
        others = {key: each for key, each in others.items() if each.model}
    if any(each.leaving for each in others.values()):
        return Decision("wait", "warm_server_leaving")
    idle = [key for key, each in others.items() if each.idle]
    if not idle:
        return None
    order = {cell.warm_key: -at for at, cell in reversed(list(enumerate(wanted)))}  # wanted soon: let go last
    least = min(idle, key=lambda key: (order.get(key, -len(wanted)), -others[key].size_bytes, key))
    return Decision("let_go", why, least)


def extension(view: View, index: int, used_bytes: int, head: Wanted | None = None) -> int | None:
    """The larger claim of the running cell at `index` that holds `used_bytes`; None when it needs none yet, or when
    there is no room.

    head: the cell that waits at the head of the queue; once it has been passed too often its room is its own.
    """
    cell = view.running[index]
    if used_bytes < EXTEND_FROM * cell.claim_bytes or (_closed(view) not in ("", "delay", "alone")):
        return None
    room = view.room_bytes
    if head is not None and not view.patient:
        room -= view.need_bytes(head)
    wanted = int(EXTEND_BY * max(cell.claim_bytes, used_bytes)) - cell.size_bytes
    gain = min(wanted, room)
    return cell.size_bytes + gain if gain >= SMALLEST_GAIN_BYTES else None


class Passed:
    """Counts how often, and for how long, cells at the head of the queue are passed by."""

    def __init__(self) -> None:
        self._cells: dict[int, tuple[int, float]] = {}  # cell id -> (how often, since when)

    def see(self, view: View, wanted: Sequence[Wanted], now_s: float) -> View:
        """The view with what the head of `wanted` has endured. now_s: monotonic."""
        times, since_s = self._cells.get(wanted[0].cell_id, (0, now_s)) if wanted else (0, now_s)
        return replace(view, passed=times, passed_s=now_s - since_s)

    def admitted(self, wanted: Sequence[Wanted], index: int, now_s: float) -> None:
        """The cell at `index` was admitted. What others have endured counts on, whoever came before them meanwhile."""
        self._cells.pop(wanted[index].cell_id, None)
        if index:
            times, since_s = self._cells.get(wanted[0].cell_id, (0, now_s))
            self._cells[wanted[0].cell_id] = (times + 1, since_s)
        if len(self._cells) > MOST_REMEMBERED:  # cancelled ones, the oldest first
            del self._cells[next(iter(self._cells))]

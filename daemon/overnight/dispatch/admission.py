"""Pure: may the next cell begin, and if not, why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Load:
    """What one warm server is doing. `cells`: attempts that run in it or wait for its model. leaving: it is asked or
    forced to end, and takes no more cells; until it is gone its memory is not free."""

    cells: int
    leaving: bool = False


@dataclass(frozen=True)
class View:
    """All that admission looks at.

    slots: CPU slots of the machine; a cell takes as many as it has threads. used: slots that are taken.
    pressure: the watchdog's level, or None when it is silent. servers: by warm key.
    """

    slots: int
    used: int
    pressure: str | None
    watchdog_required: bool
    servers: Mapping[str, Load]
    max_servers: int
    delay_left_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """`admit`; or `wait`, with the reason; or `let_go` of an idle warm server first, with its key."""

    kind: Literal["admit", "wait", "let_go"]
    why: str = ""
    key: str = ""


def decide(view: View, *, warm_key: str, threads: int) -> Decision:
    """First come, first served: only the cell at the head of the queue is asked about."""
    if view.delay_left_s > 0:
        return Decision("wait", "delay")
    if view.pressure is None and view.watchdog_required:
        return Decision("wait", "watchdog_silent")
    if view.pressure not in (None, "ok"):
        return Decision("wait", f"pressure_{view.pressure}")
    # A cell with more threads than the machine has slots runs alone rather than never.
    if view.used and view.used + threads > view.slots:
        return Decision("wait", "slots")
    mine = view.servers.get(warm_key)
    if mine is not None and mine.leaving:
        return Decision("wait", "warm_server_leaving")
    if mine is None and len(view.servers) >= view.max_servers:
        if any(load.leaving for load in view.servers.values()):
            return Decision("wait", "warm_server_leaving")
        idle = [key for key, load in view.servers.items() if load.cells == 0]
        return Decision("let_go", "model_change", idle[0]) if idle else Decision("wait", "warm_servers")
    return Decision("admit")

"""One running attempt in the dispatcher's memory. What must survive is in the queue and in the transcript."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from overnight.dispatch.claims import Claim
from overnight.dispatch.evictions import Eviction
from overnight.dispatch.registry import Registration
from overnight.dispatch.signals import Handle
from overnight.dispatch.slot import Slot
from overnight.dispatch.verdicts import Ending, Verdict
from overnight.queue.store import Claimed
from overnight.warm.client import WarmServer
from overnight.warm.protocol import Message


@dataclass
class Grant:
    """What an attempt was admitted with. cap_bytes: what it may not pass, None = as much as it likes; slot: its own
    memory cgroup, where there is one. alone: nobody else runs beside it. claim and cap grow when there is room.
    server_bytes, most_bytes: its warm server, and what all cells and servers together may come to, at its admission."""

    claim: Claim
    claim_bytes: int
    cap_bytes: int | None = None
    slot: Slot | None = None
    alone: bool = False
    server_bytes: int = 0
    most_bytes: int = 0

    @property
    def capped_by(self) -> Literal["cgroup", "rlimit", ""]:
        if self.cap_bytes is None:
            return ""
        return "rlimit" if self.slot is None else "cgroup"


_COMMANDS_PATIENCE = 12
_FINISHING_S = 60.0
_REPLAY_SHARE = 0.07
"""What replaying a turn costs of the time that generating it took (*Measured*: 7 %)."""


@dataclass
class Attempt:
    """phase: loading (its warm server is), forking, replaying, running, finishing.

    turn: turns on disk. replayed: how many of them were fed to the model again so far. began_s, began_turn: when its
    own first turn began, and how many it had replayed by then. noted, claim_noted: the queue knows its
    process, its claim. sweeping_s: since when what it left behind is being ended. dead_s: since when
    its process is seen to be dead without a word of its warm server. frozen_s: for how long it has been frozen by the
    watchdog so far. seen_frozen_s: the last look, when it was frozen then. bytes, peak_bytes: what it holds beyond its
    warm server, as that one last said. refault_bytes_per_s: what it reads again, since its cap has no room for it.
    """

    claimed: Claimed
    server: WarmServer
    grant: Grant
    phase: str = "loading"
    handle: Handle | None = None
    started_s: float = field(default_factory=time.monotonic)
    forked_s: float | None = None
    turn: int = field(init=False)
    output_tokens: int = field(init=False)
    replayed: int = 0
    last_turn_s: float | None = None
    replay_s: float | None = None
    began_s: float | None = None
    began_turn: int = 0
    intent: str = ""
    intent_s: float = 0.0
    report: Message | None = None
    status: int | None = None
    max_rss_bytes: int | None = None
    over: bool = False
    registered_s: float = 0.0
    noted: bool = True
    dead_s: float | None = None
    frozen_s: float = 0.0
    seen_frozen_s: float | None = None
    asked_s: float = 0.0
    eviction: Eviction | None = None
    bytes: int = 0
    peak_bytes: int = 0
    refault_bytes_per_s: int = 0
    extended_s: float = 0.0
    claim_noted: bool = True
    sweeping_s: float | None = None
    oom_above: bool = False
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        # What the queue knows to be on disk, until the cell itself says what it found there.
        self.turn, self.output_tokens = self.claimed.cell.turns, self.claimed.cell.output_tokens

    @property
    def id(self) -> int:
        return self.claimed.attempt_id

    @property
    def grid(self) -> str:
        return self.claimed.grid

    @property
    def key(self) -> str:
        return self.claimed.cell.key

    @property
    def threads(self) -> int:
        return int(self.claimed.spec["threads"])

    @property
    def timeout_s(self) -> float | None:
        wanted = self.claimed.policy.get("timeout_s")
        return None if wanted is None else float(wanted)

    def leaving_s(self, usual_s: float) -> float:
        """How long a stop waits for it."""
        return max(_FINISHING_S, usual_s) if self.phase == "finishing" else self.grace_s(usual_s)

    @property
    def is_command(self) -> bool:
        return bool(self.claimed.spec["kind"] == "command")

    @property
    def cap_grows(self) -> bool:
        """Can its cap be raised while it runs? Limits of a command's processes are set when they are started."""
        if not self.is_command:
            return True
        return self.grant.slot is not None and self.claimed.policy.get("cap") != "address_space"

    def grace_s(self, usual_s: float) -> float:
        """From SIGTERM to SIGKILL. A command has a grace of its own, and its runner sees to that first."""
        return usual_s + float(self.claimed.policy["grace_s"]) if self.is_command else usual_s

    def names(self) -> dict[str, Any]:
        """What every log line about this attempt says."""
        return {"grid": self.grid, "cell": self.key, "attempt": self.claimed.attempt_number}

    def stuck(self, now_s: float, grace_s: float) -> bool:
        """Its process is dead, or was never reported, and the warm server does not say so: that one hangs.

        To end the server of commands costs all of them their work: it is given longer, as long as it is only slow."""
        if self.handle is not None:
            if self.dead_s is None and self.handle.ended():
                self.dead_s = now_s
            patience_s = _COMMANDS_PATIENCE * grace_s if self.is_command else grace_s
            return self.dead_s is not None and now_s - self.dead_s > patience_s
        return self.phase == "forking" and now_s - self.asked_s > 6 * grace_s

    def look(self, now_s: float, *, frozen: bool) -> None:
        """Count the time since the last look as frozen when it was frozen then: a freeze is seen late, its end too."""
        if self.seen_frozen_s is not None:
            self.frozen_s += now_s - self.seen_frozen_s
        self.seen_frozen_s = now_s if frozen else None

    def overdue(self, now_s: float) -> bool:
        """Time that it spent frozen is not its own."""
        limit = None if self.phase == "finishing" else self.timeout_s
        return limit is not None and self.forked_s is not None and now_s - self.forked_s - self.frozen_s > limit

    def ask(self, intent: str, now_s: float) -> None:
        """Want this attempt to end; the first reason stands. One without a process is over at once."""
        if self.intent or self.report is not None:
            return
        if self.phase == "finishing" and intent != "cancelled":
            return  # all is done but for the last file: leaving now would mean doing it again
        self.intent, self.intent_s = intent, now_s
        if self.handle is not None:
            self.handle.ask_to_leave()
        elif self.phase == "loading":
            self.over = True

    def ending(self) -> Ending:
        slot = self.grant.slot
        return Ending(
            self.intent,
            self.report,
            self.status,
            self.timeout_s,
            self.eviction,
            cgroup=None if slot is None else slot.evidence(),
            oom_above=self.oom_above,
            memory_bytes=self.bytes or None,
            peak_bytes=self.peak_bytes or None,
            cap_bytes=self.grant.cap_bytes,
            capped_by=self.grant.capped_by,
        )

    def begins(self, message: Message, now_s: float) -> None:
        """It has replayed what there was, and its own first turn begins."""
        self.phase, self.replay_s = "running", message["replay_s"]
        self.turn, self.output_tokens = message["turn"], message["output_tokens"]
        self.began_s, self.began_turn = now_s, message["turn"]
        self.last_turn_s = now_s

    def replay_estimate_s(self) -> float:
        """Seconds that replaying all of its turns would take, were it taken out now."""
        if self.replay_s is not None and self.began_turn:
            return self.replay_s / self.began_turn * self.turn
        if self.began_s is not None and self.last_turn_s is not None:
            return _REPLAY_SHARE * (self.last_turn_s - self.began_s)
        return _REPLAY_SHARE * self.claimed.cell.run_s  # still replaying: what all attempts before it took

    def registration(self) -> Registration:
        assert self.handle is not None  # noqa: S101 - only forked attempts are registered
        return Registration(
            pid=self.handle.pid,
            start_ticks=self.handle.start_ticks,
            pgid=self.handle.pid,
            role="command" if self.is_command else "cell",
            engine=self.server.warm.get("engine", "command"),
            cell=f"{self.grid}/{self.key}",
            attempt=self.id,
            shrinks=self.server.shrinks,
            exact=self.server.promise == "exact",
            turn=self.turn,
            last_turn_s=self.last_turn_s,
            # Not the claim's time: that the model had to be loaded is no work of this cell.
            started_s=self.started_s if self.forked_s is None else self.forked_s,
            replay_s=round(self.replay_estimate_s(), 4),
            freezes=self.server.freezes,
            cgroup=None if self.grant.slot is None else self.grant.slot.folder,
            claim_bytes=self.grant.claim_bytes,
            cap_bytes=self.grant.cap_bytes,
            grace_s=float(self.claimed.policy["grace_s"]) if self.is_command else None,
        )

    def summary(self) -> dict[str, Any]:
        """For `overnight status`: one row."""
        return {
            "grid": self.grid,
            "cell": self.key,
            "cell_id": self.claimed.cell.id,
            "attempt": self.claimed.attempt_number,
            "attempt_id": self.id,
            "phase": "leaving" if self.intent and self.handle is not None else self.phase,
            "pid": None if self.handle is None else self.handle.pid,
            "turn": self.turn,
            "replayed": self.replayed,
            "new_turns": self.turn - self.claimed.cell.turns if self.replay_s is not None else 0,
            "output_tokens": self.output_tokens,
            "bytes": self.bytes,
            "peak_bytes": self.peak_bytes,
            "claim_bytes": self.grant.claim_bytes,
            "cap_bytes": self.grant.cap_bytes,
            "seconds": round(time.monotonic() - self.started_s, 1),
        }

"""The attempts under way and their warm servers: what they say, how they end, and who has ended."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Any

from overnight import durable
from overnight.config import Config
from overnight.dispatch import claims, evictions, leftovers, rlimits, sweep, verdicts
from overnight.dispatch.attempt import Attempt, Grant
from overnight.dispatch.cell_cgroups import CellCgroups
from overnight.dispatch.evictions import Eviction
from overnight.dispatch.pool import Pool
from overnight.dispatch.registry import Registry
from overnight.dispatch.signals import Handle
from overnight.paths import Paths
from overnight.queue.store import Claimed, Queue, QueueUnavailable, StaleAttempt
from overnight.warm.client import WarmServer
from overnight.warm.protocol import Closed, Message

_NOTE_AFTER_S = 0.5
_LEFT_BYTES = 16 * 2**20
_RESERVED_BY, _RESERVED_BYTES = 2, 256 * 2**20
"""Programs reserve more than they touch: a limit on a command's data is that much larger than its claim."""
_LOAD_DEATHS = 5
"""So many deaths of a warm server while it loads, in a row, are the model's own fault."""


class Crew:
    """`attempts` are under way, by id; `ended` wait for the dispatcher to record them."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        queue: Queue,
        selector: selectors.BaseSelector,
        log: Any,
        *,
        cgroups: CellCgroups | None = None,
    ) -> None:
        self.paths, self.config, self.queue, self.log = paths, config, queue, log
        self.registry = Registry(paths.registry)
        self.pool = Pool(paths.models, paths.log / "warm.err", self.registry, log)
        self.attempts: dict[int, Attempt] = {}
        self.ended: list[Attempt] = []
        self._selector = selector
        self._cgroups = cgroups
        self._token = leftovers.token(paths.home)

    def launch(self, claimed: Claimed, grant: Grant) -> None:
        """Give a claimed cell to its warm server, which is started when it has none. Raises OSError."""
        server, fresh = self.pool.obtain(claimed.warm_key, claimed.warm)
        if fresh:
            self._selector.register(server.channel, selectors.EVENT_READ)
        attempt = Attempt(claimed, server, grant)
        self.attempts[attempt.id] = attempt
        server.attempts.add(attempt.id)
        if server.state == "ready":
            self._fork(attempt)

    # -- receive ----------------------------------------------------------------------------------------------

    def receive(self) -> None:
        for server in self.pool:
            if not server.deaf and not self._drain(server):
                self._deafen(server)

    def _drain(self, server: WarmServer) -> bool:
        """Hear everything that is in the socket; False when its other end is closed."""
        while True:
            try:
                message = server.channel.receive(wait=False)
            except Closed:
                return False
            if message is None:
                return True
            self._heard(server, message)

    def _deafen(self, server: WarmServer) -> None:
        """A closed channel: the server is dying, or has lost its mind. Its exit is waited for by its pidfd."""
        server.deaf = True
        self._selector.unregister(server.channel)
        if server.handle is not None:
            self._selector.register(server.handle, selectors.EVENT_READ)
        server.kill()

    def _heard(self, server: WarmServer, message: Message) -> None:
        kind = message["kind"]
        if kind == "loaded":
            self.pool.loaded(server, message)
            for attempt in self._of(server):
                if not attempt.over:
                    self._fork(attempt)
            return
        if kind == "refused":
            server.refuse()
            self.log.error("warm_refused", model=server.describe(), error=message["error"])
            code = "model_" + message["code"] if message["code"] != "model" else "model"
            outcome = "over_cap" if message["code"] == "memory" else "failed"
            for attempt in self._of(server):
                self._settle(attempt, outcome, code, message["error"])
            return
        if kind == "trimmed":
            freed = message["before_bytes"] - message["after_bytes"]
            self.log.info("warm_shrunk", model=server.describe(), pid=server.pid, freed_bytes=freed)
            return
        meant = self.attempts.get(message["attempt"])
        if meant is not None:
            self._heard_of(meant, message)
        elif kind == "forked" and (nobody := Handle.open(message["pid"], message["start_ticks"])):
            nobody.kill()  # its attempt was cancelled meanwhile: it would wait at its gate for ever
            nobody.close()

    def _heard_of(self, attempt: Attempt, message: Message) -> None:
        match message["kind"]:
            case "forked":
                self._register(attempt, message)
            case "fork_failed":
                error = f"the warm server could not fork: {message['error']}"
                self._settle(attempt, "lost", "fork_failed", error)
            case "begun" | "resumed":
                attempt.begins(message, time.monotonic())
                load_s = attempt.server.load_s
                self.log.info(
                    f"cell_{message['kind']}",
                    **attempt.names(),
                    turn=attempt.turn,
                    replay_s=attempt.replay_s,
                    load_s=load_s,
                )
            case "replaying":
                attempt.phase, attempt.replayed = "replaying", message["turn"]
            case "turn":
                attempt.turn, attempt.output_tokens = message["turn"], message["output_tokens"]
                attempt.last_turn_s = time.monotonic()
                self.log.info("turn_done", **attempt.names(), turn=attempt.turn, output_tokens=attempt.output_tokens)
            case "finishing":
                attempt.phase = "finishing"  # every turn is on disk: no time limit may take that back
            case "tail_cut":
                self.log.warning("transcript_tail_cut", **attempt.names(), file=message["file"], bytes=message["bytes"])
            case "shrunk":
                before, after = message["before_bytes"], message["after_bytes"]
                self.log.info(
                    "cell_shrunk", **attempt.names(), freed_bytes=before - after, before_bytes=before, after_bytes=after
                )
            case "memory":
                attempt.bytes, attempt.refault_bytes_per_s = message["bytes"], message["refault_bytes_per_s"]
                attempt.peak_bytes = max(attempt.peak_bytes, message["peak_bytes"])
            case "ended":
                attempt.report = message
            case "exited":
                attempt.status, attempt.max_rss_bytes = message["status"], message["max_rss_bytes"]
                attempt.peak_bytes = max(attempt.peak_bytes, message["peak_bytes"])
                attempt.over = True

    def _of(self, server: WarmServer) -> list[Attempt]:
        return [self.attempts[number] for number in sorted(server.attempts)]

    def _settle(self, attempt: Attempt, outcome: str, code: str, reason: str) -> None:
        """End an attempt that never had, or no longer has, a process of its own."""
        attempt.report = {"outcome": outcome, "reason_code": code, "reason": reason}
        attempt.over = True

    def _fork(self, attempt: Attempt) -> None:
        attempt.phase, attempt.asked_s = "forking", time.monotonic()
        self._take_slot(attempt)
        slot = attempt.grant.slot
        attempt.server.fork(
            attempt.id,
            attempt.claimed.spec,
            self.paths.cell_results(attempt.grid, attempt.key),
            accept_conditions=attempt.claimed.cell.accept_conditions,
            policy=attempt.claimed.policy,
            number=attempt.claimed.attempt_number,
            token=self._token_of(attempt),
            cgroup=None if slot is None else slot.folder,
            cap_bytes=attempt.grant.cap_bytes,
            secrets_file=self.paths.secrets,
        )

    def _take_slot(self, attempt: Attempt) -> None:
        """A memory cgroup of its own, where we may make one; without it a limit on its data has to do."""
        grant = attempt.grant
        if self._cgroups is not None:
            try:
                grant.slot = self._cgroups.take(grant.cap_bytes)
            except OSError as error:
                self.log.warning("cell_cgroup_failed", **attempt.names(), error=str(error))
        if grant.slot is None and grant.cap_bytes is not None and attempt.is_command:
            # It counts what a process has reserved, and a claim is what is held.
            grant.cap_bytes = _RESERVED_BY * grant.claim_bytes + _RESERVED_BYTES
            attempt.claim_noted = False

    def extend(self, attempt: Attempt, claim_bytes: int) -> bool:
        """A larger claim and cap for a running cell, told to the kernel first. False when its cap was met already: then
        it is judged by the one that it had. Raises OSError when the kernel refuses.

        The limit of a command's processes stays as it was set when they started: only its claim grows then."""
        grant = attempt.grant
        if grant.cap_bytes is not None and attempt.cap_grows:
            cap_bytes = max(grant.cap_bytes, claims.cap(claim_bytes, grant.most_bytes - grant.server_bytes))
            if grant.slot is not None:
                if not grant.slot.raise_cap(cap_bytes):
                    return False
            elif attempt.handle is not None:
                rlimits.extend(attempt.handle.pid, cap_bytes - grant.cap_bytes)
            grant.cap_bytes = cap_bytes
        grant.claim_bytes = claim_bytes
        attempt.extended_s, attempt.claim_noted = time.monotonic(), False
        return True

    def loosen(self, attempt: Attempt, cap_bytes: int) -> bool:
        """A larger cap alone, for page cache, of a running cell with a slot. False and OSError as in `extend`."""
        grant = attempt.grant
        if grant.slot is None or grant.cap_bytes is None or not grant.slot.raise_cap(cap_bytes):
            return False
        grant.cap_bytes = cap_bytes
        attempt.refault_bytes_per_s = 0  # under the new cap: not known yet
        attempt.extended_s, attempt.claim_noted = time.monotonic(), False
        return True

    def _register(self, attempt: Attempt, message: Message) -> None:
        """Put the child's registration on disk, then let it begin."""
        ticks = message["start_ticks"]
        attempt.handle = None if ticks is None else Handle.open(message["pid"], ticks)
        if message["cgroup_error"] and attempt.grant.slot is not None:
            self.log.warning("cell_cgroup_failed", **attempt.names(), error=message["cgroup_error"])
            self._give_back(attempt)
        if attempt.handle is None:
            return  # it is dead already: `exited` follows
        attempt.forked_s = time.monotonic()
        attempt.server.forked.add(attempt.id)
        self.pool.register(attempt.server)  # a server with a cell is a dearer victim than one without
        if attempt.intent:
            attempt.handle.ask_to_leave()
            return
        try:
            self.registry.put(attempt.registration())
        except OSError as error:
            failed = durable.as_cell_error(error, "writing its registration")
            attempt.report = {"outcome": failed.outcome, "reason_code": failed.reason_code, "reason": str(failed)}
            attempt.handle.kill()
            return
        attempt.noted = False  # `note` tells the queue; a locked or full queue is no reason to keep a cell waiting
        attempt.phase = "replaying"
        attempt.server.let_go(attempt.id)
        self.log.info("cell_started", **attempt.names(), pid=attempt.handle.pid)

    # -- reap -------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        for server in self.pool:
            if server.exit_status() is not None:
                if not server.deaf and self._drain(server):
                    continue  # more may come: a child that outlives its parent for a moment holds the socket open
                self._server_gone(server)
        for attempt in list(self.attempts.values()):
            if attempt.server.state == "gone" and not attempt.over:
                attempt.over = attempt.handle is None or attempt.handle.ended()
            if attempt.over and sweep.swept(attempt, self._token_of(attempt), self.log):
                self._part(attempt)

    def _server_gone(self, server: WarmServer) -> None:
        """Its process has ended, and its cells die with it."""
        watched = server.handle if server.deaf else server.channel
        if watched is not None:
            self._selector.unregister(watched)
        server.eviction = self._eviction(server.handle, warm=True)
        deaths = self.pool.gone(server, evicted=server.eviction is not None)
        for attempt in self._of(server):
            if attempt.handle is not None:
                attempt.handle.kill()
                self._selector.register(attempt.handle, selectors.EVENT_READ)
            elif deaths >= _LOAD_DEATHS and attempt.report is None and server.eviction is None:
                sentence = f"its warm server died {deaths} times in a row while it loaded the model"
                self._settle(attempt, "failed", "model_load_died", sentence)

    def _part(self, attempt: Attempt) -> None:
        """An attempt's process is gone: its memory is free, its transcript unlocked. The queue hears of it next."""
        del self.attempts[attempt.id]
        attempt.server.attempts.discard(attempt.id)
        attempt.server.forked.discard(attempt.id)
        self.pool.register(attempt.server)
        if verdicts.taken(attempt.report, attempt.status):
            attempt.eviction = self._eviction(attempt.handle) or (
                attempt.server.eviction if attempt.status is None else None
            )
        if attempt.handle is not None:
            self.registry.drop(attempt.handle.pid)
            if attempt.handle in self._selector.get_map():
                self._selector.unregister(attempt.handle)
            attempt.handle.close()
        self.ended.append(attempt)

    @property
    def sweeping(self) -> bool:
        """Is somebody being ended whom a cell has left behind?"""
        return any(attempt.sweeping_s is not None for attempt in self.attempts.values())

    def _token_of(self, attempt: Attempt) -> str:
        return f"{self._token}:{attempt.id}"

    def longest_grace_s(self) -> float:
        """How long a stop waits for those that are asked to leave."""
        usual_s = self.config.daemon.stop_grace_s
        return max((attempt.leaving_s(usual_s) for attempt in self.attempts.values()), default=0.0)

    def settle_memory(self, attempt: Attempt) -> None:
        """Its verdict is drawn: its cgroup may be used again."""
        self._give_back(attempt)

    def _give_back(self, attempt: Attempt) -> None:
        if attempt.grant.slot is not None and self._cgroups is not None:
            if attempt.over and (left := attempt.grant.slot.memory_bytes() or 0) > _LEFT_BYTES:
                # Files in /dev/shm and the like outlive whoever wrote them, and count until somebody removes them.
                self.log.warning("cell_left_memory", **attempt.names(), bytes=left)
            self._cgroups.give_back(attempt.grant.slot)
        attempt.grant.slot = None

    def _eviction(self, handle: Handle | None, *, warm: bool = False) -> Eviction | None:
        """What the watchdog wrote down about a process that is gone."""
        if handle is None:
            return None
        return evictions.read(self.paths.verdicts, handle.pid, handle.start_ticks, warm=warm)

    # -- enforce ----------------------------------------------------------------------------------------------

    def enforce(self) -> None:
        """Time limits of attempts and of loading; SIGKILL for whoever outlived the grace of a SIGTERM, and for a warm
        server that hangs: one that is stopped neither forks nor tells of its children's ends."""
        now, grace_s = time.monotonic(), self.config.daemon.stop_grace_s
        for attempt in self.attempts.values():
            if attempt.overdue(now):
                attempt.ask("timed_out", now)
            if attempt.intent and attempt.handle and now - attempt.intent_s > attempt.grace_s(grace_s):
                attempt.handle.kill()
            if attempt.stuck(now, grace_s) and attempt.server.state != "gone":
                self._hangs(attempt.server)
        for server in self.pool:
            if server.state == "loading" and now - server.started > self.config.warm.load_timeout_s:
                self.log.error("warm_load_timeout", model=server.describe(), pid=server.pid)
                server.kill()
            if server.state == "leaving" and now - server.leaving_since > grace_s:
                server.kill()

    def _hangs(self, server: WarmServer) -> None:
        if server.state != "leaving":
            self.log.error("warm_hangs", model=server.describe(), pid=server.pid)
        server.kill()

    def note(self) -> None:
        """Tell the queue which processes run its cells: bookkeeping, tried again until it succeeds. Those that end at
        once are told of by their end alone."""
        now = time.monotonic()
        for attempt in self.attempts.values():
            if now - attempt.started_s < _NOTE_AFTER_S:
                continue
            try:
                self.note_one(attempt)
            except QueueUnavailable:
                return
            except StaleAttempt as error:
                self.log.error("attempt_stale", **attempt.names(), error=str(error))
                attempt.noted = attempt.claim_noted = True
                if attempt.handle is not None:
                    attempt.handle.kill()

    def note_one(self, attempt: Attempt) -> None:
        """Raises QueueUnavailable or StaleAttempt."""
        if not attempt.noted and attempt.handle is not None:
            self.queue.started(attempt.id, pid=attempt.handle.pid, start_ticks=attempt.handle.start_ticks)
            attempt.noted = True
        if not attempt.claim_noted:
            grant = attempt.grant
            self.queue.extended(attempt.id, claim_bytes=grant.claim_bytes, cap_bytes=grant.cap_bytes)
            attempt.claim_noted = True

    # -- stop -------------------------------------------------------------------------------------------------

    def ask_all(self, intent: str) -> None:
        now = time.monotonic()
        for attempt in self.attempts.values():
            attempt.ask(intent, now)

    def dismiss(self, beat: Callable[[], None], grace_s: float = 5.0) -> None:
        """End every warm server, and with them whatever cell is still there. `beat` is called while it waits."""
        for server in self.pool:
            server.kill()
        deadline = time.monotonic() + grace_s
        while (len(self.pool) or self.attempts) and time.monotonic() < deadline:
            beat()
            self._selector.select(0.05)
            self.receive()
            self.reap()

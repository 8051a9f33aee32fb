"""The warm servers: started when a cell wants their model, let go when they idle or their room is wanted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.dispatch.registry import Registration, Registry
from overnight.warm import client, meter
from overnight.warm.client import WarmServer


class Pool:
    """At most one server a warm key."""

    def __init__(self, store: Path, stderr: Path, registry: Registry, log: Any) -> None:
        self._store, self._stderr, self._registry, self._log = store, stderr, registry, log
        self._servers: dict[str, WarmServer] = {}
        self._load_deaths: dict[str, int] = {}

    def __iter__(self) -> Iterator[WarmServer]:
        return iter(tuple(self._servers.values()))

    def __len__(self) -> int:
        return len(self._servers)

    def obtain(self, key: str, warm: dict[str, Any]) -> tuple[WarmServer, bool]:
        """The server of a model and whether it was started just now. Raises OSError when it cannot be.

        A leaving server is never replaced before it is gone: its cells and its channel would be forgotten."""
        if (server := self._servers.get(key)) is not None:
            if server.state == "leaving":
                raise OSError("the model's warm server is just leaving")
            return server, False
        server = WarmServer(key, warm, self._store, self._stderr)
        self._servers[key] = server
        self._log.info("warm_loading", model=server.describe(), pid=server.pid)
        self.register(server)
        return server, True

    def loaded(self, server: WarmServer, message: dict[str, Any]) -> None:
        server.state, server.load_s = "ready", message["load_s"]
        server.shrinks, server.promise = message["shrinks"], message["promise"]
        server.freezes, server.bytes = message["freezes"], message["bytes"]
        self._load_deaths.pop(server.key, None)
        self._log.info(
            "warm_loaded",
            model=server.describe(),
            pid=server.pid,
            load_s=server.load_s,
            threads=message["threads"],
        )
        self.register(server)

    def register(self, server: WarmServer) -> None:
        """Put its registration on disk when it has changed. One that cannot be written is tried again by `refresh`."""
        told = (bool(server.forked), server.state == "ready")  # how many would be a file more for each cell
        if server.handle is None or server.state == "gone" or told == server.told:
            return
        entry = Registration(
            pid=server.pid,
            start_ticks=server.handle.start_ticks,
            pgid=server.pid,
            role="warm",
            engine=server.warm.get("engine", "command"),
            started_s=server.started,
            shrinks=server.state == "ready",  # from then on it handles SIGUSR1
            cells=len(server.forked),
        )
        try:
            self._registry.put(entry)
            server.told = told
        except OSError as error:
            if server.told is None:
                self._log.warning("registration_failed", pid=server.pid, error=str(error))
                server.told = ()  # told once; `refresh` goes on trying

    def refresh(self) -> None:
        """Try again what could not be written, and put back what somebody removed."""
        for server in self:
            if server.told and self._registry.missing(server.pid):
                server.told = ()
            self.register(server)

    def gone(self, server: WarmServer, *, evicted: bool = False) -> int:
        """A server's process is over. Returns how many times in a row its model's server died while it loaded.

        evicted: the watchdog took it out, which is no fault of the model's."""
        deaths = self._load_deaths.get(server.key, 0)
        if server.load_s is None and not server.refused and not evicted:
            deaths = self._load_deaths[server.key] = deaths + 1
        status = server.exit_status()
        self._log.info("warm_gone", model=server.describe(), pid=server.pid, exit_status=status)
        self._registry.drop(server.pid)
        server.close()
        if self._servers.get(server.key) is server:
            del self._servers[server.key]
        return deaths

    def release(self, key: str, why: str) -> None:
        """Let an idle server go."""
        server = self._servers[key]
        if server.state == "ready":
            self._log.info("warm_released", model=server.describe(), pid=server.pid, why=why)
            server.leave()

    def retire(self, *, idle_s: float, memory_wanted: bool) -> None:
        """Release servers that have had no cell for `idle_s`, or at once when memory is wanted."""
        now = time.monotonic()
        for server in self:
            if server.attempts or server.state != "ready":
                server.idle_since = None
                continue
            server.idle_since = server.idle_since or now
            wanted = memory_wanted and bool(server.warm)  # without a model there is next to nothing to be had
            if wanted or now - server.idle_since >= idle_s:
                self.release(server.key, "memory" if wanted else "idle")

    def weigh(self) -> None:
        """What the loaded servers hold themselves: their model, and what their libraries have grown to. What they and
        their cells print is bounded here, too: a server that lives for weeks must not fill the disk with it."""
        client.bound_output(self._stderr)
        for server in self:
            if server.state == "ready" and (held := meter.held_bytes(server.pid)) is not None:
                server.bytes = held

    def summary(self) -> list[dict[str, Any]]:
        return [
            {
                "model": server.describe(),
                "pid": server.pid,
                "state": server.state,
                "cells": len(server.attempts),
                "load_s": server.load_s,
                "bytes": server.bytes,
            }
            for server in self
        ]

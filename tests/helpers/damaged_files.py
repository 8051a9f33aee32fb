"""The small files of var/run/ and var/results/, damaged in every way, and their readers: nobody crashes, nothing that
was not written is believed."""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from campaigns.base import Finding
from helpers.verdict_ring import SLOT_BYTES, heartbeat, verdict, write_ring
from overnight import durable, procfs
from overnight.cli.main import main
from overnight.dispatch import evictions, pressure, records
from overnight.dispatch.beat import Beat
from overnight.dispatch.registry import Registration, Registry
from overnight_watchdog import roster
from overnight_watchdog.daemon_watch import read_beat
from overnight_watchdog.verdicts import VerdictRing, read_ring

PID, TICKS = 4711, 123456


def damages(data: bytes, dice: random.Random, *, every: int = 1) -> Iterator[tuple[str, bytes]]:
    """(what, damaged bytes): a bit of every `every`-th byte flipped, cut off, empty, garbage, huge, deep."""
    for at in range(0, len(data), every):
        bit = dice.randrange(8)
        yield f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    for at in range(0, len(data), max(1, len(data) // 16)):
        yield f"cut at {at}", data[:at]
    for at in range(0, len(data), max(1, len(data) // 16)):
        yield f"NULs from {at}", data[:at] + b"\0" * (len(data) - at)
    yield "garbage", dice.randbytes(len(data))
    yield "another JSON", b"[1, 2]\n"
    yield "null", b"null"
    yield "deep", b'{"v":' + b"[" * 100_000
    yield "huge", data.rstrip(b"\n") + b" " * 2**21 + b"x"
    yield "huge number", b'{"v": 1, "pid": ' + b"9" * 5000 + b"}"


def believed(found: Finding, name: str, path: Path, read: Callable[[], Any], dice: random.Random) -> None:
    """Damage a file with a checksum: its reader gives what it gave before, or nothing."""
    whole, before = path.read_bytes(), read()
    if before is None:
        raise ValueError(f"{name}: its reader does not know the whole file")
    for what, data in damages(whole, dice):
        path.write_bytes(data)
        now = _tried(found, f"{name}, {what}", read)
        found.expect(now in (before, None), f"{name}, {what}: read as {now}")
        found.count(f"damages of {name}")
    path.write_bytes(whole)


def _tried(found: Finding, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - any is one too many
        found.violations.append(f"{what}: {type(error).__name__}: {error}")
        return None


def heartbeats(folder: Path, dice: random.Random) -> Finding:
    """pressure.json, daemon.beat and verdicts.ring, each by the readers of the other side."""
    found = Finding()
    path = folder / "pressure.json"
    path.write_bytes(heartbeat(os.getpid()))

    def told() -> Any:
        last = pressure.last(path)
        return None if last is None else replace(last, age_s=0.0)

    believed(found, "pressure.json", path, told, dice)
    path = folder / "daemon.beat"
    Beat(path).strike()
    believed(found, "daemon.beat", path, lambda: read_beat(path, procfs.boot_id()), dice)
    path = folder / "verdicts.ring"
    write_ring(path, verdict(PID, TICKS))
    path.write_bytes(path.read_bytes()[: 2 * SLOT_BYTES])
    believed(found, "verdicts.ring", path, lambda: evictions.read(path, PID, TICKS), dice)
    for what, data in damages(path.read_bytes(), dice, every=7):  # the watchdog goes on with such a ring
        path.write_bytes(data)
        ring = VerdictRing(path, procfs.boot_id())
        record = {name: value for name, value in verdict(PID, TICKS + 1).items() if name not in ("boot_id", "v")}
        record.pop("sequence")
        wrote = _tried(found, f"verdicts.ring, {what}, written on", lambda: ring.open() and ring.write(record))  # noqa: B023
        ring.close()
        found.expect(wrote is True, f"verdicts.ring, {what}: no verdict can be written")
        seen = evictions.read(path, PID, TICKS + 1)
        found.expect(seen is not None, f"verdicts.ring, {what}: the new verdict is not found")
        found.expect(len(read_ring(path.read_bytes())) <= 2, f"verdicts.ring, {what}: it holds verdicts of nobody")
        found.count("damages of verdicts.ring, written on")
    return found


def registrations(folder: Path, dice: random.Random) -> Finding:
    """var/run/cells/<pid>.json, by the watchdog and by a starting daemon: a process that is not meant is not named."""
    found = Finding()
    folder.mkdir(parents=True, exist_ok=True)
    ticks = procfs.start_ticks(os.getpid())
    if ticks is None:
        raise ValueError("this process has no start time")
    registry = Registry(folder)
    registry.put(
        Registration(
            pid=os.getpid(), start_ticks=ticks, pgid=os.getpgrp(), role="cell", engine="scripted", cell="night/a",
            attempt=3, started_s=time.monotonic(), claim_bytes=2**20, cap_bytes=2**21, cgroup="/sys/fs/cgroup/x",
        )
    )  # fmt: skip
    path = folder / f"{os.getpid()}.json"
    whole = path.read_bytes()
    for what, data in damages(whole, dice):
        path.write_bytes(data)
        entry = _tried(found, f"registration, {what}, watchdog", lambda: roster.parse(data, procfs.boot_id()))  # noqa: B023
        named = [] if entry is None else [(entry["pid"], entry["start_ticks"])]
        ours = _tried(found, f"registration, {what}, daemon", lambda: list(registry.ours())) or []
        for pid, start in named + [(entry["pid"], entry["start_ticks"]) for entry in ours]:
            meant = (pid, start) == (os.getpid(), ticks)
            alive = _tried(found, f"registration, {what}, looked up", lambda: procfs.alive(pid, start))  # noqa: B023
            found.expect(meant or not alive, f"registration, {what}: it names the living process {pid}")
        _tried(found, f"registration, {what}, cleared", registry.clear)
        found.count("damages of registrations")
    path.unlink(missing_ok=True)
    return found


def said(*args: str) -> tuple[int, str, str]:
    """Run a command of the command line in this process: (exit code, stdout, stderr). A traceback is raised."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    return code, out.getvalue(), err.getvalue()


def daemon_state(home: Path, path: Path, running: dict[str, Any], dice: random.Random) -> Finding:
    """daemon.json by the commands that show it: as it was, or as without a daemon."""
    found = Finding()
    server = {"model": "script", "pid": None, "state": "ready", "cells": 1, "load_s": 0.1, "bytes": 2**20}
    memory = {"limit_bytes": 2**30, "reserve_bytes": 2**28, "headroom_bytes": None, "claimed_bytes": 0, "warm_bytes": 0}
    state = {
        **{"v": 1, "boot_id": procfs.boot_id(), "pid": os.getpid(), "start_ticks": procfs.start_ticks(os.getpid())},
        **{"monotonic_s": time.monotonic(), "holding": "slots", "slots": 2, "warm": [server], "running": [running]},
        **{"sequence": 12, "stopping": False, "memory": memory},
    }
    whole = durable.canonical(state | {"checksum": records.checksum(state)}).encode()
    path.write_bytes(whole)

    def shown() -> Any:
        text = said("--home", str(home), "status")[1]
        return [line for line in text.splitlines() if line.startswith(("daemon", "claimed", "warm server", "script"))]

    with_daemon = shown()
    path.unlink()
    without = shown()
    for what, data in damages(whole, dice):
        path.write_bytes(data)
        now = _tried(found, f"daemon.json, {what}", shown)
        found.expect(now in (with_daemon, without), f"daemon.json, {what}: status shows {now}")
        found.count("damages of daemon.json")
    path.unlink()
    return found

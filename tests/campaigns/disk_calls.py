"""Every call that changes the disk fails, in turn: of an idle loop, of a command's runner, of the queue."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from campaigns.base import Campaign, Finding, Round, Violation
from helpers.disk_cells import Command, IdleLoop, try_fault
from helpers.disk_faults import BROKEN, BY_NAME, ERRORS, FULL, KILLS, SHORT, Fault
from helpers.disk_queue import QueueTries
from helpers.fault_fs import Call, FaultFs, why_not

Attempt = Callable[[Fault, int, Finding], None]

_QUEUE_PARTS = 4
"""Its calls are some hundreds: a round takes every fourth, so that a campaign that was broken off loses little."""

_EVERY_CALL = ("ENOSPC", "EIO", "EIO at fsync")
"""What strikes the queue at every call; the others, and all while others have it open, at every fourth."""

_QUICK_TRIES = {"idle loop": 2, "command": 1, "queue": 1, "queue beside": 1}
"""Of each fault, at calls that are drawn."""


class DiskCalls(Campaign):
    name = "disk_calls"
    tries = (
        "ENOSPC, EIO, half a write, EIO at fsync and SIGKILL at every call that changes the disk, of an idle loop and "
        "of a command's runner; of the queue, SQLite's calls too, ENOSPC, EIO and EIO at fsync at every call, the "
        "others at every fourth; then a power cut; then on without the fault"
    )
    proves = ("1", "2", "5", "6", "7")

    def missing(self) -> str | None:
        return why_not()

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        if quick:
            return [_drawn(part, seed) for part in _QUICK_TRIES]
        return [Round(_key(**plan), {**plan, "faults": [plan["fault"]]}) for plan in _plans()]

    def run(self, one: Round, folder: Path) -> Finding:
        finding = Finding()
        with _tries(one.arguments["part"], folder, strict=one.arguments["strict"]) as (made, attempt):
            for fault in (BY_NAME[name] for name in one.arguments["faults"]):
                possible = fault.calls_of(made)
                finding.expect(
                    possible > 0, f"{one.key}: there is no call that {fault.name} could strike: {fault.kinds}"
                )
                for nth in _calls(one.arguments, possible):
                    try:
                        attempt(fault, nth, finding)
                    except Violation as error:
                        finding.violations.append(str(error))
        return finding


def _plans() -> Iterator[dict[str, Any]]:
    """first and step: which calls of all. strict: names are durable only by an fsync of their folder, as POSIX has it.
    Not for faults of that very fsync: a folder that was made and could not be synced is there for the next attempt."""
    whole = {"first": 1, "step": 1}
    for part, faults in (("idle loop", (*ERRORS, *KILLS)), ("command", ERRORS)):
        for fault in faults:
            yield {"part": part, "fault": fault.name, "strict": False, **whole}
        for fault in (FULL, BROKEN, SHORT):
            yield {"part": part, "fault": fault.name, "strict": True, **whole}
    for part, faults in (("queue", (*ERRORS, *KILLS)), ("queue beside", ERRORS)):
        for fault in faults:
            every = part == "queue" and fault.name in _EVERY_CALL
            for first in range(1, _QUEUE_PARTS + 1 if every else 2):
                yield {"part": part, "fault": fault.name, "strict": False, "first": first, "step": _QUEUE_PARTS}


def _key(part: str, fault: str, *, strict: bool, first: int, step: int) -> str:
    which = "" if step == 1 else f", calls {first}, {first + step}, ..."
    return f"{part}, {fault}{', strict' if strict else ''}{which}"


def _drawn(part: str, seed: int) -> Round:
    """A few calls of each fault."""
    faults = [fault.name for fault in (*ERRORS, *KILLS)]
    if part in ("command", "queue beside"):
        faults = [fault.name for fault in ERRORS]
    plan = {"part": part, "strict": False, "faults": faults, "draws": _QUICK_TRIES[part], "seed": seed}
    return Round(f"{part}, some calls", plan)


def _calls(plan: dict[str, Any], most: int) -> Sequence[int]:
    """The numbers, from 1, of the calls that are to fail."""
    if "draws" not in plan:
        return range(plan["first"], most + 1, plan["step"])
    return sorted(random.Random(f"{plan['seed']}:{most}").sample(range(1, most + 1), min(most, plan["draws"])))


@contextmanager
def _tries(part: str, folder: Path, *, strict: bool) -> Iterator[tuple[list[Call], Attempt]]:
    """The calls of an undisturbed run, and what tries a fault at one of them."""
    with FaultFs.mounted(folder / "disk", folder / "m", strict=strict) as fs:
        if part in ("idle loop", "command"):
            cells = IdleLoop(fs) if part == "idle loop" else Command(fs)
            yield cells.calls, lambda *args: try_fault(cells, *args)
            return
        (folder / "images").mkdir()
        queue = QueueTries(fs, folder / "images", beside=part == "queue beside")
        try:
            yield (
                queue.calls,
                lambda fault, *args: (queue.try_kill if fault in KILLS else queue.try_error)(fault, *args),
            )
        finally:
            queue.end()

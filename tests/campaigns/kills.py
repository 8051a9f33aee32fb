"""Whoever is killed, asked to leave or stopped, and whenever: the cells end with the bytes of an undisturbed run.

Rounds of random moments, and rounds in which each named fault point of `helpers.fault_points` is used once. Which
points there are is found out by a run that passes them (`_scouted`); a point belongs to a round by its name alone, so
that a campaign that is broken off goes on with the same ones.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar

from campaigns.base import Campaign, Finding, Round, Violation
from helpers.kill_promises import settle
from helpers.kill_shapes import Expected, Shape, undisturbed
from helpers.kill_stack import VICTIMS, Interruption, Stack, Victim
from overnight import procfs

LONG = Shape(idle=6, turns=60, delay_s=0.03, commands=3, steps=30)
SHORT = Shape(idle=12, turns=20, delay_s=0.03, commands=8, steps=4)
"""Many ends and beginnings; idle loops of more than half a second, after which the queue is told of their processes."""
SMALL = Shape(idle=4, turns=40, delay_s=0.03, commands=1, steps=20)

MOMENT_ROUNDS, MOMENTS = 24, 34
LONG_STOPS = 6
"""In every so many rounds watchdog and daemon are stopped until the other one ends them for their silence."""
POINT_ROUNDS = 12
WEIGHTS = {"cell": 44, "command": 12, "warm": 16, "daemon": 12, "watchdog": 12, "supervisord": 4}
HOW = {"KILL": 6, "TERM": 2, "STOP": 2}
_SILENT_ENDS_S = 60.0
"""A silent daemon is asked to leave after 15 s, and killed 10 s later; under load all of it takes longer."""
_RECOVERED_WITHIN_S = 100.0
"""A minute is the longest time for which a cell is slowed down."""
_POINT_WITHIN_S = 60.0
_HELP_S = 2.5
"""Longer than a daemon takes to begin: who helps too often keeps anything from happening."""

ACTS = tuple(("watchdog", f"{what}.{when}") for what in ("verdict", "signal.9") for when in ("before", "after"))
"""A watchdog comes to these when a daemon that it has to restart does not leave."""
QUICK_POINTS = (
    ("cell", "write.transcript.within"),
    ("daemon", "commit.finish.before"),
    ("warm", "tell.exited.before"),
    ("cell", "replace.result.after"),
)

Point = tuple[str, str]


class Kills(Campaign):
    name: ClassVar[str] = "kills"
    tries: ClassVar[str] = (
        "SIGKILL, SIGTERM and SIGSTOP for a while over cells, commands, warm servers, daemon, watchdog and "
        "supervisord, at random moments and once at every named point between two steps"
    )
    proves: ClassVar[tuple[str, ...]] = ("1", "2", "3", "4")

    def __init__(self) -> None:
        self._expected: dict[Shape, Expected] = {}
        self._points: list[Point] = []

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        if quick:
            return [Round("each victim, some points", {"seed": seed, "kind": "quick"})]
        moments = [
            Round(f"moments {number}", {"seed": seed, "kind": "moments", "long": number % LONG_STOPS == 0})
            for number in range(1, MOMENT_ROUNDS + 1)
        ]
        points = [
            Round(f"points {number}", {"seed": seed, "kind": "points", "part": number})
            for number in range(1, POINT_ROUNDS + 1)
        ]
        acts = [Round(f"watchdog at {point}", {"seed": seed, "kind": "act", "point": point}) for _, point in ACTS]
        return [*moments, *points, *acts]

    def run(self, one: Round, folder: Path) -> Finding:
        rng = Random(f"{one.arguments['seed']}:{one.key}")
        finding = Finding()
        match one.arguments["kind"]:
            case "quick":
                with self._stack(folder, SMALL, finding) as stack:
                    for role in ("cell", "command", "warm", "watchdog", "daemon"):
                        self._moment(stack, rng, finding, role=role, how="KILL", patient=role != "watchdog")
                    for role in ("cell", "warm"):
                        self._moment(stack, rng, finding, role=role, how=rng.choice(["TERM", "STOP"]), patient=False)
                    for point in QUICK_POINTS:
                        self._point(stack, rng, finding, point)
                    self._moment(stack, rng, finding, role="supervisord", how="KILL", patient=True)
            case "moments":
                with self._stack(folder, LONG, finding) as stack:
                    if one.arguments["long"]:
                        for role in ("watchdog", "daemon"):
                            self._long_stop(stack, finding, role)
                    for _ in range(MOMENTS):
                        self._moment(stack, rng, finding)
            case "points":
                mine = [each for each in self._scouted(folder) if _part(each) == one.arguments["part"]]
                with self._stack(folder, SHORT, finding) as stack:
                    for point in mine:
                        self._point(stack, rng, finding, point)
                used = finding.counts.get("named points used", 0)
                finding.expect(2 * used > len(mine), f"only {used} of {len(mine)} named points came by: {mine}")
            case "act":
                with self._stack(folder, SHORT, finding) as stack:
                    self._act(stack, finding, one.arguments["point"])
        return finding

    @contextmanager
    def _stack(self, folder: Path, shape: Shape, finding: Finding) -> Iterator[Stack]:
        """A stack that works; at the end all that was promised is looked at."""
        if shape not in self._expected:
            self._expected[shape] = undisturbed(shape, folder / "quiet")
        stack = Stack(folder, shape, self._expected[shape])
        try:
            stack.feed()
            stack.up()
            yield stack
            settle(stack, finding)
        finally:
            stack.end()

    # -- random moments ---------------------------------------------------------------------------------------

    def _moment(
        self,
        stack: Stack,
        rng: Random,
        finding: Finding,
        *,
        role: str | None = None,
        how: str | None = None,
        patient: bool | None = None,
    ) -> None:
        """Interrupt somebody; patient: then wait until he works again, and note how long that took."""
        role = role or rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        how = how or rng.choices([*HOW], [*HOW.values()])[0]
        stop_s, pause_s = rng.uniform(0.2, 2.0), rng.uniform(0.0, 0.5)
        patient = rng.random() < 0.5 if patient is None else patient
        which = rng.random()
        if stack.hungry():
            stack.feed()
        until_s = time.monotonic() + _RECOVERED_WITHIN_S
        while not (alive := stack.victims(role)):
            if stack.hungry():
                stack.feed()
            stack.wait(0.02)
            if time.monotonic() > until_s:
                raise Violation(f"no {role} for {_RECOVERED_WITHIN_S:g} s, although there is work: {stack.told()}")
        made = stack.interrupt(alive[int(which * len(alive))], how, stop_s=stop_s)
        _count(finding, made)
        if role == "supervisord" and how != "STOP":
            stack.wait(min(pause_s, 0.3))
            stack.up()
        if patient and how == "KILL":
            _await(stack, made, finding)
        else:
            stack.wait(pause_s)

    def _long_stop(self, stack: Stack, finding: Finding, role: str) -> None:
        """Stopped for good: the other one of the two ends it, and supervisord starts another."""
        (victim,) = _sure(stack, role)
        made = stack.interrupt(victim, "STOP", stop_s=2 * _SILENT_ENDS_S)
        _count(finding, made, "stops that are called silence")
        _await_no_hang(stack, victim, made, finding)
        _sure(stack, role)

    # -- named points -----------------------------------------------------------------------------------------

    def _scouted(self, folder: Path) -> list[Point]:
        """All points that a run passes in which everybody is interrupted once, and once within a write."""
        if not self._points:
            finding, rng = Finding(), Random(0)
            with self._stack(folder / "scout", SHORT, finding) as stack:
                stack.points.arm("cell", "write.transcript.within", times=20)
                for role in ("cell", "command", "warm", "watchdog", "daemon"):
                    self._moment(stack, rng, finding, role=role, how="KILL", patient=True)
            found = stack.points.points()
            self._points = sorted(each for each in found if each[0] != "cli" or each[1].startswith("commit."))
        return self._points

    def _point(self, stack: Stack, rng: Random, finding: Finding, point: Point) -> None:
        """Have one point used; help it come about where it does not by itself."""
        role, name = point
        how = rng.choices(["KILL", "TERM", "STOP"], [8, 1, 1])[0]
        times, stop_s = rng.randint(1, 3) if _is_frequent(point) else 1, rng.uniform(0.2, 1.0)
        tears = stack.points.arm("cell", "write.transcript.within", times=3) if _of_a_torn_line(name) else None
        armed = stack.points.arm(role, name, times=times, signal=how)
        helpers = _helpers(point)
        began_s, helped_s, helped = time.monotonic(), time.monotonic(), 0
        while (struck := stack.points.struck().get(armed)) is None:
            now_s = time.monotonic()
            if now_s - began_s > _POINT_WITHIN_S:
                finding.count("named points that did not come by a second time")  # the scout met them by chance
                break
            if tears is not None and tears in (found := stack.points.struck()):
                _count(finding, stack.strike(found[tears], "KILL"))
                tears = stack.points.arm("cell", "write.transcript.within", times=3)
            if stack.hungry():
                stack.feed()
            if now_s - helped_s > (_HELP_S if helped else 0.1 if helpers[0] != "" else _HELP_S):
                who = helpers[helped % len(helpers)]
                helped, helped_s = helped + 1, now_s
                if helped > 1 and times > 1:  # it comes by so seldom that the first time has to do
                    stack.points.disarm(armed)
                    times, armed = 1, stack.points.arm(role, name, signal=how)
                if who in ("", "cells"):
                    stack.feed()
                for other in stack.victims(who)[:1] if who in VICTIMS else []:
                    _count(finding, stack.interrupt(other, "TERM" if name.startswith("signal.15") else "KILL"))
            stack.heal()
            stack.wait(0.02)
        if struck is not None:
            _count(finding, stack.strike(struck, how, stop_s=stop_s), "named points used")
        if tears is not None and tears in (found := stack.points.struck()):
            _count(finding, stack.strike(found[tears], "KILL"))
        stack.points.disarm()
        stack.wait(rng.uniform(0.0, 0.3))
        stack.heal()

    def _act(self, stack: Stack, finding: Finding, point: str) -> None:
        """A daemon is stopped for good, and the watchdog that has to end it is killed at `point`: its successor lets go
        of whom it finds stopped, or ends it."""
        armed = stack.points.arm("watchdog", point)
        (daemon,) = _sure(stack, "daemon")
        made = stack.interrupt(daemon, "STOP", stop_s=4 * _SILENT_ENDS_S)
        _count(finding, made, "stops that are called silence")
        until_s = time.monotonic() + _SILENT_ENDS_S
        while (struck := stack.points.struck().get(armed)) is None:
            if time.monotonic() > until_s:
                raise Violation(f"the watchdog did not come to {point}: {stack.told()}")
            stack.wait(0.1)
        _count(finding, stack.strike(struck, "KILL"), "named points used")
        stack.points.disarm()
        _await_no_hang(stack, daemon, made, finding)


def _await_no_hang(stack: Stack, victim: Victim, made: Interruption, finding: Finding) -> None:
    """Until somebody has ended, or let go of, one that was stopped for good."""
    until_s = time.monotonic() + _SILENT_ENDS_S
    while procfs.stopped(victim.pid) and not victim.ends(0.1):
        if time.monotonic() > until_s:
            raise Violation(f"a {victim.role} hangs for {_SILENT_ENDS_S:g} s and nobody ends it: {stack.told()}")
    finding.took(f"end of the hang of a {victim.role}", time.monotonic() - made.at_s)


def _helpers(point: Point) -> tuple[str, ...]:
    """Whose end, by turns, brings a point about ("cells": new ones); "" = it comes by itself before long."""
    role, name = point
    if role in ("supervisord", "program"):
        return ("watchdog", "daemon")
    if role in ("cli", "runner", "command"):
        return ("cells",)
    if name.startswith(("commit.recover", "mkdir.")) and role == "daemon":
        return ("cells", "daemon") if name.startswith("mkdir.") else ("daemon",)
    if name.startswith("signal.15"):
        return ("daemon",)
    if name.startswith(("spawn.", "tell.load", "reap.server", "signal.")):
        return ("warm",)
    if name.startswith(("replay.", "settle.", "gate.")):
        return ("cell",)
    return ("", "cell", "warm", "daemon")


def _is_frequent(point: Point) -> bool:
    """Does it come by several times a second?"""
    role, name = point
    own = (
        name.startswith(("commit.claim", "commit.finish", "tell.go", "tell.fork", "reap.cell"))
        or "registration" in name
    )
    return own or (role in ("cell", "runner", "warm") and not _of_a_torn_line(name) and "load" not in name)


def _of_a_torn_line(name: str) -> bool:
    return ".cut." in name or name.startswith("ftruncate.")


def _part(point: Point) -> int:
    return zlib.crc32(" ".join(point).encode()) % POINT_ROUNDS + 1


def _sure(stack: Stack, role: str) -> list[Victim]:
    until_s = time.monotonic() + 30.0
    while not (found := stack.victims(role)):
        if time.monotonic() > until_s:
            raise Violation(f"no {role}: {stack.told()}")
        stack.wait(0.05)
    return found[:1]


def _count(finding: Finding, made: Interruption, also: str = "") -> None:
    finding.count("interruptions")
    finding.count(f"of {made.role}" if made.role in VICTIMS else "of others, at points")
    if also:
        finding.count(also)


def _await(stack: Stack, made: Interruption, finding: Finding) -> None:
    """Until the victim works again. A cell that had nothing left to do does not."""
    until_s = time.monotonic() + _RECOVERED_WITHIN_S
    while (at_s := stack.recovered_s(made)) is None:
        if made.role in ("cell", "command") and stack.is_done(made.label):
            return
        if stack.hungry():
            stack.feed()
        if time.monotonic() > until_s:
            raise Violation(f"a killed {made.role} {made.label} did not recover: {stack.told()}")
        stack.wait(0.02)
    finding.took(f"recovery of a {made.role}", at_s - made.at_s)

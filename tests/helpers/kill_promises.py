"""What is looked at when the interruptions of a stack are over: every promise, and how exactly it is counted."""

from __future__ import annotations

import itertools
import time
from collections import Counter

from campaigns.base import Finding, Violation
from helpers.kill_shapes import results
from helpers.kill_stack import Stack
from helpers.queue_checks import assert_sound

ENDED_WITHIN_S = 180.0
"""Cells that were interrupted three times in a row may have to wait for up to a minute, and so again."""
_NEAR_S = 3.0
"""An orderly stop takes a moment, and whoever is being started is hit as well."""


def settle(stack: Stack, finding: Finding) -> None:
    """The end of a round: everything that was promised."""
    stack.points.disarm()
    stack.go_on(all_of_them=True)
    began_s = time.monotonic()
    while {"pending", "running"} & stack.home.statuses().keys():
        stack.heal()
        stack.wait(0.05)
        if time.monotonic() - began_s > ENDED_WITHIN_S:
            raise Violation(f"stuck for {ENDED_WITHIN_S:g} s: {stack.told()}")
    stack.look()
    cells = stack.home.cells()
    for cell in cells:
        label = f"{cell['grid']}/{cell['key']}"
        good = (str(cell["status"]), cell["tries_used"]) == ("done", 0)
        finding.expect(good, f"{label}: {cell['status']}, {cell['tries_used']} tries used: {cell['reason']}")
    found = results(stack.home)
    for cell in cells:
        label = f"{cell['grid']}/{cell['key']}"
        same = found.get(label) == stack.expected[cell["key"]]
        finding.expect(same, f"{label}: its bytes are not those of an undisturbed run")
    verified = stack.home("verify", code=None)
    finding.expect(
        "0 with a problem" in verified.stdout, f"verify: {verified.stdout.strip()} {verified.stderr.strip()}"
    )
    finding.violations += out_of_order(stack)
    again, allowed = done_again(stack), allowed_again(stack)
    for label, times in sorted(again.items()):
        most = allowed.get(label, 0)
        finding.expect(times <= most, f"{label}: {times} turns were done again, with {most} interruptions of it")
    stack.home("down", code=None, env=stack.points.environment())
    left_s = time.monotonic()
    while (left := stack.left()) and time.monotonic() - left_s < 5.0:
        time.sleep(0.05)
    finding.expect(not left, f"left after `overnight down`: {left}")
    try:
        assert_sound(stack.home.paths.queue)
    except AssertionError as error:
        finding.violations.append(f"the queue is not sound: {error}")
    finding.count("cells", len(cells))
    finding.count("turns done again", sum(again.values()))


def done_again(stack: Stack) -> dict[str, int]:
    """GRID/CELL -> turns (or a command's steps) that began more often than once."""
    return {label: sum(times - 1 for times in Counter(turns).values()) for label, turns in _sequences(stack).items()}


def out_of_order(stack: Stack) -> list[str]:
    """An attempt begins with the turn that the one before was at, or with the one after it: never further back."""
    found = []
    for label, turns in _sequences(stack).items():
        for before, turn in itertools.pairwise([0, *turns]):
            if turn not in (before, before + 1):
                found.append(f"{label}: turn {turn} began after turn {before}: {turns}")
    return found


def _sequences(stack: Stack) -> dict[str, list[int]]:
    """GRID/CELL -> its turns or steps in the order in which they began."""
    found: dict[str, list[int]] = {}
    for one in stack.points.trace():
        if one.kind == "B":
            found.setdefault(one.what, []).append(one.number)
    for path in stack.home.paths.results.glob("*/*/checkpoint/begun"):
        found["/".join(path.parts[-4:-2])] = [int(step) for step in path.read_text().split()]
    return found


def allowed_again(stack: Stack) -> dict[str, int]:
    """GRID/CELL -> how often at most a turn of it may have had to be done again: interruptions of it, and of what it
    depends on, while it ran."""
    lives: dict[str, dict[int, list[float]]] = {}
    for one in stack.points.trace():
        if one.kind in "BR":
            lives.setdefault(one.what, {}).setdefault(one.pid, []).append(one.monotonic_s)
    allowed = {}
    for label, each in lives.items():
        is_command = label.startswith("work")  # of its steps the trace knows nothing
        spans = [
            (times[0] - _NEAR_S, times[-1] + (ENDED_WITHIN_S if is_command else _NEAR_S)) for times in each.values()
        ]
        allowed[label] = sum(
            one.hits == label or (one.hits == "-" and any(first <= one.at_s <= last for first, last in spans))
            for one in stack.interruptions
        )
    return allowed

"""`limits.stop_early: N`: a cell ends when N turns of its conversation have repeated what was said before.

The decision is a pure function of the turns: who resumes hears them all again, and stops at the same one. What judges
them is code that may learn; its revision is among the conditions of the transcript, as the engine's versions are, so
that no conversation is judged by two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

END_REASON = "collapsed"
_CONDITION = "stop_early"


class StopEarly:
    """Hears each reply, in order. `reached`: the last one was the end."""

    def __init__(self, turns: int) -> None:
        from overnight.analysis.online import OnlineDetector  # not in cells that do not ask for it

        self._detector = OnlineDetector(patience=turns)
        self.reached = False

    def hear(self, reply: str) -> None:
        """O(window), however long the conversation. What was thought and not said does not count."""
        self.reached = self._detector.add(reply) is not None


def of_limits(limits: Mapping[str, Any]) -> StopEarly | None:
    """None for a cell that goes on to its end, whatever it says."""
    turns = limits.get("stop_early")
    return None if turns is None else StopEarly(turns)


def conditions(limits: Mapping[str, Any]) -> dict[str, Any]:
    """What the decision depends on besides the turns: nothing for cells that do not ask for it, whose transcripts stay
    what they were."""
    if limits.get("stop_early") is None:
        return {}
    from overnight.analysis.online import REVISION

    return {_CONDITION: {"detector": "online", "revision": REVISION}}


def judged_alike(recorded: Mapping[str, Any], limits: Mapping[str, Any]) -> bool:
    """Would the code of today decide as the one that these recorded conditions name?"""
    return conditions(limits).get(_CONDITION) == recorded.get(_CONDITION)

"""var/run/verdicts.ring: what the watchdog wrote down before it signalled. Read when a process has ended.

64 slots of 1024 bytes, each one record or empty. A slot that is torn, damaged or of another boot says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight import figures
from overnight.checked import number, read_small, rounded, text, whole
from overnight.dispatch import records
from overnight.line import one_line

SLOT_BYTES = 1024
_TAKES_OUT = ("evict", "kill")
_LAST = 2**53
"""The watchdog goes on behind sequences below this."""


@dataclass(frozen=True)
class Eviction:
    """One record. warm: it names the warm server, and the cell went with it.

    step: evict (SIGTERM) or kill (SIGKILL). trigger: headroom, forecast, thrash, grace_over, leak or silent.
    slope_bytes_per_s: how fast the headroom went away; exhaustion_s: seconds until it would have been gone; both None
    when unknown. own_bytes: what the process alone held. loss_s: estimated seconds of work that are lost.
    """

    step: str
    trigger: str
    level: str
    limit_bytes: int
    limit_source: str
    headroom_bytes: int
    slope_bytes_per_s: int | None
    exhaustion_s: float | None
    own_bytes: int
    peak_bytes: int
    loss_s: float
    warm: bool = False

    @property
    def reason_code(self) -> str:
        return "thrashing" if self.trigger == "thrash" else "memory_pressure"

    def sentence(self) -> str:
        """Why, with the figures, for people."""
        whom = "out its warm server, and the cell with it" if self.warm else "it out"
        why = {
            "thrash": ", since memory in use was read from the disk again and again",
            "grace_over": " by force, since it did not leave when asked to",
        }.get(self.trigger, "")
        where = self.limit_source.removeprefix("cgroup:")
        left = f"{figures.size(self.headroom_bytes)} of {figures.size(self.limit_bytes)} ({where}) were left"
        if self.slope_bytes_per_s is not None and self.slope_bytes_per_s > 0:
            left += f" and going at {figures.size(self.slope_bytes_per_s)}/s"
        if self.exhaustion_s is not None:
            left += f", gone in {figures.duration(self.exhaustion_s)}"
        holder = "the server" if self.warm else "it"
        held = f"{holder} held {figures.size(self.own_bytes)} alone"
        return f"the watchdog took {whom}{why}: {left}; {held}, and {figures.duration(self.loss_s)} of work were lost"

    def evidence(self) -> dict[str, Any]:
        """The record's figures, for the queue and the log (whose `level` is its own)."""
        return {
            "step": self.step,
            "trigger": self.trigger,
            "pressure": self.level,
            "limit_bytes": self.limit_bytes,
            "limit_source": self.limit_source,
            "headroom_bytes": self.headroom_bytes,
            "slope_bytes_per_s": self.slope_bytes_per_s,
            "exhaustion_s": self.exhaustion_s,
            "own_bytes": self.own_bytes,
            "peak_bytes": self.peak_bytes,
            "loss_s": self.loss_s,
            "warm_server": self.warm,
        }


def read(path: Path, pid: int, start_ticks: int, *, warm: bool = False) -> Eviction | None:
    """The newest record of this boot that says that this very process was taken out; None when there is none."""
    try:
        data = read_small(path)
    except OSError:
        return None
    newest: dict[str, Any] | None = None
    for start in range(0, len(data), SLOT_BYTES):
        slot = data[start : start + SLOT_BYTES].strip(b" \n\0")
        record = records.whole(slot) if slot else None
        if record is None or (record.get("pid"), record.get("start_ticks")) != (pid, start_ticks):
            continue
        sequence = record.get("sequence")
        if record.get("step") not in _TAKES_OUT or type(sequence) is not int or not 0 <= sequence < _LAST:
            continue
        if newest is None or record["sequence"] > newest["sequence"]:
            newest = record
    return None if newest is None else _eviction(newest, warm)


def _eviction(record: dict[str, Any], warm: bool) -> Eviction | None:
    slope, exhaustion = record.get("slope_bytes_per_s"), record.get("exhaustion_s")
    try:
        return Eviction(
            step=text(record["step"]),
            trigger=text(record["trigger"], 64),
            level=text(record["level"], 64),
            limit_bytes=whole(record["limit_bytes"]),
            limit_source=one_line(str(record["limit_source"])[:200]),
            headroom_bytes=whole(record["headroom_bytes"]),
            slope_bytes_per_s=None if slope is None else rounded(slope),
            exhaustion_s=None if exhaustion is None else number(exhaustion),
            own_bytes=whole(record["own_bytes"]),
            peak_bytes=whole(record["peak_bytes"]),
            loss_s=number(record["loss_s"]),
            warm=warm,
        )
    except (KeyError, ValueError):
        return None

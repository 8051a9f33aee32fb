"""When to look again. Pure.

The sleep ends when half of the headroom above the kill level could be gone at the fastest credible rate, then after
half of the rest, ...; and not later than when the next level is reached at the present rate.
"""

from __future__ import annotations

from overnight_watchdog.assess import LADDER, Thresholds, entry_bytes

SHORTEST_S = 0.01
BUSY_S = 2.0
"""The longest sleep while anybody runs: the dispatcher admits by these figures."""
FROZEN_S = 0.1
"""The longest sleep while somebody is frozen: a lease is kept to the tenth."""
FILL_BYTES_PER_S = 2 * 2**30
"""The fastest credible fill rate. *Measured*: one thread touches 1.2 to 1.8 GiB of new memory a second."""
PATIENCE = 0.5


def pause_s(
    headroom_bytes: int, limit_bytes: int, slope_bytes_per_s: float | None, thresholds: Thresholds, *, frozen: bool
) -> float:
    """Seconds to sleep while somebody runs. headroom_bytes: the firm one. slope: None = unknown."""
    slope = slope_bytes_per_s or 0.0
    entries = [entry_bytes(level, limit_bytes, thresholds, falling=True) for level in LADDER]
    pause = PATIENCE * (headroom_bytes - entries[-1]) / max(float(FILL_BYTES_PER_S), 2 * slope)
    if slope > 0:
        next_level = max((entry for entry in entries if entry < headroom_bytes), default=headroom_bytes)
        pause = min(pause, (headroom_bytes - next_level) / slope)
    if frozen:
        pause = min(pause, FROZEN_S)
    return min(BUSY_S, max(SHORTEST_S, pause))

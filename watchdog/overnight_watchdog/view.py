"""`overnight-watchdog --once`: what is seen now, and who would be taken out first. Touches nobody and leaves nothing:
what may be done is tried with a cgroup that is removed again, and a score that is put back."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overnight_watchdog.gauges import Eye, MachineGauge
from overnight_watchdog.limits import CgroupFolder, memory_cgroups
from overnight_watchdog.loop import Watchdog
from overnight_watchdog.plain import plain
from overnight_watchdog.sample import left_bytes
from overnight_watchdog.survive import abilities

_LOOKS, _BETWEEN_S = 6, 0.06
"""A forecast needs some looks."""


def collect(watchdog: Watchdog, eye: Eye) -> dict[str, Any]:
    """Everything that `--once` shows, as JSON values. Raises SampleError when nothing can be seen."""
    eye.look()
    for number in range(_LOOKS):
        watchdog.observe()  # not a step: who would be taken out in a dry run is no victim any more
        if number < _LOOKS - 1:
            time.sleep(_BETWEEN_S)
    seen = watchdog.look_now()
    assert seen is not None  # noqa: S101 - the first look would have raised
    sample = seen.sample
    cgroups = memory_cgroups()
    counters = any((folder.path / "memory.stat").exists() for folder in cgroups)
    return {
        "level": seen.level.label,
        **seen.numbers(),
        "slow_bytes": sample.slow_bytes,
        "swap_bytes": MachineGauge().meminfo().get("SwapTotal", 0),
        "bounds": [
            {
                "source": source,
                "limit_bytes": limit,
                "usage_bytes": usage.usage_bytes,
                "headroom_bytes": left_bytes(limit, usage),
                "firm_headroom_bytes": left_bytes(limit, usage, firm=True),
            }
            for source, limit, usage in eye.measured()
        ],
        "victims": [
            {
                "pid": each.pid,
                "role": each.role,
                "cell": guarded.cell,
                "own_bytes": each.own_bytes,
                "loss_s": round(each.loss_s, 1),
                "slope_bytes_per_s": round(each.slope_bytes_per_s),
                "shrinks": each.shrinks,
            }
            for each, guarded in watchdog.victims()
        ],
        "acts": True,
        "abilities": {
            name: asdict(ability)
            for name, ability in abilities(cgroup_parent=_budget_parent(cgroups), counters=counters).items()
        },
    }


def _budget_parent(cgroups: tuple[CgroupFolder, ...]) -> Path | None:
    """Where the daemon makes the budget's cgroup: in its own one on v1; beside it on v2, where a group with processes
    of its own cannot limit others."""
    with_memory = [folder for folder in cgroups if (folder.path / "memory.stat").exists()]
    if not with_memory:
        return None
    beside = with_memory[0].kind == "cgroup2" and len(with_memory) > 1
    return with_memory[1 if beside else 0].path


def show(view: dict[str, Any]) -> None:
    """For people: what bounds us, how it stands, who would go first."""
    for name in ("limit", "usage", "headroom"):
        source = view.get(f"{name}_source")
        print(f"{name:<10}{view[f'{name}_bytes'] / 2**20:>12.1f} MiB" + (f"  {plain(source)}" if source else ""))
    if view["slow_bytes"]:
        print(f"{'of usage':<10}{view['slow_bytes'] / 2**20:>12.1f} MiB  mapped or not yet written, not lost for good")
    print(f"{'level':<10}{view['level']:>12}")
    if view["exhaustion_s"] is not None:
        print(f"{'forecast':<10}{view['exhaustion_s']:>12.1f} s    until it is full")
    for bound in view["bounds"]:
        left = bound["headroom_bytes"] / 2**20
        print(f"{'bound':<10}{bound['limit_bytes'] / 2**20:>12.1f} MiB  {plain(bound['source'])}, {left:.1f} MiB left")
    for number, victim in enumerate(view["victims"], 1):
        name = plain(victim["cell"] or victim["role"])
        print(
            f"{f'victim {number}':<10}{victim['own_bytes'] / 2**20:>12.1f} MiB  {name} (pid {victim['pid']}), "
            f"{victim['loss_s']:.1f} s of work would be lost"
        )
    lacking = {name: each["detail"] for name, each in view["abilities"].items() if not each["ok"]}
    for name, detail in lacking.items():
        print(f"{'lacks':<10}{name}: {detail}")


def print_view(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(view))
    else:
        show(view)

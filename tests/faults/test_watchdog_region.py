"""The rates and limits that can be survived, measured, with processes that may be frozen first and that may not.

A leak is inside the region when its headroom at the breach lasts longer than sample + kill + reap, each taken as the
99th percentile of all runs below the same limit in this very campaign (of so few runs: their largest; tearing down
8 GiB takes ten times as long as 512 MiB). Inside, the kernel's OOM killer must not have
struck once; what happened outside is printed all the same. The table goes to var/prove/watchdog.json too.

The way to the interesting part is not waited for: each leak begins with a quick prefill, which is there before the
watchdog looks, and ramps from there for at most RAMP_S seconds until the breach.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.arena import GIB, MIB, Arena, Workload, hold_on
from helpers.memory_cgroup import Unavailable
from helpers.ramp import Ramp, percentile, run_ramp

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.alone]

RATES_MIB_S = (10, 50, 200, 500, 1024)
LIMITS = (128 * MIB, 512 * MIB, 2 * GIB, 8 * GIB)
"""The smallest is there to show the edge."""
PREFILL_SHARE = 0.7
RAMP_S = 40.0
OURS_BYTES = 40 * MIB
"""The interpreters of leak and watchdog, which are charged too."""

FLAT_S = 600.0


def prefill(rate_mib_s: float, limit_bytes: int) -> int:
    """70 % of the limit, or more where the ramp from there to 90 % would take longer than RAMP_S."""
    shortest = int(limit_bytes * 0.9 - rate_mib_s * MIB * RAMP_S)
    return max(int(limit_bytes * PREFILL_SHARE), shortest) - OURS_BYTES


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Arena, Workload, float]]:
    """A flat 88 % beside the whole campaign, in a cgroup and with a watchdog of its own; and when it began."""
    with ExitStack() as stack:
        try:
            arena = stack.enter_context(Arena.made(512 * MIB, tmp_path_factory.mktemp("flat") / "h"))
        except Unavailable as reason:
            pytest.skip(str(reason))
        workload = arena.leak("--prefill", int(0.88 * 512 * MIB) - 30 * MIB, "plateau", 0)
        arena.watch()
        workload.go()
        yield arena, workload, time.monotonic()


@pytest.fixture(scope="module")
def campaign(flat: object, tmp_path_factory: pytest.TempPathFactory) -> list[Ramp]:
    """Every point, one after another; the figures of each are printed as they come."""
    needed = max(LIMITS)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit in LIMITS if limit < 0.8 * available]
    if needed not in limits:
        print(f"\nonly {available / GIB:.1f} GiB are free: limits above that are left out")
    rows = []
    for limit in limits:
        for rate in RATES_MIB_S:
            for freezes in (False, True):
                home = tmp_path_factory.mktemp("ramp") / "h"
                with Arena.made(limit, home) as arena:
                    ramp = run_ramp(arena, rate, prefill_bytes=prefill(rate, limit), freezes=freezes)
                print(f"\n{line(ramp)}", end="", flush=True)
                rows.append(ramp)
    return rows


def terms(rows: list[Ramp]) -> dict[int, dict[str, float]]:
    """p99 of sample, kill and reap in seconds, by limit, over all runs in which the watchdog decided."""
    found: dict[int, dict[str, float]] = {}
    for limit in sorted({ramp.limit_bytes for ramp in rows}):
        found[limit] = {}
        for name in ("sample_s", "kill_s", "reap_s"):
            values = [
                value for ramp in rows if ramp.limit_bytes == limit and (value := getattr(ramp, name)) is not None
            ]
            assert values, f"not one decision below {limit / GIB:.1f} GiB"
            found[limit][name] = percentile(values, 0.99)
    return found


def lasts_s(ramp: Ramp) -> float:
    """How long the headroom at the breach lasts at this rate, asked for or reached, whichever is higher."""
    return ramp.headroom_bytes / MIB / max(ramp.rate_mib_s, ramp.measured_mib_s)


def test_nobody_meets_the_oom_killer_inside_the_survivable_region(campaign: list[Ramp], repository: Path) -> None:
    taken = terms(campaign)
    needed_s = {limit: sum(found.values()) for limit, found in taken.items()}
    inside = {id(ramp): lasts_s(ramp) > needed_s[ramp.limit_bytes] for ramp in campaign}
    print("\n\n" + table(campaign, inside, taken))
    record = {
        "v": 1,
        "campaign": "watchdog",
        "p99": {str(limit): {name: round(value, 4) for name, value in found.items()} for limit, found in taken.items()},
        "points": [
            ramp.record() | {"lasts_s": round(lasts_s(ramp), 4), "inside": inside[id(ramp)], "survived": ramp.survived}
            for ramp in campaign
        ],
    }
    write(repository / "var" / "prove" / "watchdog.json", record)
    died = [ramp for ramp in campaign if inside[id(ramp)] and not ramp.survived]
    assert not died, f"the kernel killed inside the region ({needed_s}): {died}"
    assert any(inside.values()), "an empty region proves nothing"


def test_200_mib_a_second_in_2_gib_survive_in_any_case(campaign: list[Ramp]) -> None:
    points = [ramp for ramp in campaign if (ramp.rate_mib_s, ramp.limit_bytes) == (200, 2 * GIB)]
    assert points and all(ramp.survived for ramp in points), points


def test_a_flat_88_percent_is_left_alone_for_ten_minutes(
    campaign: list[Ramp], flat: tuple[Arena, Workload, float]
) -> None:
    arena, workload, began_s = flat
    hold_on(workload.alive, max(0.0, FLAT_S - (time.monotonic() - began_s)), arena.acts)
    assert 0.86 < arena.cgroup.firm_bytes() / arena.cgroup.limit_bytes < 0.9
    assert workload.alive() and not workload.stopped()
    assert arena.verdicts() == [] and arena.events("frozen", "evicted", "killed", "thrashing") == []
    assert arena.cgroup.oom_kills() == 0


def line(ramp: Ramp) -> str:
    def ms(value: float | None) -> str:
        return "     -" if value is None else f"{value * 1000:6.0f}"

    return (
        f"{ramp.limit_bytes / GIB:4.1f} GiB {ramp.rate_mib_s:5.0f} MiB/s ({ramp.measured_mib_s:6.1f})"
        f"{' freezes' if ramp.freezes else '        '}"
        f"  lasts {lasts_s(ramp) * 1000:7.0f} ms  frozen{ms(ramp.frozen_s)}  decided{ms(ramp.decided_s)}"
        f"  ended{ms(ramp.ended_s)}  gone{ms(ramp.gone_s)} ms"
        f"  least headroom {ramp.least_headroom_bytes / MIB:6.1f} MiB"
        f"  {'+'.join(ramp.steps) or 'nothing'} ({','.join(dict.fromkeys(ramp.triggers))})"
        f"  {'survived' if ramp.survived else f'OOM kills: {ramp.oom_kills}'}"
    )


def table(rows: list[Ramp], inside: dict[int, bool], taken: dict[int, dict[str, float]]) -> str:
    """One row a rate, one column a limit: `in` or `out` of the region, and how many of its runs survived."""
    limits = sorted({ramp.limit_bytes for ramp in rows})
    text = ["the survivable region: headroom at the breach (10 %) lasts longer than sample + kill + reap (p99, ms)"]
    text.append(f"{'MiB/s':>8}" + "".join(f"{limit / MIB:>16.0f} MiB" for limit in limits))
    parts = ("+".join(f"{value * 1000:.0f}" for value in taken[limit].values()) for limit in limits)
    text.append(f"{'':>8}" + "".join(part.rjust(20) for part in parts))
    for rate in RATES_MIB_S:
        cells = []
        for limit in limits:
            points = [ramp for ramp in rows if (ramp.rate_mib_s, ramp.limit_bytes) == (rate, limit)]
            where = "in " if all(inside[id(ramp)] for ramp in points) else "out"
            cells.append(f"{where} {sum(ramp.survived for ramp in points)}/{len(points)} survive".rjust(20))
        text.append(f"{rate:>8}" + "".join(cells))
    return "\n".join(text)


def write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")

"""Runs the rounds of a campaign that its report does not hold yet."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from campaigns.base import Campaign, Finding, Violation
from campaigns.report import Report


def run(
    campaign: Campaign,
    report: Report,
    seed: int,
    folder: Path,
    *,
    quick: bool,
    tell: Callable[[str], None] = lambda line: None,
) -> Finding:
    """Whatever a round raises is a violation of that round, with where it was raised; the others are run anyway."""
    rounds = campaign.rounds(seed, quick=quick)
    if len({one.key for one in rounds}) != len(rounds):
        raise ValueError(f"{campaign.name}: two rounds have the same key")
    report.planned = len(rounds)
    left = [one for one in rounds if one.key not in report.rounds]
    if len(left) < len(rounds):
        tell(f"{campaign.name}: {len(rounds) - len(left)} of {len(rounds)} rounds are there already")
    for number, one in enumerate(left, len(rounds) - len(left) + 1):
        place = folder / f"r{number}"
        place.mkdir()
        began_s = time.monotonic()
        try:
            finding = campaign.run(one, place)
        except Violation as error:
            finding = Finding(violations=[str(error)])
        except Exception as error:  # noqa: BLE001 - the campaign goes on, and fails at its end
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            finding = Finding(violations=[" ".join(text.split())[:2000]])
        finding.violations = [f"{one.key} (seed {seed}): {sentence}" for sentence in finding.violations]
        took_s = time.monotonic() - began_s
        report.record(one.key, finding, took_s)
        shutil.rmtree(place, ignore_errors=True)
        broken = f", {len(finding.violations)} BROKEN" if finding.violations else ""
        tell(f"{campaign.name}: {number} of {len(rounds)}: {one.key}: {took_s:.1f} s{broken}")
    report.write()
    return report.total()

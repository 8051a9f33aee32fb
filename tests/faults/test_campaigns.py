"""A little of every campaign, in every run of the tests; `make prove` runs them whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from campaigns import runner
from campaigns.base import Campaign
from campaigns.catalogue import CAMPAIGNS
from campaigns.report import Report

SEED = 1


EACH = [
    pytest.param(campaign, id=campaign.name, marks=[pytest.mark.alone] if campaign.alone else [])
    for campaign in CAMPAIGNS
    if not campaign.instead
]


@pytest.mark.parametrize("campaign", EACH)
def test_no_promise_is_broken(campaign: Campaign, tmp_path: Path) -> None:
    if (why := campaign.missing()) is not None:
        pytest.skip(why)
    report = Report(tmp_path / "report.json", campaign, SEED, quick=True)
    found = runner.run(campaign, report, SEED, tmp_path, quick=True)
    assert not found.violations, "\n".join(found.violations)
    assert sum(found.counts.values()) > 0, "it counted nothing: it tried nothing"
    assert json.loads(report.path.read_bytes())["finished_rounds"] == report.planned > 0


def test_what_is_not_run_here_is_tried_by_a_test_that_is_there(repository: Path) -> None:
    for campaign in CAMPAIGNS:
        if campaign.instead:
            file, _, name = campaign.instead.partition("::")
            assert f"def {name}(" in (repository / file).read_text(), campaign.name

"""docs/guarantees.md says nothing that no test tries, and its table is what the last whole run gave."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from campaigns import table
from campaigns.__main__ import PUBLISHED
from campaigns.catalogue import CAMPAIGNS

KNOWN = {campaign.name: campaign for campaign in CAMPAIGNS}


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "guarantees.md").read_text()


@pytest.fixture
def promises(page: str) -> dict[str, list[str]]:
    """Number -> what tries to break it."""
    rows = re.findall(r"^\| (\d+) \| \*\*.*\| ([^|]*) \|$", page, re.MULTILINE)
    return {number: re.findall(r"`([^`]+)`", tried) for number, tried in rows}


@pytest.fixture
def published() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(PUBLISHED.read_text())
    return found


def test_every_promise_is_tried_by_something_that_is_there(promises: dict[str, list[str]], repository: Path) -> None:
    assert list(promises) == [str(number) for number in range(1, len(promises) + 1)]
    for number, proofs in promises.items():
        assert proofs, f"nothing tries promise {number}"
        for proof in proofs:
            assert proof in KNOWN or (repository / proof).is_file(), f"promise {number}: no {proof}"


def test_a_campaign_stands_beside_the_promises_that_it_tries(promises: dict[str, list[str]]) -> None:
    for name, campaign in KNOWN.items():
        assert {number for number, proofs in promises.items() if name in proofs} == set(campaign.proves), name


def test_the_table_is_the_last_whole_run(page: str, published: list[dict[str, Any]]) -> None:
    assert [one["campaign"] for one in published] == list(KNOWN)
    assert table.placed(page, published) == page


def test_the_last_whole_run_was_whole_and_kept_every_promise(published: list[dict[str, Any]]) -> None:
    for one in published:
        assert (one["quick"], one["violations"]) == (False, []), one["campaign"]
        assert one["finished_rounds"] == one["planned_rounds"] > 0
        assert sum(one["counts"].values()) > 0
        assert not one["code"].endswith("+changes"), "it was made by code that is in no commit"


def test_each_was_planned_as_it_is_planned_now(published: list[dict[str, Any]]) -> None:
    for one in published:
        rounds = KNOWN[one["campaign"]].rounds(one["seed"], quick=False)
        assert len(rounds) == one["planned_rounds"], f"{one['campaign']}: run `make prove` again"
        assert one["tries"] == KNOWN[one["campaign"]].tries

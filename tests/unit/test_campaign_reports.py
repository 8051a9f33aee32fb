"""What makes a campaign believable: it goes on where it was, counts what it did, and cannot hide what broke."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from campaigns import report as reports
from campaigns import runner, table
from campaigns.base import Campaign, Finding, Round, Violation
from campaigns.report import Report


class Counting(Campaign):
    name, tries, proves = "counting", "three rounds", ("1", "4")

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken: dict[str, Exception] = {}

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        return [Round(f"round {number}", {"number": number}) for number in range(1 if quick else 3)]

    def run(self, one: Round, folder: Path) -> Finding:
        assert list(folder.iterdir()) == []
        (folder / "left").write_text("over")
        self.ran.append(one.key)
        if one.key in self.broken:
            raise self.broken[one.key]
        return Finding({"kills": one.arguments["number"]}, {"recovery": [1.0, 2.0 + one.arguments["number"]]})


@pytest.fixture
def campaign() -> Counting:
    return Counting()


def whole(campaign: Counting, folder: Path, *, seed: int = 1, quick: bool = False, fresh: bool = False) -> Report:
    found = Report(folder / "var" / "counting.json", campaign, seed, quick=quick, fresh=fresh)
    runner.run(campaign, found, seed, folder, quick=quick)
    return found


def test_what_was_found_is_added_up(campaign: Counting, tmp_path: Path) -> None:
    summary = whole(campaign, tmp_path).summary()
    assert summary["counts"] == {"kills": 3}
    assert summary["seconds"] == {"recovery": {"n": 6, "p50": 1.0, "p99": 4.0, "most": 4.0}}
    assert (summary["finished_rounds"], summary["planned_rounds"], summary["violations"]) == (3, 3, [])
    assert [path.name for path in tmp_path.iterdir()] == ["var"]


def test_it_goes_on_where_it_was_broken_off(campaign: Counting, tmp_path: Path) -> None:
    campaign.broken["round 1"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        whole(campaign, tmp_path)
    (tmp_path / "r2" / "left").unlink()
    (tmp_path / "r2").rmdir()
    del campaign.broken["round 1"]
    assert whole(campaign, tmp_path).summary()["counts"] == {"kills": 3}
    assert campaign.ran == ["round 0", "round 1", "round 1", "round 2"]


@pytest.mark.parametrize("change", [{"seed": 2}, {"quick": True}, {"fresh": True}])
def test_findings_of_another_run_are_not_taken_over(
    campaign: Counting, tmp_path: Path, change: dict[str, int | bool]
) -> None:
    whole(campaign, tmp_path)
    campaign.ran.clear()
    found = whole(campaign, tmp_path, **change)  # type: ignore[arg-type]
    assert len(campaign.ran) == len(found.rounds) > 0


def test_findings_of_other_code_are_not_taken_over(
    campaign: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(campaign, tmp_path)
    monkeypatch.setattr(reports, "sources", lambda: "other")
    whole(campaign, tmp_path)
    assert len(campaign.ran) == 6


def test_every_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "REPOSITORY", tmp_path)
    seen = [reports.sources()]
    for folder in reports.SOURCES:
        for content in ("a", "b"):
            (tmp_path / folder / "deep").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "deep" / "file").write_text(content)
            seen.append(reports.sources())
    assert len(set(seen)) == len(seen)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "file").write_text("a")
    assert reports.sources() == seen[-1]


@pytest.mark.parametrize("error", [Violation("a turn was lost"), RuntimeError("the\ncampaign itself")])
def test_what_breaks_is_told_and_the_others_are_run(campaign: Counting, tmp_path: Path, error: Exception) -> None:
    campaign.broken["round 1"] = error
    found = whole(campaign, tmp_path)
    assert campaign.ran == ["round 0", "round 1", "round 2"]
    (sentence,) = found.summary()["violations"]
    assert sentence.startswith("round 1 (seed 1): ")
    assert " ".join(str(error).split()) in sentence
    assert f"    {sentence}" in table.lines(found.summary())
    # ... also when it is broken off later and taken up again.
    assert whole(campaign, tmp_path).summary()["violations"] == [sentence]


def test_a_report_that_cannot_be_read_begins_anew(campaign: Counting, tmp_path: Path) -> None:
    path = whole(campaign, tmp_path).path
    path.write_bytes(path.read_bytes()[:-20])
    whole(campaign, tmp_path)
    assert len(campaign.ran) == 6


def test_the_table(campaign: Counting, tmp_path: Path) -> None:
    summary = whole(campaign, tmp_path).summary()
    page = table.placed(f"# Title\n{table.BEGIN}old\n{table.END}\nrest\n", [summary])
    assert page.startswith("# Title\n") and page.endswith("\nrest\n") and "old" not in page
    row = page.splitlines()[4]
    assert row == ("| `counting` | three rounds | 1, 4 | 3 | 3 kills | recovery: p50 1 s, p99 4 s, most 4 s | 0 | 1 |")
    assert table.placed(page, [json.loads(json.dumps(summary))]) == page
    with pytest.raises(ValueError):
        table.placed("no marks", [summary])


def test_rounds_must_differ(campaign: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "rounds", lambda seed, quick: [Round("same"), Round("same")])
    with pytest.raises(ValueError, match="the same key"):
        whole(campaign, tmp_path)


def test_many_counts_are_cut_to_the_telling_ones(campaign: Counting, tmp_path: Path) -> None:
    summary = whole(campaign, tmp_path).summary()
    summary["counts"] = {"of cell": 90, **{f"thing {number}": number for number in range(1, 9)}}
    row = table.markdown([summary]).splitlines()[2]
    assert "| 8 thing 8, 7 thing 7, 6 thing 6," in row
    assert row.count("thing") == 8
    assert "and 1 other counts" in row and "of cell" not in row

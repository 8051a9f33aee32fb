"""What a report may say: of the night as the queue has it now, with no secret, and no link to what is not there."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers import report_night, small_home
from helpers.analysis_records import record
from helpers.queue_cells import Cell
from overnight.analysis.conversation import of_grid
from overnight.analysis.jobs import Analyst
from overnight.analysis.process import jobs_of
from overnight.cli.main import main
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Queue
from overnight.report import html, overview, plots, story
from overnight.report.gather import gather

_COLLAPSED = r"(None|\d) of \d conversations? collapsed"
SECRET = 'hunter<2>"and_more_'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Small, and analysed."""
    found = small_home.build(tmp_path_factory.mktemp("built") / "h")
    analyst = Analyst(found, ["tfidf"], "absolute")
    with Queue.open(found.queue) as queue:
        for job in jobs_of(found, queue, "night"):
            assert analyst.work(job).problem == ""
    return found


@pytest.fixture
def paths(built: Paths, tmp_path: Path) -> Paths:
    return Paths(shutil.copytree(built.home, tmp_path / "h"))


def report(paths: Paths, grid: str, *options: str) -> str:
    assert main(["--home", str(paths.home), "report", grid, *options]) == 0
    return (paths.grid_report(grid) / html.INDEX).read_text()


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == "href"]


def test_what_was_analysed_before_a_reset_is_not_told(paths: Paths) -> None:
    assert re.search(_COLLAPSED, report(paths, "night"))
    assert main(["--home", str(paths.home), "reset", "night"]) == 0
    after = report(paths, "night")
    assert "0 of 6 cells are done; 6 pending." in after
    assert "collapsed</dt>" not in after
    assert not re.search(_COLLAPSED, after)
    with Queue.open(paths.queue) as queue:
        night = gather(paths, queue, "night")
    assert not [cell.key for cell in night.cells if cell.analysed or cell.stale]
    assert night.statistics is None


def test_what_has_gone_on_since_is_stale_and_statistics_go_by_the_present_status(paths: Paths) -> None:
    with Queue.open(paths.queue) as queue:
        small_home.attempt(paths, queue, key="baseline_script_run4", stop_at=3, outcome=Outcome.YIELDED)
        night = gather(paths, queue, "night")
        assert [cell.key for cell in night.cells if cell.stale] == ["baseline_script_run4"]
        assert "1 changed since" in night.missing["analysis"]
        assert night.statistics.left_out == {"failed": 1, "cancelled": 1}
        queue.retry([row.id for row in queue.find_cell("baseline_script_run6")])
        assert gather(paths, queue, "night").statistics.left_out == {"failed": 1, "pending": 1}
    report(paths, "night")
    page = html.Layout.of(paths.grid_report("night") / html.INDEX).page("baseline_script_run4").read_text()
    assert "has changed since it was analysed" in page


def test_links_lead_to_pages_that_are_written(paths: Paths) -> None:
    assert report(paths, "night", "--no-pages")
    for grid in ("night", "sweep"):
        index = report(paths, grid, "--no-pages")
        assert [href for href in Links(index).found if not href.startswith("#")] == []
        assert '"href":"cells' not in index
    paths.transcript("night", "baseline_script_run5").unlink()  # a failed one, and so in the lanes
    index = report(paths, "night")
    assert "cells/baseline_script_run1.html" in index
    assert "cells/baseline_script_run5.html" not in index


def test_no_secret_and_no_env_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = report_night.NightBuilder(tmp_path / "h")
    paths = builder.paths
    paths.secrets.parent.mkdir(exist_ok=True)
    paths.secrets.write_text(f"TOKEN='{SECRET}'\n")
    paths.secrets.chmod(0o600)
    template = report_night._template("baseline", "135m") | {"system": f"You know {SECRET}."}
    cell = Cell("c1", {"scaffold": "baseline", "model": "135m", "run": 1}, template, 1)
    spec = {"name": "garden", "note": SECRET, "env": {"PLAIN": "a-value-of-env"}, "options": {"api_key": "sk-1234"}}
    builder.queue.enqueue("garden", cells=[cell], spec=spec, policy={"tries": 3})
    claimed = builder.claim()
    assert claimed is not None
    turn = report_night._turn(1, f"I say **{SECRET}** aloud", 2)
    turn |= {"tool_calls": [{"function": {"name": "call", "arguments": json.dumps({"with": SECRET})}}], "n": SECRET}
    monkeypatch.setattr(report_night, "_turn", lambda *_: turn)
    builder.interrupt(claimed, ["one", "two"], Outcome.FAILED, reason_code="exception", reason=f"Error: {SECRET}")
    builder.log("daemon", "daemon_failed", error=f"it was {SECRET}")
    builder.write_logs()
    builder.close()
    made = record(label=f"said {SECRET}", fraction=0.5, grid="garden", key="c1")
    with Queue.open(paths.queue) as queue:
        (conversation,) = of_grid(paths, queue, "garden")
    path = paths.analysis_record("garden", "c1", "tfidf", "absolute")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made | {"transcript_sha256": conversation.sha256}))
    index = report(paths, "garden")
    page = html.Layout.of(paths.grid_report("garden") / html.INDEX).page("c1").read_text()
    for text in (index, page):
        assert "[secret TOKEN]" in text
        for part in ("hunter", "and_more_", "a-value-of-env", "sk-1234"):
            assert part not in text
    assert "said [secret TOKEN]" in index
    assert "PLAIN" in index


def test_cells_under_way_are_shown_as_they_are_and_logs_reach_to_now(tmp_path: Path) -> None:
    builder = report_night.NightBuilder(tmp_path / "h")
    builder.submit(1)
    claimed = builder.claim()
    assert claimed is not None
    builder.work(claimed, ["one", "two"])
    began = time.time()
    live = {claimed.cell.id: (17, 400)}
    night = gather(builder.paths, builder.queue, "garden", daemon_lives=True, live=live)
    assert (night.cells[0].row.turns, night.cells[0].row.output_tokens) == (17, 400)
    assert night.end is not None
    assert night.end == night.now >= began
    assert ("17", "turns", "") in overview.tiles(night)
    assert any(what == "so far" for _, what, _ in overview.tiles(night))
    dead = gather(builder.paths, builder.queue, "garden")
    assert dead.end == pytest.approx(builder.paths.transcript("garden", claimed.cell.key).stat().st_mtime)
    builder.close()


def test_who_had_to_leave_is_told_also_of_others(tmp_path: Path) -> None:
    builder = report_night.NightBuilder(tmp_path / "h")
    builder.submit(1, ["baseline"], ["135m"])
    claimed = builder.claim()
    assert claimed is not None
    builder.log("watchdog", "evicted", pid=99, role="warm", level="warning")
    builder.interrupt(claimed, ["one"], Outcome.FAILED, reason_code="exception", reason="it broke")
    builder.queue.cancel([claimed.cell.id])
    builder.write_logs()
    night = gather(builder.paths, builder.queue, "garden")
    told = story.tell(night, lambda key: "")
    assert [each.is_own for each in told.leavings] == [False]
    text = report(builder.paths, "garden")
    assert "None of these cells had to leave for want of memory; 1 beside them had to." in text
    assert "Nobody had to leave" not in text
    assert "The one cell is cancelled." in text
    assert "needed more" not in text  # its one attempt failed
    builder.close()


def test_only_lasting_spans_are_a_collapse(paths: Paths) -> None:
    path = paths.analysis_record("night", "baseline_script_run1", "tfidf", "absolute")
    made = json.loads(path.read_text())
    short = {"first_turn": 1, "last_turn": 2, "similarity": 1.0}
    path.write_text(json.dumps(made | {"collapse": made["collapse"] | {"spans": [short], "onset_turn": None}}))
    with Queue.open(paths.queue) as queue:
        night = gather(paths, queue, "night")
    told = overview.lede(night)
    value = next(value for value, what, _ in overview.tiles(night) if "collapsed" in what)
    fallen = sum(1 for cell in night.cells if cell.analysed and cell.analysed.collapse["onset_turn"] is not None)
    assert night.cells[0].analysed is not None
    assert night.cells[0].analysed.spans
    assert value == overview.percent(fallen / 6)
    assert any("collapsed" in sentence for sentence in told)


def test_the_analysis_that_the_grid_names_comes_first(tmp_path: Path) -> None:
    builder = report_night.NightBuilder(tmp_path / "h")
    template = report_night._template("baseline", "135m")
    cells = [Cell(f"c{n}", {"scaffold": "baseline", "model": "135m", "run": n}, template, n) for n in (1, 2)]
    spec = {"name": "garden", "analysis": {"method": "profile"}}
    builder.queue.enqueue("garden", cells=cells, spec=spec, policy={"tries": 3})
    folder = builder.paths.analysis / "garden"
    folder.mkdir(parents=True)
    for name in ("c1.tfidf-absolute", "c2.tfidf-absolute", "c1.tfidf-profile"):
        (folder / f"{name}.json").write_text("{}")
    assert gather(builder.paths, builder.queue, "garden").analysis == "tfidf-profile"
    assert gather(builder.paths, builder.queue, "garden", method="absolute").analysis == "tfidf-absolute"
    builder.close()


@pytest.mark.parametrize(
    ("bounds", "only", "shown"),
    [
        ((0.0, 1.0), None, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ((39.98, 40.02), None, ["39.98", "40.00", "40.02"]),
        ((0.0, 200.0), None, ["0", "50", "100", "150", "200"]),
        ((2000.0, 2001.0), None, [f"2\u202f00{n}" for n in ("0.00", "0.25", "0.50", "0.75", "1.00")]),
        ((39.5, 40.5), 40.0, ["40.00"]),
    ],
)
def test_a_scale_has_the_digits_that_its_step_needs(
    bounds: tuple[float, float], only: float | None, shown: list[str]
) -> None:
    assert re.findall(r">([^<>]+)</text>", plots.axis(bounds, only=only)) == shown

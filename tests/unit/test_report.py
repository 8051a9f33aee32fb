"""The morning report of a night in which everything happened: what it tells, what it keeps out, what it makes anew."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers import report_night
from helpers.analysis_records import record
from overnight.cli.main import main
from overnight.paths import Paths
from overnight.queue.store import Queue
from overnight.report import html, logs, page
from overnight.report.gather import Night, gather


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """One night for all tests of this file; whoever changes it takes a copy."""
    found = report_night.build(tmp_path_factory.mktemp("night") / "h")
    with Queue.open(found.queue) as queue:
        for n, cell in enumerate(queue.cells("garden")):
            scaffold, model, run = (cell.coords[name] for name in ("scaffold", "model", "run"))
            changes = {"grid": "garden", "key": cell.key, "transcript_sha256": cell.transcript_sha256}
            if cell.transcript_sha256 is None:
                continue
            made = record(scaffold, model, run, turns=24, fraction=n % 3 / 3, label="<b>again</b>", **changes)
            for turn in made["series"]:
                turn["sim_prev5_max"] = None if turn["turn"] == 1 else turn["turn"] / 24
            path = found.analysis_record("garden", cell.key, "tfidf", "absolute")
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(made))
    return found


@pytest.fixture(scope="module")
def night(paths: Paths) -> Night:
    with Queue.open(paths.queue) as queue:
        return gather(paths, queue, "garden")


@pytest.fixture(scope="module")
def layout(paths: Paths, night: Night) -> html.Layout:
    found = html.Layout.of(paths.grid_report("garden") / html.INDEX)
    assert all(made for _, made in page.write_all(night, found))
    html.write(found.index, html.index(night, found))
    return found


class Elements(HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("script", "style"):
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.said).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def pages(layout: html.Layout) -> list[Path]:
    return [layout.index, *sorted(layout.pages.iterdir())]


def hell(night: Night) -> str:
    return next(cell.key for cell in night.cells if cell.row.turns == len(report_night.HELL))


def test_nothing_can_run_but_our_own_script(layout: html.Layout) -> None:
    for path in pages(layout):
        text = path.read_text()
        elements = Elements(text)
        for tag, attributes in elements.found:
            assert not [name for name in attributes if name.startswith("on") or name == "style"], (path, tag)
            for name in ("href", "src"):
                assert not re.match(r"\s*(javascript|data|vbscript|file):", attributes.get(name) or "", re.I)
        scripts = elements.named("script")
        assert scripts == [{}, {"type": "application/json", "id": "data"}][: 2 if path == layout.index else 1]
        assert len(elements.named("style")) == 1
        assert all(frame["sandbox"] == "" for frame in elements.named("iframe"))
        assert not {tag for tag, _ in elements.found} & {"object", "embed", "base", "form", "link", "img", "video"}


def test_the_policy_names_what_is_there(layout: html.Layout) -> None:
    """A hash that does not fit would be a report without its style and script."""
    for path in (layout.index, layout.page("baseline_135m_run1")):
        text = path.read_text()
        policies = [m["content"] for m in Elements(text).named("meta") if m.get("http-equiv")]
        assert len(policies) == 1
        policy = policies[0] or ""
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        for tag in ("script", "style"):
            inside = text.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script>")


def test_nothing_is_fetched(layout: html.Layout) -> None:
    for path in pages(layout):
        for tag, attributes in Elements(path.read_text()).found:
            for name in ("src", "href", "srcset", "action", "poster"):
                value = attributes.get(name)
                assert value is None or tag == "a", (path, tag, value)
                if value is not None and path == layout.index:
                    assert not re.match("[a-z]+:", value), value


def test_every_link_leads_somewhere(layout: html.Layout) -> None:
    for path in pages(layout):
        elements = Elements(path.read_text())
        ids = Counter(attributes["id"] for _, attributes in elements.found if attributes.get("id"))
        assert max(ids.values()) == 1
        for attributes in elements.named("a"):
            href = attributes.get("href") or "#main"
            name, _, anchor = href.partition("#")
            if name and not name.startswith(("http", "mailto")):
                assert (path.parent / name).is_file(), href
            elif not name:
                assert anchor in ids, href


def test_the_whole_night_is_told(layout: html.Layout) -> None:
    elements = Elements(layout.index.read_text())
    text = elements.text
    assert "17 of 18 cells are done; 1 failed." in text
    assert "The watchdog took a cell out twice before memory ran out" in text
    assert "evicted, then killed" in text
    assert (
        text.count("it held 812.0 MiB alone, and 7.4 s of work were lost") == 6
    )  # twice: at the mark, with the figures, as a reason
    assert "asked to give memory back twice, stopped for some seconds twice" in text
    assert "its daemon died; it goes on" in text
    assert "RuntimeError: the <b>engine</b> ⟨U+001B⟩[31mbroke⟨U+202E⟩" in text
    assert "smallest possible two-sided p is 0.1, so nothing can be significant" in text
    assert "2025; those of cells are in the table above" in text
    assert len([a for a in elements.named("a") if "cell" in (a.get("class") or "").split()]) == 18
    assert {"grid", "statistics", "similarity", "memory", "retried", "audit", "cells", "provenance"} <= {
        attributes.get("id") for attributes in elements.named("section")
    }


def test_a_reply_from_hell_stands_there_as_text(night: Night, layout: html.Layout) -> None:
    elements = Elements(layout.page(hell(night)).read_text())
    assert "<script>document.title='pwned'; document.documentElement.dataset.pwned = 1</script>" in elements.text
    assert "[a link](javascript:document.documentElement.dataset.pwned=3)" in elements.text
    assert "![pixel](data:image/svg+xml;base64,PHN2Zz4=)" in elements.text
    assert "safe ⟨U+202E⟩txet neddih⟨U+202C⟩" in elements.text
    assert "a NUL ⟨U+0000⟩" in elements.text
    assert "{{ 7 * 7 }}" in elements.text
    assert "(an empty reply)" in elements.text
    assert len(elements.named("iframe")) == 1


def test_a_conversation_tells_what_happened_to_it(layout: html.Layout) -> None:
    elements = Elements(layout.page("baseline_135m_run2").read_text())
    assert "Attempt 1 ended here (evicted): the watchdog took it out" in elements.text
    assert "turns 5\N{EN DASH}8 <b>again</b>" in elements.text
    assert "cut at the token limit" in elements.text
    assert [a.get("id") for a in elements.named("article")] == [f"t{n}" for n in range(1, 25)]
    assert {"span"} <= {a.get("class") for a in elements.named("details")}


def test_unchanged_conversations_are_not_made_again(paths: Paths, tmp_path: Path) -> None:
    copy = Paths.of(tmp_path / "h")
    shutil.copytree(paths.home, copy.home)

    def made() -> set[str]:
        with Queue.open(copy.queue) as queue:
            night = gather(copy, queue, "garden")
        found = html.Layout.of(copy.grid_report("garden") / html.INDEX)
        return {cell.key for cell, is_new in page.write_all(night, found) if is_new}

    assert len(made()) == 18
    assert made() == set()
    record_path = copy.analysis_record("garden", "baseline_135m_run1", "tfidf", "absolute")
    record_path.write_text(record_path.read_text().replace("again", "anew"))
    assert made() == {"baseline_135m_run1"}


def test_the_command_writes_where_it_is_told(paths: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "morning.html"
    assert main(["--home", str(paths.home), "report", "garden", "--out", str(out)]) == 0
    assert f"{out}: 18 cells and 18 conversations" in capsys.readouterr().out
    assert len(list((out.parent / "morning.cells").iterdir())) == 18
    assert 'href="morning.cells/baseline_135m_run1.html"' in out.read_text()
    assert (
        '../morning.html#cell=baseline_135m_run1"' in (out.parent / "morning.cells/baseline_135m_run1.html").read_text()
    )
    assert out.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["garden", "--out", "."], "that is a folder"),
        (["garden", "--out", "/proc/nothing/x.html"], "name another place with --out FILE"),
        (["garden", "--method", "profile"], "was not analysed like that; there is: tfidf-absolute"),
    ],
)
def test_mistakes_get_one_line(
    paths: Paths, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--home", str(paths.home), "report", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_grid_of_which_little_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not begun, not analysed, no logs: the report says which command makes what is not there."""
    builder = report_night.NightBuilder(tmp_path / "h")
    builder.submit(1)
    assert main(["--home", str(builder.paths.home), "report", "garden"]) == 0
    index = builder.paths.grid_report("garden") / html.INDEX
    assert "0 of 6 cells are done; 6 pending." in Elements(index.read_text()).text
    claimed = builder.claim()
    assert claimed is not None
    builder.finish(claimed, ["one", "two"])
    builder.close()
    assert main(["--home", str(builder.paths.home), "report", "garden"]) == 0
    text = Elements(index.read_text()).text
    assert "The conversations have not been analysed: overnight analyze garden" in text
    assert "No samples of memory from this time" in text
    assert "overnight analyze garden" in capsys.readouterr().out


def test_a_damaged_transcript_and_record_do_not_end_it(paths: Paths, tmp_path: Path) -> None:
    copy = Paths.of(tmp_path / "h")
    shutil.copytree(paths.home, copy.home)
    copy.transcript("garden", "baseline_135m_run1").write_bytes(b"\0nothing of ours\n" * 9)
    copy.analysis_record("garden", "baseline_135m_run3", "tfidf", "absolute").write_text('{"collapse": []')
    copy.analysis_record("garden", "values_only_135m_run1", "tfidf", "absolute").write_text("[" * 100_000)
    assert main(["--home", str(copy.home), "report", "garden"]) == 0
    layout = html.Layout.of(copy.grid_report("garden") / html.INDEX)
    assert "it has no header" in Elements(layout.page("baseline_135m_run1").read_text()).text


def test_logs_are_read_from_the_oldest_and_damage_is_passed_over(tmp_path: Path) -> None:
    def line(ts: str, event: str, **fields: object) -> str:
        return json.dumps({"ts": ts, "level": "info", "event": event, **fields}) + "\n"

    sample = {"limit_bytes": 1000, "headroom_bytes": 400, "lowest_headroom_bytes": 100}
    (tmp_path / "watchdog.jsonl.10").write_text(
        line("2025-11-30T22:00:00Z", "watchdog_started", thresholds={"hold_percent": 25})
        + line("2025-11-30T22:01:00Z", "pressure_sampled", **sample)
    )
    (tmp_path / "watchdog.jsonl.2").write_text(
        "\0\xff{{{\n" + '{"event": "evicted"\n' + "[" * 70_000 + "\n" + line("never", "evicted")
        + line("2025-11-30T22:02:00Z", "pressure_sampled", limit_bytes=-1, headroom_bytes=True)
        + line("2025-11-30T22:03:00Z", "evicted", cell="garden/x", attempt=1)
    )  # fmt: skip
    (tmp_path / "watchdog.jsonl").write_text(
        line("2025-11-30T22:04:00Z", "pressure_sampled", **sample | {"limit_bytes": 2000})
        + line("2025-12-24T22:04:00Z", "evicted", cell="another night")
        + line("2025-11-30T22:05:00Z", "frozen")[:-20]
    )
    found = logs.read(tmp_path, report_night.BEGAN, report_night.BEGAN + 3600)
    assert [(s.used, s.peak, s.limit) for s in found.samples] == [(600, 900, 1000), (1600, 1900, 2000)]
    assert [(e.event, e.fields["cell"]) for e in found.watchdog if e.event in logs.TO_SOMEBODY] == [
        ("evicted", "garden/x")
    ]
    assert found.holds == 0.75
    assert found.found == ["watchdog.jsonl.10", "watchdog.jsonl.2", "watchdog.jsonl"]


@pytest.mark.parametrize(("limit", "holds"), [(32 * 2**30, 0.8), (128 * 2**30, 0.9)])
def test_percentages_are_of_the_limit_or_of_its_cap(limit: int, holds: float, tmp_path: Path) -> None:
    started = {
        "ts": "2025-11-30T22:00:00Z", "level": "info", "event": "watchdog_started", "limit_bytes": limit,
        "thresholds": {"hold_percent": 20, "scale_cap_bytes": 64 * 2**30},
    }  # fmt: skip
    (tmp_path / "watchdog.jsonl").write_text(json.dumps(started) + "\n")
    found = logs.read(tmp_path, report_night.BEGAN, report_night.BEGAN + 3600)
    assert found.holds == pytest.approx(holds)


def test_a_night_of_seconds_is_not_taken_for_one_without_a_watchdog(tmp_path: Path) -> None:
    builder = report_night.NightBuilder(tmp_path / "h")
    builder.submit(1, ["baseline"], ["135m"])
    claimed = builder.claim()
    assert claimed is not None
    builder.finish(claimed, ["one", "two"], took_s=5)
    builder.close()
    log = builder.paths.log / "watchdog.jsonl"
    log.write_text(json.dumps({"ts": "2025-11-30T22:00:01Z", "level": "info", "event": "watchdog_started"}) + "\n")
    with Queue.open(builder.paths.queue) as queue:
        assert "all was over before that" in gather(builder.paths, queue, "garden").missing["memory"]
        log.unlink()
        assert "the watchdog did not run" in gather(builder.paths, queue, "garden").missing["memory"]


def test_imported_conversations(upstream: Path, tmp_path: Path) -> None:
    """The older harness's night: reasoning is taken out of the text, nothing is claimed that its files do not say."""
    home = str(tmp_path / "h")
    assert main(["--home", home, "import", str(upstream), "--grid", "older"]) == 0
    assert main(["--home", home, "report", "older"]) == 0
    layout = html.Layout.of(Paths.of(home).grid_report("older") / html.INDEX)
    text = Elements(layout.index.read_text()).text
    assert "These cells were imported: their files say nothing of memory." in text
    assert "12 Jan 2026, 15:03" in text
    assert "every finished turn was kept" not in text
    assert "27 iterations" in text
    assert "none kept" in text
    assert "turns on disk" not in text
    assert not re.search(r"lost after|Nobody had to", layout.index.read_text())
    rows = re.findall(r'<td>[^<]*</td><td class="mono">([^<]*)</td><td class="mono" title', layout.index.read_text())
    assert set(rows) == {"\N{EN DASH}"}  # no seed is known
    assert "another harness; its files were imported" in text
    page_of = Elements(layout.page("baseline_4b_think_run1").read_text())
    assert "<think>" not in page_of.text
    assert "reasoning" in {a.get("class") for a in page_of.named("details")}


def test_a_grid_of_commands(tmp_path: Path) -> None:
    from helpers import small_home

    paths = small_home.build(tmp_path / "h")
    assert main(["--home", str(paths.home), "report", "sweep"]) == 0
    text = Elements((paths.grid_report("sweep") / html.INDEX).read_text()).text
    assert "2 of 3 cells are done; 1 pending." in text
    assert "not been analysed" not in text
    assert "No samples of memory" in text

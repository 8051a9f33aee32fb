"""What a report makes of a model's words, of figures and of colours."""

from __future__ import annotations

import html
import re

import pytest

from helpers.report_night import HELL
from overnight.report import palette, plots, tools, words
from overnight.report.markdown import LONGEST, drawings, render
from overnight.report.night import Time

_TAG = re.compile(r"<(/?)([a-zA-Z0-9]+)([^>]*)>")
_HARMLESS = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}


@pytest.mark.parametrize("reply", HELL)
def test_a_reply_from_hell_is_text(reply: str) -> None:
    rendered = str(render(reply))
    for _, name, attributes in _TAG.findall(rendered):
        assert name in _HARMLESS
        assert re.fullmatch(
            r'(?: (?:href="(?:https?|mailto):[^"]*"|rel="noopener noreferrer nofollow"|start="\d+"|class="plain"))*',
            attributes.removesuffix(" /"),
        ), attributes
    assert not re.search("[\0\x1b\u202a-\u202e\u2066-\u2069\u2028]", rendered)


@pytest.mark.parametrize("reply", HELL)
def test_nothing_that_was_said_is_lost(reply: str) -> None:
    """Markdown drops what is nested too deep, or stands beyond a table's columns."""
    rendered = str(render(reply))
    shown = html.unescape(_TAG.sub(" ", rendered) + " ".join(re.findall('href="([^"]*)"', rendered)))
    for word in re.findall(r"[a-zA-Z]{3,}", reply):
        assert word in shown, word


def test_markdown_is_rendered() -> None:
    rendered = str(
        render("# One\n\nA **bold** [word](https://example.org/a?b=1&c=2).\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    )
    assert "<h4>One</h4>" in rendered
    assert "<strong>bold</strong>" in rendered
    assert 'href="https://example.org/a?b=1&amp;c=2"' in rendered
    assert 'rel="noopener noreferrer nofollow"' in rendered
    assert "<td>1</td>" in rendered
    assert "lost</pre>" not in rendered


@pytest.mark.parametrize(
    "text", ["| a |\n|---|\n| 1 | beyond |", '[a](https://example.org "a title")', "> " * 60 + "deep", "x " * LONGEST]
)
def test_what_markdown_would_drop_is_shown_as_it_was_written(text: str) -> None:
    assert render(text) == f'<pre class="plain">{html.escape(text, quote=True).replace("&quot;", "&#34;")}</pre>'


def test_an_entity_stays_what_it_is() -> None:
    """`&#x202e;` is no override that `visible` has not seen."""
    assert "&amp;#x202e;" in str(render("a &#x202e;b &lt;i&gt;"))


def test_invisible_characters_are_named_and_others_kept() -> None:
    assert words.visible("a\0b\u202ec\ud800d") == "a⟨U+0000⟩b⟨U+202E⟩c⟨U+D800⟩d"
    kept = "日本語 عربي \U0001f468\u200d\U0001f469\u200d\U0001f467 é\tü\nz"
    assert words.visible(kept) == kept
    assert words.visible("one\r\ntwo\rthree") == "one\ntwo\nthree"


def test_drawings_are_pictures_in_a_closed_frame() -> None:
    reply = "see <svg viewBox='0 0 9 9'><script>alert(1)</script><svg><g/></svg></svg> and <SVG xmlns='x'></SVG > <svg>"
    found = list(drawings(reply))
    assert [drawing.source for drawing in found] == [
        "<svg viewBox='0 0 9 9'><script>alert(1)</script><svg><g/></svg></svg>",
        "<SVG xmlns='x'></SVG >",
    ]
    for drawing in found:
        assert "<svg" not in drawing.frame
        assert drawing.frame.count('<img alt="this SVG cannot be drawn" src="data:image/svg+xml;base64,') == 1
    assert len(list(drawings("<svg></svg>" * 50))) == 8
    assert list(drawings("<svg>" * 100_000)) == []


def test_figures_read_well() -> None:
    assert [words.number(v) for v in (None, float("nan"), 0.4211, -0.001, -1.5, 12345.6, 7)] == [
        "\u2013", "\u2013", "0.42", "0.00", "\u22121.50", "12\u202f346", "7",
    ]  # fmt: skip
    assert [words.percent(v) for v in (0, 0.001, 0.5, 0.999, 1)] == [
        "0\u202f%", "<1\u202f%", "50\u202f%", ">99\u202f%", "100\u202f%",
    ]  # fmt: skip
    assert words.shortened("a  b\nc" * 99, 10) == "a b ca b …"
    assert [words.times(n) for n in (1, 2, 3)] == ["once", "twice", "3 times"]


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK])
def test_colours_are_legible(colours: dict[str, str]) -> None:
    """WCAG AA for all text on each ground that it stands on."""
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "link", "accent", "good", "warn", "bad", "hot"):
            assert palette.contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


@pytest.mark.parametrize("name", palette.SCALES)
@pytest.mark.parametrize("theme", [0, 1])
def test_scales_rise_evenly_and_hold_their_figures(name: str, theme: int) -> None:
    colours = palette.scale(palette.SCALES[name][theme])
    ground = (palette.LIGHT, palette.DARK)[theme]["card"]
    assert len(set(colours)) == palette.STEPS
    seen = [palette.contrast(colour, ground) for colour in colours]
    assert seen == sorted(seen)  # the higher the value, the further from the paper: no colour vision is needed
    assert all(palette.contrast(palette.text_on(colour), colour) >= 4.5 for colour in colours)


def test_steps_of_a_scale() -> None:
    assert [palette.step_of(v, 0, 1) for v in (-1, 0, 0.5, 1, 2)] == [0, 0, 5, 10, 10]
    assert palette.step_of(3, 3, 3) == 0


def test_thinning_keeps_spikes_and_order() -> None:
    points = [(n, 0.5) for n in range(1, 10_001)]
    points[4321] = (4322, 1.0)
    points[77] = (78, 0.0)
    thin = plots.thinned(points, 160)
    assert len(thin) <= 160
    assert (4322, 1.0) in thin
    assert (78, 0.0) in thin
    assert thin == sorted(thin)
    assert plots.thinned(points[:5]) == points[:5]


def test_a_plot_holds_nothing_but_escaped_text() -> None:
    line = plots.Line('<script>"x"', "cells/a'b.html", [(1, 0.1), (2, 1.5), (3, float(-1))], [(2, 9)])
    drawn = str(plots.similarity([line], 3, "<b>"))
    assert "<script>" not in drawn
    assert "<b>" not in drawn
    assert "&lt;script&gt;&quot;x&quot;" in drawn
    assert "nan" not in drawn
    timeline = plots.Timeline([plots.Bar(1, 1, 0, None)], 1, [(1, 1, "<i>")], [(1, "<u>")])
    assert not re.search("<[iu]>", plots.timeline(timeline))


@pytest.mark.parametrize(("seconds", "most"), [(3, 7), (700, 7), (30_000, 7), (9e5, 7), (4e7, 16)])
def test_hours_under_a_plot_are_few_and_round(seconds: float, most: int) -> None:
    found = Time(1_764_540_000, 1_764_540_000 + seconds).ticks()
    assert 1 <= len(found) <= most
    assert all(at == int(at) for at in found)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
          "tool_results": [{"tool_call_id": "1", "content": "<b>"}]}, [("f", '{\n  "a": 1\n}', "<b>")]),
        ({"fragments": [{"type": "tool_use", "id": "x", "name": "g", "input": {"b": "ü"}},
                        {"type": "tool_result", "tool_use_id": "x", "content": [1]}]},
         [("g", '{\n  "b": "ü"\n}', "[\n  1\n]")]),
        ({"tools": [{"tool": "h\u202e", "args": "now", "result": "\0"}]}, [("h⟨U+202E⟩", "now", "⟨U+0000⟩")]),
    ],
)  # fmt: skip
def test_tool_calls_of_several_forms(extra: dict[str, object], expected: list[tuple[str, str, str]]) -> None:
    found, rest = tools.calls(extra)
    assert [(call.name, call.arguments, call.result) for call in found] == expected
    assert rest == {}


def test_what_is_no_tool_call_is_kept() -> None:
    extra = {"tool_calls": [7, {"odd": 1}], "minutes_left": 5, "mood": "calm", "fragments": [{"type": "image"}]}
    found, rest = tools.calls(extra)
    assert found == []
    assert rest == {"tool_calls": [7, {"odd": 1}], "mood": "calm", "fragments": [{"type": "image"}]}

"""The options `analysis` and `limits.stop_early` of a grid: what they plan, and that they change no cell of before."""

from __future__ import annotations

import hashlib
import re

import pytest

from overnight.durable import canonical
from overnight.errors import GridError
from overnight.grid import after_each, keys
from overnight.grid.expand import expand, policy
from overnight.grid.loader import parse_grid
from overnight.grid.schema import Grid

TEXT = """
name: g
seed: 7
runs: 2
tries: 4
models:
  - {name: small, engine: transformers, source: a/small, dtype: bfloat16, thinking: false}
  - {name: script, engine: scripted, threads: 2, options: {reply_tokens: 3}, sampling: {temperature: 0.25}}
scaffolds: [2, baseline, {id: 10, name: mine, text: "You are a lighthouse.\\n"}]
limits: {timeout: 15m, shift_hours: 2.5, target_output_tokens: null}
template_date: 2024-02-29
"""
CELLS_SHA256 = "559639280f7c5ca4e196b61c291ba9b9cac6bfaa2165f4e7de02b91848a94a5b"
"""Of all cells of that grid, as they were specified before there was any analysis."""


def parsed(*changes: tuple[str, str], more: str = "") -> Grid:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_grid(text + more, "g.yaml")


def cells_sha256(grid: Grid) -> str:
    cells = (canonical([cell.key, cell.coords, cell.template, cell.seed]) for cell in expand(grid))
    return hashlib.sha256("\n".join(cells).encode()).hexdigest()


def refused(*changes: tuple[str, str], more: str = "") -> str:
    with pytest.raises(GridError) as caught:
        parsed(*changes, more=more)
    return str(caught.value)


STOP = ("shift_hours: 2.5", "shift_hours: 2.5, stop_early: 4")


def test_cells_of_before_stay_what_they_were() -> None:
    assert cells_sha256(parsed()) == CELLS_SHA256
    assert "then" not in policy(parsed())


@pytest.mark.parametrize("more", ["{after_each: true}", "{backend: embedding, method: profile, timeseries: tfidf}"])
def test_how_a_grid_is_analysed_changes_no_cell(more: str) -> None:
    assert cells_sha256(parsed(more=f"analysis: {more}\n")) == CELLS_SHA256


def test_stop_early_is_a_part_of_the_cell_where_it_is_asked_for() -> None:
    cells = list(expand(parsed(STOP)))
    assert {cell.template["limits"]["stop_early"] for cell in cells} == {4}
    assert cells_sha256(parsed(STOP)) != CELLS_SHA256
    assert cells_sha256(parsed(("shift_hours: 2.5", "shift_hours: 2.5, stop_early: null"))) == CELLS_SHA256


def test_as_an_axis_null_means_that_nothing_stops_early() -> None:
    found = {cell.key: cell.template["limits"] for cell in expand(parsed(more="axes: {stop_early: [null, 5]}\n"))}
    assert "stop_early" not in found["baseline_script_stop_earlynull_run1"]
    assert found["baseline_script_stop_early5_run1"]["stop_early"] == 5


def test_what_follows_a_cell_names_no_path_of_this_installation() -> None:
    then = policy(parsed(more="analysis: {after_each: true, method: profile, timeseries: embedding}\n"))["then"]
    assert then["grid"] == "g.analysis"
    line = then["template"]["command"]
    assert line == (
        'exec "$OVERNIGHT_PYTHON" -P -m overnight.analysis.jobs --after-cell --backend tfidf embedding --method profile'
    )
    assert not re.search(r"(^|[ \"])/", canonical(then))


def test_a_model_to_embed_with_is_one_word_of_the_line() -> None:
    then = policy(parsed(more='analysis: {after_each: true, backend: embedding, model: "a b;c"}\n'))["then"]
    assert then["template"]["command"].endswith("--backend embedding --method absolute --model 'a b;c'")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("analysis: {after_each: yes}\n", "12: analysis.after_each: found 'yes' (text), expected true or false"),
        ("analysis: {backend: tfdif}\n", "expected one of tfidf, embedding; did you mean 'tfidf'?"),
        ("analysis: {method: absolut}\n", "expected one of absolute, profile; did you mean 'absolute'?"),
        ("analysis: {after: true}\n", "12: analysis.after: unknown key, expected one of after_each, backend, "),
        ("axes: {stop_early: [0]}\n", "expected a whole number from 1 to 1000000, or null for never"),
    ],
)
def test_mistakes_are_refused_by_name(more: str, expected: str) -> None:
    assert expected in refused(more=more)


def test_off_is_a_word() -> None:
    assert parsed(more="analysis: {timeseries: off}\n").analysis.timeseries == "off"


def test_the_names_of_what_follows_fit() -> None:
    name = "n" * after_each.LONGEST_NAME
    assert parsed(("name: g\n", f"name: {name}\n"), more="analysis: {after_each: true}\n").name == name
    assert re.fullmatch(keys.NAME, name + after_each.SUFFIX)
    said = refused(("name: g\n", f"name: {name}n\n"), more="analysis: {after_each: true}\n")
    assert "whose analysis is the grid NAME.analysis; expected at most 39 characters" in said
    long = f"m{'m' * 47}"
    changes = (("name: small", f"name: {long}"), ("name: mine", f"name: {'s' * 48}"))
    axes = "axes: {token_limit: [123456]}\n"
    assert parsed(*changes, more=axes)
    assert "expected at most 114 characters" in refused(*changes, more=axes + "analysis: {after_each: true}\n")


def test_a_grid_of_commands_has_no_conversations() -> None:
    with pytest.raises(GridError, match=r"analysis: unknown key, .*; a command has no conversation"):
        parse_grid("name: c\nkind: command\ncommand: ['true']\nanalysis: {after_each: true}\n", "c.yaml")

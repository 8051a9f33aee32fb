"""Whole grid files: what they become, what they default to, and that nothing but GridError comes out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.errors import GridError
from overnight.grid.loader import load_grid, parse_grid
from overnight.grid.schema import Grid, Limits, Model, Sampling

GRIDS = Path(__file__).parents[2] / "grids"
SMALL = "name: g\nmodels:\n  - {name: m, engine: transformers, source: some/model}\nscaffolds: [1]\n"
SCRIPTED = SMALL.replace("transformers, source: some/model", "scripted, options: %s")


def parsed(text: str) -> Grid:
    return parse_grid(text, "g.yaml")


def refused(text: str) -> str:
    with pytest.raises(GridError) as caught:
        parsed(text)
    return str(caught.value).removeprefix("g.yaml:")


def test_the_smallest_grid_gets_the_defaults() -> None:
    grid = parsed(SMALL)
    assert (grid.seed, grid.runs, grid.tries, grid.template_date) == (0, 1, 3, "2025-01-01")
    model, limits = grid.models[0], grid.limits
    assert (model.dtype, model.device, model.threads, model.thinking, model.options) == (
        "float32",
        "cpu",
        1,
        None,
        {},
    )
    assert model.sampling.model_dump() == {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert limits.model_dump() == {
        "max_iterations": 50,
        "target_output_tokens": 6000,
        "token_limit": 2000,
        "shift_hours": 10.0,
        "stop_early": None,
        "timeout": None,
    }
    assert grid.axes.given() == {}


def test_minimal_yaml_is_two_short_cells_of_the_small_model() -> None:
    grid = load_grid(GRIDS / "minimal.yaml")
    assert [scaffold.name for scaffold in grid.scaffolds] == ["baseline", "values_only"]
    assert [model.source for model in grid.models] == ["smollm2-135m-instruct"]
    assert (grid.runs, grid.limits.max_iterations, grid.limits.token_limit) == (1, 8, 64)
    assert grid.limits.target_output_tokens == 512
    sampling = grid.models[0].sampling
    assert (grid.models[0].dtype, sampling.temperature, sampling.top_p) == ("float32", 0.8, 0.95)


def test_scaffolds_yaml_is_all_nine_three_times() -> None:
    grid = load_grid(GRIDS / "scaffolds.yaml")
    assert [scaffold.id for scaffold in grid.scaffolds] == list(range(1, 10))
    assert grid.runs == 3


def test_the_shipped_files_show_every_key() -> None:
    text = "".join((GRIDS / f"{name}.yaml").read_text() for name in ("minimal", "scaffolds"))
    shown = set(re.findall(r"([a-z_]+): ", text)) | set(re.findall(r"([a-z_]+):\n", text))
    assert shown >= set(Grid.model_fields) | set(Limits.model_fields) | set(Sampling.model_fields)
    assert shown >= set(Model.model_fields) - {"options"}  # of the scripted engine alone


def test_a_stored_grid_reads_back_the_same() -> None:
    text = SMALL.replace("[1]", "[1, full_identity, {id: 10, name: mine, text: Hello.}]")
    grid = parsed(text + "axes: {top_k: [1, 2], temperature: [0, 1]}\nlimits: {timeout: 15m}\nruns: 3\n")
    stored = json.loads(json.dumps(grid.model_dump(mode="json")))
    assert Grid.model_validate(stored) == grid
    assert stored["axes"] == {"temperature": [0.0, 1.0], "top_k": [1, 2]}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("null", None), ("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("15m", 900.0), ("1.5h", 5400.0), ("2 d", 172800.0)],
)
def test_timeouts_as_people_write_them(written: str, seconds: float | None) -> None:
    assert parsed(SMALL + f"limits: {{timeout: {written}}}\n").limits.timeout == seconds


@pytest.mark.parametrize("written", ["0", "-5m", "0.5s", "true", "367d", "1:30", "'90'", "[1]", ".inf", "5x"])
def test_timeouts_that_are_none(written: str) -> None:
    said = refused(SMALL + f"limits: {{timeout: {written}}}\n")
    assert said.startswith("5: limits.timeout: found ")
    assert ", expected a time from 1 second to 366 days such as 90, 90s, 15m or 2h" in said


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("{}", {}),
        ("{grow_bytes: 8MiB}", {"grow_bytes": 8 << 20}),
        ("{grow_bytes: 1.5 kB}", None),
        ("{grow_bytes: 8M}", None),
        ("{grow_bytes: 4096, delay_s: 1}", {"grow_bytes": 4096, "delay_s": 1.0}),
        ("{reply_tokens: 7}", {"reply_tokens": 7}),
        ("{reply_tokens: [5, 5]}", {"reply_tokens": [5, 5]}),
        ("{reply_tokens: [9, 5]}", None),
        ("{reply_tokens: [1, 2, 3]}", None),
        ("{reply_tokens: 0}", None),
        ("{reply_tokens: [true, 2]}", None),
        ("{fail_at_turn: 3, fail_kind: hang}", {"fail_at_turn": 3, "fail_kind": "hang"}),
        ("{fail_at_turn: null}", {"fail_at_turn": None}),
        ("{fail_at_turn: 0}", None),
        ("{fail_kind: explode}", None),
        ("{context_tokens: 100, load_s: 0.5}", {"context_tokens": 100, "load_s": 0.5}),
    ],
)
def test_options_of_the_scripted_engine(options: str, kept: dict[str, Any] | None) -> None:
    text = SCRIPTED % options
    if kept is None:
        assert refused(text).startswith("3: models[0].options.")
    else:
        assert parsed(text).models[0].options == kept
        assert parsed(text).models[0].source == "scripted"


@pytest.mark.parametrize("written", ["010", "1_000", "1:30", "yes", "0x10", "'5'", "5.0", "true", "null", "[]", "{}"])
def test_a_whole_number_is_written_plainly(written: str) -> None:
    assert refused(SMALL + f"seed: {written}\n").startswith("5: seed: found ")


@pytest.mark.parametrize(("written", "value"), [("1e-3", 0.001), (".5", 0.5), ("1", 1.0), ("-0.0", 0.0), ("2.", 2.0)])
def test_numbers_as_in_yaml_1_2(written: str, value: float) -> None:
    text = SMALL.replace("some/model", f"x, sampling: {{temperature: {written}}}")
    assert repr(parsed(text).models[0].sampling.temperature) == repr(value)


@pytest.mark.parametrize("name", [".", "..", "...", ".a", "a/b", "a\\b", "-a", "_a", "a b", "é", "a" * 49, "", "a\n"])
@pytest.mark.parametrize("place", ["name: g\n", "name: m,", "name: s,"])
def test_names_cannot_leave_their_folder(name: str, place: str) -> None:
    text = SMALL.replace("[1]", "[{id: 10, name: s, text: x}]")
    assert place in text
    changed = text.replace(place, f"name: {json.dumps(name)}{place[-1]}")
    assert "expected a name of at most 48 letters" in refused(changed)


def test_a_grid_of_the_longest_names_has_keys_that_are_too_long() -> None:
    text = SMALL.replace("name: m,", f"name: {'m' * 48},").replace("[1]", f"[{{id: 10, name: {'s' * 48}, text: x}}]")
    assert parsed(text + "runs: 100000\n").runs == 100_000
    said = refused(text + "axes: {target_output_tokens: [1]}\n")
    assert said.startswith("4: scaffolds: there would be a cell key 'sss")
    assert said.endswith("expected at most 120 characters; use shorter names or fewer axes")


def test_a_byte_order_mark_and_windows_lines_are_no_error() -> None:
    assert parsed("\ufeff" + SMALL.replace("\n", "\r\n")).name == "g"


def test_errors_are_counted_once_each_and_the_first_in_the_file_is_told() -> None:
    said = refused("limits: {token_limit: 0}\n" + SMALL.replace("[1]", "[77]") + "runs: 0\n")
    assert said.startswith("1: limits.token_limit: found 0, ")
    assert said.endswith(" (and 2 more)")


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["baseline", "1", "scripted", "transformers", "8MiB", "90s", "../x", "float32", "2025-01-01"]),
)
KEYS = st.sampled_from(
    [
        *Grid.model_fields,
        "engine",
        "source",
        "sampling",
        "options",
        "temperature",
        "timeout",
        "reply_tokens",
        "id",
        "text",
    ]
) | st.text(max_size=8)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=25
)
SNIPPETS = st.lists(
    st.sampled_from(
        [
            *(
                "name: g",
                "models:",
                "scaffolds: [1]",
                "- ",
                "  ",
                "\n",
                "\t",
                ": ",
                "? ",
                "[",
                "]",
                "{",
                "}",
                ",",
                "'",
                '"',
            ),
            *(
                "&a ",
                "*a",
                "!!str ",
                "!<",
                "%YAML 1.1",
                "---",
                "...",
                "|",
                ">",
                "\\x41",
                "\\U",
                "<<: ",
                "1e9",
                "0x",
                "#",
            ),
            *("\x00", "\x85", "\u2028", "\ufeff", "\ud800", "~", "true", "- name: m\n    engine: scripted\n"),
        ]
    ),
    max_size=40,
).map("".join)


def parses_or_says_one_line(text: str) -> None:
    try:
        grid = parse_grid(text, "g.yaml")
    except GridError as error:
        assert str(error).isprintable()
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith("g.yaml:")
    else:
        assert Grid.model_validate(grid.model_dump(mode="json")) == grid


@given(st.text(st.characters(), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_parses_or_says_one_line(text: str) -> None:
    parses_or_says_one_line(text)


@given(SNIPPETS)
@settings(max_examples=300, deadline=None)
def test_any_pieces_of_yaml_parse_or_say_one_line(text: str) -> None:
    parses_or_says_one_line(text)


@given(st.dictionaries(KEYS, TREES, max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_values_parse_or_say_one_line(values: dict[str, Any]) -> None:
    parses_or_says_one_line(yaml.safe_dump(values, allow_unicode=True))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_damage_to_a_good_file_parses_or_says_one_line(data: st.DataObject) -> None:
    text = (GRIDS / "minimal.yaml").read_text()
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 30)))
    parses_or_says_one_line(text[:at] + data.draw(st.text(st.characters(), max_size=10)) + text[until:])

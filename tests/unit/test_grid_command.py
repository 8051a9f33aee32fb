"""Grids of commands: what a file becomes, its cells, their keys, and what changes none of them."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.cells import placeholders
from overnight.durable import canonical
from overnight.errors import GridError
from overnight.grid import command_keys
from overnight.grid.command_schema import CommandGrid, working_folder
from overnight.grid.expand import count_cells, expand, policy
from overnight.grid.loader import load_grid, parse_grid
from overnight.grid.schema import Grid
from overnight.queue import specs

GRIDS = Path(__file__).parents[2] / "grids"
SMALL = "name: g\nkind: command\ncommand: [echo, hello]\n"
TEXT = """
name: g
kind: command
seed: 7
command: [python3, t.py, "--lr={lr}"]
axes:
  lr: [0.1, 1e-3]
  opt: [adam, null, true]
  seed: 0..20..10
"""


def parsed(text: str) -> Any:
    return parse_grid(text, "g.yaml")


def axes(**values: Any) -> Any:
    return CommandGrid.model_validate({"name": "g", "command": ["x"], "axes": values})


def keys(grid: Any, **only: set[str]) -> list[str]:
    return [cell.key for cell in expand(grid, only=only)]


# -- files ----------------------------------------------------------------------------------------------------


def test_the_smallest_grid_is_one_cell_with_the_defaults() -> None:
    grid = parsed(SMALL)
    (cell,) = expand(grid)
    assert (cell.key, cell.coords) == ("command", {})
    assert cell.template == {
        "v": 1,
        "kind": "command",
        "command": ["echo", "hello"],
        "shell": False,
        "env": {},
        "cwd": str(Path.cwd()),
        "keep": [],
        "threads": 1,
    }
    assert policy(grid) == {"timeout_s": None, "tries": 3, "memory_bytes": None, "grace_s": 10.0, "cap": "auto"}
    assert specs.warm_specification(cell.template) == {}


def test_a_line_for_the_shell_stays_a_line() -> None:
    line = "for i in 1 2; do echo {x} ${{i}}; done | tail -1"
    (cell,) = expand(parsed(f"name: g\nkind: command\nshell: true\naxes: {{x: [1]}}\ncommand: {line!r}\n"))
    assert (cell.template["command"], cell.template["shell"]) == (line, True)
    (after,) = expand(parsed(f"name: g\nkind: command\naxes: {{x: [1]}}\ncommand: {line!r}\nshell: true\n"))
    assert after == cell


def test_policy_as_people_write_it() -> None:
    text = SMALL + "memory: 1.5GB\ntimeout: 15m\ngrace: 2m\ncap: none\ntries: 9\n"
    assert policy(parsed(text)) == {
        "timeout_s": 900.0,
        "tries": 9,
        "memory_bytes": 1_500_000_000,
        "grace_s": 120.0,
        "cap": "none",
    }
    assert policy(parsed(SMALL + "grace: 0\nmemory: 64TiB\ntimeout: 2\n"))["grace_s"] == 0.0
    assert list(expand(parsed(text))) == list(expand(parsed(SMALL)))


def test_the_kind_may_be_written_in_a_grid_of_idle_loops() -> None:
    text = "name: g\nmodels: [{name: m, engine: scripted}]\nscaffolds: [1]\nmemory: 1GiB\n"
    grid = parsed(text)
    assert isinstance(grid, Grid)
    assert parsed(text + "kind: idle_loop\n") == grid
    assert policy(grid) == {"timeout_s": None, "tries": 3, "memory_bytes": 1 << 30}


def test_the_working_folder_is_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("here")
    path = tmp_path / "g.yaml"
    for written, folder in {
        "": str(tmp_path),
        "cwd: here": str(tmp_path / "here"),
        "cwd: link": str(tmp_path / "here"),
        "cwd: ./here/..": str(tmp_path),
        "cwd: /": "/",
        "cwd: scratch": "scratch",
        "cwd: ./scratch": str(tmp_path / "scratch"),
    }.items():
        path.write_text(f"{SMALL}{written}\n")
        (cell,) = expand(load_grid(path))
        assert cell.template["cwd"] == folder


def test_home_is_a_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert working_folder("~", Path("/")) == str(tmp_path)


def test_a_stored_grid_reads_back_the_same() -> None:
    for text in (TEXT, SMALL, TEXT + "shell: true\n".replace("true", "false") + "timeout: 5m\nmemory: 1GiB\nruns: 2\n"):
        grid = parsed(text)
        stored = json.loads(json.dumps(grid.model_dump(mode="json")))
        assert CommandGrid.model_validate(stored) == grid
        assert list(expand(CommandGrid.model_validate(stored))) == list(expand(grid))
    assert parsed(TEXT).model_dump(mode="json")["axes"]["seed"] == [0, 10, 20]
    line = parsed("name: g\nkind: command\nshell: true\ncommand: a | b\n")
    assert CommandGrid.model_validate(line.model_dump(mode="json")) == line


def test_command_yaml_is_six_short_cells_and_shows_every_key() -> None:
    grid = load_grid(GRIDS / "command.yaml")
    assert keys(grid) == [f"n{n}_seed{seed}" for n in (10_000, 100_000) for seed in (1, 2, 3)]
    text = (GRIDS / "command.yaml").read_text()
    assert set(re.findall(r"^(?:# )?([a-z_]+):", text, re.MULTILINE)) >= CommandGrid.model_fields.keys()
    cell = next(expand(grid))
    values = placeholders.values_of(specs.full(cell.template, cell.key, cell.coords, cell.seed))
    program = placeholders.fill(cell.template["command"][2], values)
    assert 'open("n10000_seed1.txt", "w")' in program
    assert 'json.dumps({"pi"' in program
    compile(program, "command.yaml", "exec")


# -- cells ----------------------------------------------------------------------------------------------------


def test_axes_go_in_the_order_of_the_file_and_runs_last() -> None:
    grid = parsed(TEXT + "runs: 2\n")
    assert count_cells(grid) == 36
    assert keys(grid)[:7] == [
        "lr0.1_optadam_seed0_run1",
        "lr0.1_optadam_seed0_run2",
        "lr0.1_optadam_seed10_run1",
        "lr0.1_optadam_seed10_run2",
        "lr0.1_optadam_seed20_run1",
        "lr0.1_optadam_seed20_run2",
        "lr0.1_optnull_seed0_run1",
    ]
    assert keys(grid)[-1] == "lr0.001_opttrue_seed20_run2"
    assert [cell.coords for cell in expand(grid)][6] == {"lr": 0.1, "opt": None, "seed": 0, "run": 1}


def test_runs_are_in_keys_and_coordinates_only_where_the_grid_speaks_of_them() -> None:
    assert keys(parsed(SMALL + "runs: 1\n")) == ["run1"]
    grid = parsed(TEXT)
    assert not any("run" in cell.coords for cell in expand(grid))
    more = grid.model_copy(update={"runs": 3})
    assert keys(more)[:3] == ["lr0.1_optadam_seed0_run1", "lr0.1_optadam_seed0_run2", "lr0.1_optadam_seed0_run3"]
    with pytest.raises(GridError, match="runs: found 100001, expected a whole number from 1 to 100000"):
        expand(grid.model_copy(update={"runs": 100_001}))
    with pytest.raises(GridError, match="axes: the grid has 20000000 cells, expected at most 10000000"):
        expand(axes(a=list(range(200))).model_copy(update={"runs": 100_000}))


def test_seeds_come_from_the_grid_and_the_coordinates_alone() -> None:
    seeds = {cell.key: cell.seed for cell in expand(parsed(TEXT))}
    assert len(set(seeds.values())) == len(seeds) == 18
    wider = {cell.key: cell.seed for cell in expand(parsed(TEXT.replace("0..20..10", "0..40..10")))}
    assert seeds.items() <= wider.items()
    moved = {cell.key: cell.seed for cell in expand(parsed(TEXT.replace("[0.1, 1e-3]", "[1e-3, 7, 0.1]")))}
    assert seeds.items() <= moved.items()
    assert not set(seeds.values()) & {cell.seed for cell in expand(parsed(TEXT.replace("seed: 7", "seed: 8")))}
    assert next(expand(parsed(SMALL))).seed == 6106398276466484994  # pinned for ever


def test_all_cells_share_one_template_of_plain_json() -> None:
    cells = list(expand(parsed(TEXT + "env: {A: '{cell}'}\nkeep: ['*.txt']\n")))
    assert all(one.template is two.template for one, two in itertools.pairwise(cells))
    assert canonical(cells[0].template)
    assert cells[0].template["command"] == ["python3", "t.py", "--lr={lr}"]


def test_expansion_is_lazy_and_small() -> None:
    grid = parsed(SMALL + "axes: {n: 1..1000}\nruns: 10000\n")
    assert count_cells(grid) == 10_000_000
    cells = expand(grid)
    next(cells)
    tracemalloc.start()
    try:
        for _ in itertools.islice(cells, 20_000):
            pass
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("1..3", [1, 2, 3]),
        ("-1..1", [-1, 0, 1]),
        ("5..5", [5]),
        ("0..10..4", [0, 4, 8]),
        ("'0..100..50'", [0, 50, 100]),
        ("[1, 2.5, 1e-3, true, null, a b, '7', '']", [1, 2.5, 0.001, True, None, "a b", "7", ""]),
        ("[-0.0]", [0.0]),
    ],
)
def test_values_of_an_axis(written: str, values: list[Any]) -> None:
    found = parsed(f"{SMALL}axes: {{x: {written}}}\n").axes["x"]
    assert (found, [type(value) for value in found]) == (values, [type(value) for value in values])
    assert "-0.0" not in repr(found)


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ({"lr": {"0.1"}}, 9),
        ({"lr": {"1e-3"}}, 9),
        ({"lr": {".001", "0.10"}}, 18),
        ({"opt": {"null", "true"}}, 12),
        ({"opt": {"adam"}, "seed": {"0", "20"}}, 4),
    ],
)
def test_filters(only: dict[str, set[str]], left: int) -> None:
    grid = parsed(TEXT)
    whole = {cell.key: cell for cell in expand(grid)}
    cells = list(expand(grid, only=only))
    assert len(cells) == count_cells(grid, only=only) == left
    assert all(whole[cell.key] == cell for cell in cells)


@pytest.mark.parametrize(
    ("text", "only", "message"),
    [
        (TEXT, {"sed": {"1"}}, "no axis 'sed' in grid g, expected one of lr, opt, seed; did you mean 'seed'?"),
        (TEXT, {"run": {"1"}}, "no axis 'run' in grid g, expected one of lr, opt, seed"),
        (TEXT + "runs: 2\n", {"run": {"3"}}, "no run '3' in grid g, expected 1 to 2"),
        (TEXT, {"opt": {"adm"}}, "no opt 'adm' in grid g, expected one of adam, null, true; did you mean 'adam'?"),
        (TEXT, {"opt": {"1"}}, "no opt '1' in grid g, expected one of adam, null, true"),
        (TEXT, {"lr": {"1"}}, "no lr '1' in grid g, expected one of 0.1, 0.001"),
        (TEXT, {"lr": set()}, "no value for axis lr of grid g, expected at least one"),
        (SMALL, {"lr": {"1"}}, "no axis 'lr' in grid g, it has none"),
        (
            SMALL + 'axes: {x: ["a\\nb"]}\n',
            {"x": {"a\nc"}},
            "no x 'a\\nc' in grid g, expected a\\nb; did you mean 'a\\nb'?",
        ),
    ],
)
def test_what_is_not_in_the_grid_is_refused_at_once(text: str, only: Any, message: str) -> None:
    with pytest.raises(GridError) as caught:
        expand(parsed(text), only=only)
    assert str(caught.value) == message


def test_a_command_has_no_dry_run() -> None:
    with pytest.raises(GridError, match="no engine 'scripted' for grid g, whose cells are commands"):
        expand(parsed(SMALL), engine="scripted")


# -- keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (0.1, "x0.1"),
        (1e-05, "x1e-05"),
        (1e20, "x1e+20"),
        (-3, "x-3"),
        (True, "xtrue"),
        (None, "xnull"),
        ("", "x"),
        ("adam_w", "xadam_w"),
        ("data-1.csv", "xdata-1.csv"),
        ("a/b", "xa-b-c14cddc0"),
        ("../..", "x..-..-0cfd1c96"),
        ("a b", "xa-b-c8687a08"),
        ("é", "x--4a99557e"),
        ("a\nb", "xa-b-7e18f737"),
        ("a-0123abcd", "xa-0123abcd-1dbd4352"),
        ("w" * 49, f"x{'w' * 48}-821db165"),
    ],
)
def test_a_value_in_a_key(value: Any, part: str) -> None:
    assert command_keys.part("x", value, "") == part
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", part)


def test_keys_never_leave_their_folder() -> None:
    for key in keys(axes(x=["..", "/", "a/../../b", "~", ".", "\\", "$(x)", "*"])):
        assert "/" not in key
        assert key[0] == "x"


def test_a_value_that_looks_like_the_next_axis_cannot_be_mistaken_for_it() -> None:
    found = keys(axes(a=["1", "1_b2"], b=["3", "2_b3"]))
    assert found == ["a1_b3", "a1_b2_b3", "a1-b2-56040f24_b3", "a1-b2-56040f24_b2_b3"]
    grid = axes(a=["x", "x_run1"])
    assert keys(grid) == ["ax", "ax_run1"]
    assert keys(grid.model_copy(update={"runs": 1})) == ["ax_run1", "ax-run1-b583f786_run1"]


def test_a_long_key_keeps_its_beginning_and_a_hash() -> None:
    grid = axes(**{f"axis{i}": ["v" * 40, "w" * 40] for i in range(4)})
    found = keys(grid)
    assert {len(key) for key in found} == {120}
    assert len(set(found)) == len(found) == 16
    assert all(key.startswith("axis0") for key in found)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 20),
    st.floats(allow_nan=False, allow_infinity=False, width=16),
    st.text(st.sampled_from("ab_1-."), max_size=6),
    st.text(max_size=60),
)
NAMES = st.text(st.sampled_from("ab_1"), min_size=1, max_size=4).map(lambda name: f"a{name}") | st.sampled_from("abB")


@given(
    st.dictionaries(
        NAMES, st.lists(VALUES, min_size=1, max_size=5, unique_by=placeholders.written_as), min_size=1, max_size=3
    ),
    st.sampled_from([None, 1, 2]),
)
@settings(max_examples=200, deadline=None)
def test_two_cells_never_share_a_key(values: dict[str, list[Any]], runs: int | None) -> None:
    try:
        grid = CommandGrid.model_validate({"name": "g", "command": ["x"], "axes": values, "runs": runs})
    except ValueError:
        return  # a range within a list and the like
    cells = list(expand(grid))
    assert len({cell.key for cell in cells}) == len(cells) == count_cells(grid)
    for cell in cells:
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9._+-]{0,119}", cell.key)
        assert len(list(expand(grid, only=_only(cell.coords)))) == 1


def _only(coords: dict[str, Any]) -> dict[str, list[str]]:
    return {axis: [placeholders.written_as(value)] for axis, value in coords.items()}


@given(st.sampled_from("abc").flatmap(lambda a: st.tuples(st.just(a), VALUES, st.lists(VALUES, max_size=3))))
@settings(max_examples=100, deadline=None)
def test_other_values_have_other_parts(drawn: tuple[str, Any, list[Any]]) -> None:
    axis, value, others = drawn
    part = command_keys.part(axis, value, "_b")
    assert all(command_keys.part(axis, other, "_b") != part for other in others if _text(other) != _text(value))


def _text(value: Any) -> str:
    return placeholders.written_as(value)


# -- nothing but one line comes out -------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["{a}", "{", "1..3", "9..1", "command", "scratch", "../x", "8MiB", "90s", "auto", "/tmp"]),
)
KEYS = st.sampled_from([*CommandGrid.model_fields, "a", "seed", "limits"]) | st.text(max_size=8)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


def parses_or_says_one_line(text: str) -> None:
    try:
        grid = parse_grid(text, "g.yaml")
    except GridError as error:
        assert str(error).isprintable()
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith("g.yaml:")
    else:
        assert type(grid).model_validate(grid.model_dump(mode="json")) == grid
        for cell in itertools.islice(expand(grid), 20):
            assert canonical(specs.full(cell.template, cell.key, cell.coords, cell.seed))


@given(st.dictionaries(KEYS, TREES, max_size=6))
@settings(max_examples=80, deadline=None)
def test_any_values_parse_or_say_one_line(values: dict[str, Any]) -> None:
    good = {"name": "g", "kind": "command", "command": ["x", "{a}"], "axes": {"a": [1]}}
    parses_or_says_one_line(yaml.safe_dump({**good, **values}, allow_unicode=True))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_damage_to_a_good_file_parses_or_says_one_line(data: st.DataObject) -> None:
    text = TEXT + "env: {A: '{cell}'}\nkeep: ['*.txt']\nmemory: 1GiB\ntimeout: 5m\ncap: none\n"
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 30)))
    parses_or_says_one_line(text[:at] + data.draw(st.text(st.characters(), max_size=10)) + text[until:])

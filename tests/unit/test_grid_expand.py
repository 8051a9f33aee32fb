"""From a grid to its cells: order, keys, seeds, filters, and what cells share."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from overnight.durable import canonical
from overnight.errors import GridError
from overnight.grid.expand import count_cells, expand, policy
from overnight.grid.loader import parse_grid
from overnight.grid.planned import cell_seed
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


@pytest.fixture
def grid() -> Grid:
    return parse_grid(TEXT, "g.yaml")


def axes(text: str) -> Grid:
    return parse_grid(f"{TEXT}axes: {text}\n", "g.yaml")


def keys(grid: Grid, only: Mapping[str, Collection[str]] | None = None) -> list[str]:
    return [cell.key for cell in expand(grid, only=only)]


def refused(grid: Grid, only: dict[str, Collection[str]]) -> str:
    with pytest.raises(GridError) as caught:
        expand(grid, only=only)
    return str(caught.value)


def test_the_model_is_slowest_and_the_run_fastest(grid: Grid) -> None:
    assert keys(grid) == [
        "values_only_small_run1",
        "values_only_small_run2",
        "baseline_small_run1",
        "baseline_small_run2",
        "mine_small_run1",
        "mine_small_run2",
        "values_only_script_run1",
        "values_only_script_run2",
        "baseline_script_run1",
        "baseline_script_run2",
        "mine_script_run1",
        "mine_script_run2",
    ]
    assert count_cells(grid) == 12


def test_a_cell_is_the_whole_specification(grid: Grid) -> None:
    cell = next(expand(grid, only={"scaffold": {"mine"}}))
    assert cell.coords == {"scaffold": "mine", "model": "small", "run": 1}
    system = cell.template.pop("system")
    assert system.startswith("You are a lighthouse.\n\nYou have nothing to do for the next 2 hours and 30 minutes.")
    assert cell.template == {
        "v": 1,
        "kind": "idle_loop",
        "engine": "transformers",
        "model": {
            "name": "small",
            "source": "a/small",
            "dtype": "bfloat16",
            "device": "cpu",
            "thinking": False,
            "options": {},
        },
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "scaffold": {"id": 10, "name": "mine"},
        "limits": {"max_iterations": 50, "target_output_tokens": None, "token_limit": 2000, "shift_hours": 2.5},
        "threads": 1,
        "template_date": "2024-02-29",
    }


def test_the_specification_is_plain_json(grid: Grid) -> None:
    for cell in expand(grid):
        assert canonical(cell.template) and canonical(cell.coords)


def test_tries_timeout_and_memory_are_policy_and_no_specification(grid: Grid) -> None:
    assert policy(grid) == {"timeout_s": 900.0, "tries": 4, "memory_bytes": None}
    other = parse_grid(TEXT.replace("15m", "null").replace("tries: 4", "tries: 1\nmemory: 1.5GiB"), "g.yaml")
    assert policy(other) == {"timeout_s": None, "tries": 1, "memory_bytes": 3 << 29}
    assert list(expand(other)) == list(expand(grid))


def test_seeds_are_pinned_for_ever(grid: Grid) -> None:
    assert cell_seed(7, {"run": 1, "model": "135m", "scaffold": "baseline"}) == 2881454707233717519
    seeds = [cell.seed for cell in expand(grid)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_a_seed_depends_on_its_own_cell_alone(grid: Grid) -> None:
    of_all = {cell.key: cell.seed for cell in expand(grid)}
    more = TEXT.replace("scaffolds: [2,", "scaffolds: [5, 2,").replace("runs: 2", "runs: 9")
    of_more = {cell.key: cell.seed for cell in expand(parse_grid(more, "g.yaml"))}
    assert of_all.items() <= of_more.items()
    other = {cell.key: cell.seed for cell in expand(parse_grid(TEXT.replace("seed: 7", "seed: 8"), "g.yaml"))}
    assert not set(of_all.values()) & set(other.values())


def test_cells_that_differ_by_their_run_share_one_template(grid: Grid) -> None:
    cells = list(expand(grid))
    for one, two in itertools.pairwise(cells):
        same = (one.coords["scaffold"], one.coords["model"]) == (two.coords["scaffold"], two.coords["model"])
        assert (one.template is two.template) == same


def test_expansion_is_lazy_and_small() -> None:
    grid = parse_grid(TEXT.replace("runs: 2", "runs: 100000"), "g.yaml")
    assert count_cells(grid) == 600_000
    cells = expand(grid)
    next(cells)
    tracemalloc.start()
    try:
        for _ in itertools.islice(cells, 20_000):
            pass
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_extra_axes_change_their_setting_key_and_coordinates() -> None:
    grid = axes("{shift_hours: [1, 0.5], temperature: [0, 1.5], target_output_tokens: [null, 64]}")
    cells = list(expand(grid, only={"model": {"small"}, "scaffold": {"1"}, "run": {"2"}}))
    assert [cell.key for cell in cells][:3] == [
        "baseline_small_temperature0.0_target_output_tokensnull_shift_hours1.0_run2",
        "baseline_small_temperature0.0_target_output_tokensnull_shift_hours0.5_run2",
        "baseline_small_temperature0.0_target_output_tokens64_shift_hours1.0_run2",
    ]
    assert len(cells) == 8
    last = cells[-1]
    assert last.coords == {
        "scaffold": "baseline",
        "model": "small",
        "temperature": 1.5,
        "target_output_tokens": 64,
        "shift_hours": 0.5,
        "run": 2,
    }
    assert last.template["sampling"]["temperature"] == 1.5
    assert last.template["limits"]["target_output_tokens"] == 64
    assert "for the next 30 minutes." in last.template["system"]
    assert cells[0].template["sampling"]["temperature"] == 0.0
    assert cells[0].template["limits"]["target_output_tokens"] is None


def test_the_order_of_axes_in_the_file_changes_no_cell() -> None:
    one = list(expand(axes("{top_k: [1, 2], temperature: [0.5]}")))
    assert one == list(expand(axes("{temperature: [0.5], top_k: [1, 2]}")))


def test_keys_never_meet() -> None:
    grid = axes("{top_k: [1, 11], max_iterations: [1, 11], temperature: [1, 0.1]}")
    all_keys = keys(grid)
    assert len(set(all_keys)) == len(all_keys) == count_cells(grid) == 96


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"scaffold": {"1"}}, {"baseline"}),
        ({"scaffold": {"10", "values_only"}}, {"mine", "values_only"}),
        ({"scaffold": {"mine", "10"}}, {"mine"}),
    ],
)
def test_scaffolds_by_number_and_name(grid: Grid, only: dict[str, Collection[str]], expected: set[str]) -> None:
    cells = list(expand(grid, only=only))
    assert {cell.coords["scaffold"] for cell in cells} == expected
    assert len(cells) == count_cells(grid, only=only) == 4 * len(expected)


def test_filters_keep_the_order_of_the_grid_and_the_cells_as_they_are(grid: Grid) -> None:
    only = {"run": ["2", "1"], "model": ["script"], "scaffold": ["mine", "2"]}
    assert keys(grid, only) == [
        "values_only_script_run1",
        "values_only_script_run2",
        "mine_script_run1",
        "mine_script_run2",
    ]
    whole = {cell.key: cell for cell in expand(grid)}
    assert all(whole[cell.key] == cell for cell in expand(grid, only=only))


@pytest.mark.parametrize(
    ("text", "kept"),
    [("1", 1.0), ("1.0", 1.0), ("1e0", 1.0), ("0.50", 0.5)],
)
def test_axis_values_are_numbers_however_they_are_written(text: str, kept: float) -> None:
    cells = expand(axes("{temperature: [0.5, 1.0]}"), only={"temperature": {text}})
    assert {cell.coords["temperature"] for cell in cells} == {kept}


def test_a_null_of_an_axis_can_be_kept() -> None:
    cells = expand(axes("{target_output_tokens: [null, 5]}"), only={"target_output_tokens": {"null"}})
    assert {cell.coords["target_output_tokens"] for cell in cells} == {None}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (
            {"scafold": {"1"}},
            "no axis 'scafold' in grid g, expected one of scaffold, model, run; did you mean 'scaffold'?",
        ),
        (
            {"scaffold": {"valuesonly"}},
            "no scaffold 'valuesonly' in grid g, expected one of values_only, baseline, mine; "
            "did you mean 'values_only'?",
        ),
        ({"scaffold": {"3"}}, "no scaffold '3' in grid g, expected one of values_only, baseline, mine"),
        ({"model": {"smal"}}, "no model 'smal' in grid g, expected one of small, script; did you mean 'small'?"),
        ({"run": {"3"}}, "no run '3' in grid g, expected 1 to 2"),
        ({"run": {"0"}}, "no run '0' in grid g, expected 1 to 2"),
        ({"run": {"9" * 5000}}, f"no run '{'9' * 40}…' (5000 characters) in grid g, expected 1 to 2"),
        ({"run": {"²"}}, "no run '²' in grid g, expected 1 to 2"),
        ({"model": set()}, "no value for axis model of grid g, expected at least one"),
        ({"temperature": {"1"}}, "no axis 'temperature' in grid g, expected one of scaffold, model, run"),
        ({"model": {"a\nb"}}, "no model 'a\\nb' in grid g, expected one of small, script"),
    ],
)
def test_what_is_not_in_the_grid_is_refused_at_once(grid: Grid, only: Any, message: str) -> None:
    assert refused(grid, only) == message


def test_an_unknown_axis_value_names_those_that_exist() -> None:
    grid = axes("{temperature: [0.5, 1.0]}")
    assert refused(grid, {"temperature": {"0.7"}}).startswith(
        "no temperature '0.7' in grid g, expected one of 0.5, 1.0"
    )
    assert refused(grid, {"temperature": {"nan"}}) == "no temperature 'nan' in grid g, expected one of 0.5, 1.0"


def test_a_dry_run_makes_scripts_of_real_models_only(grid: Grid) -> None:
    real, dry = list(expand(grid)), list(expand(grid, engine="scripted"))
    assert [(cell.key, cell.coords, cell.seed) for cell in dry] == [(cell.key, cell.coords, cell.seed) for cell in real]
    assert {cell.template["engine"] for cell in dry} == {"scripted"}
    first, last = dry[0].template, dry[-1].template
    assert (first["model"]["source"], first["model"]["options"]) == ("scripted", {})
    assert last == real[-1].template
    assert last["model"]["options"] == {"reply_tokens": 3}


def test_another_engine_is_no_dry_run(grid: Grid) -> None:
    with pytest.raises(GridError, match=r"no engine 'tranformers' for dry runs, expected scripted"):
        expand(grid, engine="tranformers")


@pytest.mark.parametrize("runs", [0, -1, 100_001])
def test_a_copy_with_other_runs_is_checked_again(grid: Grid, runs: int) -> None:
    with pytest.raises(GridError, match=rf"runs: found {runs}, expected a whole number from 1 to 100000"):
        expand(grid.model_copy(update={"runs": runs}))
    assert len(list(expand(grid.model_copy(update={"runs": 3})))) == 18


def test_a_copy_with_too_many_cells_is_refused() -> None:
    grid = axes(f"{{top_k: {list(range(100))}}}")
    with pytest.raises(GridError, match="the grid has 60000000 cells, expected at most 10000000"):
        expand(grid.model_copy(update={"runs": 100_000}))

"""Every broken grid file is refused with its one line, word for word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overnight.errors import GridError
from overnight.grid.loader import load_grid, parse_grid

BROKEN = Path(__file__).parents[1] / "data" / "broken_grids"

NAMED = "a name of at most 48 letters, digits, '.', '_' or '-', the first a letter or digit"
TOP = "name, kind, seed, runs, tries, models, scaffolds, axes, limits, memory, template_date, analysis"
OF_A_MODEL = "name, engine, source, dtype, device, threads, thinking, sampling, options"
SCAFFOLD = "a built-in scaffold (1 to 9, or its name) or {id: 10, name: ..., text: ...}"
SOURCE = "a model-store name, a local folder or GGUF file, or a hub id"

MESSAGES = {
    "anchor": "7: anchors (&) and aliases (*) are not used; write the value out",
    "axis_of_policy": (
        "8: axes.timeout: unknown key, expected one of temperature, top_p, top_k, max_iterations, "
        "target_output_tokens, token_limit, shift_hours, stop_early"
    ),
    "axis_value_twice": "8: axes.temperature[2]: found 1.0 a second time, expected different values; remove it",
    "bool_for_number": "6: models[0].threads: found true, expected a whole number from 1 to 1024",
    "duplicate_key": "9: runs: this key is there already in line 7; remove one of the two",
    "impossible_escape": "1: this is not valid YAML; look for an impossible escape",
    "key_in_wrong_section": (
        f"7: max_iterations: unknown key, expected one of {TOP}; did you mean 'limits.max_iterations'?"
    ),
    "list_on_top": "1: found a list, expected a mapping that begins like `name: my-grid`",
    "missing_models": "1: models: missing, expected a list of 1 to 200 models",
    "missing_source": f"3: models[0].source: missing, expected {SOURCE}",
    "misspelt_required_key": (
        f"5: models[0].sorce: unknown key, expected one of {OF_A_MODEL}; did you mean 'source'? (and 1 more)"
    ),
    "model_twice": "6: models[1].name: found '135m' a second time (first in models[0]), expected another name",
    "models_empty": "2: models: found an empty list, expected a list of 1 to 200 models",
    "name_hidden": f"1: name: found '.hidden', expected {NAMED}",
    "name_leaves_folder": f"1: name: found '../../etc', expected {NAMED}",
    "not_utf8": "7: not UTF-8 (byte 0xe9); save it as UTF-8",
    "nul_byte": "8: a NUL byte: this is no text file, or it was damaged; write it again",
    "number_for_name": f"1: name: found 2025, expected {NAMED}; write it in quotes: '2025'",
    "only_comments": "1: the file is empty; expected at least name, models and scaffolds",
    "option_misspelt": (
        "5: models[0].options.grow_byte: unknown key, expected one of reply_tokens, delay_s, load_s, "
        "grow_bytes, cache_bytes, spike_at_turn, spike_bytes, fail_at_turn, fail_kind, repeat_from, "
        "context_tokens; "
        "did you mean 'grow_bytes'?"
    ),
    "option_of_other_engine": "6: models[0].options.delay_s: unknown key, expected none here; remove it",
    "python_tag": "1: tags ('!!python/object/apply:os.system') are not used; write the value without",
    "runs_out_of_range": "7: runs: found 100001, expected a whole number from 1 to 100000",
    "same_cell_key": (
        "2: models: scaffold a_b with model c and scaffold a with model b_c give the same cell key 'a_b_c'; rename one"
    ),
    "scaffold_number_in_quotes": "6: scaffolds[0]: found the text '2', expected a number; remove the quotes",
    "scaffold_takes_built_in_number": (
        "7: scaffolds[0].id: found 5, which is built in (full_identity); expected 10 to 1000000"
    ),
    "scaffold_text_too_long": (
        "9: scaffolds[0].text: found 40000 bytes, expected at most 32 KiB (32768 bytes); shorten it"
    ),
    "scaffold_twice": "6: scaffolds[2]: found 1 a second time (first in scaffolds[0]), expected another id",
    "several_errors": "7: runs: found 0, expected a whole number from 1 to 100000 (and 2 more)",
    "surrogate_escape": "5: models[0].source: the text holds the character U+D800; remove it",
    "tab_indent": "3: a tab where YAML wants spaces; replace it with spaces",
    "text_for_number": "7: runs: found '3' (text), expected a whole number from 1 to 100000; remove the quotes",
    "timeout_unit": (
        "9: limits.timeout: found '2 weeks', expected a time from 1 second to 366 days such as 90, 90s, "
        "15m or 2h, or null for none"
    ),
    "too_deep": "7: nested deeper than 32 levels; flatten it",
    "too_many_cells": (
        "7: runs: the grid has 10100000 cells, expected at most 10000000; lower runs or shorten an axis"
    ),
    "two_documents": "7: a second document begins here ('---'); write one grid a file",
    "unclosed_bracket": "6: the [...] or {...} that begins here lacks a ',' or its closing bracket; add it",
    "unclosed_quote": "1: the quotes or brackets that begin here are never closed; close them",
    "unknown_device": "6: models[0].device: found 'cdua', expected one of cpu, cuda, auto; did you mean 'cuda'?",
    "unknown_dtype": (
        "6: models[0].dtype: found 'float23', expected one of float32, bfloat16, float16; did you mean 'float32'?"
    ),
    "unknown_engine": (
        "4: models[0].engine: found 'transformer', expected one of transformers, scripted; did you mean 'transformers'?"
    ),
    "unknown_key_nested": (
        "7: models[0].sampling.temprature: unknown key, expected one of temperature, top_p, top_k; did "
        "you mean 'temperature'?"
    ),
    "unknown_key_top": f"7: modles: unknown key, expected one of {TOP}; did you mean 'models'?",
    "unknown_scaffold": (
        f"8: scaffolds[1]: unknown scaffold 'full_identiy', expected {SCAFFOLD}; did you mean 'full_identity'?"
    ),
    "unknown_scaffold_number": f"6: scaffolds[1]: found 12, expected {SCAFFOLD}",
    "word_for_number": (
        "6: models[0].sampling.temperature: found 'hot' (text), expected a number from 0 (greedy) to 10"
    ),
    "yes_for_true": (
        "6: models[0].thinking: found 'yes' (text), expected true, false, or null for the template's own way"
    ),
}


def refusal_of(path: Path) -> str:
    with pytest.raises(GridError) as caught:
        load_grid(path)
    return str(caught.value)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_broken_file_is_refused_with_its_line(name: str) -> None:
    path = BROKEN / f"{name}.yaml"
    assert refusal_of(path) == f"{path}:{MESSAGES[name]}"


def test_every_broken_file_has_its_message() -> None:
    assert {path.stem for path in BROKEN.iterdir()} == set(MESSAGES)


def test_the_error_carries_file_line_and_key_for_programs() -> None:
    path = BROKEN / "unknown_dtype.yaml"
    with pytest.raises(GridError) as caught:
        load_grid(path)
    assert (caught.value.file, caught.value.line, caught.value.key) == (str(path), 6, "models[0].dtype")
    assert caught.value.exit_code == 2


def test_a_missing_file_names_the_grids_beside_it(tmp_path: Path) -> None:
    (tmp_path / "minimal.yaml").touch()
    (tmp_path / "other.yml").touch()
    (tmp_path / "notes.txt").touch()
    path = tmp_path / "minimum.yaml"
    assert refusal_of(path) == (
        f"{path}: no such file; that folder has one of minimal.yaml, other.yml; did you mean 'minimal.yaml'?"
    )
    assert refusal_of(tmp_path / "minimal").endswith("; did you mean 'minimal.yaml'?")


def test_a_missing_file_in_a_folder_without_grids(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert refusal_of(path) == f"{path}: no such file; that folder has no grid files"


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    path = tmp_path / "no" / "mine.yaml"
    assert refusal_of(path).startswith(f"{path}: no such file, nor a folder '")


def test_a_folder_is_no_grid(tmp_path: Path) -> None:
    assert refusal_of(tmp_path) == f"{tmp_path}: is a folder, expected a grid file"
    (tmp_path / "mine.yaml").touch()
    assert refusal_of(tmp_path).startswith(f"{tmp_path}: is a folder, expected a grid file such as '")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    assert refusal_of(path).startswith(f"{path}: is no regular file, expected a grid file")


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.touch(mode=0o000)
    with as_somebody_else():
        assert refusal_of(path) == f"{path}: cannot be read (Permission denied); mend its path or permissions"


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root may read everything, so root becomes somebody else for the while."""
    if (me := os.geteuid()) != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "mine.yaml"
    assert refusal_of(path) == f"{path}: cannot be read (Not a directory); mend its path or permissions"
    assert "cannot be read (File name too long)" in refusal_of(tmp_path / ("x" * 300))
    assert "cannot be read (embedded null byte)" in refusal_of(tmp_path / "a\0b")


def test_a_file_of_more_than_one_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    assert refusal_of(path) == f"{path}: larger than 1 MiB; a grid file is never that large, split it"
    path.write_bytes(b"#" * (1 << 20))
    assert refusal_of(path).startswith(f"{path}:1: the file is empty")


def test_a_file_name_cannot_break_the_line() -> None:
    with pytest.raises(GridError) as caught:
        parse_grid("", "a\nb\x1b[31m.yaml")
    assert str(caught.value).startswith("a\\nb\\x1b[31m.yaml:1: the file is empty")


HOSTILE = {
    "brackets": "[" * (1 << 20),
    "braces": "{" * (1 << 20),
    "dashes": "- " * (1 << 19),
    "questions": "? " * (1 << 19),
    "many values": "- 1\n" * (1 << 18),
    "many keys": "".join(f"k{i}: 1\n" for i in range(90_000)),
    "empty mappings": "[" + "{}," * 300_000 + "]",
    "many errors": "name: g\nmodels: [" + "3, " * 190 + "3]\nscaffolds: [" + "x, " * 990 + "x]\n",
    "a long number": "seed: " + "9" * 1_000_000,
    "a long key": "a" * 1000 + ": 1",
    "a long unknown name": f"name: g\nmodels: [{{name: m, engine: {'x' * 500_000}}}]\nscaffolds: [1]\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_short_line(name: str) -> None:
    with pytest.raises(GridError) as caught:
        parse_grid(HOSTILE[name], "g.yaml")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400

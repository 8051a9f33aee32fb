"""Every broken grid of commands is refused with its one line, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from overnight.errors import GridError
from overnight.grid.loader import load_grid, parse_grid

WORDS = "[python3, t.py, '--lr={lr}']"
GOOD = f"name: g\nkind: command\ncommand: {WORDS}\naxes:\n  lr: [0.1, 0.01]\n  seed: 1..3\n"
IDLE = "name: g\nmodels: [{name: m, engine: scripted}]\nscaffolds: [1]\n"

TOP = (
    "name, kind, seed, runs, tries, shell, command, axes, env, secrets, cwd, memory, timeout, grace, cap, keep, threads"
)
TOP_IDLE = "name, kind, seed, runs, tries, models, scaffolds, axes, limits, memory, template_date, analysis"
A_LIST = "a list of 1 to 1000 words such as [python3, train.py, --lr, '{lr}']"
VALUES = "a list of 1 to 100000 values, or a range such as 1..5 or 0..100..10"
KNOWN = "{lr}, {seed}, {cell}"
TEXT = "text of at most 100000 characters"
BELOW = "a path or glob below the working folder such as out/*.png"
SIZE = "a size from 1MiB to 64TiB such as 512MiB, 1.5GB or 2GiB, or null for none"
MEANT = "holds no name of an axis; write {{ and }} for braces that are meant"


def having(old: str, new: str) -> str:
    """The good grid with something else in one place."""
    assert old in GOOD
    return GOOD.replace(old, new)


def with_line(line: str) -> str:
    """The good grid with a seventh line."""
    return f"{GOOD}{line}\n"


BROKEN = {
    "kind_misspelt": (
        having("kind: command", "kind: comand"),
        "2: kind: found 'comand', expected one of idle_loop, command; did you mean 'command'?",
    ),
    "kind_is_a_list": (
        having("kind: command", "kind: [command]"),
        "2: kind: found a list of 1, expected one of idle_loop, command",
    ),
    "kind_is_empty": (
        having("kind: command", "kind:"),
        "2: kind: found nothing, expected one of idle_loop, command",
    ),
    "kind_forgotten": (
        having("kind: command\n", ""),
        "2: command: a grid with a command says so; add the line `kind: command`",
    ),
    "command_missing": (having(f"command: {WORDS}\n", ""), f"1: command: missing, expected {A_LIST}"),
    "command_misspelt": (
        having("command: [", "comand: ["),
        f"3: comand: unknown key, expected one of {TOP}; did you mean 'command'? (and 1 more)",
    ),
    "command_is_text": (
        having(WORDS, "python3 t.py --lr '{lr}'"),
        "3: command: found 'python3 t.py --lr '{lr}'' (text), expected a list of words; "
        'write ["python3", "t.py", "--lr", "{lr}"], or add `shell: true`',
    ),
    "command_is_text_for_a_shell": (
        having(WORDS, "python3 t.py {lr} | tail -1"),
        "3: command: found 'python3 t.py {lr} | tail -1' (text), expected a list of words; "
        "add `shell: true` to have it run by a shell, or write its words as a list",
    ),
    "command_is_text_with_odd_quotes": (
        having(WORDS, '"it\'s {lr}"'),
        "3: command: found 'it's {lr}' (text), expected a list of words; "
        'mend its quotes and write it as a list such as ["python3", "train.py"]',
    ),
    "command_is_a_long_text": (
        having(WORDS, "a" * 90 + " " + "b" * 90),
        f"3: command: found '{'a' * 40}…' (181 characters) (text), expected a list of words; "
        f'write ["{"a" * 90}", "{"b" * 64}…, or add `shell: true`',
    ),
    "command_is_empty": (having(WORDS, "[]"), f"3: command: found an empty list, expected {A_LIST}"),
    "command_is_nothing": (having(WORDS, ""), f"3: command: found nothing, expected {A_LIST}"),
    "command_is_a_mapping": (having(WORDS, "{run: x}"), f"3: command: found a mapping, expected {A_LIST}"),
    "first_word_is_empty": (
        having(WORDS, "['', x]"),
        "3: command[0]: found an empty text, expected the command to run",
    ),
    "word_is_a_number": (
        having(WORDS, "[sleep, 010, 1.50]"),
        f"3: command[2]: found 1.5, expected {TEXT}; write it in quotes: '1.50'",
    ),
    "shell_with_a_list": (
        with_line("shell: true"),
        "3: command: found a list, expected one text for the shell; write it as text or remove `shell: true`",
    ),
    "shell_with_nothing_to_run": (
        having(WORDS, "' '\nshell: true"),
        "3: command: found an empty text, expected the command to run",
    ),
    "shell_is_a_word": (with_line("shell: yes"), "7: shell: found 'yes' (text), expected true or false"),
    "placeholder_misspelt": (
        having("{lr}", "{lrr}"),
        f"3: command[2]: unknown placeholder {{lrr}}, expected one of {KNOWN}; did you mean '{{lr}}'?",
    ),
    "placeholder_run_without_runs": (
        having("{lr}", "{run}"),
        f"3: command[2]: unknown placeholder {{run}}, expected one of {KNOWN}; set `runs` to have runs",
    ),
    "placeholder_of_the_shell": (
        having(WORDS, "ls ${HOME}/{lr}\nshell: true"),
        f"3: command: unknown placeholder {{HOME}}, expected one of {KNOWN}; "
        "write ${{HOME}} for a variable of the shell",
    ),
    "placeholder_in_env": (
        with_line("env: {A: x, B: '{sed}'}"),
        f"7: env.B: unknown placeholder {{sed}}, expected one of {KNOWN}; did you mean '{{seed}}'?",
    ),
    "placeholder_in_keep": (
        with_line("keep: [a, '{name}.png']"),
        f"7: keep[1]: unknown placeholder {{name}}, expected one of {KNOWN}; "
        "write {{name}} for braces that are meant",
    ),
    "brace_open": (
        having("{lr}", "{lr"),
        "3: command[2]: the brace { in '{lr' is never closed; write {{ for a brace that is meant",
    ),
    "brace_closed": (
        having("{lr}", "lr}"),
        "3: command[2]: the brace } in '--lr=lr}' closes nothing; write }} for a brace that is meant",
    ),
    "braces_of_json": (having(WORDS, """[echo, '{"a": 1}']"""), f"3: command[1]: '{{\"a\": 1}}' {MEANT}"),
    "braces_of_awk": (having(WORDS, "awk '{print $1}'\nshell: true"), f"3: command: '{{print $1}}' {MEANT}"),
    "braces_with_a_format": (having("{lr}", "{lr:.3f}"), f"3: command[2]: '{{lr:.3f}}' {MEANT}"),
    "axis_is_a_number": (having("[0.1, 0.01]", "0.1"), f"5: axes.lr: found 0.1, expected {VALUES}; write [0.1]"),
    "axis_is_a_word": (having("[0.1, 0.01]", "adam"), f"5: axes.lr: found 'adam', expected {VALUES}; write [adam]"),
    "axis_is_nothing": (having("[0.1, 0.01]", ""), f"5: axes.lr: found nothing, expected {VALUES}"),
    "axis_is_empty": (having("[0.1, 0.01]", "[]"), f"5: axes.lr: found an empty list, expected {VALUES}"),
    "axis_is_a_mapping": (having("[0.1, 0.01]", "{from: 1}"), f"5: axes.lr: found a mapping, expected {VALUES}"),
    "range_of_fractions": (
        having("1..3", "0.1..0.5"),
        f"6: axes.seed: found '0.1..0.5', expected {VALUES}; "
        "a range is of whole numbers: write the values of others out",
    ),
    "range_downwards": (
        having("1..3", "5..1"),
        "6: axes.seed: found the range '5..1', expected the smaller end first, 1..5",
    ),
    "range_without_a_step": (
        having("1..3", "1..5..0"),
        "6: axes.seed: found the range '1..5..0', expected a step from 1 on",
    ),
    "range_too_long": (
        having("1..3", "1..1000000"),
        "6: axes.seed: found the range '1..1000000' of 1000000 values, expected at most 100000",
    ),
    "range_in_a_list": (
        having("1..3", "[7, 1..3]"),
        "6: axes.seed[1]: found the range '1..3' within a list, expected it alone, without brackets: 1..3",
    ),
    "value_twice": (
        having("[0.1, 0.01]", "[0.1, 1, '0.1']"),
        "5: axes.lr[2]: found '0.1' a second time (first in [0]), expected different values; remove it",
    ),
    "value_is_a_list": (
        having("[0.1, 0.01]", "[[1, 2]]"),
        "5: axes.lr[0]: found [1, 2], expected a finite number, text, true, false or null",
    ),
    "value_is_not_finite": (
        having("[0.1, 0.01]", "[1, .inf]"),
        "5: axes.lr[1]: found inf, expected a finite number, text, true, false or null",
    ),
    "value_is_a_book": (
        having("[0.1, 0.01]", f"[{'x' * 1001}]"),
        "5: axes.lr[0]: found a text of 1001 characters, expected at most 1000; put it into a file",
    ),
    "axis_called_cell": (
        having("  seed:", "  cell:"),
        "6: axes.cell: found an axis 'cell', which every cell has of itself; choose another name",
    ),
    "axis_called_run": (
        having("  seed:", "  run:"),
        "6: axes.run: found an axis 'run', which every cell has of itself; use `runs` for repetition",
    ),
    "axis_with_a_space": (
        having("  seed:", "  my seed:"),
        "6: axes.'my seed': found an axis 'my seed', expected a name of at most 48 letters, digits, '_' or '-', "
        "the first a letter",
    ),
    "axes_in_a_list": (
        having("axes:\n  lr: [0.1, 0.01]\n  seed: 1..3", "axes: [lr, seed]"),
        "4: axes: found a list of 2, expected a mapping of at most 20 axes, each with its values",
    ),
    "too_many_cells": (
        having("1..3", "1..100000\n  more: 1..1000"),
        "4: axes: the grid has 200000000 cells, expected at most 10000000; lower runs or shorten an axis",
    ),
    "variable_is_a_number": (
        with_line("env: {OMP_NUM_THREADS: 1}"),
        f"7: env.OMP_NUM_THREADS: found 1, expected {TEXT}; write it in quotes: '1'",
    ),
    "variable_of_our_own": (
        with_line("env: {OVERNIGHT_SEED: '1'}"),
        "7: env.OVERNIGHT_SEED: found 'OVERNIGHT_SEED', which every cell is given; expected a name without OVERNIGHT_",
    ),
    "variable_with_a_dash": (
        with_line("env: {my-var: '1'}"),
        "7: env.my-var: found a variable 'my-var', expected letters, digits and '_', the first no digit",
    ),
    "variables_in_a_list": (
        with_line("env: [A=1]"),
        "7: env: found a list of 1, expected a mapping of variables to text",
    ),
    "cwd_is_empty": (
        with_line("cwd: ''"),
        "7: cwd: found '', expected a folder, or scratch for one of each cell's own",
    ),
    "cwd_of_nobody": (
        with_line("cwd: ~nobody-of-that-name/x"),
        "7: cwd: found '~nobody-of-that-name/x', which cannot be (Could not determine home directory); mend the path",
    ),
    "memory_without_a_unit": (with_line("memory: 8G"), f"7: memory: found '8G', expected {SIZE}"),
    "memory_of_four_bytes": (with_line("memory: 4"), f"7: memory: found 4, expected {SIZE}"),
    "memory_of_an_idle_loop": (f"{IDLE}memory: lots\n", f"4: memory: found 'lots', expected {SIZE}"),
    "timeout_is_a_word": (
        with_line("timeout: soon"),
        "7: timeout: found 'soon', expected a time from 1 second to 366 days such as 90, 90s, 15m or 2h, "
        "or null for none",
    ),
    "grace_too_long": (
        with_line("grace: 2h"),
        "7: grace: found '2h', expected a time from 0 seconds to 1 hour such as 10, 30s or 2m",
    ),
    "cap_misspelt": (
        with_line("cap: adress_space"),
        "7: cap: found 'adress_space', expected one of auto, address_space, none; did you mean 'address_space'?",
    ),
    "keep_is_text": (
        with_line("keep: out.txt"),
        "7: keep: found 'out.txt' (text), expected a list of at most 100 paths or globs",
    ),
    "keep_leaves_the_folder": (with_line("keep: [a/../../b]"), f"7: keep[0]: found 'a/../../b', expected {BELOW}"),
    "keep_is_absolute": (with_line("keep: [ok, /etc/passwd]"), f"7: keep[1]: found '/etc/passwd', expected {BELOW}"),
    "keep_twice": (
        with_line("keep: [a, a]"),
        "7: keep[1]: found 'a' a second time, expected different values; remove it",
    ),
    "threads_of_none": (with_line("threads: 0"), "7: threads: found 0, expected a whole number from 1 to 1024"),
    "runs_of_none": (with_line("runs: 0"), "7: runs: found 0, expected a whole number from 1 to 100000"),
    "limits_of_an_idle_loop": (
        with_line("limits: {timeout: 5}"),
        f"7: limits: unknown key, expected one of {TOP}; a command has none: write timeout at the top",
    ),
    "models_of_an_idle_loop": (
        with_line("models: []"),
        f"7: models: unknown key, expected one of {TOP}; a command has none",
    ),
    "command_in_an_idle_loop": (
        f"{IDLE}command: [x]\n",
        f"4: command: unknown key, expected one of {TOP_IDLE}; that is for a grid of `kind: command`",
    ),
    "environment_of_an_idle_loop": (
        f"{IDLE}env: {{A: b}}\n",
        f"4: env: unknown key, expected one of {TOP_IDLE}; that is for a grid of `kind: command`",
    ),
    "several_errors": (
        with_line("threads: 0\nkeep: [/a]\ncap: 1"),
        "7: threads: found 0, expected a whole number from 1 to 1024 (and 2 more)",
    ),
    "name_leaves_the_folder": (
        having("name: g", "name: ../g"),
        "1: name: found '../g', expected a name of at most 48 letters, digits, '.', '_' or '-', "
        "the first a letter or digit",
    ),
}


def test_the_grid_that_is_broken_is_a_good_one() -> None:
    assert parse_grid(GOOD, "g.yaml").name == "g"
    assert len(BROKEN) >= 25


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_grid_is_refused_with_its_line(name: str) -> None:
    text, message = BROKEN[name]
    with pytest.raises(GridError) as caught:
        parse_grid(text, "g.yaml")
    assert str(caught.value) == f"g.yaml:{message}"
    assert caught.value.exit_code == 2


def test_a_working_folder_that_is_not_there_is_said_with_its_whole_path(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    (tmp_path / "file").touch()
    said = "expected one that is there, or scratch"
    for cwd, message in {
        "nowhere": f"no folder {tmp_path}/nowhere, {said}",
        "file": f"no folder {tmp_path}/file, {said}",
        "'out/{lr}'": f"no folder {tmp_path}/out/{{lr}}, {said}; nothing is filled in here",
    }.items():
        path.write_text(with_line(f"cwd: {cwd}"))
        with pytest.raises(GridError) as caught:
            load_grid(path)
        assert str(caught.value) == f"{path}:7: cwd: {message}"


HOSTILE = {
    "a long placeholder": having("{lr}", "{" + "x" * 90_000 + "}"),
    "a long brace": having("{lr}", "{" + "x" * 90_000),
    "a long axis": having("  seed:", "  " + "s" * 900 + ":"),
    "a long variable": with_line(f"env: {{{'A-' * 400}: b}}"),
    "a long command": having(WORDS, "x " * 90_000),
    "a word that is too long": having("t.py", "x" * 100_001),
    "many axes": having("  seed:", "".join(f"  a{i}: [1]\n" for i in range(100)) + "  seed:"),
    "a value of lines": having("[0.1, 0.01]", '["a\\nb", "a\\nb"]'),
    "a long folder": with_line(f"cwd: {'x' * 3000}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grid_ends_in_one_short_line(name: str) -> None:
    with pytest.raises(GridError) as caught:
        parse_grid(HOSTILE[name], "g.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400

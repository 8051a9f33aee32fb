"""Filling in a command's placeholders, and refusing braces that are wrong."""

import shlex

import pytest

from overnight.cells import placeholders

VALUES = {"lr": 0.1, "seed": 3, "name": "a b", "on": True, "none": None, "cell": "lr0.1_seed3"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{lr}", "0.1"),
        ("--lr={lr} --seed={seed}", "--lr=0.1 --seed=3"),
        ("{lr}{seed}", "0.13"),
        ("{on} {none}", "true null"),
        ("{name}", "a b"),
        ("{cell}.ckpt", "lr0.1_seed3.ckpt"),
        ("{{lr}}", "{lr}"),
        ("{{{lr}}}", "{0.1}"),
        ('{{"lr": {lr}}}', '{"lr": 0.1}'),
        ("awk '{{print $1}}'", "awk '{print $1}'"),
        ("}}{{", "}{"),
        ("ä{seed}\n", "ä3\n"),
    ],
)
def test_values_take_the_place_of_their_names(text: str, filled: str) -> None:
    assert placeholders.fill(text, VALUES) == filled


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e-05, "1e-05"),
        (0.1, "0.1"),
        (1.0, "1.0"),
        (10**20, "100000000000000000000"),
        (False, "false"),
        (True, "true"),
        (None, "null"),
        ("{lr}", "{lr}"),
        ("", ""),
    ],
)
def test_a_value_is_written_so_that_it_can_be_read_back(value: object, written: str) -> None:
    assert placeholders.fill("{x}", {"x": value}) == written


@pytest.mark.parametrize("value", ["a b", "$(rm -rf /)", "'", '"', "`x`", ";&|", "", "{lr}", "a\nb", "*", "~"])
def test_a_quoted_value_is_one_word_of_the_shell(value: str) -> None:
    line = placeholders.fill("echo {x} end", {"x": value}, quote=True)
    assert shlex.split(line) == ["echo", value, "end"]


def test_names_are_given_in_order() -> None:
    assert placeholders.names("{b} {a} {{c}} {b}") == ["b", "a", "b"]
    assert placeholders.names("{learning-rate}{n_2}") == ["learning-rate", "n_2"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a {lr", "the brace { in '{lr' is never closed; write {{ for a brace that is meant"),
        ("lr} b", "the brace } in 'lr}' closes nothing; write }} for a brace that is meant"),
        ("{", "the brace { in '{' is never closed; write {{ for a brace that is meant"),
        ("{{{", "the brace { in '{' is never closed; write {{ for a brace that is meant"),
        ("{a{b}}", "the brace { in '{a{b}}' is never closed; write {{ for a brace that is meant"),
        ("{}", "'{}' holds no name of an axis; write {{ and }} for braces that are meant"),
        ("{0}", "'{0}' holds no name of an axis; write {{ and }} for braces that are meant"),
        ("{lr:.2f}", "'{lr:.2f}' holds no name of an axis; write {{ and }} for braces that are meant"),
        ("{lr.real}", "'{lr.real}' holds no name of an axis; write {{ and }} for braces that are meant"),
        ("{ lr }", "'{ lr }' holds no name of an axis; write {{ and }} for braces that are meant"),
        ("{é}", "'{é}' holds no name of an axis; write {{ and }} for braces that are meant"),
    ],
)
def test_a_wrong_brace_is_named(text: str, sentence: str) -> None:
    for refuse in (lambda: placeholders.names(text), lambda: placeholders.fill(text, VALUES)):
        with pytest.raises(ValueError) as refused:
            refuse()
        assert str(refused.value) == sentence


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(ValueError) as refused:
        placeholders.fill("{lrr}", {"lr": 1, "cell": "x"})
    assert str(refused.value) == "{lrr} has no value here; there are {cell}, {lr}"


def test_values_of_a_specification() -> None:
    spec = {"key": "lr0.1_run2", "coords": {"lr": 0.1, "run": 2}, "seed": 77}
    assert placeholders.values_of(spec) == {"lr": 0.1, "run": 2, "seed": 77, "cell": "lr0.1_run2"}


def test_an_axis_seed_wins_over_the_derived_seed() -> None:
    spec = {"key": "seed3", "coords": {"seed": 3}, "seed": 77}
    assert placeholders.values_of(spec)["seed"] == 3


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("python t.py --lr {lr} > {cell}.log", []),
        ('echo "{lr}"', ["lr"]),
        ("echo '{lr}' {cell}", ["lr"]),
        ('echo "a \\" {lr}" {cell}', ["lr"]),
        ("echo 'it'\\''s {lr}'", ["lr"]),
        ("awk '{{print}}' {cell}", []),
        ('echo \\"{lr}', []),
        ("echo \\{lr}", ["lr"]),
        ('echo "$HOME"/{cell} "{lr} {cell}"', ["lr", "cell"]),
    ],
)
def test_names_in_quotes_of_a_shell_are_found(line: str, quoted: list[str]) -> None:
    assert placeholders.quoted_names(line) == quoted

"""Names from grids and from the command line never lead out of their folder, wherever they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.command_cell import specification
from helpers.home import Home
from overnight import durable
from overnight.cells.command_result import keep, kept_path
from overnight.engines import model_store
from overnight.errors import GridError, ModelError
from overnight.grid.expand import expand
from overnight.grid.loader import parse_grid
from overnight.paths import Paths

HOSTILE = [
    *("..", ".", "", " ", "../x", "../../../../etc/passwd", "a/../../b", "/etc/passwd", "//x", "a/b", "a//b", "./a"),
    *(
        "~",
        "~root",
        "~no-such-user",
        "a\0b",
        "\0",
        "a\nb",
        "a\rb",
        "\x1b[2J",
        "a\x7fb",
        "a\x9bb",
        "\u202eabc",
        "a\u200bb",
        "\ufeffa",
    ),
    *("x" * 300, "ü" * 200, "x" * 100_000, "-rf", "--home", ".hidden", ".aside", "..x", "x..", "a.", " a", "a "),
    *("CON", "nul", "aux.txt", "com1", "LPT9", "a:b", "a\\b", "..\\..\\x", "C:\\x", "*", "?", "a|b", "<x>", '"', "'"),
    *(
        "$HOME",
        "$(id)",
        "`id`",
        "%2e%2e%2f",
        "..%00",
        "\ud800",
        "é",
        "e\u0301",
        "ﬁ",
        "A",
        "a",
        "İ",
        "null",
        "true",
        "1",
    ),
]
"""Traversal, absolute, NUL, line ends, escape codes, too long, reserved elsewhere, options, shells, other alphabets."""


def below(folder: Path, path: Path) -> bool:
    """Is it strictly below, as the kernel would see it?"""
    return Path(os.path.normpath(path)).is_relative_to(folder) and os.path.normpath(path) != str(folder)


def model(**fields: Any) -> dict[str, Any]:
    return {"name": "m", "engine": "scripted", "source": "scripted", **fields}


def idle(**fields: Any) -> dict[str, Any]:
    return {"name": "g", "models": [model()], "scaffolds": [1], **fields}


def command(**fields: Any) -> dict[str, Any]:
    return {"name": "g", "kind": "command", "command": ["true"], "cwd": "scratch", **fields}


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "a grid": lambda name: idle(name=name),
    "a model": lambda name: idle(models=[model(name=name)]),
    "a scaffold": lambda name: idle(scaffolds=[{"id": 10, "name": name, "text": "x"}]),
    "a scaffold and a model": lambda name: idle(
        models=[model(name=name)], scaffolds=[{"id": 10, "name": name, "text": "x"}]
    ),
    "a grid of commands": lambda name: command(name=name),
    "an axis": lambda name: command(axes={name: [1, 2]}),
    "values of axes": lambda name: command(axes={"a": [name], "b": [name, 1.5], "c": [f"{name}/..", f"../{name}"]}),
    "a value and runs": lambda name: command(axes={"a": [name]}, runs=2),
    "a file to keep": lambda name: command(keep=[name]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
def test_a_name_is_refused_in_one_line_or_stays_below(tmp_path: Path, place: str, name: str) -> None:
    grid = PLACES[place](name)
    try:
        # JSON is YAML; the loader sees what a file can hold, NUL and lone surrogates included.
        found = parse_grid(json.dumps(grid), "g.yaml")
        cells = list(expand(found))
    except GridError as error:
        assert str(error).isprintable()
        assert str(error).startswith("g.yaml:")
        assert len(str(error)) < 1000
        return
    paths = Paths(tmp_path)
    assert below(paths.results, paths.grid_results(found.name))
    assert paths.grid_results(found.name).parent == paths.results
    folder = paths.grid_results(found.name)
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        made = paths.cell_results(found.name, cell.key)
        assert made.parent == folder
        assert below(folder, made)
        assert cell.key.isascii()
        assert cell.key.isprintable()
        assert cell.key[0] not in ".-~"
        assert len(cell.key) <= 120
        made.mkdir(parents=True, exist_ok=True)  # and it can be had
    assert {path.name for path in paths.results.iterdir()} == {found.name}


def test_names_that_differ_for_us_alone_are_two() -> None:
    """Composed and decomposed letters are two values: each has its key, on a file system that makes them one, too."""
    values = ["é", "e\u0301", "E\u0301", "ﬁ", "fi"]
    keys = [cell.key for cell in expand(parse_grid(yaml.safe_dump(command(axes={"a": values})), "g.yaml"))]
    assert len({key.lower() for key in keys}) == len(values)
    assert keys[-1] == "afi"


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
def test_a_file_is_kept_below_the_folder_or_not_at_all(tmp_path: Path, name: str) -> None:
    """A value of an axis within a pattern; around the working folder there is much that would match."""
    cwd, folder = tmp_path / "a" / "b" / "cwd", tmp_path / "cell"
    for made in (cwd / "x", folder):
        made.mkdir(parents=True)
    for path in (tmp_path / "out.txt", tmp_path / "a" / "out.txt", cwd.parent / "out.txt"):
        path.write_text("outside")
    (cwd / "out.txt").write_text("inside")
    (cwd / "link.txt").symlink_to(tmp_path / "out.txt")
    (cwd / "up").symlink_to(tmp_path)
    (cwd / "hard.txt").hardlink_to(cwd / "out.txt")
    spec = specification(
        ["true"], coords={"a": name}, keep=["{a}", "{a}/*.txt", "x/{a}/*.txt", "{a}/up/*.txt", "*.txt"]
    )
    for entry in keep(spec, cwd, folder).files:
        path = kept_path(folder, entry)
        assert below(folder / "files", path)
        assert path.read_text() == "inside"
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
    assert (folder / "files" / "out.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "cell", "out.txt"]


@pytest.mark.parametrize(
    "entry",
    [
        *({"name": name} for name in ("../x", "/etc/passwd", "a/../../x", "..", "", ".", "a\0b")),
        *({"name": "x", "name_bytes": os.fsencode(name).hex()} for name in ("../x", "/etc/passwd", "", "a\0b")),
        *({"name": "x", "name_bytes": "zz"}, {}, {"name": 1}),
    ],
)
def test_an_entry_of_a_result_names_nothing_outside(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        kept_path(tmp_path, entry)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\ud800" not in name], ids=lambda name: ascii(name)[:24])
def test_a_model_is_stored_below_the_store_or_refused(tmp_path: Path, name: str) -> None:
    store = tmp_path / "models"
    store.mkdir()
    try:
        checked = model_store._check_name(name)
    except ModelError as error:
        assert str(error).isprintable()
    else:
        assert (store / f"{checked}--float32").parent == store
        assert below(store, store / f"{checked}--float32")
    try:
        assert model_store.locate(store, name, "float32") is None, "nothing is in it"
    except ModelError as error:
        assert str(error).isprintable()


def test_the_longest_name_that_a_file_can_have_is_kept(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        durable.write_atomic(tmp_path / name, b"kept")
        assert (tmp_path / name).read_bytes() == b"kept"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["show", "../../etc/passwd"],
        ["show", "night/../../../etc/passwd"],
        ["show", "/etc/passwd"],
        ["show", "x" * 300],
        ["show", "#-1"],
        ["show", "#99999999999999999999999"],
        ["show", "CELL", "--grid", "../../etc"],
        ["tail", "../x"],
        ["cells", "../.."],
        ["cancel", "../x"],
        ["retry", "--grid", "../x"],
        ["reset", "../.."],
        ["status", "--write-grid-state", "../../x"],
        ["models", "add", "smollm2-135m-instruct", "--name", "../../x"],
        ["models", "add", "../../\x1b[31mx"],
        ["submit", "../\x1b[2J\x9b31m\u202e.yaml"],
        ["submit", "--command", "true", "--name", "../x"],
        ["submit", "--command", "true", "--cwd", "\x1b]0;title\x07"],
        ["\x1b[31mcommand"],
        ["status", "--\x9b31m"],
    ],
    ids=lambda words: ascii(" ".join(words))[:40],
)
def test_a_name_on_the_command_line_gets_one_line(home: Home, words: list[str]) -> None:
    before = everything(home)
    done = home(*words, code=2)
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable(), ascii(done.stderr)
    made = everything(home) - before
    assert all(below(home.paths.var, path) for path in made), made


def everything(home: Home) -> set[Path]:
    return set(home.paths.home.parent.rglob("*"))

"""What is taken for a result, which files are kept, and the bytes of result.json."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.command_cell import specification
from overnight.cells import command_result
from overnight.cells.command_result import Result, keep, matches, parse, read, write
from overnight.errors import CellError


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b' {"a": "\xc3\xa9"}\n', {"a": "\u00e9"}),
        (b"[1]", None),
        (b'{"a": NaN}', None),
        (b'{"a": -Infinity}', None),
        (b'{"a": 1e999}', None),
        (b'{"a": "\\ud800"}', None),
        (b'{"a": ', None),
        (b"", None),
        (b"\xff", None),
        (b'{"a":' * 100_000, None),
    ],
)
def test_a_result_is_an_object_that_can_be_written_down(data: bytes, value: object) -> None:
    result = parse(data, "it")
    assert result.value == value
    assert (result.note == "") == (value is not None)
    assert len(result.note) < 300


def test_where_a_result_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.user.json"
    assert read(tmp_path, b'{"a": 1}') == Result({"a": 1})
    assert read(tmp_path, b"loss 0.5") == Result()
    assert "too long" in read(tmp_path, None).note
    file.write_text('{"b": 2}')
    assert read(tmp_path, b'{"a": 1}') == Result({"b": 2})
    file.write_text("")
    assert read(tmp_path, b'{"a": 1}').value is None
    monkeypatch.setattr(command_result, "RESULT_BYTES", 7)
    file.write_text('{"b": 2}')
    assert "is larger than" in read(tmp_path, b"").note
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert "cannot be read" in read(tmp_path, b"").note
    file.unlink()
    os.mkfifo(file)
    assert "no regular file" in read(tmp_path, b"").note


FILES = ["a.txt", "b.bin", ".hidden.txt", "d/a.txt", "d/e/f/a.txt", "d/.git/a.txt", "w[1].txt", "w1.txt"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("./a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "w1.txt", "w[1].txt"]),
        ("*", ["a.txt", "b.bin", "w1.txt", "w[1].txt"]),
        (".*", [".hidden.txt"]),
        ("*/a.txt", ["d/a.txt"]),
        ("**/a.txt", ["a.txt", "d/a.txt", "d/e/f/a.txt"]),
        ("d/**", ["d/a.txt", "d/e/f/a.txt"]),
        ("d/**/f/*", ["d/e/f/a.txt"]),
        ("w[[]1].txt", ["w[1].txt"]),
        ("d", []),
        ("up/a.txt", []),
        ("link.txt", []),
        ("../in/a.txt", []),
        ("/etc/passwd", []),
        ("", []),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, found: list[str]) -> None:
    inside = tmp_path / "in"
    for name in FILES:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text(name)
    (inside / "up").symlink_to(inside)
    (inside / "link.txt").symlink_to("a.txt")
    assert sorted(set(matches(inside, pattern))) == found


def test_kept_files_replace_those_of_an_interrupted_attempt(tmp_path: Path) -> None:
    cwd, folder = tmp_path / "cwd", tmp_path / "cell"
    for made in (cwd, folder / "files"):
        made.mkdir(parents=True)
    (folder / "files" / "stale").write_text("x")
    (cwd / "m*x.txt").write_text("yes")
    (cwd / "max.txt").write_text("no")
    spec = specification(["true"], coords={"a": "*"}, keep=["m{a}x.txt", "m{a}x.*", "none"])
    kept = keep(spec, cwd, folder)
    assert [file["name"] for file in kept.files] == ["m*x.txt"], "a value's own star is no pattern"
    assert (kept.missing, kept.refused) == (["none"], [])
    assert [path.name for path in (folder / "files").iterdir()] == ["m*x.txt"]


def test_the_same_result_is_the_same_bytes(tmp_path: Path) -> None:
    spec = specification(["true"])
    first = write(spec, tmp_path, Result({"b": 1, "a": 2.0}), [])
    data = (tmp_path / "result.json").read_bytes()
    assert write(spec, tmp_path, Result({"a": 2.0, "b": 1}), []) == first
    assert (tmp_path / "result.json").read_bytes() == data
    assert data.startswith(b'{"coords":{"a":1},"exit_code":0,"files":[],"key":"a1","kind":"command","result":{"a":2.0')


def test_a_full_disk_is_waited_for_in_the_words_of_a_command() -> None:
    failed = command_result.disk_error(OSError(28, "No space left on device"), "writing x")
    assert isinstance(failed, CellError)
    assert (failed.outcome, failed.reason_code) == ("yielded", "no_space")
    assert str(failed) == "no space left while writing x; the command is run again when there is room"

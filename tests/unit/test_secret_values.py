"""Where values of secrets come from, what is refused, and that no message ever holds one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overnight import secrets
from overnight.errors import GridError
from overnight.grid.expand import expand
from overnight.grid.loader import parse_grid
from overnight.secrets import SecretError, SecretMissing, look_up, missing, read_file

VALUE = "canary-0123456789"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(
        tmp_path / "secrets.env", f"# keys\n\nA_KEY={VALUE}\n B_KEY = 'quoted # {VALUE}' \nC_KEY=\"a=b==c;$d\"\n"
    )


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def refused(path: Path) -> str:
    with pytest.raises(SecretError) as caught:
        read_file(path)
    said = str(caught.value)
    assert said.isprintable()
    assert VALUE not in said
    assert caught.value.reason_code == "secret_refused"
    return said


def test_lines_comments_and_quotes(file: Path) -> None:
    assert read_file(file) == {"A_KEY": VALUE, "B_KEY": f"quoted # {VALUE}", "C_KEY": "a=b==c;$d"}
    assert read_file(file.with_name("none")) == {}
    assert read_file(written(file, f"A_KEY={VALUE}\r\n")) == {"A_KEY": VALUE}, "with the line ends of other systems"


def test_the_environment_comes_first_and_an_empty_variable_is_none(file: Path) -> None:
    environ = {"A_KEY": "of-the-environment", "B_KEY": "", "OTHER": "another-value"}
    found = look_up(["A_KEY", "B_KEY"], environ, file)
    assert found == {"A_KEY": "of-the-environment", "B_KEY": f"quoted # {VALUE}"}
    assert look_up([], environ, file) == {}


def test_a_file_that_is_refused_hinders_only_who_needs_it(file: Path) -> None:
    file.chmod(0o644)
    assert look_up(["A_KEY"], {"A_KEY": VALUE}, file) == {"A_KEY": VALUE}
    with pytest.raises(SecretError, match="chmod 600"):
        look_up(["A_KEY", "B_KEY"], {"A_KEY": VALUE}, file)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o660, 0o666, 0o777])
def test_a_file_that_others_may_use_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert refused(file) == f"{file}: others may use it (mode {mode:04o}); chmod 600 {file}"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_stricter_mode_will_do(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_file(file)["A_KEY"] == VALUE


def test_what_is_no_regular_file_is_refused(file: Path) -> None:
    link, pipe, folder = (file.with_name(name) for name in ("link", "pipe", "folder"))
    link.symlink_to(file)
    os.mkfifo(pipe, 0o600)
    folder.mkdir(0o700)
    assert "it is a link" in refused(link)
    for odd in (pipe, folder):
        assert "no regular file" in refused(odd)


@pytest.mark.root
def test_somebody_elses_file_is_refused(file: Path) -> None:
    os.chown(file, 65534, 65534)
    assert "belongs to another user (uid 65534)" in refused(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A\n", "{file}:1: expected NAME=value"),
        (f"\n{VALUE}", "{file}:2: expected NAME=value"),
        (f"export A={VALUE}", "{file}:1: expected NAME=value"),
        (f"1A={VALUE}", "{file}:1: expected NAME=value"),
        (f"={VALUE}", "{file}:1: expected NAME=value"),
        (f"A={VALUE}\nA={VALUE}", "{file}:2: this name is there already"),
        (f"A='{VALUE}", "{file}:1: the quote is never closed"),
        ("A='", "{file}:1: the quote is never closed"),
        ("A=", "{file}:1: the secret is shorter than 8 bytes"),
        ("A=1234567", "{file}:1: the secret is shorter than 8 bytes"),
        ("A='1234567'", "{file}:1: the secret is shorter than 8 bytes"),
        (f"A={VALUE}\0more", "{file}:1: the secret has a line end or a NUL"),
        (f"A={VALUE}\rmore", "{file}:1: the secret has a line end or a NUL"),
        ("A=" + "x" * 8193, "{file}:1: the secret is longer than 8192 bytes"),
        (f"# {VALUE}\nA=\xff{VALUE}".encode("latin-1"), "{file}:2: not valid text"),
        ("#" * (64 * 2**10 + 1), "{file}: larger than 64 KiB"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_line(file: Path, text: str | bytes, said: str) -> None:
    assert refused(written(file, text)).startswith(said.format(file=file))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1234567", "is shorter than 8 bytes: it could not be masked"),
        ("-----BEGIN-----\nabc", "has a line end or a NUL"),
        ("x" * 8193, "is longer than 8192 bytes"),
    ],
)
def test_a_variable_is_held_to_the_same(file: Path, value: str, problem: str) -> None:
    with pytest.raises(SecretError) as caught:
        look_up(["TOKEN"], {"TOKEN": value}, file)
    assert str(caught.value).startswith(f"secret TOKEN of the environment {problem}")
    assert value not in str(caught.value)


def test_eight_bytes_are_enough(file: Path) -> None:
    assert look_up(["A", "B"], {"A": "12345678", "B": "äöüß"}, file) == {"A": "12345678", "B": "äöüß"}


def test_what_is_nowhere_is_told_with_what_to_do(file: Path) -> None:
    with pytest.raises(SecretMissing) as caught:
        look_up(["A_KEY", "X_KEY", "Y_KEY"], {}, file)
    assert caught.value.reason_code == "secret_missing"
    assert str(caught.value) == (
        f"secrets X_KEY, Y_KEY are neither in the daemon's environment nor in {file}; write a line X_KEY=... into that "
        "file, and chmod 600 it"
    )


def test_a_warning_beforehand(file: Path) -> None:
    assert missing(["A_KEY", "P"], {"P"}, "the environment", file) is None
    assert missing(["A_KEY", "X"], {"P"}, "the environment", file) == (
        f"secret X is neither in the environment nor in {file}; write a line X=... into that file, and chmod 600 it"
    )
    file.chmod(0o644)
    assert "chmod 600" in (missing(["A_KEY"], {"P"}, "the environment", file) or "")
    assert missing(["P"], {"P"}, "the environment", file) is None


def test_a_specification_has_names_alone_and_only_where_there_are_any() -> None:
    """Cells of before secrets are to stay the cells that they were."""
    text = "name: g\nkind: command\ncommand: [a]\ncwd: scratch\n"
    (plain,) = expand(parse_grid(text, "g.yaml"))
    assert "secrets" not in plain.template
    (cell,) = expand(parse_grid(f"{text}secrets: [B_KEY, A_KEY]\n", "g.yaml"))
    assert cell.template == plain.template | {"secrets": ["B_KEY", "A_KEY"]}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("secrets: A", "5: secrets: found 'A' (text), expected a list of at most 100 names"),
        ("secrets: [A=b]", "5: secrets[0]: found a text that is no name, expected the name of a variable"),
        (
            "secrets: [canary-0123456789]",
            "5: secrets[0]: found a text that is no name, expected the name of a variable",
        ),
        ("secrets: [A]\nenv: {A: x}", "5: secrets[0]: found A, which `env` gives too; remove one of the two"),
        ("secrets: {A: canary-0123456789}", "5: secrets: found a mapping, expected a list of at most 100 names"),
    ],
)
def test_a_grid_with_a_wrong_secret_is_refused(more: str, said: str) -> None:
    with pytest.raises(GridError) as caught:
        parse_grid(f"name: g\nkind: command\ncommand: [a]\ncwd: scratch\n{more}\n", "g.yaml")
    assert str(caught.value).startswith(f"g.yaml:{said}")
    assert VALUE not in str(caught.value)


def test_it_knows_nothing_of_commands(repository: Path) -> None:
    """Engines will need it as well."""
    for name in ("secrets.py", "masking.py"):
        text = (repository / "daemon" / "overnight" / name).read_text()
        imports = [line for line in text.splitlines() if "import" in line and "overnight" in line]
        assert all("overnight.errors" in line for line in imports), name
    assert secrets.SHORTEST_BYTES == 8

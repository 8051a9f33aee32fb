"""`[memory] budget` and the command line: what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overnight_watchdog.__main__ import main
from overnight_watchdog.config import ConfigError, configured_budget


def config(home: Path, text: str | bytes) -> Path:
    path = home / "etc" / "overnight.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_no_file_and_no_budget(tmp_path: Path) -> None:
    assert configured_budget(tmp_path / "etc" / "overnight.toml") is None
    assert configured_budget(config(tmp_path, "[daemon]\nslots = 2\n")) is None
    assert configured_budget(config(tmp_path, "[memory]\n")) is None


@pytest.mark.parametrize(("text", "size"), [('"2GiB"', 2**31), ("1048576", 2**20), ('"64 mib"', 2**26)])
def test_a_budget(tmp_path: Path, text: str, size: int) -> None:
    assert configured_budget(config(tmp_path, f"[memory]\nbudget = {text}\n")) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[memory\n", "not valid TOML"),
        ("memory = 5\n", "expected a table [memory], found 5"),
        ('[memory]\nbudget = "much"\n', "memory.budget: 'much' is not a size; expected one such as 2GiB"),
        ("[memory]\nbudget = true\n", "memory.budget: expected a size such as"),
        ("[memory]\nbudget = 1.5\n", "found 1.5"),
        ("[memory]\nbudget = -5\n", "'-5' is not a size"),
        ("[memory]\nbudget = 0\n", "'0' is no size to live in"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes, says: str
) -> None:
    path = config(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        configured_budget(path)
    assert says in str(caught.value)
    assert main(["--home", str(tmp_path), "--once"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"overnight-watchdog: {caught.value}\n"
    assert shown.err.startswith(f"overnight-watchdog: {path}: ")
    assert shown.out == ""


def test_a_home_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path / "typo")]) == 2
    assert capsys.readouterr().err.startswith(f"overnight-watchdog: {tmp_path}/typo: no such folder; ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--interval", "0"], "expected seconds between 0.01 and 4"),
        (["--interval", "5"], "expected seconds between 0.01 and 4"),
        (["--interval", "nan"], "expected seconds between 0.01 and 4"),
        (["--interval", "soon"], "'soon': expected seconds"),
        (["--budget", "2 apples"], "'2 apples' is not a size"),
        (["--json"], "--json goes with --once"),
        (["--dry-run"], "unrecognized arguments"),
    ],
)
def test_arguments_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--home", str(tmp_path), *arguments])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_once_shows_what_is_seen_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path), "--once", "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert view["limit_bytes"] == min(bound["limit_bytes"] for bound in view["bounds"])
    assert 0 < view["usage_bytes"] < view["limit_bytes"]
    assert view["acts"] is False
    assert list(tmp_path.iterdir()) == []
    assert main(["--home", str(tmp_path), "--once"]) == 0
    text = capsys.readouterr().out
    assert view["limit_source"] in text and "signals nobody" in text


def test_the_command_line_overrides_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path, '[memory]\nbudget = "16MiB"\n')
    main(["--home", str(tmp_path), "--once", "--json"])
    assert json.loads(capsys.readouterr().out)["limit_bytes"] == 2**24
    main(["--home", str(tmp_path), "--once", "--json", "--budget", "8MiB"])
    assert json.loads(capsys.readouterr().out)["limit_bytes"] == 2**23


def test_the_home_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path))
    config(tmp_path, '[memory]\nbudget = "16MiB"\n')
    assert main(["--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limit_source"] == "budget"

"""`[memory] budget` and the command line: what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overnight_watchdog.__main__ import main
from overnight_watchdog.config import ConfigError, configured_budget
from overnight_watchdog.tree import start_ticks


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
        (["--loud"], "unrecognized arguments"),
        (["--once", "perhaps"], "invalid choice: 'perhaps'"),
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
    assert view["acts"] is True
    assert list(tmp_path.iterdir()) == []
    assert main(["--home", str(tmp_path), "--once"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("limit", "usage", "headroom", "level", "bound", view["limit_source"]))


def test_once_as_json_has_the_contracts_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`overnight doctor` reads them."""
    assert main(["--home", str(tmp_path), "--once", "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert {"level", "headroom_source", "slow_bytes", "swap_bytes", "slope_bytes_per_s", "exhaustion_s"} <= view.keys()
    assert view["victims"] == []
    assert {"source", "limit_bytes", "usage_bytes", "headroom_bytes"} <= view["bounds"][0].keys()
    assert all(0 <= bound["headroom_bytes"] <= bound["limit_bytes"] for bound in view["bounds"])
    assert view["headroom_bytes"] <= min(bound["limit_bytes"] for bound in view["bounds"])
    assert view["abilities"].keys() == {
        *("mlock", "oom_score_adj", "pidfd", "process_mrelease", "psi", "psi_trigger"),
        *("cgroup_counters", "budget_cgroup"),
    }
    for ability in view["abilities"].values():
        assert type(ability["ok"]) is bool and ability["detail"]


def test_once_names_the_victims_in_order_and_touches_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cells = tmp_path / "var" / "run" / "cells"
    cells.mkdir(parents=True)
    holder = "held = bytearray(64 * 2**20); held[::4096] = bytes(len(held[::4096])); print(flush=True); input()"
    children = [
        subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for child, cell, lost_s in zip(children, ("dear", "cheap"), (5000.0, 5.0), strict=True):
            assert child.stdout is not None
            child.stdout.readline()
            started_s = time.monotonic() - lost_s
            entry = {"v": 1, "boot_id": boot_id, "pid": child.pid, "start_ticks": start_ticks(child.pid)}
            entry |= {"role": "command", "cell": cell, "started_s": started_s, "shrinks": cell == "dear"}
            (cells / f"{child.pid}.json").write_text(json.dumps(entry))
        assert main(["--home", str(tmp_path), "--once", "--json", "--budget", "1MiB"]) == 0
        view = json.loads(capsys.readouterr().out)
        assert view["limit_source"] == "budget"
        assert [victim["cell"] for victim in view["victims"]] == ["cheap", "dear"]
        first, second = view["victims"]
        assert {"pid", "role", "own_bytes", "loss_s", "slope_bytes_per_s", "shrinks"} <= first.keys()
        assert (first["pid"], second["shrinks"], first["shrinks"]) == (children[1].pid, True, False)
        assert first["own_bytes"] >= 64 * 2**20 and 5000 <= second["loss_s"] < 5100
        assert [child.poll() for child in children] == [None, None]
        assert sorted(path.name for path in tmp_path.rglob("*.json")) == sorted(f"{each.pid}.json" for each in children)
    finally:
        for child in children:
            child.communicate(b"\n")


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

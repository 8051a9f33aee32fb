"""`overnight doctor` as a user meets it: a real watchdog answers, or does not; homes of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.home import Home
from helpers.memory_cgroup import MemoryCgroup
from helpers.waiting import until
from overnight.doctor import watchdog_view

BROKEN = "import sys; sys.exit('overnight-watchdog: out of order')"


@pytest.fixture
def broken_watchdog(tmp_path: Path) -> dict[str, str]:
    """An environment in which the watchdog's package is one that fails."""
    package = tmp_path / "broken" / "overnight_watchdog"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(BROKEN)
    return {**os.environ, "PYTHONPATH": str(package.parent)}


def rows(home: Home, *, code: int = 0, **options: Any) -> dict[str, dict[str, str]]:
    """`overnight doctor --json` by the names of the checks."""
    found = json.loads(home("doctor", "--json", code=code, **options).stdout)
    assert all(set(row) == {"check", "status", "found", "advice"} for row in found)
    assert {row["status"] for row in found} <= {"ok", "lacks", "bad"}
    assert len({row["check"] for row in found}) == len(found)
    return {row["check"]: row for row in found}


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_fresh_home_has_nothing_bad(home: Home) -> None:
    found = rows(home)
    assert [row["check"] for row in found.values() if row["status"] == "bad"] == []
    for check in ("memory limit", "home", "settings", "budget"):
        assert found[check]["status"] == "ok", found[check]
    for check in ("supervisord", "daemon", "watchdog", "models"):
        assert found[check]["status"] == "lacks"
    assert "overnight up" in found["supervisord"]["advice"]


def test_it_changes_nothing(home: Home) -> None:
    rows(home)
    before = contents(home.paths.home)
    rows(home)
    assert contents(home.paths.home) == before


def test_it_is_light_and_quick(home: Home) -> None:
    began = time.monotonic()
    program = (
        "import sys; from overnight.cli.main import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--home", str(home.paths.home), "doctor"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "[]"
    assert time.monotonic() - began < 10  # half a second on an idle machine; this one may be busy


def test_the_table_fits_a_terminal(home: Home) -> None:
    said = home("doctor", env={**os.environ, "COLUMNS": "80"}).stdout.splitlines()
    assert all(len(line) <= 80 or len(max(line.split(), key=len)) > 40 for line in said), said
    assert said[0].startswith("ok     memory limit")
    assert said[-1].endswith(", 0 bad")


def test_a_budget_that_no_model_fits_is_bad(home: Home) -> None:
    with home.paths.config.open("a") as file:
        file.write('[memory]\nbudget = "100MiB"\n')
    found = rows(home, code=1)
    assert found["memory limit"]["found"] == "100.0 MiB, set by memory.budget in etc/overnight.toml"
    assert found["budget"]["status"] == "ok"
    assert [row["check"] for row in found.values() if row["status"] == "bad"] == ["model memory"]
    assert home("doctor", code=1).stdout.strip().endswith("1 bad")


def test_a_budget_larger_than_the_machine_is_said_to_do_nothing(home: Home) -> None:
    with home.paths.config.open("a") as file:
        file.write('[memory]\nbudget = "1000TiB"\n')
    assert rows(home)["budget"]["status"] == "lacks"


def test_broken_settings_are_a_bad_row_and_the_rest_is_told_all_the_same(home: Home) -> None:
    home.paths.config.write_text("[daemon]\nslot = 3\n")
    found = rows(home, code=1)
    assert "did you mean 'slots'" in found["settings"]["found"]
    assert found["disk"]["status"] == "ok"
    home.paths.config.write_text("[memory]\nbudget = 1x\n")
    found = rows(home, code=1)
    assert {found["settings"]["status"], found["memory limit"]["status"]} == {"bad"}


def test_a_watchdog_out_of_order_is_a_bad_row(home: Home, broken_watchdog: dict[str, str]) -> None:
    found = rows(home, code=1, env=broken_watchdog)
    assert found["memory limit"]["found"] == "the watchdog does not answer: exit status 1: out of order"
    assert [row["check"] for row in found.values() if row["status"] == "bad"] == ["memory limit"]
    assert "PSI" not in found
    assert "Traceback" not in home("doctor", code=1, env=broken_watchdog).stdout


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link", "file in the way", "proc"])
def test_homes_that_are_none_get_one_line_and_exit_2(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "h"
    if kind == "file":
        place.write_text("")
    elif kind == "below a file":
        place.write_text("")
        place = place / "below"
    elif kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere" / "at" / "all")
    elif kind == "file in the way":
        place.mkdir()
        (place / "var").write_text("")
    else:
        place = Path("/proc/self/nowhere")
    done = subprocess.run(
        [sys.executable, "-m", "overnight", "--home", str(place), "doctor"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["a%b", "d" * 100])
def test_a_home_that_supervisord_refuses_is_a_bad_row(tmp_path: Path, name: str) -> None:
    assert rows(Home(tmp_path / name), code=1)["home"]["status"] == "bad"


def test_an_open_home_is_shut_before_it_is_looked_at(home: Home) -> None:
    home.paths.var.chmod(0o755)
    assert rows(home)["home"]["status"] == "ok"
    assert home.paths.var.stat().st_mode & 0o777 == 0o700


@pytest.mark.root
def test_a_disk_in_memory_that_is_full_and_read_only(home: Home) -> None:
    var = str(home.paths.var)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,nr_inodes=50,mode=700", "none", var], check=True)
    try:
        found = rows(home, code=1)
        assert (found["disk"]["status"], found["file system"]["status"]) == ("bad", "lacks")
        subprocess.run(["mount", "-o", "remount,ro", var], check=True)
        assert "read-only" in rows(home, code=1)["home"]["found"]
    finally:
        subprocess.run(["umount", var], check=True)


def test_a_cgroups_limit_is_found(home: Home, cgroup: MemoryCgroup) -> None:
    command = [sys.executable, "-m", "overnight", "--home", str(home.paths.home), "doctor", "--json"]
    done = subprocess.run(cgroup.join(*command), capture_output=True, text=True, check=False)
    found = {row["check"]: row for row in json.loads(done.stdout)}
    assert found["memory limit"]["found"] == f"256.0 MiB, set by the cgroup {cgroup.folder}"
    assert "container" in found["memory limit"]["advice"]
    assert found["model memory"]["status"] == "bad"
    assert done.returncode == 1
    assert cgroup.oom_kills() == 0


def test_what_runs_is_seen(tmp_path: Path) -> None:
    home = Home(tmp_path / "h", watchdog=True)
    try:
        home("up")
        until(lambda: rows(home)["watchdog"]["status"] == "ok", 20, "the watchdog's heartbeat")
        found = rows(home)
        assert [found[name]["status"] for name in ("supervisord", "daemon", "watchdog")] == ["ok", "ok", "ok"]
        home.paths.supervisor_socket.unlink()
        assert "socket" in rows(home, code=1)["supervisord"]["found"]
        home("up")
        home("down")
        assert [rows(home)[name]["status"] for name in ("supervisord", "daemon", "watchdog")] == ["lacks"] * 3
    finally:
        home.end()


# -- asking the watchdog ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('overnight-watchdog: the lock is lost')", "exit status 1: the lock is lost"),
        ("import sys; sys.exit(3)", "exit status 3: it said nothing"),
        ("import os; os.abort()", "exit status -6"),
        ("import os; os.write(2, b'\\xff bad'); os._exit(2)", "bad"),
        ("print('{')", "no JSON"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_watchdog_that_fails_is_a_complaint(program: str, words: str, tmp_path: Path) -> None:
    view = watchdog_view.ask(
        tmp_path, [sys.executable, "-S", "-c", program], timeout_s=0.5 if "sleep" in program else 20
    )
    assert words in view.complaint
    assert view.said == {}


def test_a_watchdog_that_is_not_there_is_a_complaint(tmp_path: Path) -> None:
    assert "No such file" in watchdog_view.ask(tmp_path, [str(tmp_path / "nowhere")]).complaint


def test_a_watchdog_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERVISOR_ENABLED", "1")
    program = "import json, os; print(json.dumps({'limit_bytes': 5, 'level': str('SUPERVISOR_ENABLED' in os.environ)}))"
    view = watchdog_view.ask(tmp_path, [sys.executable, "-S", "-c", program])
    assert (view.complaint, view.whole("limit_bytes"), view.text("level")) == ("", 5, "False")

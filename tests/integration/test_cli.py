"""The command line as a user meets it: what works, and one clear line where it does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.home import Home
from helpers.waiting import until
from overnight.cli.main import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(home: Home, command: str) -> None:
    assert "usage: overnight" in home(command, "--help").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("submit", "nowhere.yaml"), "nowhere.yaml"),
        (("cells", "nigth"), "night"),  # the nearest known name
        (("show", "baseline_script_run2"), "baseline_script_run1"),
        (("tail", "baseline_script_run1"), "no transcript yet"),
        (("cancel",), "name at least one CELL"),
        (("reset", "day"), "day"),
        (("verify", "day"), "day"),
        (("submit", "FILE", "--only", "run"), "AXIS=VALUE"),
        (("submit", "FILE", "--only", "run=9"), "9"),
        (("submit", "FILE", "--only", "height=9"), "height"),
        (("submit", "FILE", "--scaffold", "valeus_only"), "values_only"),
        (("submit", "FILE", "--model", "70b"), "script"),
        (("models", "add", "/nowhere/model"), "/nowhere/model"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(home: Home, args: tuple[str, ...], words: str) -> None:
    path = home.grid()
    home("submit", str(path))
    done = home(*(str(path) if arg == "FILE" else arg for arg in args), code=2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_submitting_again_adds_only_what_is_missing(home: Home) -> None:
    assert "2 added, 0 there already" in home("submit", str(home.grid())).stdout
    assert "0 added, 2 there already" in home("submit", str(home.grid())).stdout
    assert "2 added, 2 there already" in home("submit", str(home.grid()), "--runs", "2").stdout
    assert home.statuses() == {"pending": 4}


def test_a_changed_specification_is_refused_unless_replaced(home: Home) -> None:
    home.submit()
    home.start()
    home.wait_done()
    before = home.transcripts()
    changed = str(home.grid(limits={"max_iterations": 3}))
    refused = home("submit", changed, code=2)
    assert "--replace" in refused.stderr
    assert "max_iterations" in refused.stderr
    assert home.transcripts() == before
    assert "2 replaced (2 old results moved to" in home("submit", changed, "--replace").stdout
    home.wait_done()
    assert {cell["turns"] for cell in home.cells()} == {3}


def test_a_changed_policy_is_no_changed_specification(home: Home) -> None:
    home.submit()
    assert "2 there already" in home("submit", str(home.grid(tries=9))).stdout


def test_filters(home: Home) -> None:
    path = str(home.grid(scaffolds=[1, 2, 3], runs=3))
    home("submit", path, "--scaffold", "1", "values_only", "--only", "run=1,3")
    assert [cell["key"] for cell in home.cells()] == [
        "baseline_script_run1",
        "baseline_script_run3",
        "values_only_script_run1",
        "values_only_script_run3",
    ]


def test_dry_run_of_a_real_grid(home: Home) -> None:
    home("submit", str(home.paths.grids / "minimal.yaml"), "--engine", "scripted")
    home.start()
    home.wait_done()
    assert {cell["grid"] for cell in home.cells()} == {"minimal-scripted"}


def test_corrupt_queue_is_refused_and_left_alone(home: Home) -> None:
    home.submit()
    data = b"not a database at all, but somebody's data" * 100
    for path in home.paths.var.glob("queue.db*"):
        path.unlink()
    home.paths.queue.write_bytes(data)
    for args in (("status",), ("submit", str(home.grid())), ("daemon",)):
        done = home(*args, code=2)
        assert str(home.paths.queue) in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert hashlib.sha256(home.paths.queue.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_home_too_deep_for_a_socket_is_said_before_anything_starts(tmp_path: Path) -> None:
    home = Home(tmp_path / ("d" * 100))
    assert "too long for a unix socket" in home("up", code=2).stderr


def test_broken_settings_are_one_line(home: Home) -> None:
    home.paths.config.write_text("[daemon]\nslot = 3\n")
    assert "did you mean 'slots'" in home("up", code=2).stderr


def test_tail_follows_to_the_end_and_shows_escapes_harmlessly(home: Home) -> None:
    home.submit(scaffolds=[1], options={"delay_s": 0.1})
    follower = subprocess.Popen(
        [sys.executable, "-m", "overnight", "--home", str(home.paths.home), "tail", "-f", "baseline_script_run1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    home.start()
    said, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert [f"-- turn {n}" in said for n in range(1, 7)] == [True] * 6
    last = home("tail", "baseline_script_run1", "-n", "2").stdout
    assert "-- turn 4" not in last
    assert "-- turn 5" in last


def test_cells_and_show_as_json(home: Home) -> None:
    home.submit()
    home.start()
    home.wait_done()
    assert [row["status"] for row in home.json("cells", "night")] == ["done", "done"]
    assert home.json("cells", "--status", "failed") == []
    shown = home.json("show", "night/baseline_script_run1")
    assert shown["attempts"][0]["outcome"] == "completed"
    assert any(file.endswith("transcript.jsonl") for file in shown["files"])
    assert shown["spec"]["seed"] == shown["cell"]["seed"]


def test_a_reader_that_leaves_early_is_no_error(home: Home) -> None:
    home.submit(runs=400)
    command = f"{sys.executable} -m overnight --home {home.paths.home} cells | head -n 2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2


def test_home_from_the_environment(tmp_path: Path) -> None:
    environment = {**os.environ, "OVERNIGHT_HOME": str(tmp_path / "elsewhere")}
    subprocess.run([sys.executable, "-m", "overnight", "status"], env=environment, check=True, capture_output=True)
    assert (tmp_path / "elsewhere" / "etc" / "supervisord.conf").is_file()


def test_verify_names_what_is_wrong(home: Home) -> None:
    home.submit()
    home.start()
    home.wait_done()
    home.stop()
    first, second = (home.paths.transcript("night", cell["key"]) for cell in home.cells())
    first.unlink()
    second.write_bytes(b"".join(second.read_bytes().splitlines(keepends=True)[:-1]))
    said = home("verify", code=1).stdout
    assert "transcript is missing" in said
    assert "the queue knows 6" in said


def test_a_wheel_without_a_checkout_works(repository: Path, tmp_path: Path) -> None:
    """Build the wheel, unpack it, and run from there in a home of its own."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=repository,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "overnight", "--home", str(tmp_path / "h")]
    subprocess.run([*command, "status"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    for name in ("etc/supervisord.conf", "etc/overnight.toml", "grids/minimal.yaml"):
        assert (tmp_path / "h" / name).read_bytes() == (repository / name).read_bytes()
    submit = [*command, "submit", str(tmp_path / "h/grids/minimal.yaml"), "--engine", "scripted"]
    subprocess.run(submit, env=environment, cwd=tmp_path, check=True, capture_output=True)


def test_cancelled_cells_come_back_with_retry(home: Home) -> None:
    home.submit()
    assert "2 cancelled" in home("cancel", "--grid", "night").stdout
    assert home.statuses() == {"cancelled": 2}
    assert "1 back in the queue" in home("retry", "night/baseline_script_run1").stdout
    home.start()
    until(lambda: home.statuses() == {"cancelled": 1, "done": 1})


def test_json_lists_are_whole_and_tables_say_when_they_are_not(home: Home) -> None:
    home.submit(runs=600)
    assert len(home.json("cells")) == 1200
    assert "more than 1000 rows" in home("cells").stdout
    assert len(home.json("cells", "--limit", "7")) == 7


@pytest.mark.parametrize(
    "args",
    [
        ("cells", "--limit", "-5"),
        ("cells", "--limit", "9" * 40),
        ("submit", "FILE", "--runs", "0"),
        ("show", "\udcff"),
        ("status", "--write-grid-state", "night"),
        ("tail", "baseline_script_run1"),
    ],
)
def test_no_traceback_whatever_is_there(home: Home, args: tuple[str, ...]) -> None:
    path = home.grid()
    home("submit", str(path))
    home.paths.grid_results("night").write_text("a file where a folder belongs")
    done = home(*(str(path) if arg == "FILE" else arg for arg in args), code=2)
    assert done.stderr.strip()


def test_tail_of_lines_that_are_no_turns(home: Home) -> None:
    home.submit()
    path = home.paths.transcript("night", "baseline_script_run1")
    path.parent.mkdir(parents=True)
    path.write_text('[1, 2]\n"text"\n{"kind": "turn"}\n{torn\n')
    assert home("tail", "baseline_script_run1").stdout.count("cannot be read") == 4


def test_closed_and_full_stdout(home: Home) -> None:
    command = f"{sys.executable} -m overnight --home {home.paths.home} status"
    closed = subprocess.run(["bash", "-c", f"{command} >&-"], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False)
    assert full.returncode == 2
    assert full.stderr.strip() == "overnight: No space left on device"


def test_a_home_that_supervisord_cannot_spell(tmp_path: Path) -> None:
    assert "choose another home" in Home(tmp_path / "a%b")("up", code=2).stderr


@pytest.mark.parametrize(
    "args", [(), ("foo",), ("show",), ("models",), ("status", "--bogus"), ("submit", "x", "--runs", "y")]
)
def test_wrong_usage_is_one_line(home: Home, args: tuple[str, ...]) -> None:
    done = home(*args, code=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--help" in done.stderr


def test_a_terminal_that_knows_ascii_only(home: Home) -> None:
    home.submit(scaffolds=[{"id": 20, "name": "cafe", "text": "Du bist ein Gärtner."}])
    home.start()
    home.wait_done()
    said = home("tail", "cafe_script_run1", env={**os.environ, "PYTHONIOENCODING": "ascii"}).stdout
    assert "G\\xe4rtner" in said


def test_cells_tells_how_far_running_ones_are(home: Home) -> None:
    home.submit(scaffolds=[1], limits={"max_iterations": 1000})
    home.start()
    until(lambda: any(int(word) > 2 for word in home("cells").stdout.splitlines()[1].split() if word.isdigit()))

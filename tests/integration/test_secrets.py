"""Secrets of command cells: the command has them, and nothing that Overnight writes, shows or runs does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.command_cell import Run, python, runs
from helpers.home import Home, environment
from helpers.waiting import until
from overnight.masking import Masks
from overnight.paths import Paths

ENV, FILE = "canary-env-0f1e2d3c4b5a", "canary-file-9f8e7d6c5b4a"
"""Their values. No other text of the product or of these tests begins with these words."""

SPLIT = """
import os, time
a, b = (os.environ[name].encode() for name in ("CANARY_ENV", "CANARY_FILE"))
for piece in (a[:4], a[4:9], a[9:] + b"\\n" + b[:1], b[1:] + b"\\n", b"last " + a):
    for stream in (1, 2):
        os.write(stream, piece)
    time.sleep(0.02)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    file = tmp_path / "etc" / "secrets.env"
    file.parent.mkdir()
    file.touch(0o600)
    file.write_text(f"CANARY_FILE='{FILE}'\n")
    os.environ["CANARY_ENV"] = ENV
    try:
        with runs(tmp_path) as start:
            yield lambda command, **how: start(command, **{"secrets": ["CANARY_ENV", "CANARY_FILE"], **how})
    finally:
        del os.environ["CANARY_ENV"]


def leaks(folder: Path, *but: str) -> list[str]:
    """The files below a folder that hold a value, or are named by one."""
    masks = Masks({"ENV": ENV, "FILE": FILE})
    found = []
    for path in folder.rglob("*"):
        if masks.found(os.fsencode(path.name)) or (
            path.is_file() and path.name not in but and masks.found(path.read_bytes())
        ):
            found.append(str(path))
    return found


# -- one cell -----------------------------------------------------------------------------------------------------


def test_a_command_has_them_and_its_output_does_not(run: Run) -> None:
    cell = run(python(SPLIT))
    ending = cell.ended()
    assert ending.outcome == "completed", ending
    masked = "[secret CANARY_ENV]\n[secret CANARY_FILE]\nlast [secret CANARY_ENV]"
    assert cell.said() == (cell.folder / "stderr.log").read_text() == masked
    assert ending.evidence["stderr_tail"] == masked
    assert leaks(cell.folder) == []


def test_a_shell_has_them_as_variables(run: Run) -> None:
    cell = run('test "$CANARY_FILE" = ' + FILE[:7] + '"' + FILE[7:] + '" && echo same')
    assert cell.ended().outcome == "completed"
    assert cell.said() == "same\n"


def test_who_does_not_ask_does_not_get_what_is_in_the_file(run: Run) -> None:
    cell = run("echo ${{CANARY_FILE-none}}", secrets=[])
    cell.ended()
    assert cell.said() == "none\n"


def test_across_a_rotation_of_the_log(run: Run) -> None:
    program = """
import os
lines = b"".join(b"%06d " % n + os.environ["CANARY_FILE"].encode() + b"\\n" for n in range(1000))
for _ in range(1200):
    os.write(1, lines)
"""
    cell = run(python(program))
    assert cell.ended(120).outcome == "completed"
    logs = sorted(cell.folder.glob("stdout.log*"))
    assert len(logs) == 3
    masked = [log.read_bytes().count(b"[secret CANARY_FILE]\n") for log in logs]
    assert sum(masked) == 1_200_000
    assert all(masked)
    assert leaks(cell.folder) == []


@pytest.mark.parametrize("to", ["the last line", "$OVERNIGHT_RESULT"])
def test_a_result_is_masked_in_keys_and_values(run: Run, to: str) -> None:
    program = """
import json, os
a, b = os.environ["CANARY_ENV"], os.environ["CANARY_FILE"]
value = json.dumps({"k": [1, {b: "so " + a}], "loss": 0.5, "escaped": "é" + b})
print(value) if WHERE == "last" else open(os.environ["OVERNIGHT_RESULT"], "w").write(value)
""".replace("WHERE", "'last'" if to == "the last line" else "'file'")
    cell = run(python(program))
    ending = cell.ended()
    assert ending.outcome == "completed"
    assert cell.result()["result"] == {
        "k": [1, {"[secret CANARY_FILE]": "so [secret CANARY_ENV]"}],
        "loss": 0.5,
        "escaped": "é[secret CANARY_FILE]",
    }
    assert leaks(cell.folder) == []
    assert ending.evidence.get("result_withdrawn", False) == (to == "$OVERNIGHT_RESULT")


def test_a_result_without_them_stays_as_it_was_written(run: Run) -> None:
    cell = run("""echo '{{"loss": 0.5}}' > "$OVERNIGHT_RESULT" """)
    assert "result_withdrawn" not in cell.ended().evidence
    assert (cell.folder / "result.user.json").read_text() == '{"loss": 0.5}\n'


@pytest.mark.parametrize("how", ["exit 0", "exit 3", "kill -SEGV $$", "exit 75"])
@pytest.mark.parametrize("name", ['"$OVERNIGHT_RESULT".tmp', '"$OVERNIGHT_RESULT"~', "../.result.user.json.k3j"])
def test_a_result_that_is_half_written_is_removed(run: Run, name: str, how: str) -> None:
    """Whoever writes beside it and renames may die in between, in the middle of a secret."""
    cell = run(f'echo "$CANARY_ENV" > {name}; printf %.9s "$CANARY_FILE" >> {name}; {how}', cwd="scratch")
    assert cell.ended().outcome in ("completed", "failed", "yielded")
    assert list(cell.folder.glob("*result.user.json*")) + list(cell.folder.glob(".*")) == []
    assert leaks(cell.folder) == []


@pytest.mark.parametrize("odd", ["mkdir", "ln -s /etc/passwd", "mkfifo -m 600"])
def test_an_odd_result_does_no_harm(run: Run, odd: str) -> None:
    cell = run(f'{odd} "$OVERNIGHT_RESULT"')
    assert cell.ended(10).outcome == "completed"
    assert cell.result()["result"] is None


@pytest.mark.parametrize("how", ["exit 3", "kill -SEGV $$", "exit 75"])
def test_what_a_failure_says_is_masked(run: Run, how: str) -> None:
    cell = run(f'echo "$CANARY_ENV" > "$OVERNIGHT_RESULT"; echo "refused: $CANARY_FILE, $CANARY_ENV" >&2; {how}')
    ending = cell.ended()
    assert ending.outcome == {"exit 75": "yielded"}.get(how, "failed")
    told = json.dumps([ending.reason, ending.evidence])
    assert ENV not in told
    assert FILE not in told
    assert "refused: [secret CANARY_FILE], [secret CANARY_ENV]" in told
    assert leaks(cell.folder) == []


def test_the_program_that_is_not_found_is_not_told_by_a_secret(run: Run) -> None:
    cell = run(["no-such-program"], secrets=["PATH"])
    assert os.environ["PATH"] not in cell.ended().reason


def test_files_that_hold_one_are_not_kept(run: Run) -> None:
    program = """
import os
a = os.environ["CANARY_ENV"]
for name, text in (("fine.txt", "fine"), ("late.bin", "x" * (2**20 - 5) + a + "x"), ("end.txt", a), (a + ".txt", "x")):
    open(name, "w").write(text)
"""
    cell = run(python(program), keep=["*.txt", "*.bin"])
    ending = cell.ended()
    assert ending.outcome == "completed"
    assert [file["name"] for file in cell.result()["files"]] == ["fine.txt"]
    assert ending.evidence["keep_refused"] == ["[secret CANARY_ENV].txt", "end.txt", "late.bin"]
    assert [path.name for path in (cell.folder / "files").iterdir()] == ["fine.txt"]
    assert leaks(cell.folder) == []


def test_what_cannot_be_had_ends_the_attempt_with_what_to_do(run: Run) -> None:
    ending = run(["true"], secrets=["CANARY_ENV", "NO_SUCH_KEY"]).ended()
    assert (ending.outcome, ending.reason_code) == ("failed", "secret_missing")
    assert ending.reason.startswith("secret NO_SUCH_KEY is neither in the daemon's environment nor in /")
    cell = run(["true"], secrets=["CANARY_FILE"])
    assert cell.ended().outcome == "completed"
    (cell.folder.parents[2] / "etc" / "secrets.env").chmod(0o644)
    ending = run(["true"], secrets=["CANARY_FILE"]).ended()
    assert (ending.outcome, ending.reason_code) == ("failed", "secret_refused")
    assert "chmod 600" in ending.reason


# -- the command line ---------------------------------------------------------------------------------------------


def write_secret(paths: Paths) -> None:
    paths.secrets.touch(0o600)
    paths.secrets.write_text(f"CANARY_FILE={FILE}\n")


def test_submit_warns_of_what_cells_would_lack(home: Home) -> None:
    options = ("submit", "--command", "true", "--name", "g", "--secret", "CANARY_ENV", "--secret", "CANARY_FILE")
    done = home(*options)
    assert done.stderr == (
        "overnight: warning: secrets CANARY_ENV, CANARY_FILE are neither in the environment nor in "
        f"{home.paths.secrets}; write a line CANARY_ENV=... into that file, and chmod 600 it\n"
    )
    write_secret(home.paths)
    assert home(*options, env={**os.environ, "CANARY_ENV": ENV}).stderr == ""
    home.start()
    until(lambda: home.log("daemon_started"), 20, "the daemon runs")
    until(lambda: home.json("status")["daemon"], 20, "the daemon beats")
    # What matters from here on is what the daemon was started with.
    said = home(*options, env={**os.environ, "CANARY_ENV": ENV}).stderr
    assert said.startswith(
        "overnight: warning: secret CANARY_ENV is neither in the environment of the daemon that runs"
    )
    home.paths.secrets.chmod(0o640)
    assert "chmod 600" in home(*options).stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--secret", "KEY=abc"], "--secret: found a text that is no name, expected the name"),
        (["--secret", "1KEY"], "--secret: found a text that is no name, expected the name"),
        (["--secret", "OVERNIGHT_SEED"], "--secret: found 'OVERNIGHT_SEED', which every cell is given"),
        (["--secret", "A", "--secret", "A"], "--secret: found 'A' a second time"),
        (["--secret", "A", "--env", "A=1"], "--secret: found A, which `env` gives too"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_line(home: Home, options: list[str], said: str) -> None:
    done = home("submit", "--command", "true", *options, code=2)
    assert done.stderr.startswith(f"overnight: {said}")
    assert done.stderr.count("\n") == 1
    assert "abc" not in done.stderr


def test_a_placeholder_of_a_secret_is_not_offered(home: Home) -> None:
    done = home("submit", "--command", "curl {CANARY_ENV}", "--secret", "CANARY_ENV", code=2)
    assert "unknown placeholder {CANARY_ENV}" in done.stderr


def test_a_backup_leaves_them_out_and_says_so(home: Home) -> None:
    write_secret(home.paths)
    home.submit()
    target = home.paths.home.parent / "backup.tar"
    assert "etc/secrets.env: it holds secrets" in home("backup", str(target)).stderr
    with tarfile.open(target) as archive:
        names = archive.getnames()
    assert any(name.endswith("etc/overnight.toml") for name in names)
    assert not any(name.endswith("secrets.env") for name in names)


# -- everything ---------------------------------------------------------------------------------------------------

CELLS = {
    "split": SPLIT,
    "result": 'import json, os; print(json.dumps({os.environ["CANARY_ENV"]: [os.environ["CANARY_FILE"]]}))',
    "fails": 'import os, sys; sys.exit("no: " + os.environ["CANARY_ENV"] + os.environ["CANARY_FILE"])',
    "crashes": 'import os; os.write(2, os.environ["CANARY_FILE"].encode()); os.abort()',
    "keeps": 'import os; open("kept.txt", "w").write(os.environ["CANARY_FILE"])',
    "waits": """
import os, pathlib, time
print(os.environ["CANARY_ENV"], flush=True)
while not pathlib.Path(os.environ["OVERNIGHT_RESULT"]).with_name("go").exists():
    time.sleep(0.05)
""",
}


def test_a_canary_is_found_nowhere(tmp_path: Path) -> None:
    """A whole stack, secrets in both places, and commands that say them in every way: then all bytes are searched."""
    home = Home(tmp_path / "h", slots=len(CELLS), watchdog=True, settings="[memory]\nprior = '32MiB'\n")
    write_secret(home.paths)
    with_canary = {**environment(), "CANARY_ENV": ENV}
    said = []
    try:
        for name, program in CELLS.items():
            (home.paths.home / f"{name}.py").write_text(program)
        grid = {
            "name": "night",
            "kind": "command",
            "command": [shutil.which("python3"), "-S", "-E", f"{home.paths.home}/{{what}}.py"],
            "axes": {"what": list(CELLS)},
            "secrets": ["CANARY_ENV", "CANARY_FILE"],
            "tries": 1,
            "cwd": "scratch",
            "keep": ["*.txt"],
        }
        (home.paths.home / "g.yaml").write_text(json.dumps(grid))
        said.append(home("submit", str(home.paths.home / "g.yaml"), env=with_canary))
        said.append(home("up", env=with_canary))
        folder = home.paths.cell_results("night", "whatwaits")
        until(lambda: (folder / "stdout.log").exists() and (folder / "stdout.log").read_bytes(), 60, "one waits")
        commands = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        ps = subprocess.run(["ps", "-efww"], capture_output=True, check=True).stdout
        assert b"waits.py" in commands
        assert b"waits.py" in ps
        for text in (commands, ps):
            assert ENV.encode() not in text
            assert FILE.encode() not in text
        (folder / "go").touch()
        until(lambda: not {"pending", "running"} & home.statuses().keys(), 60, "all have ended")
        cells = {cell["key"].removeprefix("what"): cell["status"] for cell in home.cells()}
        assert cells == dict.fromkeys(CELLS, "done") | {"fails": "failed", "crashes": "failed"}
        assert leaks(home.paths.var) == [], "while the write-ahead log is there"
        for command in (["status"], ["cells"], *(["show", f"what{name}"] for name in ("result", "fails", "keeps"))):
            said += [home(*command), home(*command, "--json")]
        said += [
            home("tail", "whatsplit"),
            home("tail", "whatfails", "--stderr"),
            home("tail", "whatcrashes", "--stderr"),
        ]
        said.append(home("verify"))
        control = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(home.paths.supervisord_conf)]
        for words in (["status"], ["avail"], ["maintail"], ["tail", "daemon"], ["tail", "watchdog"]):
            said.append(subprocess.run([*control, *words], capture_output=True, text=True, check=False))
        assert "RUNNING" in said[-5].stdout
        said.append(home("down", env=with_canary))
    finally:
        home.end()
    assert leaks(home.paths.var) == [], "after the end"
    shown = "".join(each.stdout + each.stderr for each in said)
    assert ENV not in shown
    assert FILE not in shown
    assert "[secret CANARY_ENV]" in shown
    result = json.loads(home.paths.result("night", "whatresult").read_text())
    assert result["result"] == {"[secret CANARY_ENV]": ["[secret CANARY_FILE]"]}
    assert "not kept, since the value of a secret is in it: kept.txt" in shown

"""The runner of a command cell on real processes: results, streams, signals, and whoever tries to get away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.command_cell import PYTHON, CommandCell, Run, python, runs
from helpers.waiting import until
from overnight import procfs
from overnight.cells import locking

MIB = 2**20


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with runs(tmp_path) as start:
        yield start


# -- results ------------------------------------------------------------------------------------------------------


def test_a_command_that_says_nothing_is_completed(run: Run) -> None:
    cell = run(["true"])
    ending = cell.ended()
    assert (ending.outcome, ending.end_reason, ending.evidence) == ("completed", "exited", {"exit_code": 0})
    assert cell.result() == {
        "v": 1,
        "kind": "command",
        "key": "a1",
        "coords": {"a": 1},
        "seed": 7,
        "exit_code": 0,
        "result": None,
        "files": [],
    }
    assert not (cell.folder / "work").exists()
    assert (cell.folder / "checkpoint").is_dir()


def test_the_last_line_of_stdout_becomes_the_result(run: Run) -> None:
    cell = run(["sh", "-c", """echo warming up; printf '{{"loss": 0.5, "a": %s}}\\n\\n' {a}"""])
    first = cell.ended()
    assert cell.result()["result"] == {"loss": 0.5, "a": 1}
    again = run(["sh", "-c", """echo otherwise; echo '{{"a": 1,   "loss": 0.5}}'"""]).ended()
    assert again.result_sha256 == first.result_sha256
    assert cell.said() == 'warming up\n{"loss": 0.5, "a": 1}\n\notherwise\n{"a": 1,   "loss": 0.5}\n'


def test_the_result_file_wins_over_stdout(run: Run) -> None:
    cell = run("""echo '{{"from": "file"}}' > "$OVERNIGHT_RESULT"; echo '{{"from": "stdout"}}'""")
    assert cell.ended().outcome == "completed"
    assert cell.result()["result"] == {"from": "file"}
    run("true").ended()
    assert cell.result()["result"] is None, "a result of an earlier attempt is none"


def test_a_result_with_nan_is_refused_with_a_word(run: Run) -> None:
    cell = run("""echo '{{"loss": NaN}}'""")
    assert "NaN is no JSON" in cell.ended().evidence["result_note"]
    assert cell.result()["result"] is None


def test_what_a_command_is_told(run: Run, tmp_path: Path) -> None:
    names = ["ATTEMPT", "CELL", "GRID", "SEED", "ATTEMPT_NUMBER", "CHECKPOINT_DIR", "RESULT", "THREADS", "MEMORY_BYTES"]
    program = f"""
import json, os, signal
environ = [os.environ.get("OVERNIGHT_" + name) for name in {names!r}]
ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN and n not in (13, 25)]
print(json.dumps(dict(
    environ=environ, cwd=os.getcwd(), x=os.environ["X"], fds=sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    ignored=ignored, blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), own=os.getpgid(0) == os.getpid(),
    null=os.stat(0).st_rdev == os.stat("/dev/null").st_rdev)))
"""
    held, _ = os.pipe()
    os.set_inheritable(held, True)
    cell = run(
        python(program), env={"X": "{a}-{seed}-{cell}"}, cap_bytes=2**40, number=3, policy={"cap": "none"}, threads=2
    )
    assert cell.ended().outcome == "completed"
    told = cell.result()["result"]
    home = str(cell.folder)
    assert told["environ"] == [
        *("0123abcd:1", "a1", "g", "7", "3", f"{home}/checkpoint", f"{home}/result.user.json", "2", str(2**40))
    ]
    assert (told["cwd"], told["x"], told["own"], told["null"]) == (f"{home}/work", "1-7-a1", True, True)
    assert (told["fds"], told["ignored"], told["blocked"]) == ([0, 1, 2], [], [])
    os.close(held)


def test_values_are_quoted_for_a_shell(run: Run, tmp_path: Path) -> None:
    evil = f"a b'; touch {tmp_path}/evil #"
    cell = run("echo {a}", coords={"a": evil})
    cell.ended()
    assert cell.said() == f"{evil}\n"
    assert not (tmp_path / "evil").exists()


def test_files_are_kept_and_nothing_from_outside(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    cell = run(
        f"mkdir -p out/deep; echo 1 > out/a.txt; echo 2 > out/deep/b.txt; ln -s {tmp_path} out/up;"
        f"ln -s {tmp_path}/secret out/c.txt; mkfifo out/d.txt",
        keep=["out/*.txt", "**/b.txt", "../*", "out/up/secret", "model_{a}.bin"],
    )
    assert cell.ended().evidence["keep_missing"] == ["../*", "out/up/secret", "model_1.bin"]
    kept = cell.result()["files"]
    assert [(file["name"], file["bytes"]) for file in kept] == [("out/a.txt", 2), ("out/deep/b.txt", 2)]
    assert (cell.folder / "files" / "out" / "deep" / "b.txt").read_text() == "2\n"
    assert not (cell.folder / "work").exists()


# -- endings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["no-such-command"], "not_found", "no-such-command: not found on PATH"),
        (["./train.sh"], "not_found", "./train.sh: no such file in "),
        (["/etc/passwd"], "not_executable", "/etc/passwd: cannot be run: Permission denied; it must be an executable"),
        (["{here}/bare"], "not_executable", "needs a first line such as #!/bin/sh"),
        (["{here}/strange"], "not_executable", "what its first line (#!) names is not there"),
    ],
)
def test_what_cannot_be_started(run: Run, tmp_path: Path, command: list[str], code: str, words: str) -> None:
    for name, text in (("bare", "exit 0\n"), ("strange", "#!/no/such/interpreter\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    ending = run([command[0].replace("{here}", str(tmp_path))]).ended()
    assert (ending.outcome, ending.reason_code) == ("failed", code)
    assert words in ending.reason
    assert "\n" not in ending.reason


def test_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    ending = run(["true"], cwd=str(tmp_path / "nowhere")).ended()
    assert (ending.outcome, ending.reason_code) == ("failed", "bad_cwd")
    assert f"{tmp_path}/nowhere: No such file or directory" in ending.reason


def test_exit_statuses(run: Run) -> None:
    failed = run("echo first >&2; echo went wrong >&2; exit 3").ended()
    assert (failed.outcome, failed.reason_code) == ("failed", "exit_status")
    assert failed.reason == "the command left with exit status 3: went wrong"
    assert failed.evidence == {"exit_code": 3, "stderr_tail": "first\nwent wrong"}
    assert run("exit 75").ended().outcome == "yielded"
    crashed = run("kill -SEGV $$").ended()
    assert (crashed.outcome, crashed.reason_code, crashed.evidence) == ("failed", "crashed", {"signal": 11})
    killed = run("kill -KILL $$").ended()
    assert (killed.outcome, killed.reason_code, killed.evidence) == ("lost", "killed", {"signal": 9})


@pytest.mark.parametrize("cap", ["auto", "address_space"])
def test_a_command_that_meets_its_own_limit_is_over_its_cap(run: Run, cap: str) -> None:
    ending = run(python("print(len(bytearray(512 * 2**20)))"), cap_bytes=256 * MIB, policy={"cap": cap}).ended()
    assert (ending.outcome, ending.reason_code) == ("over_cap", "memory_error")
    assert "MemoryError" in ending.reason
    assert run(python("print(len(bytearray(64 * 2**20)))"), cap_bytes=256 * MIB, policy={"cap": cap}).ended().end_reason


def test_one_attempt_a_cell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "WAIT_S", 0.1)
    first = run("echo here; exec sleep 100")
    until(lambda: "here" in first.said())
    second = run("true").ended()
    assert (second.outcome, second.reason_code) == ("yielded", "transcript_locked")


# -- being asked to leave -----------------------------------------------------------------------------------------

SAVES = """
import json, os, signal, sys, time
def save(*_):
    open(os.environ["OVERNIGHT_CHECKPOINT_DIR"] + "/step", "w").write("5")
    if len(sys.argv) > 2:
        print(json.dumps({"step": 5}))
    sys.stdout.flush()
    os._exit(int(sys.argv[1]))
signal.signal(signal.SIGTERM, save)
os.write(1, b"ready\\n")
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("arguments", "outcome", "code"),
    [(["75"], "yielded", "put_back"), (["0", "result"], "completed", ""), (["0"], "terminated", "terminated")],
)
def test_sigterm_is_passed_on(run: Run, arguments: list[str], outcome: str, code: str) -> None:
    cell = run(python(SAVES, *arguments))
    until(lambda: "ready" in cell.said())
    cell.signal(signal.SIGTERM)
    ending = cell.ended()
    assert (ending.outcome, ending.reason_code) == (outcome, code)
    assert (cell.folder / "checkpoint" / "step").read_text() == "5"


def test_who_saves_behind_a_shell_that_died_has_its_time(run: Run) -> None:
    cell = run("sh -c 'trap \"sleep 0.3; echo saved; exit 0\" TERM; echo ready; while :; do sleep 0.01; done' & wait")
    until(lambda: "ready" in cell.said())
    cell.signal(signal.SIGTERM)
    ending = cell.ended()
    assert (ending.outcome, ending.evidence["signal"]) == ("terminated", signal.SIGTERM)
    assert "saved" in cell.said()


def test_who_ignores_sigterm_is_killed_after_the_grace(run: Run) -> None:
    cell = run("trap '' TERM; echo ready; while :; do sleep 0.05; done", policy={"grace_s": 0.3})
    until(lambda: "ready" in cell.said())
    began = time.monotonic()
    cell.signal(signal.SIGTERM)
    ending = cell.ended()
    assert 0.3 <= time.monotonic() - began < 5
    assert (ending.outcome, ending.evidence["signal"]) == ("terminated", signal.SIGKILL)
    assert ending.reason == "the command was asked to leave (SIGTERM), did not within 0.3 s, and was killed"


def test_a_stopped_command_hears_it_too(run: Run) -> None:
    cell = run("echo ready; kill -STOP $$; sleep 100")
    until(lambda: any(procfs.stopped(pid) for pid in cell.tree()))
    cell.signal(signal.SIGTERM)
    assert cell.ended().outcome == "terminated"


def test_a_watchdog_that_tells_everybody_is_not_repeated(run: Run, tmp_path: Path) -> None:
    """It signals the whole tree itself; twice would be once too often for many a program."""
    cell = run(
        python(
            "import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: os.write(1, b'told '))\n"
            "os.write(1, b'ready ')\nwhile True: time.sleep(0.01)"
        ),
        policy={"grace_s": 0.4},
    )
    until(lambda: "ready" in cell.said())
    program = "import os, signal, sys, time; [os.kill(int(p), signal.SIGTERM) for p in sys.argv[1:-1]]; time.sleep(60)"
    pids = [str(pid) for pid in (*cell.tree(), cell.pid)]
    with subprocess.Popen([*PYTHON, program, *pids, "overnight_watchdog"]) as watchdog:
        ending = cell.ended()
        watchdog.kill()
    assert ending.outcome == "terminated"
    assert cell.said().count("told") == 1


TICKS = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'told'), os._exit(75)))
os.write(1, b'ready ')
while True:
    os.write(1, b'.')
    time.sleep(0.01)
"""


def frozen(cell: CommandCell) -> list[int]:
    """Stop them all as the watchdog does: the runner first."""
    pids = [cell.pid, *cell.tree()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: all(procfs.stopped(pid) for pid in pids))
    return pids


def test_when_the_runner_goes_on_so_does_its_tree(run: Run) -> None:
    cell = run(["sh", "-c", '"$@" & wait', "sh", *python(TICKS)])
    until(lambda: "ready" in cell.said())
    pids = frozen(cell)
    assert len(pids) == 3
    cell.signal(signal.SIGCONT)
    until(lambda: not any(procfs.stopped(pid) for pid in pids), 5)
    said = cell.said()
    until(lambda: len(cell.said()) > len(said))


def test_whom_a_command_stops_itself_stays_stopped(run: Run) -> None:
    """A shell with job control does that: the runner continues nobody of its own accord, whatever else it hears."""
    cell = run("sleep 100 & kill -STOP $!; for i in 1 2 3 4 5; do sleep 0.02; done; echo ready; sleep 100")
    until(lambda: "ready" in cell.said())
    assert len([pid for pid in cell.tree() if procfs.stopped(pid)]) == 1


def test_a_frozen_tree_that_a_watchdog_takes_out_is_told_before_it_goes_on(run: Run) -> None:
    """SIGTERM to all, then SIGCONT to all, the runner first; the runner's own SIGCONT comes on top of that."""
    cell = run(python(TICKS))
    until(lambda: "ready" in cell.said())
    pids = frozen(cell)
    said = cell.said()
    program = (
        "import os, signal, sys, time\n"
        "for number in (signal.SIGTERM, signal.SIGCONT):\n"
        "    for pid in sys.argv[1:-1]: os.kill(int(pid), number)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([*PYTHON, program, *map(str, pids), "overnight_watchdog"]) as watchdog:
        ending = cell.ended()
        watchdog.kill()
    assert ending.outcome == "yielded"
    assert cell.said().endswith("told")
    assert cell.said().count("told") == 1
    assert len(cell.said()) - len(said) < 100


def test_a_frozen_tree_that_the_dispatcher_asks_to_leave_leaves(run: Run) -> None:
    """It signals the runner alone: SIGTERM, then SIGCONT."""
    cell = run(python(TICKS))
    until(lambda: "ready" in cell.said())
    frozen(cell)
    cell.signal(signal.SIGTERM)
    cell.signal(signal.SIGCONT)
    assert cell.ended().outcome == "yielded"
    assert cell.said().count("told") == 1


# -- streams ------------------------------------------------------------------------------------------------------

FLOODS = "import os, sys\nfor _ in range(int(sys.argv[1]) * 16): os.write(1, (b'x' * 65535) + b'\\n')\nprint('{}')"


@pytest.mark.parametrize("mib", [64, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_flood_of_output_takes_bounded_memory_and_disk(run: Run, mib: int) -> None:
    cell = run(python(FLOODS, str(mib)))
    runner = Path(f"/proc/{cell.pid}/status")
    before = _peak(runner)
    peak = before
    while cell.tree():
        peak = max(peak, _peak(runner))
        time.sleep(0.01)
    assert cell.ended().outcome == "completed"
    assert cell.result()["result"] == {}
    assert peak - before < 16 * MIB
    logs = sorted(cell.folder.glob("stdout.log*"))
    assert [log.name for log in logs] == ["stdout.log", "stdout.log.1", "stdout.log.2"]
    assert sum(log.stat().st_size for log in logs) <= 48 * MIB


def _peak(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_binary_output_and_a_result_without_a_newline(run: Run) -> None:
    cell = run(python("import os\nos.write(1, bytes(range(256)) + b'\\n{\"ok\": true}')"))
    cell.ended()
    assert cell.result()["result"] == {"ok": True}


def test_the_result_is_one_canonical_line(run: Run) -> None:
    cell = run("""echo '{{"b": 1, "a": [1.50, "\\u00e9"]}}'""")
    cell.ended()
    text = (cell.folder / "result.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"

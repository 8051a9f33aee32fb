"""The real process: it starts, publishes, stops, is killed, refuses company, and outlives bad disks."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.memory_cgroup import MemoryCgroup
from helpers.waiting import until
from overnight_watchdog.journal import PRESSURE_BYTES, read_pressure

QUICK = ("--interval", "0.02")
DEADLINE_S = 15.0
SOURCES = str(Path(__file__).resolve().parents[2] / "watchdog")


def environment(**more: str) -> dict[str, str]:
    """Ours without a supervisord around it, with the checkout's watchdog first."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")}
    paths = [SOURCES, *filter(None, [mine.get("PYTHONPATH")])]
    return mine | {"PYTHONPATH": os.pathsep.join(paths), **more}


def command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "overnight_watchdog", "--home", str(home), *arguments]


def eventually(condition: Callable[[], bool], what: str) -> None:
    until(condition, DEADLINE_S, what)


def heartbeat(home: Path) -> dict[str, Any]:
    """The newest heartbeat, or one with sequence 0 and pid 0 when there is none that is whole."""
    try:
        return read_pressure(home / "var" / "run" / "pressure.json")
    except (FileNotFoundError, ValueError):
        return {"sequence": 0, "pid": 0}


def events(home: Path) -> list[dict[str, Any]]:
    text = (home / "var" / "log" / "watchdog.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def advances(home: Path, pid: int) -> None:
    """Wait until `pid` has published three more heartbeats."""
    eventually(lambda: heartbeat(home)["pid"] == pid, f"a heartbeat of {pid}")
    before = heartbeat(home)["sequence"]
    eventually(lambda: heartbeat(home)["sequence"] >= before + 3, "more heartbeats")


@contextmanager
def running(home: Path, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A watchdog on `home`; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        command(home, *(arguments or QUICK)),
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_publishes_and_stops_in_good_order(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        advances(tmp_path, process.pid)
        record = heartbeat(tmp_path)
        data = (tmp_path / "var" / "run" / "pressure.json").read_bytes()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (0, "", "")
    assert len(data) == PRESSURE_BYTES
    assert record["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert record["usage_bytes"] > 0 and 0 < record["headroom_bytes"] <= record["limit_bytes"]
    assert record["level"] in {"ok", "hold", "shrink", "freeze", "evict", "kill"}
    assert 0 <= time.monotonic() - record["monotonic_s"] < DEADLINE_S
    first, last = events(tmp_path)[0], events(tmp_path)[-1]
    assert (first["event"], first["limit_bytes"], first["acts"]) == ("watchdog_started", record["limit_bytes"], True)
    assert first["bounds"][0] == {"source": first["limit_source"], "limit_bytes": first["limit_bytes"]}
    assert {"hold_percent", "evict_s"} <= first["thresholds"].keys()
    assert all(first[name].keys() == {"ok", "detail"} for name in ("mlock", "oom_score_adj"))
    assert (last["event"], last["reason"]) == ("watchdog_stopped", "SIGTERM")
    assert last["sequence"] >= record["sequence"]
    assert all(
        event["event"] in {"watchdog_started", "pressure_changed", "watchdog_stopped"} for event in events(tmp_path)
    )


def test_a_dry_run_says_that_it_does_nothing(tmp_path: Path) -> None:
    with running(tmp_path, *QUICK, "--dry-run") as process:
        advances(tmp_path, process.pid)
    assert events(tmp_path)[0]["acts"] is False


def test_it_makes_the_folder_for_registrations_and_one_in_it_ends_a_long_sleep(tmp_path: Path) -> None:
    """A process that is found stopped is thawed; with looks four seconds apart only inotify can tell."""
    cells = tmp_path / "var" / "run" / "cells"
    stopped = subprocess.Popen(["sleep", "600"])
    stopped.send_signal(signal.SIGSTOP)
    try:
        with running(tmp_path, "--interval", "4.0") as process:
            eventually(lambda: heartbeat(tmp_path)["pid"] == process.pid, "the first heartbeat")
            assert stat.S_IMODE(cells.stat().st_mode) == 0o700
            ticks = int(Path(f"/proc/{stopped.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
            entry = {"v": 1, "boot_id": heartbeat(tmp_path)["boot_id"], "pid": stopped.pid, "start_ticks": ticks}
            (cells / ".new").write_text(json.dumps(entry | {"role": "cell", "cell": "alpha"}))
            since_s = time.monotonic()
            (cells / ".new").rename(cells / f"{stopped.pid}.json")
            eventually(lambda: psutil.Process(stopped.pid).status() != psutil.STATUS_STOPPED, "the thaw")
            took_s = time.monotonic() - since_s
            eventually(lambda: any(event["event"] == "thawed" for event in events(tmp_path)), "the line in its log")
    finally:
        stopped.kill()
        stopped.wait()
    assert took_s < 3.0
    thawed = next(event for event in events(tmp_path) if event["event"] == "thawed")
    assert (thawed["pid"], thawed["cell"], thawed["trigger"]) == (stopped.pid, "alpha", "found_stopped")


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGHUP])
def test_other_ways_to_ask(tmp_path: Path, asked: signal.Signals) -> None:
    with running(tmp_path) as process:
        advances(tmp_path, process.pid)
        process.send_signal(asked)
        assert process.wait(DEADLINE_S) == 0
    assert events(tmp_path)[-1]["reason"] == asked.name


def test_nohup_is_respected(tmp_path: Path) -> None:
    nohup = subprocess.Popen(
        ["nohup", *command(tmp_path, *QUICK)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        advances(tmp_path, nohup.pid)
        nohup.send_signal(signal.SIGHUP)
        advances(tmp_path, nohup.pid)
        nohup.send_signal(signal.SIGTERM)
        assert nohup.wait(DEADLINE_S) == 0
    finally:
        nohup.kill()
        nohup.wait()
    assert events(tmp_path)[-1]["reason"] == "SIGTERM"


def test_a_second_one_refuses_and_says_who_is_there(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        advances(tmp_path, process.pid)
        second = subprocess.run(
            command(tmp_path, *QUICK),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"held by the watchdog with pid {process.pid}" in second.stderr
        advances(tmp_path, process.pid)  # and it has not disturbed the first
    assert [event["event"] for event in events(tmp_path)].count("watchdog_started") == 1


def test_killed_and_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        advances(tmp_path, first.pid)
        first.kill()
        first.wait(DEADLINE_S)
    with running(tmp_path) as second:
        advances(tmp_path, second.pid)
        record = heartbeat(tmp_path)
        text = Path(f"/proc/{second.pid}/stat").read_text()
        assert record["start_ticks"] == int(text.rsplit(")", 1)[1].split()[19])


def test_a_config_that_is_wrong_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "overnight.toml").write_text("[memory]\nbudget = 'lots'\n")
    with running(tmp_path) as process:
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert err.count("\n") == 1 and "memory.budget" in err
    assert not (tmp_path / "var").exists()


def test_a_budget_that_our_own_tree_exceeds(tmp_path: Path) -> None:
    """This test's process stands in for supervisord; 1 MiB is less than any interpreter takes."""
    (tmp_path / "var" / "run").mkdir(parents=True)
    (tmp_path / "var" / "run" / "supervisord.pid").write_text(f"{os.getpid()}\n")
    with running(tmp_path, *QUICK, "--budget", "1MiB") as process:
        advances(tmp_path, process.pid)
        record = heartbeat(tmp_path)
    assert (record["level"], record["limit_source"], record["limit_bytes"]) == ("kill", "budget", 2**20)
    assert record["headroom_bytes"] == 0 and record["usage_bytes"] > 2**20
    change = next(event for event in events(tmp_path) if event["event"] == "pressure_changed")
    assert (change["from"], change["to"], change["level"]) == ("ok", "kill", "warning")


def test_at_idle_it_wakes_once_a_second(tmp_path: Path) -> None:
    def switches() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])

    with running(tmp_path, "--interval", "1.0") as process:
        eventually(lambda: heartbeat(tmp_path)["sequence"] >= 1, "the first heartbeat")
        first, before, since = heartbeat(tmp_path)["sequence"], switches(), time.monotonic()
        eventually(lambda: heartbeat(tmp_path)["sequence"] >= first + 2, "two more heartbeats")
        woken, seconds = switches() - before, time.monotonic() - since
    assert seconds >= 1.0
    assert woken <= 2 * (seconds + 1)  # sleeps, and a few waits for the disk or a lock of the kernel


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""


@contextmanager
def running_below_a_parent(home: Path, **more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A watchdog whose parent is not this process but one that may be killed: (parent, pid of the watchdog)."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command(home, *QUICK)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    try:
        yield parent, pid
    finally:
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(handle)
        parent.kill()
        parent.communicate()


def gone(pid: int) -> bool:
    """No such process, or only a zombie that nobody has fetched yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_killed_supervisord_leaves_no_orphan(tmp_path: Path) -> None:
    with running_below_a_parent(tmp_path, SUPERVISOR_ENABLED="1") as (parent, pid):
        advances(tmp_path, pid)
        parent.kill()
        eventually(lambda: gone(pid), "the orphan's end")
    with running(tmp_path) as successor:  # and the lock is free
        advances(tmp_path, successor.pid)


def test_without_a_supervisord_it_outlives_its_parent(tmp_path: Path) -> None:
    with running_below_a_parent(tmp_path) as (parent, pid):
        advances(tmp_path, pid)
        parent.kill()
        parent.wait(DEADLINE_S)
        advances(tmp_path, pid)


def test_an_orphan_does_not_even_begin(tmp_path: Path) -> None:
    """Its parent died before the first look: it finds itself in another session than its parent."""
    with running(tmp_path, *QUICK, SUPERVISOR_ENABLED="1") as process:
        advances(tmp_path, process.pid)
    orphan = subprocess.run(
        command(tmp_path, *QUICK),
        env=environment(SUPERVISOR_ENABLED="1"),
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert orphan.returncode == 1
    assert orphan.stderr == "overnight-watchdog: the supervisord that started this watchdog is gone; so is it\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A home on a tmpfs of 256 KiB: room for the ring of verdicts, and little else."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    home = tmp_path / "disk"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "overnight-test", str(home)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"this root may not mount: {mounted.stderr.strip()}")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def fill(home: Path) -> Path:
    """Fill the disk to the last byte; the file to delete."""
    ballast = home / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


@pytest.mark.root
def test_a_disk_that_fills_up_does_not_silence_it(small_disk: Path) -> None:
    with running(small_disk) as process:
        advances(small_disk, process.pid)
        fill(small_disk)
        advances(small_disk, process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.root
def test_a_disk_that_was_full_from_the_start(small_disk: Path) -> None:
    ballast = fill(small_disk)
    with running(small_disk) as process:
        eventually((small_disk / "var" / "run" / "watchdog.lock").exists, "the lock")
        # Its first line is lost before it goes to sleep for the first time; only then is there room again.
        eventually((small_disk / "var" / "log" / "watchdog.jsonl").exists, "the log's name")
        slept = psutil.Process(process.pid).num_ctx_switches().voluntary
        eventually(lambda: psutil.Process(process.pid).num_ctx_switches().voluntary >= slept + 2, "two ticks")
        assert process.poll() is None
        ballast.unlink()
        advances(small_disk, process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    assert events(small_disk)[-1]["event"] == "watchdog_stopped"
    assert events(small_disk)[-1]["lines_lost"] >= 1


@pytest.mark.root
def test_a_read_only_disk_does_not_stop_it(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with running(small_disk) as process:
        assert process.stderr is not None
        assert "watching without a lock" in process.stderr.readline()
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        advances(small_disk, process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


EATER = """
import sys
held = bytearray(64 * 2**20)
for place in range(0, len(held), 4096): held[place] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
def test_a_real_cgroup_bounds_it_and_clean_page_cache_does_not_count(cgroup: MemoryCgroup, tmp_path: Path) -> None:
    """64 MiB of anonymous memory show in the usage; 128 MiB of a file that was written and synced do not."""

    def once() -> dict[str, Any]:
        shown = subprocess.run(
            cgroup.join(*command(tmp_path, "--once", "--json")),
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
        view: dict[str, Any] = json.loads(shown.stdout)
        return view

    idle = once()
    assert (idle["limit_bytes"], idle["limit_source"]) == (256 * 2**20, f"cgroup:{cgroup.folder}")
    eater = subprocess.Popen(
        cgroup.join(sys.executable, "-c", EATER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert eater.stdout is not None and eater.stdout.readline() == "ready\n"
        subprocess.run(
            cgroup.join("dd", "if=/dev/zero", f"of={tmp_path / 'file'}", "bs=1M", "count=128", "conv=fsync"),
            capture_output=True,
            check=True,
        )
        charged = cgroup.charged_bytes()
        busy = once()
    finally:
        eater.communicate("")
    assert 64 * 2**20 <= busy["usage_bytes"] - idle["usage_bytes"] < 96 * 2**20
    assert busy["headroom_bytes"] == busy["limit_bytes"] - busy["usage_bytes"]
    assert charged > busy["usage_bytes"] + 64 * 2**20  # what a naive reader of the cgroup would call used

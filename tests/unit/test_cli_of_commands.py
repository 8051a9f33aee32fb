"""What `show`, `run`, `cells`, `status` and `verify` say of commands, beside a daemon that this process plays."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.command_cell import specification
from overnight import procfs
from overnight.cells import command_result
from overnight.cli import run, text, verify
from overnight.cli.main import main
from overnight.dispatch import predict
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Queue

MIB = 2**20
IDLE = "name: night\nmodels: [{name: script, engine: scripted, source: scripted}]\nscaffolds: [1]\n"


class Played:
    """A home with a grid `sweep` of one command, and whatever a daemon would say of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.paths, self._capsys = Paths.of(folder).ensure(), capsys
        self("submit", "--command", "train", "--name", "sweep", "--memory", "600MiB")

    def __call__(self, *args: str) -> str:
        assert main(["--home", str(self.paths.home), *args]) == 0
        return self._capsys.readouterr().out

    def idle_loops(self) -> None:
        file = self.paths.home / "night.yaml"
        file.write_text(IDLE)
        self("submit", str(file))

    def daemon(self, **memory: int) -> None:
        """Its heartbeat: it runs `sweep/command`, and has a warm server for commands of 24 MiB."""
        told = {"headroom_bytes": None, "claimed_bytes": 0, "warm_bytes": 0}
        with Queue.open(self.paths.queue) as queue:
            (cell,) = queue.find_cell("sweep/command")
        running = {
            **{"grid": "sweep", "cell": "command", "cell_id": cell.id, "phase": "running", "pid": None, "turn": 0},
            **{"output_tokens": 0, "bytes": 0, "claim_bytes": 0, "peak_bytes": 0, "seconds": 1.0, "new_turns": 0},
        }
        server = {"model": "commands", "pid": None, "state": "ready", "cells": 1, "load_s": 0.1, "bytes": 24 * MIB}
        state = {
            **{"boot_id": procfs.boot_id(), "pid": os.getpid(), "start_ticks": procfs.start_ticks(os.getpid())},
            **{"monotonic_s": 0.0, "holding": "", "slots": 2, "warm": [server], "running": [running]},
            "stopping": False,
            "memory": {**told, **memory},
        }
        self.paths.daemon_state.write_text(json.dumps(state))

    def claim(self, name: str = "sweep/command") -> Any:
        return json.loads(self("show", name, "--json"))["claim"]


@pytest.fixture
def played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Played:
    return Played(tmp_path / "h", capsys)


def test_a_claim_is_bounded_as_admission_would(played: Played) -> None:
    assert played.claim()["bytes"] == 600 * MIB, "without a daemon nobody knows how much there is"
    played.daemon(limit_bytes=1024 * MIB, reserve_bytes=200 * MIB)
    assert (played.claim()["bytes"], played.claim()["bounded"]) == (600 * MIB, False)
    played.daemon(limit_bytes=1024 * MIB, reserve_bytes=200 * MIB, most_bytes=500 * MIB)
    found = played.claim()
    assert (found["bytes"], found["bounded"]) == (476 * MIB, True)
    assert "cut down to all that one cell can have" in found["sentence"]
    assert "cut down" in played("show", "sweep/command")
    played.daemon(limit_bytes=1024 * MIB, reserve_bytes=200 * MIB, most_bytes=MIB)
    assert played.claim()["bytes"] == 0


def test_a_server_that_does_not_run_is_predicted(played: Played) -> None:
    played.idle_loops()
    played.daemon(limit_bytes=64 * MIB, reserve_bytes=0, most_bytes=26 * MIB)
    with Queue.open(played.paths.queue) as queue:
        (cell,) = [row for row in queue.cells() if row.grid == "night"]
    assert played.claim(f"night/{cell.key}")["bytes"] == 26 * MIB - predict.LIGHT_SERVER_BYTES


def test_status_and_cells_show_turns_of_idle_loops_alone(played: Played) -> None:
    played.daemon(limit_bytes=1024 * MIB, reserve_bytes=200 * MIB, most_bytes=800 * MIB)
    said = played("status")
    assert f"of {text.size(800 * MIB)}; {text.size(200 * MIB)} are kept free" in said
    assert "tokens" not in said
    assert "tokens" not in played("cells")
    assert "turns" not in played("show", "sweep/command")
    played.idle_loops()
    head, command, idle = played("cells").splitlines()
    assert "turns  tokens" in head
    assert (command.split()[4:6], idle.split()[4:6]) == (["-", "-"], ["0", "0"])


def test_a_daemon_that_says_less_is_shown_as_well(played: Played) -> None:
    played.daemon(limit_bytes=1024 * MIB, reserve_bytes=200 * MIB)
    assert f"of {text.size(824 * MIB)}" in played("status")


def test_run_says_what_a_command_has(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    with Queue.open(played.paths.queue) as queue:
        claimed = queue.claim(boot_id="b", daemon="1")
        assert claimed is not None
        queue.finish(
            claimed.attempt_id,
            Outcome.COMPLETED,
            turns=0,
            output_tokens=0,
            end_reason="exited",
            transcript_sha256="12345678" * 8,
        )
        assert run.summary(played.paths, queue, "sweep") == 0
        grid = queue.grid("sweep")
        (row,) = queue.find_cell("sweep/command")
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["cell", "status", "ended", "by", "took", "sha256"]
    assert table[1].split()[:3] == ["command", "done", "exited"]
    assert table[-1] == f"sweep: 1 of 1 cells done; results in {played.paths.grid_results('sweep')}"
    assert run._said(row, is_command=True) == "command: done (exited)"
    state = {"running": [{"grid": "sweep", "cell": "command", "turn": 0}], "warm": [], "holding": ""}
    assert run._progress(grid, state) == "1/1 done, command"


def test_a_kept_file_of_any_name_is_verified(played: Played, tmp_path: Path) -> None:
    cwd, names = tmp_path / "cwd", [b"plain", b"\xff\\xff\n", "\u00e9".encode(), b"d\xfe/x"]
    for name in names:
        path = cwd / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
    folder = played.paths.cell_results("sweep", "command")
    folder.mkdir(parents=True)
    spec = specification(["true"], keep=["**"])
    files = command_result.keep(spec, cwd, folder).files
    assert sorted(file.get("name_bytes") for file in files if "name_bytes" in file) == ["64fe2f78", "ff5c7866660a"]
    assert {file["name"] for file in files} == {"plain", "\u00e9", "\\xff\\xff\n", "d\\xfe/x"}
    sha256 = command_result.write(spec, folder, command_result.Result(), files)
    with Queue.open(played.paths.queue) as queue:
        claimed = queue.claim(boot_id="b", daemon="1")
        assert claimed is not None
        queue.finish(claimed.attempt_id, Outcome.COMPLETED, end_reason="exited", transcript_sha256=sha256)
        (row,) = queue.find_cell("sweep/command")
    assert verify.check_command(played.paths, row) is None
    assert "1 cells checked, 0 with a problem" in played("verify")
    kept = folder / "files" / os.fsdecode(b"d\xfe/x")
    kept.write_bytes(b"other")
    assert verify.check_command(played.paths, row) == "files/d\\xfe/x is not the one that was kept"
    kept.unlink()
    said = verify.check_command(played.paths, row)
    assert said == f"done, but {folder}/files/d\\xfe/x cannot be read: No such file or directory"
    assert hashlib.sha256((folder / "result.json").read_bytes()).hexdigest() == sha256

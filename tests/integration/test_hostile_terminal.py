"""What models, commands and strangers say is shown by every command, and obeyed by no terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from helpers.home import Home
from overnight.cells import transcript
from overnight.queue.states import Outcome
from overnight.queue.store import Queue

WORDS = {
    "csi": "\x1b[2J\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://x.invalid\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "dcs": "\x1bP$q\x1b\\ \x1b_apc\x1b\\ \x1b^pm\x1b\\",
    "c1": "\x9b31m \x9d0;owned\x9c \x85",
    "back": "secret\x08\x08\x08\x7f\rover\x0b\x0c",
    "bidi": "\u202eevil\u202c \u2066x\u2069 \u200f",
    "hidden": "a\u200bb\u2060c\ufeffd\U000e0041",
    "lines": "a\u2028b\u2029c",
}
HOSTILE = " ".join(WORDS.values())


def obeyed(shown: str) -> set[str]:
    """Characters that a terminal might obey, or that are not seen."""
    return {c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def run(home: Home, *words: str) -> str:
    """What it says on both streams, and that none of it is obeyed."""
    done = subprocess.run(
        [sys.executable, "-m", "overnight", "--home", str(home.paths.home), *words],
        capture_output=True,
        timeout=120,
        check=False,
    )
    shown = (done.stdout + done.stderr).decode()
    assert "Traceback" not in shown
    assert done.returncode in (0, 1, 2)
    assert obeyed(shown) == set(), f"{words}: {sorted(map(ascii, obeyed(shown)))}\n{shown!r:.2000}"
    return shown


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home in which everything that can be somebody else's text is hostile. No daemon lives."""
    home = Home(tmp_path_factory.mktemp("hostile") / "h")
    home.submit("night", scaffolds=[1], limits={"max_iterations": 2})
    home.submit("other", scaffolds=[1])
    home("submit", "--command", f"echo {HOSTILE}", "--shell", "--name", "sweep", "--axis", "a=1,2")
    home("submit", "--command", "echo {b}", "--name", "values", "--axis", f"b={WORDS['csi']},{WORDS['bidi']}")
    evidence = {
        "result_note": HOSTILE,
        "keep_missing": [HOSTILE],
        "keep_refused": [HOSTILE],
        "stderr_tail": HOSTILE,
        "output_lost_bytes": 1,
    }
    with Queue.open(home.paths.queue) as queue:
        for number in range(4):
            claimed = queue.claim(boot_id="b", daemon="d")
            assert claimed is not None
            queue.finish(
                claimed.attempt_id,
                (Outcome.COMPLETED, Outcome.CORRUPT, Outcome.COMPLETED, Outcome.FAILED)[number],
                reason_code="exit_status",
                reason=HOSTILE,
                end_reason=HOSTILE,
                evidence=evidence,
                turns=1,
                transcript_sha256="0" * 64,
            )
        rows = queue.cells()
    for row in rows:
        folder = home.paths.cell_results(row.grid, row.key)
        folder.mkdir(parents=True)
        for name in ("stdout.log", "stderr.log"):
            (folder / name).write_text(f"{HOSTILE}\n{HOSTILE}")
            with (folder / name).open("ab") as log:
                log.write(b"\x9b31m\xff\x1b[0m\n")
        for words in WORDS.values():
            (folder / words.replace("/", "-")).touch()
        (folder / "result.json").write_text(json.dumps({"v": 1, "files": [{"name": HOSTILE}], "result": HOSTILE}))
        write_transcript(folder / "transcript.jsonl", row.key)
    write_daemon_state(home)
    write_model(home)
    yield home
    home.end()


def write_transcript(path: Path, key: str) -> None:
    spec = {"key": key, "engine": HOSTILE, "model": {"name": HOSTILE}, "seed": 1, "system": HOSTILE}
    turn = {"kind": "turn", "turn": 1, "message": HOSTILE, "reply": HOSTILE, "stop": "length"}
    data, head = transcript.seal({"kind": "header", "v": 1, "spec": spec, "conditions": {HOSTILE: HOSTILE}}, "")
    for _ in range(3):
        line, head = transcript.seal(turn, head)
        data += line
    path.write_bytes(data + HOSTILE.encode() + b"\n")


def write_daemon_state(home: Home) -> None:
    """As a daemon writes it, but for the words: ours is the process that it names."""
    from overnight import procfs
    from overnight.dispatch import records

    running = {
        **{"cell_id": 1, "grid": HOSTILE, "cell": HOSTILE, "phase": HOSTILE, "turn": 1, "new_turns": 1},
        **{"output_tokens": 1, "seconds": 1.0, "pid": os.getpid(), "bytes": 1, "claim_bytes": 1, "peak_bytes": 1},
    }
    warm = {"model": HOSTILE, "state": HOSTILE, "cells": 1, "load_s": 1.0, "pid": os.getpid(), "bytes": 1}
    state = {
        **{"v": 1, "boot_id": procfs.boot_id(), "pid": os.getpid(), "start_ticks": procfs.start_ticks(os.getpid())},
        **{"monotonic_s": time.monotonic() + 3600, "holding": HOSTILE, "slots": 1, "stopping": False},
        **{"running": [running], "warm": [warm], "memory": None},
    }
    home.paths.daemon_state.write_text(json.dumps({**state, "checksum": records.checksum(state)}))


def write_model(home: Home) -> None:
    folder = home.paths.models / "m--float32"
    folder.mkdir()
    manifest = {
        **{"v": 1, "name": "m", "source": HOSTILE, "origin": "", "dtype": "float32", "fingerprint": HOSTILE},
        **{"params": 1, "bytes": 1, "files": {HOSTILE: {"bytes": 1, "sha256": HOSTILE, "mtime_ns": 1}}, "versions": {}},
    }
    (folder / "model.json").write_text(json.dumps(manifest))


def cells(home: Home) -> list[str]:
    return [f"#{row['id']}" for row in home.cells()]


def test_the_words_are_hostile() -> None:
    for name, words in WORDS.items():
        assert obeyed(words), name


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--json"],
        ["cells"],
        ["cells", "--json"],
        ["cells", "sweep"],
        ["verify"],
        ["verify", "--json"],
        ["models", "list"],
        ["models", "list", "--json"],
        ["show", HOSTILE],
        ["tail", HOSTILE, "--grid", HOSTILE],
        ["cells", HOSTILE],
        ["status", "--write-grid-state", HOSTILE],
        ["submit", HOSTILE],
        ["submit", "--command", HOSTILE, "--cwd", HOSTILE],
        ["submit", "--command", "true", "--name", HOSTILE],
        ["submit", "--command", "{" + HOSTILE + "}"],
        ["submit", "--command", "true", "--axis", HOSTILE],
        ["submit", "--command", "true", "--secret", HOSTILE],
        ["models", "add", HOSTILE],
        [HOSTILE],
        ["status", f"--{HOSTILE}"],
        ["cells", "--status", HOSTILE],
        ["cells", "--limit", HOSTILE],
    ],
    ids=lambda words: ascii(" ".join(words))[:40],
)
def test_no_command_lets_it_through(seeded: Home, command: list[str]) -> None:
    assert run(seeded, *command)


def test_of_a_cell_everything_is_shown(seeded: Home) -> None:
    for cell in cells(seeded):
        shown = run(seeded, "show", cell)
        assert "\\x1b[2J" in shown
        run(seeded, "show", cell, "--json")
        for options in ([], ["-n", "1"], ["--stderr"], *([["-f"]] if cell in ("#1", "#2", "#3") else [])):
            run(seeded, "tail", cell, *options)
    assert "\\x1b[2J" in run(seeded, "tail", cells(seeded)[0])


def test_json_says_the_very_words(seeded: Home) -> None:
    """Escaped as JSON has it, so that a program reads what was said."""
    found = json.loads(run(seeded, "cells", "--json"))
    assert HOSTILE in [row["reason"] for row in found]
    shown = json.loads(run(seeded, "show", cells(seeded)[0], "--json"))
    assert HOSTILE in [attempt["reason"] for attempt in shown["attempts"]]


def test_a_hostile_grid_file_is_refused_harmlessly(seeded: Home) -> None:
    for number, text in enumerate(
        [
            f"name: g\nmodels: [{json.dumps(HOSTILE)}]\nscaffolds: [1]\n",
            f"{json.dumps(HOSTILE)}: 1\n",
            f"name: {json.dumps(HOSTILE)}\n",
            "name: \x9b31m\n",
            f"name: g\nkind: command\ncommand: [a]\nenv: {{{json.dumps(HOSTILE)}: x}}\n",
        ]
    ):
        path = seeded.paths.home / f"{WORDS['csi']}{number}.yaml"
        path.write_text(text)
        shown = run(seeded, "submit", str(path))
        assert shown.startswith("overnight: ")
        assert shown.count("\n") == 1


def test_the_live_line_obeys_only_its_own(tmp_path: Path) -> None:
    """On a terminal `run` takes its line back by `\\r\\x1b[K`; all else that is shown there is harmless."""
    program = (
        "import ast, sys; from overnight.cli import run, screen\n"
        "words = ast.literal_eval(sys.argv[1])\n"
        "with screen.guarded():\n"
        "    shown = run._Screen()\n"
        "    shown.progress(words); shown.progress('second ' + words); shown.line(words); shown.clear()\n"
        "    print(words, file=sys.stderr)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program, ascii(HOSTILE)], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert text.count("\r\x1b[K") == 2
    assert "second" in text
    assert obeyed(text.replace("\r\x1b[K", "").replace("\r\n", "\n")) == set()


def test_the_watchdogs_view_is_harmless(seeded: Home) -> None:
    for words in (["--once"], ["--once", "--json"], [f"--{HOSTILE}"], ["--budget", HOSTILE], ["--home", HOSTILE]):
        done = subprocess.run(
            [sys.executable, "-m", "overnight_watchdog", "--home", str(seeded.paths.home), *words],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert obeyed((done.stdout + done.stderr).decode()) == set(), words

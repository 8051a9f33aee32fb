"""Files that are not what was written: one line from `verify`, nothing believed."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.damaged_files import said
from helpers.queue_cells import Cell, take, used_queue
from helpers.specs import scripted_spec, warm_of
from overnight import durable, procfs
from overnight.cells import idle_loop
from overnight.cells import transcript as transcripts
from overnight.cells.transcript import Transcript
from overnight.cli import common, down
from overnight.dispatch import leftovers, records
from overnight.engines.scripted import ScriptedEngine
from overnight.errors import QueueError
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Queue


@pytest.fixture
def done(tmp_path: Path) -> tuple[Paths, str]:
    """A home with one cell that is done, and its key."""
    paths, spec = Paths.of(tmp_path / "h").ensure(), scripted_spec(turns=2)
    folder = paths.cell_results("night", spec["key"])
    engine = ScriptedEngine(warm_of(spec), "")
    finished = idle_loop.run(engine, spec, folder, report=lambda event, **fields: None)
    template = {name: value for name, value in spec.items() if name not in ("key", "coords", "seed")}
    with Queue.open(paths.queue) as queue:
        cells = [Cell(spec["key"], spec["coords"], template, spec["seed"])]
        queue.enqueue("night", cells=cells, spec={"name": "night"}, policy={"tries": 3})
        queue.finish(take(queue).attempt_id, Outcome.COMPLETED, **vars(finished))
    assert said("--home", str(paths.home), "verify")[0] == 0
    return paths, spec["key"]


@pytest.mark.parametrize(
    "change",
    [
        {"output_tokens": 1},
        {"key": "another"},
        {"kind": "command"},
        {"v": 2},
        {"coords": {"run": 2}},
        {"end_reason": "target_reached"},
        None,
        "deep",
    ],
)
def test_verify_tells_of_every_field_of_a_result(done: tuple[Paths, str], change: Any) -> None:
    paths, key = done
    path = paths.result("night", key)
    result = json.loads(path.read_bytes())
    if isinstance(change, dict):
        path.write_text(json.dumps(result | change))
    else:
        path.write_bytes(b"null" if change is None else b'{"v":' + b"[" * 100_000)
    code, out, err = said("--home", str(paths.home), "verify")
    assert (code, err) == (1, "")
    assert out.splitlines()[0].startswith(f"night/{key}: its result.json ")


def test_a_damaged_heartbeat_of_the_daemon_is_none(done: tuple[Paths, str]) -> None:
    paths, _ = done
    state: dict[str, Any] = {"v": 1, "boot_id": procfs.boot_id(), "pid": os.getpid(), "monotonic_s": 0.0, "slots": 2}
    state |= {"start_ticks": procfs.start_ticks(os.getpid()), "stopping": False, "holding": ""}
    state |= {"running": [], "warm": []}
    whole = durable.canonical(state | {"checksum": records.checksum(state)})
    paths.daemon_state.write_text(whole)
    assert (common.daemon_state(paths) or {})["slots"] == 2
    paths.daemon_state.write_text(whole.replace('"slots":2', '"slots":6'))
    assert common.daemon_state(paths) is None
    paths.daemon_state.write_text(durable.canonical(state))
    assert common.daemon_state(paths) is not None, "a daemon from before an upgrade"
    paths.daemon_state.write_bytes(b"[" * 100_000)
    assert common.daemon_state(paths) is None


def test_a_queue_that_is_closed_after_a_damaged_row_leaves_nothing_to_complain_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used_queue(tmp_path / "queue.db")
    data = (tmp_path / "queue.db").read_bytes()
    (tmp_path / "queue.db").write_bytes(data.replace(b'{"model":"135m","run":2,', b'{"model":"135m","run":2!'))
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with Queue.open(tmp_path / "queue.db") as queue, pytest.raises(QueueError, match="damaged"):
        queue.cells("night")
    gc.collect()
    assert complaints == []


def test_all_of_a_long_tail_is_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    writer = Transcript.open(path)
    assert list(writer.records()) == []
    writer.write_header({"spec": {}, "conditions": {}})
    writer.close()
    good = path.read_bytes()
    size = transcripts.MAX_LINE_BYTES + 4097
    with path.open("ab") as stream:
        stream.truncate(len(good) + size)  # NULs, as a power cut can leave them
        stream.seek(0, os.SEEK_END)
        stream.write(b"end")
    writer = Transcript.open(path)
    assert len(list(writer.records())) == 1
    writer.close()
    assert path.read_bytes() == good
    assert writer.cut == (tmp_path / "transcript.jsonl.cut-1", size + 3)
    kept = writer.cut[0].read_bytes()
    assert (len(kept), kept[-4:]) == (size + 3, b"\0end")


_CELL = {
    **{"grid": "g", "cell": "k", "cell_id": 1, "phase": "running", "pid": None, "turn": 1, "output_tokens": 1},
    **{"bytes": 1, "claim_bytes": 1, "peak_bytes": 1, "seconds": 1.0, "new_turns": 1},
}
_SERVER = {"model": "scripted x float32", "pid": None, "state": "ready", "cells": 1, "load_s": 0.1, "bytes": 1}
_LIMITS = dict.fromkeys(("claimed_bytes", "warm_bytes", "limit_bytes", "reserve_bytes", "most_bytes"), 2**30)
_SHOWN = {"slots": 2, "holding": "slots", "stopping": False, "running": [_CELL], "warm": [_SERVER], "memory": _LIMITS}


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., tuple[Paths, dict[str, Any] | None]]:
    """A home beside a daemon that this process plays, and what is read of its daemon.json."""
    paths = Paths.of(tmp_path / "h").ensure()
    Queue.open(paths.queue).close()

    def say(**changes: Any) -> tuple[Paths, dict[str, Any] | None]:
        state = {"v": 1, "boot_id": procfs.boot_id(), "pid": os.getpid(), "monotonic_s": time.monotonic()}
        state |= {"start_ticks": procfs.start_ticks(os.getpid()), **_SHOWN, **changes}
        paths.daemon_state.write_bytes(records.sealed({name: v for name, v in state.items() if v is not ...}))
        return paths, common.daemon_state(paths)

    return say


@pytest.mark.parametrize(
    "folder", ["夜\u3000m", "my\u00a0model", "a\u200cb\u200dc", os.fsdecode(b"caf\xe9"), "two\nlines"], ids=ascii
)
def test_a_daemon_lives_whatever_its_models_folder_is_called(
    beside: Callable[..., tuple[Paths, dict[str, Any] | None]], folder: str
) -> None:
    server = {**_SERVER, "model": f"transformers /models/{folder} float32"}
    paths, state = beside(warm=[server])
    assert state is not None
    assert state["warm"] == [server]
    code, shown, complaint = said("--home", str(paths.home), "status", "--json")
    assert (code, complaint) == (0, "")
    assert json.loads(shown)["warm"][0]["model"] == server["model"]
    code, shown, complaint = said("--home", str(paths.home), "status")
    assert (code, complaint) == (0, "")
    shown.encode()
    assert shown.splitlines()[-1].startswith("transformers /models/")


@pytest.mark.parametrize(
    ("what", "bad", "instead"),
    [
        ("running", [_CELL, {**_CELL, "phase": "a\u202eb"}, {**_CELL, "turn": []}, 7, {}], [_CELL]),
        ("warm", [{**_SERVER, "model": "\0"}, {**_SERVER, "bytes": "1"}, _SERVER, None], [_SERVER]),
        ("running", "ab", []),
        ("warm", ..., []),
        ("slots", "x", 1),
        ("holding", "a\x1b[31mb", ""),
        ("stopping", 1, False),
        ("memory", {}, None),
        ("memory", {**_LIMITS, "others_bytes": "x"}, None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_cannot_be_shown_of_a_daemon_is_left_out_and_it_lives(
    beside: Callable[..., tuple[Paths, dict[str, Any] | None]], what: str, bad: Any, instead: Any
) -> None:
    paths, state = beside(**{what: bad})
    assert state is not None
    assert {name: state[name] for name in _SHOWN} == {**_SHOWN, what: instead}
    code, shown, complaint = said("--home", str(paths.home), "status")
    assert (code, complaint) == (0, "")
    assert f"daemon    running, pid {os.getpid()}" in shown


@pytest.mark.parametrize(
    "changes",
    [{"pid": 2**22 - 1}, {"pid": "1"}, {"start_ticks": 1}, {"boot_id": "another"}, {"monotonic_s": ...}],
    ids=str,
)
def test_who_it_is_and_when_tells_whether_a_daemon_lives(
    beside: Callable[..., tuple[Paths, dict[str, Any] | None]], changes: dict[str, Any]
) -> None:
    assert beside(**changes)[1] is None


def test_commands_of_a_daemon_with_an_odd_row_are_not_swept_away(
    beside: Callable[..., tuple[Paths, dict[str, Any] | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = beside(running=[{**_CELL, "phase": "\u3000"}], warm=[{**_SERVER, "state": "\u200c"}])
    monkeypatch.setattr(leftovers, "find", lambda token: pytest.fail("swept"))
    assert down._sweep(paths) == ""

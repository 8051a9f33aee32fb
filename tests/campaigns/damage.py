"""What a disk that lies, or a page that was never written, can leave behind: found, named, never built upon."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from campaigns.base import Campaign, Finding, Round
from helpers import damaged_files, damaged_queue
from helpers.damaged_files import said
from helpers.damaged_transcripts import Whole, continue_flipped, continue_torn, region, tails
from helpers.home import Home
from helpers.waiting import until
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Queue


class Damage(Campaign):
    name: ClassVar[str] = "damage"
    tries: ClassVar[str] = (
        "a last line torn at each byte (cut, newline, NULs, stale pages), a bit flipped in each byte of a transcript, "
        "in the pages of the queue and its log, in each byte of the small files"
    )
    proves: ClassVar[tuple[str, ...]] = ("7", "1", "2")

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        parts = [
            *(Round(f"torn last line, {turns} turns", {"what": "torn", "turns": turns}) for turns in (0, 1)),
            Round("torn last line, 4 turns", {"what": "torn", "turns": 4, "every": 3}),
            Round("torn last line of a page and more", {"what": "torn", "turns": 2, "token_limit": 400, "every": 9}),
            Round("flipped transcript", {"what": "flipped", "turns": 4}),
            Round("flipped transcript of a done cell", {"what": "verified", "turns": 3}),
            *(Round(f"flipped queue {n}", {"what": "queue", "flips": 400}) for n in range(1, 7)),
            Round("flipped log of the queue", {"what": "log", "flips": 400}),
            *(Round(name, {"what": name}) for name in ("heartbeats", "registrations", "daemon.json", "results")),
            Round("a daemon among damage", {"what": "daemon"}),
        ]
        if quick:
            few = {
                "torn last line, 1 turns": {"what": "torn", "turns": 1, "every": 30},
                "flipped transcript": {"what": "flipped", "turns": 2, "every": 8},
                "flipped queue": {"what": "queue", "flips": 60},
                "flipped log of the queue": {"what": "log", "flips": 20},
                "heartbeats": {"what": "heartbeats"},
            }
            parts = [Round(key, arguments) for key, arguments in few.items()]
        return [Round(part.key, {**part.arguments, "seed": f"{seed}:{part.key}"}) for part in parts]

    def run(self, one: Round, folder: Path) -> Finding:
        dice = random.Random(one.arguments["seed"])
        if one.arguments["what"] == "daemon":
            return _among_damage(folder, dice)
        with _in_memory() as place:
            return _PARTS[one.arguments["what"]](place, dice, **_but(one.arguments, "what", "seed"))


@contextmanager
def _in_memory() -> Iterator[Path]:
    """A folder that needs no disk: tens of thousands of files are written and synced."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="prove.", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


def _but(arguments: dict[str, object], *names: str) -> dict[str, int]:
    return {name: int(str(value)) for name, value in arguments.items() if name not in names}


# -- transcripts ----------------------------------------------------------------------------------------------


def _torn(folder: Path, dice: random.Random, turns: int, token_limit: int = 12, every: int = 1) -> Finding:
    replies = {"token_limit": token_limit, "reply_tokens": token_limit}
    whole = Whole.made(folder / "whole", turns=turns, **replies)
    other = Whole.made(folder / "other", turns=9, seed=99, key="other", token_limit=30)
    found = Finding()
    for number, (kind, _, tail) in enumerate(tails(whole, other, dice)):
        if number // 8 % every == 0:
            found.add([continue_torn(whole, tail, folder / "cell")])
            found.count(f"torn: {kind}")
    return found


def _flipped(folder: Path, dice: random.Random, turns: int, every: int = 1) -> Finding:
    whole = Whole.made(folder / "whole", turns=turns, token_limit=12)
    flips = [(at, dice.randrange(8)) for at in range(0, len(whole.data), every)]
    return Finding().add(continue_flipped(whole, at, bit, folder / "cell") for at, bit in flips)


def _verified(folder: Path, dice: random.Random, turns: int) -> Finding:
    """`overnight verify` names a cell that is done, in one line, for a bit in any byte of its transcript."""
    paths, whole, cell = _done_cell(folder, turns)
    found = Finding()
    path = paths.transcript("night", cell)
    for at in range(len(whole.data)):
        bit = dice.randrange(8)
        path.write_bytes(whole.data[:at] + bytes([whole.data[at] ^ 1 << bit]) + whole.data[at + 1 :])
        found.expect(_verify(paths, cell), f"bit {bit} of byte {at} ({region(whole, at)}): verify does not tell")
        found.count("flips that verify has named")
    return found


def _done_cell(folder: Path, turns: int) -> tuple[Paths, Whole, str]:
    """A home with one cell that is done, as the daemon would have left it."""
    whole = Whole.made(folder / "whole", turns=turns, token_limit=12)
    paths = Paths.of(folder / "h").ensure()
    key = whole.spec["key"]
    template = {name: value for name, value in whole.spec.items() if name not in ("key", "coords", "seed")}
    planned = damaged_queue.Cell(key, whole.spec["coords"], template, whole.spec["seed"])
    result = json.loads(whole.result)
    with Queue.open(paths.queue) as queue:
        queue.enqueue("night", cells=[planned], spec={"name": "night"}, policy={"tries": 3})
        claimed = damaged_queue.take(queue)
        told = {name: result[name] for name in ("turns", "output_tokens", "end_reason", "transcript_sha256")}
        queue.finish(claimed.attempt_id, Outcome.COMPLETED, **told)
    paths.cell_results("night", key).mkdir(parents=True)
    paths.transcript("night", key).write_bytes(whole.data)
    paths.result("night", key).write_bytes(whole.result)
    if said("--home", str(paths.home), "verify")[0] != 0:
        raise ValueError("verify complains of a cell that is whole")
    return paths, whole, key


def _verify(paths: Paths, cell: str) -> bool:
    """Does it name this cell, in one line?"""
    code, out, err = said("--home", str(paths.home), "verify")
    first, *rest = out.splitlines()
    return code == 1 and first.startswith(f"night/{cell}: ") and len(rest) == 1 and not err


def _results(folder: Path, dice: random.Random) -> Finding:
    """result.json: verify tells of it, and a cell that goes on writes it anew. grid_state.json is nobody's source."""
    paths, whole, cell = _done_cell(folder, 2)
    found = Finding()
    path = paths.result("night", cell)
    for what, data in damaged_files.damages(whole.result, dice):
        path.write_bytes(data)
        found.expect(_verify(paths, cell), f"result.json, {what}: verify does not tell")
        found.count("damages of result.json")
    path.write_bytes(whole.result)
    grid_state = paths.grid_state("night")

    def written() -> object:
        code, _, err = said("--home", str(paths.home), "status", "--write-grid-state", "night")
        return (code, err, json.loads(grid_state.read_bytes())["cells"])

    before = written()
    for what, data in damaged_files.damages(grid_state.read_bytes(), dice, every=5):
        grid_state.write_bytes(data)
        found.expect(written() == before, f"grid_state.json, {what}: not made anew")
        found.count("damages of grid_state.json")
    return found


def _daemon_state(folder: Path, dice: random.Random) -> Finding:
    paths, _, cell = _done_cell(folder, 1)
    running = {
        **{"grid": "night", "cell": cell, "cell_id": 1, "phase": "running", "pid": None, "turn": 2, "new_turns": 1},
        **{"output_tokens": 7, "bytes": 2**20, "claim_bytes": 2**21, "peak_bytes": 2**20, "seconds": 1.5},
    }
    return damaged_files.daemon_state(paths.home, paths.daemon_state, running, dice)


# -- the queue ------------------------------------------------------------------------------------------------

SURE = ("counts", "by status", "found", "cancel", "ready at")
SURE_OF_CELLS = ("id", "grid", "key", "status", "attempts", "turns", "output_tokens", "end_reason", "transcript_sha256")


def _queue(place: Path, dice: random.Random, flips: int) -> Finding:
    found = Finding()
    whole = place / "whole" / "queue.db"
    damaged_queue.build(whole, cells=120)
    data, before = whole.read_bytes(), damaged_queue.answers(whole)
    kinds = damaged_queue.regions(data)
    paths = Paths.of(place / "h").ensure()
    for number in range(flips):
        # The header and rare kinds of pages are not left to chance.
        kind = dice.choice(["header", *sorted(set(kinds)), "", "", ""])
        at = _somewhere(kind, kinds, len(data), dice)
        bit = dice.randrange(8)
        damaged = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        paths.queue.write_bytes(damaged)
        what = f"queue, bit {bit} of byte {at} ({damaged_queue.region(data, kinds, at)})"
        now = _looked(found, paths.queue, what)
        if isinstance(now, str):
            found.count("flips of the queue that are refused")
        elif now == before:
            found.count("flips of the queue without effect")
        else:
            found.count("flips of the queue that nobody sees")
            _expect_surely_the_same(found, before, now, what)
        found.expect(paths.queue.read_bytes() == damaged, f"{what}: reading changed the file")
        if number % 5 == 0:
            _commands(found, paths, what, refused=isinstance(now, str))
    return found


def _somewhere(kind: str, kinds: list[str], size: int, dice: random.Random) -> int:
    if kind == "header":
        return dice.randrange(100)
    if not kind:
        return dice.randrange(size)
    page_bytes = size // len(kinds)
    page = dice.choice([number for number, each in enumerate(kinds) if each == kind])
    return page * page_bytes + dice.randrange(page_bytes)


def _looked(found: Finding, path: Path, what: str) -> object:
    """The answers, or the line with which they are refused."""
    try:
        seen = damaged_queue.look(path)
    except Exception as error:  # noqa: BLE001 - any is one too many
        found.violations.append(f"{what}: {type(error).__name__}: {error}")
        return "raised"
    if isinstance(seen, str):
        one_line = "\n" not in seen and str(path) in seen
        found.expect(one_line, f"{what}: refused, but not in one line that names the file: {seen!r}")
    return seen


def _expect_surely_the_same(found: Finding, before: dict, now: dict, what: str) -> None:  # type: ignore[type-arg]
    """What cells are, how far they are and with which hash stands twice: that is never different without a word."""
    for name in SURE:
        found.expect(now[name] == before[name], f"{what}: {name} is answered otherwise, without a word")
    for name in SURE_OF_CELLS:
        same = [row[name] for row in now["cells"]] == [row[name] for row in before["cells"]]
        found.expect(same, f"{what}: {name} of a cell is answered otherwise, without a word")
    for name in ("attempts", "events", "ready", "grids"):
        found.expect(len(now[name]) == len(before[name]), f"{what}: {name} are more or fewer, without a word")


def _commands(found: Finding, paths: Paths, what: str, *, refused: bool) -> None:
    """The command line on it: no traceback, one line where it refuses; `verify` tells of what a daemon refuses."""
    for command in ("status", "cells", "verify"):
        try:
            code, out, err = said("--home", str(paths.home), command)
        except Exception as error:  # noqa: BLE001 - any is one too many
            found.violations.append(f"{what}: overnight {command}: {type(error).__name__}: {error}")
            continue
        if code == 2:
            found.expect(len(err.splitlines()) == 1, f"{what}: overnight {command} refuses with {err!r}")
        if command == "verify" and refused:
            found.expect(code in (1, 2) and bool(out or err), f"{what}: verify does not tell: {out!r}")
        found.count("commands on a damaged queue")


def _log(place: Path, dice: random.Random, flips: int) -> Finding:
    """A bit of the write-ahead log: refused, or the queue as it was after one of its transactions."""
    found = Finding()
    settled, logged = place / "settled.db", place / "logged.db"
    damaged_queue.build(settled, cells=60)
    states = damaged_queue.with_log(settled, logged)
    log = logged.with_name("logged.db-wal").read_bytes()
    target = place / "queue.db"
    for number in range(flips):
        at = dice.randrange(32) if number % 4 == 0 else dice.randrange(len(log))
        bit = dice.randrange(8)
        shutil.copyfile(logged, target)
        target.with_name("queue.db-wal").write_bytes(log[:at] + bytes([log[at] ^ 1 << bit]) + log[at + 1 :])
        target.with_name("queue.db-shm").unlink(missing_ok=True)
        what = f"log, bit {bit} of byte {at}"
        now = _looked(found, target, what)
        if isinstance(now, str):
            found.count("flips of the log that are refused")
            continue
        found.expect(now in states, f"{what}: the queue is as it has never been")
        last = now == states[-1]
        found.count("flips of the log without effect" if last else "flips of the log that undo transactions")
    return found


# -- a daemon among all this ----------------------------------------------------------------------------------


def _among_damage(folder: Path, dice: random.Random) -> Finding:
    """Transcripts with a flipped bit and var/run/ full of garbage: who is damaged is quarantined, others are done."""
    found = Finding()
    grid = {"scaffolds": [1, 2, 3, 4], "runs": 3, "options": {"delay_s": 0.0}, "limits": {"max_iterations": 4}}
    quiet, home = Home(folder / "q"), Home(folder / "h", slots=4)
    try:
        quiet.submit(**grid)
        quiet.start()
        quiet.wait_done()
        whole = quiet.transcripts()
        quiet.stop()
        home.submit(**grid)
        damaged, torn = set(), set()
        for number, (key, data) in enumerate(sorted(whole.items())):
            last = len(data) - len(data.splitlines(keepends=True)[-1])
            at = dice.randrange(last) if number % 3 else dice.randrange(last, len(data))
            (damaged if number % 3 else torn).add(key)
            path = home.paths.transcript("night", key)
            path.parent.mkdir(parents=True)
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :])
        before = home.transcripts()
        _litter(home.paths, dice)
        home.start()
        until(lambda: not {"pending", "running"} & home.statuses().keys(), 60)
        codes = {cell["key"]: (str(cell["status"]), cell["reason_code"]) for cell in home.cells()}
        for key in sorted(damaged):
            found.expect(codes[key] == ("quarantined", "transcript_corrupt"), f"{key}, damaged: {codes[key]}")
            found.expect(home.transcripts()[key] == before[key], f"{key}, damaged: its transcript was changed")
        for key in sorted(torn):
            found.expect(codes[key][0] == "done", f"{key}, torn: {codes[key]}")
            found.expect(home.transcripts()[key] == whole[key], f"{key}, torn: other bytes")
        told = home("verify", code=1).stdout.splitlines()
        named = {line.split(":")[0].removeprefix("night/") for line in told[:-1]}
        found.expect(named == damaged and len(told) == len(damaged) + 1, f"verify names {sorted(named)}")
        found.count("damaged cells that a daemon quarantined", len(damaged))
        found.count("torn cells that a daemon finished", len(torn))
        home.stop()
        _refuses(found, home, dice)
    finally:
        quiet.end()
        home.end()
    return found


def _litter(paths: Paths, dice: random.Random) -> None:
    """Garbage at the places of all files of var/run/."""
    for path in (paths.daemon_state, paths.pressure, paths.beat, paths.verdicts, paths.lock, paths.watchdog_lock):
        path.write_bytes(dice.randbytes(700))
    for number, data in enumerate(_registrations(dice)):
        (paths.registry / f"{2**22 - 1 - number}.json").write_bytes(data)


def _registrations(dice: random.Random) -> Iterable[bytes]:
    yield b""
    yield dice.randbytes(300)
    yield b'{"v":1,"boot_id":7,"pid":"x","start_ticks":null}'
    yield b"[" * 100_000


def _refuses(found: Finding, home: Home, dice: random.Random) -> None:
    """A daemon does not start on a damaged queue: exit code 2, one line, nothing changed."""
    data = home.paths.queue.read_bytes()
    root = data[:100] + bytes(16) + data[116:]
    for what, damaged in (("header", dice.randbytes(100) + data[100:]), ("root page", root), ("half", data[:-4096])):
        home.paths.queue.write_bytes(damaged)
        digest = hashlib.sha256(damaged).hexdigest()
        done = home("daemon", code=None, timeout=30)
        last = done.stderr.strip().splitlines()
        found.expect(done.returncode == 2 and len(last) == 1, f"daemon on a queue with a bad {what}: {done}")
        same = hashlib.sha256(home.paths.queue.read_bytes()).hexdigest() == digest
        found.expect(same, f"daemon on a queue with a bad {what}: it changed the file")
        found.count("damaged queues that a daemon refused")
    home.paths.queue.write_bytes(data)


_PARTS: dict[str, Callable[..., Finding]] = {
    "torn": _torn,
    "flipped": _flipped,
    "verified": _verified,
    "queue": _queue,
    "log": _log,
    "heartbeats": damaged_files.heartbeats,
    "registrations": damaged_files.registrations,
    "daemon.json": _daemon_state,
    "results": _results,
}

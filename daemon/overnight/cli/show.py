"""`overnight show CELL`: its attempts, their outcomes, and where its files are."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

from overnight.cells import placeholders
from overnight.cli import common, text
from overnight.cli.cells import as_json
from overnight.config import load_config
from overnight.dispatch import claims, predict
from overnight.dispatch.claims import Claim
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.states import Status
from overnight.queue.store import AttemptRow, CellRow, Queue

_COMMAND_SHOWN = 400
_NO_BOUND = 2**62
"""No daemon lives that says how much there is."""


def add(commands: Any) -> None:
    parser = commands.add_parser("show", help="a cell's attempts, outcomes, and where its files are")
    parser.add_argument("cell", metavar="CELL", help="KEY, GRID/KEY or '#ID'")
    parser.add_argument("--grid", metavar="G", help="where to look for CELL")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args, looks=True)
    with common.open_queue(paths) as queue:
        row = common.select_cells(queue, [args.cell], args.grid)[0]
        attempts, events, spec = queue.attempts(row.id), queue.events(row.id), queue.cell_spec(row.id)
        imported = spec["kind"] == specs.IMPORTED
        claim = None if imported else _claim(paths, queue, row, spec)
    folder = paths.cell_results(row.grid, row.key)
    files = sorted(str(path) for path in folder.iterdir()) if folder.is_dir() else []
    if args.json:
        found = {
            "cell": as_json(row),
            "spec": spec,
            "attempts": [as_json(attempt) for attempt in attempts],
            "events": [as_json(event) for event in events],
            "files": files,
            "claim": None if claim is None else {**as_json(claim), "sentence": claim.sentence()},
        }
        common.print_json(found)
        return 0
    print(f"{row.grid}/{row.key}  (#{row.id})  {row.status}")
    if row.reason:
        print(f"  why        {text.harmless(row.reason)} [{row.reason_code}]")
    if spec["kind"] == "command":
        print(f"  command    {text.shortened(_command(spec), _COMMAND_SHOWN)}")
    else:
        ended = "how it ended is not told" if imported and row.status == Status.DONE else "not ended"
        print(f"  turns      {row.turns or 0}, {row.output_tokens or 0} tokens, {row.end_reason or ended}")
    if claim is None:
        print("  imported   what another harness did; nothing here runs it")
    else:
        print(f"  claim      {claim.sentence()}")
        print(f"  seed       {spec['seed']}")
    if row.status == Status.PENDING and row.not_before > time.time():
        print(f"  again      at {text.when(row.not_before)}")
    for note in _notes(attempts):
        print(f"  note       {text.harmless(note)}")
    if row.transcript_sha256:
        print(f"  sha256     {row.transcript_sha256}")
    for number, file in enumerate(files):
        print(f"  {'files' if number == 0 else '     '}      {file}")
    rows = [
        (
            attempt.number,
            attempt.outcome or "under way",
            attempt.turns,
            text.when(_told(attempt, "started_at", attempt.claimed_at)),
            text.duration(_took_s(attempt)),
            text.duration(attempt.load_s),
            text.duration(attempt.replay_s),
            text.size(attempt.claim_bytes),
            text.size(attempt.peak_bytes),
            attempt.reason or "-",
        )
        for attempt in attempts
    ]
    if rows:
        heads = ("attempt", "outcome", "turns", "started", "took", "load", "replay", "claim", "peak", "reason")
        of_models = ("turns", "load", "replay") if spec["kind"] == "command" else ()
        print("\n" + text.table(heads, rows, optional=of_models))
    return 0


def _claim(paths: Paths, queue: Queue, row: CellRow, spec: dict[str, Any]) -> Claim:
    """What its next attempt would claim, and why."""
    return claims.claim(
        queue.peaks(claims.kind(spec)),
        queue.family_peaks(claims.family(spec)),
        raised=None if row.status == Status.DONE else row.claim_bytes,
        hint=queue.grid(row.grid).policy.get("memory_bytes"),
        predicted=predict.cell_bytes(spec, paths.models),
        prior=load_config(paths.config).memory.prior,
        most=_most_bytes(paths, spec),
    )


def _told(attempt: AttemptRow, name: str, at: float | None) -> float | None:
    """A time of an attempt; None for one that the files of an imported cell do not tell."""
    return None if name in attempt.evidence.get("unknown", ()) else at


def _took_s(attempt: AttemptRow) -> float | None:
    began, ended = _told(attempt, "started_at", attempt.claimed_at), _told(attempt, "finished_at", attempt.ended_at)
    return None if began is None or ended is None else ended - began


def _notes(attempts: Sequence[AttemptRow]) -> Iterator[str]:
    """What went wrong beside the last attempt's outcome."""
    evidence = attempts[-1].evidence if attempts else {}
    if note := evidence.get("result_note"):
        yield f"no result was recorded: {note}"
    if missing := evidence.get("keep_missing"):
        yield f"nothing to keep for {', '.join(map(str, missing))}"
    if refused := evidence.get("keep_refused"):
        yield f"not kept, since the value of a secret is in it: {', '.join(map(str, refused))}"
    if evidence.get("result_withdrawn"):
        yield "what it wrote to $OVERNIGHT_RESULT held the value of a secret, and was removed"
    if lost := evidence.get("output_lost_bytes"):
        yield f"{text.size(lost)} of its output could not be written"
    if left := evidence.get("leftovers"):
        yield f"it left {left} processes running, which were ended"
    if stay := evidence.get("unkilled"):
        yield f"{stay} of its processes did not die of SIGKILL"


def _most_bytes(paths: Paths, spec: dict[str, Any]) -> int:
    """All that one cell can have beside its warm server, as admission bounds it: limit - reserve - what the daemon and
    the watchdog hold - that server."""
    state = common.daemon_state(paths)
    most: int | None = None if state is None else (state.get("memory") or {}).get("most_bytes")
    if state is None or most is None:
        return _NO_BOUND
    warm = specs.warm_specification(spec)
    # As WarmServer.describe names it.
    name = f"{warm['engine']} {warm['source']} {warm['dtype']}" if warm else "commands"
    held = [row["bytes"] for row in state["warm"] if row["model"] == name and row["state"] == "ready" and row["bytes"]]
    server: int = max(held) if held else predict.server_bytes(warm, paths.models)
    return max(0, most - server)


def _command(spec: dict[str, Any]) -> str:
    values = placeholders.values_of(spec)
    if spec["shell"]:
        return placeholders.fill(spec["command"], values, quote=True)
    return shlex.join(placeholders.fill(part, values) for part in spec["command"])

"""One cell of an idle loop, from its first or its next unfinished turn to the end.

    open the transcript -> replay the finished turns -> loop: message, reply, to disk -> result.json

Nothing of the conversation is kept here: the session keeps what its chat template needs, the file keeps the rest.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overnight import durable
from overnight.cells import simulated_clock, stop_early
from overnight.cells.shrinking import Shrinker
from overnight.cells.stop_early import StopEarly
from overnight.cells.transcript import Transcript
from overnight.engines.base import Engine, Session, Turn
from overnight.errors import CellError, ConditionsChanged, TranscriptCorrupt

Report = Callable[..., None]
"""report(event, **fields): tells the dispatcher; losing one costs nothing but a stale figure on a screen."""


@dataclass(frozen=True)
class Finished:
    """How a cell ended. Written to result.json, the same bytes for the same transcript."""

    end_reason: str
    turns: int
    output_tokens: int
    transcript_sha256: str


@dataclass
class _Progress:
    stop: StopEarly | None
    turns: int = 0
    output_tokens: int = 0

    def turn(self, reply: str, tokens: int) -> None:
        """One more is on disk."""
        self.turns += 1
        self.output_tokens += tokens
        if self.stop is not None:
            self.stop.hear(reply)


def run(
    engine: Engine,
    spec: dict[str, Any],
    folder: Path,
    *,
    report: Report,
    accept_conditions: bool = False,
    shrinker: Shrinker | None = None,
) -> Finished:
    """Run the cell `spec` in `folder` to its end. Raises CellError; every finished turn is on disk then.

    accept_conditions: go on with a transcript that was begun under other conditions, and record the new ones in
    its next turn. shrinker: gives memory back when it is asked to; without one nobody asks.
    """
    transcript = Transcript.open(folder / "transcript.jsonl")
    try:
        for left in folder.glob(".*.tmp"):  # of an attempt that was killed while it wrote; ours is the only one now
            left.unlink(missing_ok=True)
        conditions = {**engine.conditions(threads=spec["threads"]), **stop_early.conditions(spec["limits"])}
        session = engine.open(spec, threads=spec["threads"])
        safe_point = (shrinker or Shrinker()).watch(session, report)
        progress, changed = _resume(transcript, session, spec, conditions, report, accept_conditions, safe_point)
        end_reason = _loop(transcript, session, spec, progress, report, changed, safe_point)
        report("finishing")
        finished = Finished(end_reason, progress.turns, progress.output_tokens, transcript.sha256)
        _write_result(folder / "result.json", spec, finished)
        return finished
    finally:
        transcript.close()


def turn_seed(cell_seed: int, turn: int) -> int:
    """The seed of one turn's sampling: from the cell's seed and the turn's number alone. 0 <= seed < 2**63."""
    digest = hashlib.sha256(f"{cell_seed}:{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def reached(limits: dict[str, Any], turns: int, output_tokens: int) -> str | None:
    """The end reason of a cell that has all its turns, None while it has to go on."""
    target = limits["target_output_tokens"]
    if target is not None and output_tokens >= target:
        return "target_reached"
    return "max_iterations" if turns >= limits["max_iterations"] else None


def minutes_left(limits: dict[str, Any], turns: int, output_tokens: int) -> int:
    """What the simulated clock shows after that many turns and tokens."""
    target, most = limits["target_output_tokens"], limits["max_iterations"]
    spent, of = (turns, most) if target is None else (output_tokens, target)
    return simulated_clock.remaining_minutes(shift_hours=limits["shift_hours"], spent=spent, target=of)


def result_bytes(spec: dict[str, Any], finished: Finished) -> bytes:
    """result.json: the same bytes for the same transcript."""
    result = {"v": 1, "kind": "idle_loop", "key": spec["key"], "coords": spec["coords"], **asdict(finished)}
    return (durable.canonical(result) + "\n").encode()


def _resume(
    transcript: Transcript,
    session: Session,
    spec: dict[str, Any],
    conditions: dict[str, Any],
    report: Report,
    accept: bool,
    safe_point: Callable[[], None],
) -> tuple[_Progress, dict[str, Any] | None]:
    """Replay what is on disk, or begin. Returns the progress and, where they changed, the conditions to record."""
    began = time.monotonic()
    progress = _Progress(stop_early.of_limits(spec["limits"]))
    if (last := transcript.last_conditions()) is not None:
        _same_conditions(last, conditions, accept)
    recorded: dict[str, Any] | None = None
    for record in transcript.records():
        if recorded is None:
            _same_specification(record, spec, transcript.path)
            recorded = record.get("conditions")
            if not isinstance(recorded, dict):
                raise TranscriptCorrupt(f"{transcript.path}: its header has no conditions; nothing was changed")
            continue
        recorded = record.get("conditions", recorded)
        _replay_turn(session, record, check=recorded == conditions)
        progress.turn(record["reply"], len(record["reply_ids"]))
        report("replaying", turn=progress.turns)
        safe_point()
    if transcript.cut is not None:
        report("tail_cut", file=str(transcript.cut[0]), bytes=transcript.cut[1], turn=progress.turns)
    if recorded is None:
        transcript.write_header({"spec": spec, "conditions": conditions})
    report(
        "resumed" if progress.turns else "begun",
        turn=progress.turns,
        output_tokens=progress.output_tokens,
        replay_s=round(time.monotonic() - began, 4),
    )
    return progress, conditions if recorded is not None and recorded != conditions else None


def _replay_turn(session: Session, record: dict[str, Any], *, check: bool) -> None:
    try:
        turn = Turn(
            input_ids=record["input_ids"],
            cropped=record["cropped"],
            reply_ids=record["reply_ids"],
            reply=record["reply"],
            stop=record["stop"],
            prefill_digest=record["prefill_digest"],
            decode_digest=record["decode_digest"],
        )
        message = record["message"]
    except KeyError as missing:
        raise TranscriptCorrupt(f"turn {record.get('turn')} has no field {missing}; nothing was changed") from None
    if (odd := _odd(turn, message)) is not None:
        raise TranscriptCorrupt(
            f"turn {record.get('turn')} has no {odd} of the kind that turns have; nothing was changed"
        )
    session.replay(message, turn, check=check)


def _odd(turn: Turn, message: Any) -> str | None:
    """The first field that is of another kind than whoever writes turns gives it."""
    for name in ("input_ids", "reply_ids"):
        ids = getattr(turn, name)
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < 2**63 for each in ids):
            return name
    if type(turn.cropped) is not int or not 0 <= turn.cropped < 2**63:
        return "cropped"
    texts = {"message": message, "reply": turn.reply, "stop": turn.stop}
    texts |= {"prefill_digest": turn.prefill_digest, "decode_digest": turn.decode_digest}
    return next((name for name, text in texts.items() if not isinstance(text, str)), None)


def _loop(
    transcript: Transcript,
    session: Session,
    spec: dict[str, Any],
    progress: _Progress,
    report: Report,
    changed: dict[str, Any] | None,
    safe_point: Callable[[], None],
) -> str:
    limits = spec["limits"]
    while True:
        if (reason := reached(limits, progress.turns, progress.output_tokens)) is not None:
            return reason
        if progress.stop is not None and progress.stop.reached:
            return stop_early.END_REASON
        minutes = minutes_left(limits, progress.turns, progress.output_tokens)
        message = simulated_clock.message(minutes)
        if session.prepare(message) + limits["token_limit"] > session.context_tokens:
            return "context_full"
        if progress.turns == 0 or changed is not None:
            report("first_prefill")
        turn = session.generate(token_limit=limits["token_limit"], seed=turn_seed(spec["seed"], progress.turns + 1))
        record = {"message": message, "minutes_left": minutes, **asdict(turn)}
        if changed is not None:
            record["conditions"], changed = changed, None
        transcript.append(record)
        progress.turn(turn.reply, len(turn.reply_ids))
        report("turn", turn=progress.turns, output_tokens=progress.output_tokens)
        gc.collect()
        safe_point()


def _same_specification(header: dict[str, Any], spec: dict[str, Any], path: Path) -> None:
    if header.get("spec") != spec:
        key = _first_difference(header.get("spec"), spec)
        raise ConditionsChanged(
            f"{path} was begun with another specification ({key}); `overnight reset` moves it aside and starts afresh"
        )


def _same_conditions(recorded: dict[str, Any], now: dict[str, Any], accept: bool) -> None:
    if recorded != now and not accept:
        raise ConditionsChanged(
            f"begun under other conditions: {_first_difference(recorded, now)}; "
            "`overnight retry --accept-conditions` goes on all the same and records it"
        )


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return f"{path or 'all of it'} was {json.dumps(old)[:80]}, is {json.dumps(new)[:80]}"


def _write_result(path: Path, spec: dict[str, Any], finished: Finished) -> None:
    try:
        # Even when it is there already: an earlier attempt may have failed before its name was durable.
        durable.write_atomic(path, result_bytes(spec, finished))
    except OSError as error:
        raise durable.as_cell_error(error, f"writing {path}") from error


def explain(error: BaseException) -> tuple[str, str, str]:
    """(outcome, reason_code, sentence) of whatever ended an attempt."""
    if isinstance(error, CellError):
        return error.outcome, error.reason_code, str(error)
    if isinstance(error, MemoryError):
        return "over_cap", "memory_error", "the cell met its memory cap (MemoryError)"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "over_cap", "allocator", f"the cell met its memory cap: {str(error).splitlines()[0][:300]}"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "over_cap", "thread_start", "the cell met its memory cap: a thread could not be started"
    first = (str(error).splitlines() or [""])[0][:300]
    return "failed", "exception", f"{type(error).__name__}: {first}"

"""One transcript, read through: its chain, and what each line says. Streams, a line at a time; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight.cells import simulated_clock, stop_early
from overnight.cells.idle_loop import Finished, minutes_left, reached
from overnight.cells.stop_early import StopEarly
from overnight.cells.transcript import Fault, Reader

CONTEXT_FULL = "context_full"
_MOST = 5
"""Problems of one transcript that are told one by one."""

_FIELDS: dict[str, type] = {
    "message": str,
    "minutes_left": int,
    "input_ids": list,
    "cropped": int,
    "reply_ids": list,
    "reply": str,
    "stop": str,
    "prefill_digest": str,
    "decode_digest": str,
}


@dataclass
class Scan:
    """What a transcript holds. Figures are those of its whole lines; `fault` is where these end, None = at the end.

    header: None when not even that is whole. problems: sentences about whole lines that say what cannot be. stop: of
    a cell that stops early, as long as its turns were judged as they would be today.
    """

    size: int = 0
    good_bytes: int = 0
    turns: int = 0
    output_tokens: int = 0
    sha256: str = ""
    header: dict[str, Any] | None = None
    fault: Fault | None = None
    problems: list[str] = field(default_factory=list)
    stop: StopEarly | None = None

    def finished(self, spec: dict[str, Any], told: str | None) -> Finished | None:
        """How the cell ended, None when it has turns to go. told: the recorded reason; a full context cannot be read
        off the transcript, nor a collapse that was judged otherwise than today."""
        reason = self.ended(spec["limits"])
        unjudged = self.stop is None and spec["limits"].get("stop_early") is not None
        if reason is None and (told == CONTEXT_FULL or (unjudged and told == stop_early.END_REASON)):
            reason = told
        return None if reason is None else Finished(reason, self.turns, self.output_tokens, self.sha256)

    def ended(self, limits: dict[str, Any]) -> str | None:
        """The reason when its turns are all that the cell may have, as far as they tell."""
        reason = reached(limits, self.turns, self.output_tokens)
        return stop_early.END_REASON if reason is None and self.stop is not None and self.stop.reached else reason


def scan(path: Path, spec: dict[str, Any]) -> Scan:
    """Read it through and compare it with its cell's specification. Raises OSError when it cannot be read."""
    seen = Scan()
    with path.open("rb") as stream:
        reader = Reader(stream)
        length = 0
        for record in reader:
            if seen.header is None:
                seen.header = record
                seen.stop = stop_early.of_limits(spec["limits"])
                seen.problems.extend(_of_header(record, spec))
            else:
                problems = list(_of_turn(record, spec["limits"], seen, length)) if len(seen.problems) < _MOST else []
                seen.problems.extend(problems)
                seen.turns += 1
                ids = record.get("reply_ids")
                seen.output_tokens += len(ids) if isinstance(ids, list) else 0
                length += _grown(record)
                if seen.stop is not None:
                    seen.stop.hear(str(record.get("reply")))
            if "conditions" in record and not _judged_alike(record["conditions"], spec["limits"]):
                seen.stop = None
        seen.size = stream.seek(0, 2)
    seen.good_bytes, seen.sha256, seen.fault = reader.good_bytes, reader.sha256, reader.fault
    return seen


def _judged_alike(conditions: object, limits: dict[str, Any]) -> bool:
    return isinstance(conditions, dict) and stop_early.judged_alike(conditions, limits)


def _grown(record: dict[str, Any]) -> int:
    ids, cropped = record.get("input_ids"), record.get("cropped")
    return (len(ids) if isinstance(ids, list) else 0) - (cropped if isinstance(cropped, int) else 0)


def _of_header(header: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    if header.get("spec") != spec:
        yield "its header holds another specification than the queue"
    if not isinstance(header.get("conditions"), dict) or not header["conditions"]:
        yield "its header holds no conditions"


def _of_turn(record: dict[str, Any], limits: dict[str, Any], before: Scan, length: int) -> Iterator[str]:
    """before: the turns before this one; length: ids that the history held."""
    name = f"turn {before.turns + 1}"
    for field_name, kind in _FIELDS.items():
        value = record.get(field_name)
        if not isinstance(value, kind) or isinstance(value, bool):
            yield f"{name}: its {field_name} is missing or no {kind.__name__}"
            return
    if "conditions" in record and not isinstance(record["conditions"], dict):
        yield f"{name}: its conditions are no object"
    for field_name in ("input_ids", "reply_ids"):
        if not all(type(token) is int for token in record[field_name]):
            yield f"{name}: its {field_name} are not all whole numbers"
            return
    if (reason := before.ended(limits)) is not None:
        yield f"{name}: the cell had reached its end before it ({reason})"
        return
    minutes = minutes_left(limits, before.turns, before.output_tokens)
    if (record["minutes_left"], record["message"]) != (minutes, simulated_clock.message(minutes)):
        yield f"{name}: the clock showed {record['minutes_left']} minutes, expected {minutes}"
    if not 0 <= record["cropped"] <= length:
        yield f"{name}: {record['cropped']} ids were cropped off a history of {length}"
    count, limit = len(record["reply_ids"]), limits["token_limit"]
    if count > limit or record["stop"] not in ("eos", "length"):
        yield f"{name}: a reply of {count} tokens that ended by {record['stop']!r}, expected at most {limit}"
    elif record["stop"] == "length" and count != limit:
        yield f"{name}: its reply ended at the limit of {limit} tokens, but has {count}"

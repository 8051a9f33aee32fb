"""What a value of each column can be, and what stands for one that was damaged. Pure.

A row without a column that is NEEDED cannot be kept: nothing is invented in its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from typing import Any

from overnight.queue.states import Outcome, Status
from overnight.repair.check_queue import GRID, KEY

POLICY = '{"cap":"auto","grace_s":10.0,"memory_bytes":null,"timeout_s":null,"tries":3}'
"""Of a grid whose own is lost: what grids have that say nothing of it. `overnight submit FILE` sets it again."""


class _Needed:
    pass


NEEDED = _Needed()
_HEX = frozenset("0123456789abcdef")


class Unusable(ValueError):
    """A row that cannot be kept. `str()` names the column."""


def _integer(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _signed(value: Any) -> bool:
    return type(value) is int


def _real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1e11


def _text(value: Any) -> bool:
    return type(value) is str and "\0" not in value


def _object(value: Any) -> bool:
    if type(value) is not str:
        return False
    try:
        return isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


def _flag(value: Any) -> bool:
    return type(value) is int and value in (0, 1)


def _status(value: Any) -> bool:
    return type(value) is str and value in set(map(str, Status))


def _outcome(value: Any) -> bool:
    return type(value) is str and value in set(map(str, Outcome))


def _hash(value: Any) -> bool:
    return type(value) is str and len(value) == 64 and set(value) <= _HEX


def _grid(value: Any) -> bool:
    return type(value) is str and GRID.fullmatch(value) is not None


def _key(value: Any) -> bool:
    return type(value) is str and KEY.fullmatch(value) is not None


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


COLUMNS: dict[str, dict[str, tuple[Callable[[Any], bool], Any]]] = {
    "grids": {
        "name": (_grid, NEEDED),
        "spec": (_object, "{}"),
        "policy": (_object, POLICY),
        "created_at": (_real, 0.0),
        "last_submitted_at": (_real, 0.0),
    },
    "specs": {
        "hash": (_text, ""),
        "json": (_text, ""),
        "warm_id": (_integer, 0),
        "threads": (_integer, 1),
    },
    "cells": {
        "grid_id": (_integer, NEEDED),
        "spec_id": (_integer, NEEDED),
        "warm_id": (_integer, 0),
        "key": (_key, NEEDED),
        "coords": (_object, NEEDED),
        "seed": (_signed, NEEDED),
        "status": (_status, None),
        "not_before": (_real, 0.0),
        "generation": (_integer, 0),
        "attempts": (_integer, 0),
        "tries_used": (_integer, 0),
        "stalled": (_integer, 0),
        "turns": (_integer, 0),
        "output_tokens": (_integer, 0),
        "run_ms": (_integer, 0),
        "cancel_requested": (_flag, 0),
        "accept_conditions": (_flag, 0),
        "reason_code": (_text, ""),
        "reason": (_text, ""),
        "end_reason": (_or_none(_text), None),
        "transcript_sha256": (_or_none(_hash), None),
        "started_at": (_or_none(_real), None),
        "finished_at": (_or_none(_real), None),
        "claim_bytes": (_or_none(_integer), None),
        "evictions": (_integer, 0),
        "alone": (_flag, 0),
    },
    "attempts": {
        "cell_id": (_integer, NEEDED),
        "generation": (_integer, NEEDED),
        "number": (_integer, NEEDED),
        "boot_id": (_text, ""),
        "daemon": (_text, ""),
        "pid": (_or_none(_integer), None),
        "start_ticks": (_or_none(_integer), None),
        "claimed_at": (_real, 0.0),
        "started_at": (_or_none(_real), None),
        "ended_at": (_or_none(_real), None),
        "outcome": (_or_none(_outcome), str(Outcome.LOST)),
        "reason_code": (_text, ""),
        "reason": (_text, ""),
        "evidence": (_object, "{}"),
        "turns": (_or_none(_integer), None),
        "output_tokens": (_or_none(_integer), None),
        "end_reason": (_or_none(_text), None),
        "transcript_sha256": (_or_none(_hash), None),
        "load_s": (_or_none(_real), None),
        "replay_s": (_or_none(_real), None),
        "max_rss_bytes": (_or_none(_integer), None),
        "claim_bytes": (_or_none(_integer), None),
        "claim_source": (_text, ""),
        "cap_bytes": (_or_none(_integer), None),
        "peak_bytes": (_or_none(_integer), None),
    },
    "events": {
        "at": (_real, 0.0),
        "kind": (_text, NEEDED),
        "grid_id": (_or_none(_integer), None),
        "cell_id": (_or_none(_integer), NEEDED),
        "attempt_id": (_or_none(_integer), None),
        "old_status": (_or_none(_status), NEEDED),
        "new_status": (_or_none(_status), NEEDED),
        "detail": (_object, "{}"),
    },
    "peaks": {
        "kind": (_text, NEEDED),
        "family": (_text, NEEDED),
        "attempt_id": (_integer, NEEDED),
        "at": (_real, 0.0),
        "peak_bytes": (_integer, NEEDED),
        "whole": (_flag, NEEDED),
    },
}
"""Table -> column -> (can it be this?, what stands for one that cannot be read)."""


def cleaned(table: str, row: dict[str, Any], known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Every column of a row, and the names of those whose value was replaced. Raises Unusable.

    known: the columns that the table had; one that only a newer schema has is no loss."""
    values: dict[str, Any] = {}
    replaced = []
    for column, (can_be, instead) in COLUMNS[table].items():
        value = row.get(column, NEEDED)
        if value is not NEEDED and can_be(value):
            values[column] = value
            continue
        if instead is NEEDED:
            raise Unusable(column)
        values[column] = instead
        if column in known:
            replaced.append(column)
    return values, replaced

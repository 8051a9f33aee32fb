"""What a report does not say: the values of secrets, wherever they turn up, and of variables in a grid's `env`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from overnight import secrets
from overnight.analysis.audit_finding import Finding
from overnight.analysis.conversation import Conversation, cells_of
from overnight.masking import Masks
from overnight.paths import Paths
from overnight.queue.rows import AttemptRow, CellRow
from overnight.queue.store import Queue
from overnight.report import logs

_LEFT_OUT = "[left out]"
SECRETIVE = re.compile(r"(?i)(^|_)(key|token|secret|password|passwd|credentials?|auth|authorization|apikey)($|_)")


def of_grid(paths: Paths, queue: Queue, grid: str) -> Masks:
    """Every secret of this home, and those of the grid that the environment has. Raises SecretError: what cannot be
    read cannot be kept back."""
    found = secrets.read_file(paths.secrets)
    asked: set[str] = set()
    for cell in cells_of(queue, grid):
        asked.update(queue.cell_spec(cell.id).get("secrets") or ())
    for name in sorted(asked):
        value = os.environ.get(name, "")
        if len(os.fsencode(value)) >= secrets.SHORTEST_BYTES and found.get(name) != value:
            found[name if name not in found else f"{name} of the environment"] = value
    return Masks(found)


def texts(masks: Masks, value: Any) -> Any:
    """The texts of a JSON value masked; figures are ours and stay."""
    if not masks:
        return value
    if isinstance(value, str):
        return masks.text(value)
    if isinstance(value, Mapping):
        return {name: texts(masks, inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [texts(masks, inner) for inner in value]
    return value


def row(masks: Masks, cell: CellRow) -> CellRow:
    """Its key is the name of its folder, and stays."""
    if not masks:
        return cell
    return replace(cell, reason=masks.text(cell.reason), coords=masks.value(cell.coords))


def attempt(masks: Masks, of: AttemptRow) -> AttemptRow:
    return replace(of, reason=masks.text(of.reason), evidence=texts(masks, of.evidence)) if masks else of


def finding(masks: Masks, of: Finding) -> Finding:
    return replace(of, title=masks.text(of.title), detail=masks.text(of.detail)) if masks else of


def log(masks: Masks, of: logs.Logs) -> logs.Logs:
    if not masks:
        return of
    watchdog, daemon = ([replace(each, fields=texts(masks, each.fields)) for each in some]
                        for some in (of.watchdog, of.daemon))  # fmt: skip
    return replace(of, watchdog=watchdog, daemon=daemon)


def conversation(masks: Masks, of: Conversation) -> Conversation:
    if not masks:
        return of
    turns = tuple(
        replace(
            turn,
            text=masks.text(turn.text),
            reasoning=masks.text(turn.reasoning),
            message=masks.text(turn.message),
            extra=masks.value(dict(turn.extra)),
        )
        for turn in of.turns
    )
    return replace(of, system=masks.text(of.system), turns=turns)


def specification(masks: Masks, value: Any, name: str = "") -> Any:
    """Of a grid or a cell, without values of `env`: they are where people put what they should have called a secret."""
    if isinstance(value, dict):
        if name == "env":
            return {masks.text(str(variable)): _LEFT_OUT for variable in value}
        return {masks.text(str(key)): specification(masks, inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [specification(masks, inner, name) for inner in value]
    if isinstance(value, str) and SECRETIVE.search(name):
        return _LEFT_OUT
    return masks.value(value)

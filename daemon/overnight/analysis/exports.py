"""A grid in the older harness's layout: a conversation a file, and grid_state.json, for scripts that read these.

An imported conversation is written byte for byte. One of our own has what that layout holds, and beside it, under names
that it does not use, what it has no place for: why replies and the cell ended, the system's text, further axes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight import __version__, durable
from overnight.analysis import conversation
from overnight.analysis.conversation import Conversation
from overnight.analysis.upstream import STATE
from overnight.dispatch import grid_state
from overnight.errors import UserError
from overnight.paths import Paths
from overnight.queue import specs
from overnight.queue.rows import CellRow
from overnight.queue.store import GridRow, Queue

_OF_THE_LAYOUT = ("iteration", "role", "content", "reasoning", "tokens")


@dataclass
class Written:
    """conversations: how many; without: cells that have none; unread: sentences about those that cannot be read."""

    folder: Path
    conversations: int = 0
    without: int = 0
    unread: list[str] = field(default_factory=list)


def write(paths: Paths, queue: Queue, grid: str, folder: Path, *, replace: bool = False) -> Written:
    """Write all of a grid into `folder`, which must be empty or not be there, unless files in it may be replaced.
    Raises UserError, QueueError."""
    row = queue.grid(grid)
    if any(queue.cell_spec(cell.id)["kind"] == "command" for cell in queue.cells(grid, limit=1)):
        raise UserError(f"grid {grid!r} is one of commands: it has no conversations to be exported")
    _check(folder, replace)
    writing = _Writing(paths, queue, row, folder)
    try:
        durable.make_folders(folder)
        durable.write_atomic(folder / STATE, writing.state(), durable=False)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; the export is not whole") from None
    return writing.done


def _check(folder: Path, replace: bool) -> None:
    try:
        if folder.is_dir():
            if not replace and any(folder.iterdir()):
                raise UserError(f"{folder}: is not empty; choose another folder, or --replace files of the same names")
        elif folder.exists():
            raise UserError(f"{folder}: is there already, and no folder; choose another name")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None


class _Writing:
    def __init__(self, paths: Paths, queue: Queue, grid: GridRow, folder: Path) -> None:
        self._paths, self._queue, self._grid, self._folder = paths, queue, grid, folder
        self._imported = grid.spec.get("kind") == specs.IMPORTED
        self.done = Written(folder)

    def state(self) -> Iterator[bytes]:
        """grid_state.json in pieces; each cell's conversation is written on the way."""
        yield b'{\n  "cells": {'
        lead = "\n"
        scaffolds = grid_state.Scaffolds(self._queue)
        for row in conversation.cells_of(self._queue, self._grid.name):
            name, entry = self._cell(row, scaffolds.of(row))
            body = _json(entry).replace("\n", "\n    ")
            yield _encoded(f"{lead}    {json.dumps(name)}: {body}")
            lead = ",\n"
        spec, created = self._grid.spec, grid_state.time_text(self._grid.created_at)
        written = grid_state.time_text(self._grid.last_submitted_at)
        started = spec.get("started_at") if self._imported else created
        updated = spec.get("last_updated") if self._imported else written
        times = f'"started_at": {json.dumps(started)},\n  "last_updated": {json.dumps(updated)}'
        yield _encoded(f"\n  }},\n  {times}\n}}\n")

    def _cell(self, row: CellRow, scaffold: tuple[int | None, bool]) -> tuple[str, dict[str, Any]]:
        """Write its conversation; returns its place in grid_state.json and what stands there."""
        target = self._folder / f"{row.key}.json"
        try:
            found = None if row.status == "pending" and not row.attempts else conversation.of_cell(self._paths, row)
        except UserError as error:
            self.done.unread.append(f"{row.grid}/{row.key}: {error}")
            found = None
        has = found is not None and (bool(found.turns) or self._imported)
        told = str(target.name) if has else None
        name, entry = grid_state.entry(row, scaffold, told, {})
        if found is not None and has:
            entry |= {"iterations": len(found.turns), "total_tokens": found.tokens} if not self._imported else {}
        entry |= self._as_imported(row) if self._imported else {}
        entry["result_path"] = told
        if set(row.coords) != {"scaffold", "model", "run"}:
            entry |= {"key": row.key, "coords": row.coords}  # the order of the axes stands in the key alone
        if row.end_reason:
            entry["end_reason"] = row.end_reason
        if found is None or not has:
            self.done.without += 1
            return name, entry
        source = conversation.source_of(self._paths, row.grid, row.key)
        if self._imported and source is not None:
            durable.write_atomic(target, source.read_bytes(), durable=False)
        else:
            durable.write_atomic(target, document(found, entry), durable=False)
        self.done.conversations += 1
        return name, entry

    def _as_imported(self, row: CellRow) -> dict[str, Any]:
        """What the files said of it, in their own words; of what they did not say, nothing."""
        attempts = self._queue.attempts(row.id)
        evidence = attempts[-1].evidence if attempts else {}
        said = evidence.get("state") or evidence.get("metadata") or {}
        return {"started_at": None, "completed_at": None, **said} if attempts else {}


def document(found: Conversation, entry: dict[str, Any]) -> bytes:
    """One of our own conversations as a file of that layout. entry: what grid_state.json says of its cell."""
    metadata = {**entry, "system": found.system, "overnight": __version__}
    if found.header:
        spec = found.header.get("spec") or {}
        metadata |= {"seed": spec.get("seed"), "model": spec.get("model"), "limits": spec.get("limits")}
    return _encoded(_json({"metadata": metadata, "conversation": list(_messages(found))}) + "\n")


def _messages(found: Conversation) -> Iterator[dict[str, Any]]:
    for turn in found.turns:
        if turn.message:
            yield {"iteration": turn.number, "role": "user", "content": turn.message}
        reply: dict[str, Any] = {
            "iteration": turn.number,
            "role": "assistant",
            "content": turn.text,
            "reasoning": turn.reasoning,
            "tokens": turn.tokens,
        }
        more = {name: value for name, value in turn.extra.items() if name not in _OF_THE_LAYOUT}
        yield {**reply, **({"stop_reason": turn.stop_reason} if turn.stop_reason else {}), **more}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _encoded(text: str) -> bytes:
    """Halves of characters become JSON's own escapes."""
    return text.encode(errors=durable.ODD_NAMES)

"""What follows a cell: where the policy of its grid says `then`, a cell that is done has a cell of another grid added,
in the very transaction that says that it is done. So whoever is killed in between loses neither.

    then = {grid: its name, policy: that grid's, template: of the cells that are added}

Cells are only ever added, each with a key of its own: KEY.1, and KEY.2 when its cell was started afresh and is done
again. What one that was added does, it finds out when it runs. The other grid belongs to the first one (`follows` in
its specification): nobody else may submit it.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from overnight.durable import canonical
from overnight.errors import QueueError
from overnight.queue import gate, specs
from overnight.queue.rows import CellRow, GridRow, parsed

FOLLOWS = "follows"


def followed(grid: GridRow) -> str | None:
    """The grid whose cells are followed by those of this one; None for one that was submitted by itself."""
    found = grid.spec.get(FOLLOWS)
    return found if isinstance(found, str) else None


def apart(grids: Sequence[GridRow]) -> tuple[list[GridRow], dict[str, GridRow]]:
    """The grids that people submitted; and, by the name of such a grid, the one that follows it."""
    names = {grid.name for grid in grids}
    own = [grid for grid in grids if followed(grid) not in names]
    return own, {of: grid for grid in grids if (of := followed(grid)) is not None and of in names}


def refuse_clash(db: sqlite3.Connection, name: str, policy: Mapping[str, Any]) -> None:
    """Raises QueueError where a grid `name` cannot be submitted with this policy: one of the two grids is another's."""
    if (of := _owner(db, name)) not in (None, ""):
        raise QueueError(f"grid {name!r} belongs to grid {of!r}, whose analysis it holds; choose another name")
    if (then := _then(policy)) is not None and _owner(db, then["grid"]) not in (None, name):
        raise QueueError(f"grid {name!r} needs a grid {then['grid']!r} for what follows its cells; choose another name")


def prepare(db: sqlite3.Connection, name: str, policy: Mapping[str, Any], now: float) -> None:
    """Have the grid for what follows the cells of the grid `name`, with the policy that it is to have from now on."""
    if (then := _then(policy)) is not None:
        spec = {"name": then["grid"], "kind": "command", FOLLOWS: name}
        db.execute(
            "INSERT INTO grids (name, spec, policy, created_at, last_submitted_at) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE"
            " SET policy = excluded.policy, last_submitted_at = excluded.last_submitted_at",
            (then["grid"], canonical(spec), canonical(then["policy"]), now, now),
        )


def add(db: sqlite3.Connection, done: CellRow, policy: Mapping[str, Any], *, now: float) -> None:
    """Add what follows a cell that becomes done, inside the transaction of the caller; nothing where nothing does.

    It is ready from now on, as one that has waited: before cells that have not begun, so that it is soon over."""
    if (then := _then(policy)) is None:
        return
    if (owner := _owner(db, then["grid"])) is None:  # its row was lost, and could not be salvaged
        prepare(db, done.grid, policy, now)
    elif owner != done.grid:
        return
    (grid_id,) = db.execute("SELECT id FROM grids WHERE name = ?", (then["grid"],)).fetchone()
    spec_id, warm_id = specs.put(db, then["template"])
    for number in itertools.count(_times(db, grid_id, done.key) + 1):  # one, but for rows that were lost
        values = (grid_id, spec_id, warm_id, f"{done.key}.{number}", canonical(done.coords), done.seed, now)
        added = db.execute(
            "INSERT INTO cells (grid_id, spec_id, warm_id, key, coords, seed, not_before) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (grid_id, key) DO NOTHING RETURNING id",
            values,
        ).fetchall()
        if added:
            gate.event(db, now=now, kind="follows", grid_id=grid_id, cell_id=added[0][0], detail={"cell": done.id})
            return


def _times(db: sqlite3.Connection, grid_id: int, key: str) -> int:
    """How many cells follow that of `key` so far: all keys that begin with it and a dot, which "/" comes after."""
    query = "SELECT count(*) FROM cells WHERE grid_id = ? AND key > ? AND key < ?"
    return int(db.execute(query, (grid_id, f"{key}.", f"{key}/")).fetchone()[0])


def _then(policy: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a policy says of it; None also for what nobody wrote so: a damaged policy must not keep a cell's end out of
    the queue."""
    found = policy.get("then")
    if not isinstance(found, dict) or not isinstance(found.get("grid"), str):
        return None
    return found if isinstance(found.get("policy"), dict) and isinstance(found.get("template"), dict) else None


def _owner(db: sqlite3.Connection, name: str) -> str | None:
    """Which grid that of this name belongs to: "" = to nobody but itself, None = there is none of this name."""
    row = db.execute("SELECT id, spec FROM grids WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(parsed(row[1], "grid", row[0]).get(FOLLOWS, ""))

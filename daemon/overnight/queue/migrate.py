"""The schema: numbered SQL files, each applied in one transaction and recorded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib import resources

APPLICATION_ID = 0x4F4E5154
"""`ONQT` in the header of the file: this is an Overnight queue and no other database."""


def scripts() -> dict[int, str]:
    """Version -> SQL, from `migrations/NNNN_name.sql`."""
    folder = resources.files("overnight.queue") / "migrations"
    found = {int(file.name[:4]): file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".sql")}
    return dict(sorted(found.items()))


LATEST = max(scripts())
"""The schema that this program knows."""


def migrate(connection: sqlite3.Connection, now: float) -> None:
    """Bring an empty or older database to `LATEST`; all or nothing. Raises sqlite3.Error, with a rollback."""
    if version(connection) >= LATEST:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        at = version(connection)  # another process may have done it while this one waited for the lock
        for number, script in scripts().items():
            if number > at:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute("INSERT INTO migrations (version, applied_at) VALUES (?, ?)", (number, now))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {max(at, LATEST)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """One statement at a time: `executescript` would commit the transaction that is open."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement

"""The one connection of a `Queue`: how it is opened, its transactions, and what its errors become.

Durable across a power cut: write-ahead log with synchronous=FULL, so every COMMIT is fsynced. After an I/O
error the connection is never used again, and another one opened before the next use: a descriptor whose fsync
failed may have lost pages that the kernel calls clean, and is never fsynced again.

The failed one is closed only once the new one is open. The log holds the whole transaction whose fsync failed,
behind its end as all connections know it; the next transaction is written over it. Without any connection that
knows it, whoever opens the file next would read the log to the last whole transaction: one that was said to have
failed, and is perhaps made a second time.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overnight import durable
from overnight.queue import audit
from overnight.queue.errors import QueueUnavailable, damage, primary_code, refusal, translated
from overnight.queue.migrate import migrate
from overnight.queue.probe import frozen, probe, small_enough
from overnight.queue.rows import DamagedRow

_OLDEST_SQLITE = (3, 37, 0)
_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA cache_size = -2048",  # KiB
    "PRAGMA journal_size_limit = 8388608",  # the log is cut to this after it was larger
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)


class Database:
    """Transactions on one file. Not for several threads, and never open across a fork."""

    def __init__(self, path: Path, *, now: float, create: bool, check: bool, busy_timeout_s: float) -> None:
        """Open, and make or migrate where needed. Raises QueueError; then nothing was changed."""
        self.path = path
        self._file = path.absolute()  # the working folder may change
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None
        self._failed: list[sqlite3.Connection] = []
        self._data_version: int | None = None
        self._frozen = False
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise refusal(path, f"needs SQLite 3.37 or newer, this Python has {sqlite3.sqlite_version}", "update it")
        if not probe(path, check=check):
            if not create:
                raise refusal(path, "there is no queue yet", "submit a grid first")
            self._make_file()
        try:
            self._connection = self._connect()
            migrate(self._connection, now)
            self._use_log()
        except sqlite3.Error as error:
            self.close()
            raise translated(error, path) from None
        except BaseException:
            self.close()
            raise
        self._identity = self._identify()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its start. At its end all is durable, or nothing."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            if self._identify() != self._identity:
                raise refusal(self.path, "moved or replaced while it was in use", "restart what uses it")
            yield connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view, whatever others write meanwhile."""
        with self._transaction("BEGIN") as connection:
            yield connection

    def changed(self) -> bool:
        """Did another process commit since the last call? True at the first one."""
        with self._errors() as connection:
            now = int(connection.execute("PRAGMA data_version").fetchone()[0])
        before, self._data_version = self._data_version, now
        return before != now

    def close(self) -> None:
        connection, self._connection, self._data_version = self._connection, None, None
        self._close_failed()
        if connection is not None:
            _close(connection)

    def _close_failed(self) -> None:
        while self._failed:
            _close(self._failed.pop())

    def _retire(self) -> None:
        """After an I/O error."""
        if self._connection is not None:
            self._failed.append(self._connection)
        self._connection, self._data_version = None, None

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._errors() as connection:
            if connection.in_transaction:
                raise RuntimeError("a transaction of this queue is open: it cannot be used inside one")
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite has often rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._frozen and not frozen(self._file):
                self._thaw()
            if self._connection is None:
                self._connection = self._connect()
            if self._failed:
                self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # now it knows the log
                self._close_failed()
            yield self._connection
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_IOERR:
                self._retire()
            raised = translated(error, self.path)
            if raised is error and (found := self._contradiction(error)) is not None:
                raise damage(self.path, found) from error
            raise raised from error
        except DamagedRow as error:
            raise damage(self.path, error) from None
        except (TypeError, ValueError, LookupError, AssertionError) as error:
            if (found := self._contradiction(error)) is not None:
                raise damage(self.path, found) from error
            raise

    def _contradiction(self, met: Exception) -> str | None:
        """After an error that a sound file never gives: is it the file's fault? If not, it is ours, and stays.

        A file too large to be looked through has the blame: its daemon would be silent meanwhile, and be restarted."""
        if self._connection is None or self._connection.in_transaction:
            return None
        try:
            if not small_enough(self._file):
                return f"see {type(met).__name__}: {met}; `overnight verify --deep` looks through all of it"
            return next(audit.contradictions(self._connection), None)
        except OSError:
            return None  # moved away meanwhile
        except (sqlite3.Error, ValueError) as error:
            return str(error)

    def _thaw(self) -> None:
        """Its disk can be written again: what was read as if nobody wrote it may be written by now."""
        if self._connection is not None:
            _close(self._connection)
        self._connection = self._data_version = None
        self._connection = self._connect()
        self._use_log()

    def _connect(self) -> sqlite3.Connection:
        self._frozen = frozen(self._file)
        uri = f"{self._file.as_uri()}?{'mode=ro&immutable=1' if self._frozen else 'mode=rw'}"
        connection = sqlite3.connect(uri, uri=True, timeout=self._busy_timeout_s, isolation_level=None)
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_log(self) -> None:
        """Switch to the write-ahead log, once in the life of a file.

        SQLite does not wait for its locks here, and two processes may make the file at once."""
        assert self._connection is not None  # noqa: S101 - the caller has just opened it
        if self._frozen:
            return
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise refusal(self.path, f"its disk allows no write-ahead log (journal mode {mode})", "use a local disk")

    def _make_file(self) -> None:
        """An empty, private file whose name is durable; the migrations fill it in one transaction."""
        try:
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            durable.sync_folder(self._file.parent)
        except FileExistsError:
            pass  # another process was quicker, or it is there and empty
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise QueueUnavailable(
                    f"{self.path}: cannot be made ({error.strerror}): make room and try again"
                ) from None
            raise refusal(
                self.path, f"cannot be made ({error.strerror})", "its folder must exist and be writable"
            ) from None

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _close(connection: sqlite3.Connection) -> None:
    try:
        connection.close()
    except sqlite3.Error:
        pass  # nothing is open that is not committed; the log is kept for the next one who opens it

"""Where runs go: the store that was named, opened with MLflow, without a word to anybody else."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight import durable
from overnight.errors import UserError
from overnight.paths import Paths

URI = "MLFLOW_TRACKING_URI"
"""MLflow's own variable for the store."""

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")
_LOCKED_S = 10.0
_USER = re.compile(r"(?<=://)[^/@\s]*(?=@)")

_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_UNLESS_SAID = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # A server that is not there is one line after a minute, not after a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A store. artifacts: where files go, as a URI; None = where the server says. file: of an SQLite store."""

    uri: str
    artifacts: str | None
    file: Path | None = None

    def __str__(self) -> str:
        """Without the password that may stand in it."""
        return _USER.sub("***", self.uri)


def place(named: str | None, paths: Paths) -> Place:
    """The store that was named, else $MLFLOW_TRACKING_URI, else `var/mlflow/mlflow.db`. Raises UserError."""
    own = paths.var / "mlflow" / "mlflow.db"
    uri = named or os.environ.get(URI) or f"sqlite:///{own}"
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme in _SERVERS:
        return Place(uri, None)
    if scheme not in _DATABASES:
        raise UserError(
            f"{_USER.sub('***', uri)}: no store that MLflow 3 writes to; expected sqlite:///FILE, another database's "
            "URI, or the http(s) address of a server"
        )
    if scheme != "sqlite":
        return Place(uri, (own.parent / "artifacts").as_uri())
    name, mark, options = uri.partition(":///")[2].partition("?")
    file = Path(name)
    if file.name in ("", ":memory:"):
        raise UserError(f"{uri}: expected sqlite:///FILE, with one more / in front of an absolute path")
    file = file.absolute()
    return Place(f"sqlite:///{file}{mark}{options}", (file.parent / "artifacts").as_uri(), file)


@dataclass(frozen=True, slots=True)
class Store:
    """The runs of one experiment (its id)."""

    client: Any
    experiment: str


@contextmanager
def opened(found: Place, experiment: str) -> Iterator[Store]:
    """The experiment of that name, made where it is missing. Raises UserError: one line for whatever MLflow or its
    database says."""
    os.environ.update(_ENVIRONMENT)
    for name, value in _UNLESS_SAID.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise UserError(
            f"`overnight mlflow` needs the extra `mlflow` ({error.name or error} cannot be imported): "
            "pip install 'overnight[mlflow]'"
        ) from None
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It warns of each of its ten tries to open a database, with a trace; what is wrong is said once, below.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    if found.file is not None:
        _try_to_open(found, found.file)
    try:
        client = MlflowClient(found.uri)
        yield Store(client, _experiment(client, found, experiment))
    except (MlflowException, SQLAlchemyError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{found}: {_USER.sub('***', first)}") from None


def _try_to_open(found: Place, file: Path) -> None:
    """MLflow would try ten times, for 100 seconds. Raises UserError for a file that cannot be written or is none of
    SQLite."""
    try:
        durable.make_folders(file.parent)
        with closing(sqlite3.connect(file, timeout=_LOCKED_S, isolation_level=None)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(
            f"{found}: {said}; expected an SQLite database that can be written, or a place where one can be made"
        ) from None


def remove(client: Any, run: Any, name: str) -> None:
    """A file among a run's artifacts. Raises NotImplementedError where they lie in a store that keeps all."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri).delete_artifacts(name)


def _experiment(client: Any, found: Place, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is None:
        made: str = client.create_experiment(name, artifact_location=_artifacts(found, name))
        return made
    if known.lifecycle_stage != "active":
        raise UserError(
            f"{found}: the experiment {name!r} was deleted; restore it (mlflow experiments restore -x "
            f"{known.experiment_id}), or choose another name with --experiment"
        )
    known_id: str = known.experiment_id
    return known_id


def _artifacts(found: Place, name: str) -> str | None:
    """MLflow's own choice would be `./mlruns`, wherever that is just now."""
    return None if found.artifacts is None else f"{found.artifacts}/{re.sub(r'[^A-Za-z0-9._-]', '_', name)}"

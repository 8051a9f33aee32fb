"""Every path of an installation, in one place. A home has `etc/`, `var/` and `grids/`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from overnight import private
from overnight.errors import ConfigError

SECRETS = "secrets.env"
"""Of one home: a checkout's is not handed on to others, nor is any name with this in it (an editor's copy)."""

_PACKAGE = Path(__file__).resolve().parent


def shipped() -> Path:
    """The folder that holds the shipped `etc/` and `grids/`: inside the wheel, or the checkout itself."""
    inside = _PACKAGE / "shipped"
    return inside if inside.is_dir() else _PACKAGE.parents[1]


def checkout() -> Path | None:
    """The checkout that this package runs from, or None when it was installed from a wheel."""
    root = _PACKAGE.parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "etc" / "supervisord.conf").is_file() else None


def default_home() -> Path:
    """`OVERNIGHT_HOME`, else the checkout, else the user's state folder (XDG)."""
    if named := os.environ.get("OVERNIGHT_HOME"):
        return Path(named)
    if (root := checkout()) is not None:
        return root
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "overnight"


@dataclass(frozen=True)
class Paths:
    """The folders and files below one home."""

    home: Path

    @classmethod
    def of(cls, home: str | os.PathLike[str] | None = None) -> Paths:
        chosen = Path(home).expanduser() if home is not None else default_home()
        # supervisord's conf says "etc/..": taken out of the text, since it would stand in every path and message.
        return cls(Path(os.path.normpath(chosen.absolute())))

    @property
    def etc(self) -> Path:
        return self.home / "etc"

    @property
    def config(self) -> Path:
        return self.etc / "overnight.toml"

    @property
    def secrets(self) -> Path:
        return self.etc / SECRETS

    @property
    def supervisord_conf(self) -> Path:
        return self.etc / "supervisord.conf"

    @property
    def grids(self) -> Path:
        return self.home / "grids"

    @property
    def var(self) -> Path:
        return self.home / "var"

    @property
    def queue(self) -> Path:
        return self.var / "queue.db"

    @property
    def run(self) -> Path:
        return self.var / "run"

    @property
    def registry(self) -> Path:
        return self.run / "cells"

    @property
    def lock(self) -> Path:
        return self.run / "daemon.lock"

    @property
    def daemon_state(self) -> Path:
        return self.run / "daemon.json"

    @property
    def pressure(self) -> Path:
        return self.run / "pressure.json"

    @property
    def beat(self) -> Path:
        return self.run / "daemon.beat"

    @property
    def verdicts(self) -> Path:
        return self.run / "verdicts.ring"

    @property
    def watchdog_lock(self) -> Path:
        return self.run / "watchdog.lock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def supervisor_pid(self) -> Path:
        return self.run / "supervisord.pid"

    @property
    def log(self) -> Path:
        return self.var / "log"

    @property
    def models(self) -> Path:
        return self.var / "models"

    @property
    def results(self) -> Path:
        return self.var / "results"

    @property
    def restoring(self) -> Path:
        """There while results were restored whose queue is not: a mark of a restore that goes on, or was killed."""
        return self.results / ".restoring"

    def grid_results(self, grid: str) -> Path:
        return self.results / grid

    def cell_results(self, grid: str, key: str) -> Path:
        return self.results / grid / key

    def transcript(self, grid: str, key: str) -> Path:
        return self.cell_results(grid, key) / "transcript.jsonl"

    def result(self, grid: str, key: str) -> Path:
        return self.cell_results(grid, key) / "result.json"

    def grid_state(self, grid: str) -> Path:
        return self.grid_results(grid) / "grid_state.json"

    def ensure(self) -> Paths:
        """Make the home on first use: private folders, and the shipped `etc/` and `grids/` where they are missing.

        Raises ConfigError with one line for a home that cannot be used, such as somebody else's."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            for folder in (self.var, self.run, self.registry, self.log, self.models, self.results):
                private.make_folder(folder)
            source = shipped()
            if source != self.home:
                for name in ("etc", "grids"):
                    _copy_missing(source / name, self.home / name)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.home}: {error.strerror}; the home must be a folder that can be written: "
                "choose another with --home DIR or OVERNIGHT_HOME"
            ) from None
        return self


def _copy_missing(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    files = [file for file in sorted(source.iterdir()) if file.is_file()]
    secret = [file for file in files if SECRETS in file.name]
    for file in files:
        if not (target / file.name).exists() and not any(file.samefile(each) for each in secret):
            shutil.copyfile(file, target / file.name)

"""Every path of an installation, in one place. A home has `etc/`, `var/` and `grids/`."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from overnight import durable, private
from overnight.errors import ConfigError

SECRETS = "secrets.env"
"""Of one home: a checkout's is not handed on to others, nor is any name with this in it (an editor's copy)."""

_BEING_WRITTEN_S = 2.0
"""Editors empty a file and then write it, and what was renamed over it meanwhile would be lost with their text."""

IMPORTED = "conversation.json"
"""What an imported cell has in the place of a transcript, byte for byte as it came."""

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
        """Raises ConfigError for a home that no path says."""
        if home is not None and not os.fspath(home):
            # Path("") is the working folder: of a variable that was not set, whatever that happens to be.
            raise ConfigError("--home is empty; a folder is expected (--home DIR)")
        try:
            chosen = Path(home).expanduser() if home is not None else default_home()
        except RuntimeError:  # pathlib's word for a user without an entry
            raise ConfigError(f"{home or '~'}: there is no such user's folder; name a home with --home DIR") from None
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
    def analysis(self) -> Path:
        """What was found out about conversations: made from the results, and again whenever it is asked for."""
        return self.var / "analysis"

    @property
    def reports(self) -> Path:
        return self.var / "reports"

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

    def conversation(self, grid: str, key: str) -> Path:
        return self.cell_results(grid, key) / IMPORTED

    def result(self, grid: str, key: str) -> Path:
        return self.cell_results(grid, key) / "result.json"

    def analysis_record(self, grid: str, key: str, backend: str, method: str) -> Path:
        return self.analysis / grid / f"{key}.{backend}-{method}.json"

    def grid_report(self, grid: str) -> Path:
        return self.reports / grid

    def grid_state(self, grid: str) -> Path:
        return self.grid_results(grid) / "grid_state.json"

    def ensure(self, *, take_over: bool = True) -> Paths:
        """Make the home on first use: private folders, and the shipped `etc/` and `grids/` where they are missing.

        Raises ConfigError with one line for a home that cannot be used, such as somebody else's. take_over: root may
        have the unused var/ of another user's checkout."""
        try:
            source = shipped()
            copied = () if source == self.home else (self.etc, self.grids)
            for folder in (self.var, *copied):
                private.refuse_to_lock_out(folder)
            self.home.mkdir(parents=True, exist_ok=True)
            made = (self.run, self.registry, self.log, self.models, self.results, self.analysis, self.reports)
            for folder in (self.var, *made):
                private.make_folder(folder, take_over=take_over)
            for folder in copied:
                _copy_missing(source / folder.name, folder)
        except OSError as error:
            at = Path(os.fsdecode(error.filename or self.home))
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                todo = "make room there, or choose another home with --home DIR or OVERNIGHT_HOME"
            else:
                todo = "the home must be a folder that can be written: choose another with --home DIR or OVERNIGHT_HOME"
            raise ConfigError(f"{at}: {_in_the_way(at, error)}; {todo}") from None
        return self


def _in_the_way(at: Path, error: OSError) -> str | None:
    if not isinstance(error, FileExistsError):
        return error.strerror
    what = "a file" if at.is_file() else "a link that leads nowhere" if at.is_symlink() else "no folder"
    return f"it is {what}, and a folder is expected"


def _copy_missing(source: Path, target: Path) -> None:
    """Raises ConfigError where the source cannot be read, OSError that names the target where it cannot be written."""
    target.mkdir(exist_ok=True)
    for file in _handed_on(source):
        at = target / file.name
        if not _missing(at):
            continue
        try:
            data = file.read_bytes()
        except OSError as error:
            raise _unreadable(file, error) from None
        if not data and at.exists():
            continue  # it is shipped empty
        try:
            durable.write_atomic(Path(os.path.realpath(at)), data)  # a link of the user's stays one
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(at)) from None


def _handed_on(source: Path) -> list[Path]:
    """The files of the checkout, or of the wheel, that every home gets. Raises ConfigError."""
    try:
        files = [file for file in sorted(source.iterdir()) if file.is_file()]
        secret = [file for file in files if SECRETS in file.name]
        return [file for file in files if not any(file.samefile(each) for each in secret)]
    except OSError as error:
        raise _unreadable(source, error) from None


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{file}: {error.strerror}; it comes with Overnight and must be readable: mend it, or reinstall")


def _missing(file: Path) -> bool:
    """Also when it is empty: older releases left that on a full disk. Not, while an editor may be writing it anew."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISREG(found.st_mode) and not found.st_size and time.time() - found.st_mtime > _BEING_WRITTEN_S

"""What a home holds is its user's alone: the umask that all is written under, and folders that nobody else enters.

A folder of mode 0700 shuts off all that is below it, whatever modes that has: so those that a home is made of are
checked at every start, and results, of which there may be millions, are not walked through.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from overnight import home_signs
from overnight.errors import ConfigError

UMASK = "OVERNIGHT_UMASK"
"""The umask that the user had, for the files that his commands write: in the environment of all that we start."""

_OTHERS = 0o077


class SomebodyElses(ConfigError):
    """A folder of the home belongs to another user."""


def tighten_umask() -> None:
    """For the start of a process. What it was is kept for commands, unless whoever started us has done so already."""
    before = os.umask(_OTHERS)
    if before != _OTHERS or UMASK not in os.environ:
        os.environ[UMASK] = f"{before:03o}"


def make_folder(folder: Path, *, take_over: bool = True) -> None:
    """Have a folder of our own that nobody else may enter, also where it was there before (git makes var/ with the
    user's umask). Raises ConfigError (SomebodyElses, or a var/ that is not Overnight's at all), OSError.

    take_over: root may have what git has just made for another user."""
    refuse_to_lock_out(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.name == home_signs.VAR:
        home_signs.refuse_strange(folder)
    found = folder.stat()
    if found.st_uid != os.geteuid() and not (take_over and _taken_over(folder)):
        raise SomebodyElses(
            f"{folder}: it belongs to {_name(found.st_uid)}, and this is run by {_name(os.geteuid())}: what is made "
            f"here now would be closed to the former; run it as that user (sudo -u '#{found.st_uid}' overnight ...), "
            f"have root give the folder away (chown -R {os.geteuid()} {folder}), or choose another home with --home DIR"
        )
    if found.st_mode & _OTHERS and _shut(folder, found):
        for entry in os.scandir(folder):
            try:
                of = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # what a daemon has in var/run comes and goes
            # A file of several names may be somebody's who has linked it here.
            if stat.S_ISREG(of.st_mode) and of.st_nlink == 1:
                _shut(Path(entry.path), of)


def refuse_to_lock_out(folder: Path) -> None:
    """Root makes nothing new in another user's folder: that user could not enter it. Raises SomebodyElses."""
    if os.geteuid() != 0 or os.path.lexists(folder):
        return
    above = next(each for each in folder.parents if each.is_dir())
    if owner := above.stat().st_uid:
        raise SomebodyElses(
            f"{folder}: it is not there yet, {above} belongs to {_name(owner)}, and what {_name(0)} makes here would "
            f"be closed to the former; run it as that user (sudo -u '#{owner}' overnight ...), or choose another home "
            "with --home DIR"
        )


def _taken_over(folder: Path) -> bool:
    """Root in a container has a checkout mounted that is somebody else's outside: what git has just made, and nobody
    has used, becomes root's."""
    if os.geteuid() != 0 or folder.is_symlink() or os.listdir(folder) != [".gitkeep"]:  # noqa: PTH208 - names alone
        return False
    try:
        os.chown(folder, 0, -1)
    except OSError:
        return False
    return True


def _shut(path: Path, found: os.stat_result) -> bool:
    """False where that cannot be: on a read-only file system, or on one that has no modes."""
    try:
        if found.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    except OSError:
        return False
    return True


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"

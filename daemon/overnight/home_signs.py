"""Is a `var/` that stands there already one of Overnight's?

Other programs have folders of that name, and every machine has `/var`: those are not to be shut off, nor filled."""

from __future__ import annotations

import os
from pathlib import Path

from overnight.errors import ConfigError

VAR = "var"

_FOLDERS = {"run", "log", "models", "results", "analysis", "reports"}
_TOGETHER = {"log", "models", "results"}
_FILES = ("etc/overnight.toml", "var/queue.db", "var/run/daemon.lock")
_BROUGHT = (
    *("models/*--*/model.json", "results/.restoring", "results/*/grid_state.json"),
    *("results/*/*/transcript.jsonl", "results/*/*/result.json", "results/*/*/conversation.json"),
)
"""Of a model store, or results, that somebody has brought here before the first command."""

_NOTHING = {".gitkeep", "lost+found"}
"""What git, or a file system of its own, has in a folder that nobody has used."""

_EARLY = {
    "run": {"cells", "watchdog.lock", "pressure.json", "verdicts.ring"},
    "log": {"watchdog.jsonl"},
}
"""What a watchdog makes in any folder that it is started for: no sign among other things, but no stranger's either."""

_SHOWN = 5


def refuse_strange(var: Path) -> None:
    """Raises ConfigError for a var/ that holds something and shows no sign of being ours. Changes nothing."""
    try:
        names = set(os.listdir(var)) - _NOTHING  # noqa: PTH208 - names alone
        strange = names and not (_has_signs(var, names) or _begun(var, names))
    except PermissionError:
        return  # another user's, which is said elsewhere
    if strange:
        first = sorted(names)[:_SHOWN]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ConfigError(
            f"{var}: it holds {', '.join(first)}{more} and no sign of Overnight, so it seems to be another "
            "program's or the machine's, and was left as it is: choose another home with --home DIR or "
            f"OVERNIGHT_HOME; if it is Overnight's after all, make the file {var.parent / _FILES[0]} (empty will do)"
        )


def _has_signs(var: Path, names: set[str]) -> bool:
    if any((var.parent / file).is_file() for file in _FILES) or names >= _TOGETHER:
        return True
    return any(next(var.glob(pattern), None) is not None for pattern in _BROUGHT)


def _begun(var: Path, names: set[str]) -> bool:
    """A first command was killed, or the watchdog came first: some of the folders are there, and nothing of others."""
    return names <= _FOLDERS and all(
        (var / name).is_dir() and set(os.listdir(var / name)) <= _NOTHING | _EARLY.get(name, set())  # noqa: PTH208
        for name in names
    )

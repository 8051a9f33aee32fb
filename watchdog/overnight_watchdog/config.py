"""The one setting of etc/overnight.toml that matters here: `[memory] budget`. The daemon checks the rest."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from overnight_watchdog.limits import parse_size

_MOST_BYTES = 2**20
_SHOWN = 80


class ConfigError(Exception):
    """The file cannot be used. `str()` is the line to print."""


def configured_budget(path: Path) -> int | None:
    """The budget in bytes, None when the file or the key is missing. Raises ConfigError."""
    try:
        text = _read(path).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None

    import tomllib  # 1.6 MiB that a home without a file is spared

    try:
        memory = tomllib.loads(text).get("memory", {})
    except (ValueError, RecursionError) as error:  # ValueError: a number of more digits than Python takes
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    if not isinstance(memory, dict):
        raise ConfigError(f"{path}: memory: expected a table [memory], found {_shown(memory)}")
    budget = memory.get("budget")
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise ConfigError(f'{path}: memory.budget: expected a size such as "2GiB", found {_shown(budget)}')
    try:
        return parse_size(str(budget))
    except ValueError as error:
        raise ConfigError(f"{path}: memory.budget: {error}") from None


def _read(path: Path) -> bytes:
    """Raises OSError, for what is no regular file too: a pipe would keep us waiting."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise OSError(errno.EFBIG, "larger than 1 MiB")
    return data


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

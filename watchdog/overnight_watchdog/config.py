"""The one setting of etc/overnight.toml that matters here: `[memory] budget`. The daemon checks the rest."""

from __future__ import annotations

from pathlib import Path

from overnight_watchdog.limits import parse_size


class ConfigError(Exception):
    """The file cannot be used. `str()` is the line to print."""


def configured_budget(path: Path) -> int | None:
    """The budget in bytes, None when the file or the key is missing. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None

    import tomllib  # 1.6 MiB that a home without a file is spared

    try:
        memory = tomllib.loads(text).get("memory", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    if not isinstance(memory, dict):
        raise ConfigError(f"{path}: memory: expected a table [memory], found {memory!r}")
    budget = memory.get("budget")
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise ConfigError(f'{path}: memory.budget: expected a size such as "2GiB", found {budget!r}')
    try:
        return parse_size(str(budget))
    except ValueError as error:
        raise ConfigError(f"{path}: memory.budget: {error}") from None

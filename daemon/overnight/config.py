"""etc/overnight.toml, validated. Every key has a default; an unknown key or a wrong value is refused by name."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from overnight.checked import read_small
from overnight.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_MOST_BYTES = 2**62
_FILE_BYTES = 2**20
_SHOWN = 80


def parse_bytes(value: Any) -> Any:
    """`2GiB`, `512MiB` or a number of bytes -> bytes. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or match.group(2).upper() not in _UNITS:
        raise ValueError("expected a size such as 2GiB or 512MiB")
    size = float(match.group(1)) * _UNITS[match.group(2).upper()]
    if size > _MOST_BYTES:
        raise ValueError("expected a size of this world such as 2GiB or 512MiB")
    return int(size)


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, le=_MOST_BYTES)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonConfig(_Section):
    """[daemon]"""

    slots: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    delay_s: Seconds = 0.0
    require_watchdog: bool = True
    retry_delay_s: Seconds = 5.0
    no_space_delay_s: Seconds = 30.0
    stop_grace_s: SomeSeconds = 5.0


class WarmConfig(_Section):
    """[warm]"""

    idle_s: Seconds = 300.0
    servers: Annotated[int, Field(ge=1, le=64)] = 1
    load_timeout_s: SomeSeconds = 1800.0


class MemoryConfig(_Section):
    """[memory]"""

    budget: Bytes | None = None
    reserve: Bytes | None = None
    prior: Bytes = 512 * 2**20
    caps: Literal["auto", "rlimit", "none"] = "auto"


class Config(_Section):
    """The whole file."""

    daemon: DaemonConfig = DaemonConfig()
    warm: WarmConfig = WarmConfig()
    memory: MemoryConfig = MemoryConfig()


def load_config(path: Path) -> Config:
    """Read etc/overnight.toml; a missing file means the defaults. Raises ConfigError with one line."""
    try:
        data = tomllib.loads(read_small(path, _FILE_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError: a number of more digits than Python takes
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    try:
        return Config.model_validate(data)
    except ValidationError as errors:
        raise ConfigError(f"{path}: {_one_line(errors)}") from None


def _one_line(errors: ValidationError) -> str:
    first = errors.errors()[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(shortened(part) for part in where[:2])  # then comes pydantic's name for one branch of a type
    if first["type"] == "extra_forbidden":
        section: Any = Config if len(where) == 1 else Config.model_fields[where[0]].annotation
        known = list(section.model_fields)
        near = difflib.get_close_matches(where[-1], known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}")
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key}: {expected.removeprefix('expected ')} is expected, found {shortened(repr(first['input']))}"


def shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

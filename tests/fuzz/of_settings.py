"""etc/overnight.toml, which the daemon and the watchdog each read by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fuzz import documents
from fuzz.target import Case, Target, expect
from overnight.config import Config, load_config
from overnight.errors import ConfigError
from overnight.paths import shipped
from overnight_watchdog import config as watchdog_config

_ALL = """\
[daemon]
slots = 4
delay_s = 0.5
require_watchdog = false
retry_delay_s = 5
no_space_delay_s = 30.0
stop_grace_s = 5.0

[warm]
idle_s = 300
servers = 2
load_timeout_s = 1800

[memory]
budget = "2GiB"
reserve = 1073741824
prior = "512MiB"
caps = "auto"
"""


class Settings(Target):
    """The daemon's reader: all of it."""

    name = "settings (daemon)"
    clear = (ConfigError,)
    tokens = (
        *(
            b"[daemon]\n",
            b"[warm]\n",
            b"[memory]\n",
            b"[[daemon]]\n",
            b"budget = ",
            b"slots = ",
            b'"auto"',
            b"nan",
            b"-inf",
        ),
        *(
            b"'''",
            b'"""',
            b"1979-05-27T07:32:00Z",
            b"0x7f",
            b"1_000",
            b"= {",
            b"a.b.c = 1\n",
            b'"a\\nb" = 1\n',
            b'"2GiB"',
        ),
    )

    def seeds(self) -> Sequence[bytes]:
        return [_ALL.encode(), (shipped() / "etc" / "overnight.toml").read_bytes()]

    def documents(self) -> Sequence[Any]:
        daemon = {"slots": 4, "delay_s": 0.5, "require_watchdog": False, "retry_delay_s": 5, "stop_grace_s": 5.0}
        return [
            {
                "daemon": daemon,
                "warm": {"idle_s": 300, "servers": 2, "load_timeout_s": 1800},
                "memory": {"budget": "2GiB", "reserve": 2**30, "prior": "512MiB", "caps": "auto"},
            }
        ]

    def render(self, document: Any) -> bytes:
        """Sections as TOML has them, values as JSON: mostly the same there."""
        if not isinstance(document, dict):
            return documents.dump(document).encode("utf-8", "surrogatepass")
        lines: list[str] = []
        for name, section in document.items():
            if isinstance(section, dict):
                lines += [f"[{documents.dump(str(name))}]", *(_line(*pair) for pair in section.items())]
            else:
                lines.insert(0, _line(name, section))
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def read(self, case: Case) -> str:
        path = self.folder / "overnight.toml"
        path.write_bytes(case.data)
        return self._read(path)

    def _read(self, path: Any) -> str:
        try:
            found = load_config(path)
        except ConfigError as error:
            expect("overnight.toml" in str(error), f"it does not say which file: {error}")
            raise
        for section in (getattr(found, name) for name in Config.model_fields):
            for name, value in section:
                if isinstance(value, float):
                    expect(math.isfinite(value), f"{name} is {value}")
        return "taken"


def _line(name: Any, value: Any) -> str:
    text = documents.dump(value).replace("NaN", "nan").replace("Infinity", "inf")
    return f"{documents.dump(str(name))} = {text}"


class Budget(Settings):
    """The watchdog's reader: the budget."""

    name = "settings (watchdog)"
    clear = (watchdog_config.ConfigError,)

    def _read(self, path: Any) -> str:
        try:
            found = watchdog_config.configured_budget(path)
        except watchdog_config.ConfigError as error:
            expect("overnight.toml" in str(error), f"it does not say which file: {error}")
            raise
        expect(found is None or found > 0, f"a budget of {found}")
        return "none" if found is None else "a budget"

"""A wall clock for the processes that are started inside it: `clock_shift/sitecustomize.py`, from outside."""

from __future__ import annotations

import os
import time
from pathlib import Path

FOLDER = Path(__file__).with_name("clock_shift")


class ShiftedClock:
    """A context: what is started in it has this clock."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock_shift"
        self._before: dict[str, str | None] = {}
        self.shift_s = 0.0

    def __enter__(self) -> ShiftedClock:
        self._write()
        path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
        for name, value in {"PYTHONPATH": path, "CLOCK_SHIFT": str(self._file)}.items():
            self._before[name] = os.environ.get(name)
            os.environ[name] = value
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def now(self) -> float:
        return time.time() + self.shift_s

    def jump(self, seconds: float) -> None:
        self.shift_s += seconds
        self._write()

    def jump_to(self, unix_s: float) -> None:
        self.jump(unix_s - self.now())

    def _write(self) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(repr(self.shift_s))
        beside.replace(self._file)  # a reader sees the old shift or the new one

"""Small files of the kernel: opened once, read at offset 0 each time, searched without splitting them up.

A reader of text would make hundreds of little objects a look; at a hundred looks a second, while memory is what is
short, that is the wrong time for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_MOST_BYTES = 65536
_DIGITS_MOST = 20
"""More digits than the kernel writes are damage."""


class KernelFile:
    """A file below /proc or /sys. One that is missing, or goes away, is tried again at the next read."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path | str) -> None:
        self.path = os.fspath(path)
        self._fd = -1

    def read(self) -> bytes:
        """What it says now, b"" when it cannot be read. Never raises."""
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, _MOST_BYTES, 0)
        except (OSError, ValueError):  # ValueError: a damaged registration's path that no system call takes
            self.close()
            return b""

    def number(self) -> int | None:
        """For a file that holds one number; None for "max", damage, or no file."""
        return whole_number(self.read().strip())

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass

    def __del__(self) -> None:
        """Whoever forgets to close it leaks no descriptor."""
        self.close()


def whole_number(text: bytes | str) -> int | None:
    """A kernel counter, or None for anything else: "max", damage, more digits than the kernel writes."""
    return int(text) if len(text) <= _DIGITS_MOST and text.isascii() and text.isdigit() else None


def named_numbers(data: bytes, names: Iterable[bytes], *, scale: int = 1) -> dict[str, int]:
    """The numbers behind these names at the beginnings of lines: `name 12` or `Name:   12 kB`, times `scale`.

    What is missing or damaged is left out."""
    found = {}
    for name in names:
        at = 0 if data.startswith(name) else data.find(b"\n" + name) + 1
        if not at and not data.startswith(name):
            continue
        end = data.find(b"\n", at)
        fields = data[at + len(name) : end if end >= 0 else len(data)].split()
        if fields and (number := whole_number(fields[0])) is not None:
            found[name.rstrip(b": ").decode()] = number * scale
    return found

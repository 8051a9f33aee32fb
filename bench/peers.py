"""The foreign programs that the benchmarks compare with, got from Debian and PyPI when they are not installed.

Unpacked into a folder that is removed afterwards, never installed. `None` and a word why when one cannot be had.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DOWNLOAD_S = 300


class Peers:
    """fetch: may look beyond what is installed."""

    def __init__(self, folder: Path, *, fetch: bool) -> None:
        self._folder, self._fetch = folder, fetch

    @classmethod
    @contextmanager
    def made(cls, *, fetch: bool) -> Iterator[Peers]:
        with tempfile.TemporaryDirectory(prefix="overnight-peers-", dir="/tmp") as scratch:
            folder = Path(scratch)
            folder.chmod(0o755)  # apt reads as somebody else
            yield cls(folder, fetch=fetch)

    def parallel(self) -> list[str] | None:
        """GNU parallel, as the beginning of a command (moreutils has another program of that name)."""
        for program in filter(None, (shutil.which("parallel"), self._debian("parallel", "usr/bin/parallel"))):
            done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
            if done.stdout.startswith("GNU parallel"):
                home = self._folder / "parallel-home"
                home.mkdir(exist_ok=True)
                (home / "will-cite").touch()  # else it asks, and waits for the answer
                return ["env", f"PARALLEL_HOME={home}", program]
        self._tell("GNU parallel", "Debian: parallel")
        return None

    def task_spooler(self) -> list[str] | None:
        program = shutil.which("tsp") or self._debian("task-spooler", "usr/bin/tsp")
        if program is None:
            self._tell("task-spooler", "Debian: task-spooler")
        return None if program is None else [program]

    def submitit(self) -> Path | None:
        """The interpreter of an environment that has it."""
        if not self._fetch:
            self._tell("submitit", "PyPI: submitit")
            return None
        python = self._folder / "submitit" / "bin" / "python"
        make = [sys.executable, "-m", "venv", str(self._folder / "submitit")]
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "submitit"]
        if _quietly(make, self._folder) and _quietly(install, self._folder):
            return python
        self._tell("submitit", "PyPI: submitit")
        return None

    def _debian(self, package: str, path: str) -> str | None:
        if not self._fetch:
            return None
        commands = (["apt-get", "download", package], ["sh", "-c", f"dpkg -x {package}_*.deb ."])
        if all(_quietly(command, self._folder) for command in commands):
            return str(self._folder / path)
        return None

    def _tell(self, name: str, where: str) -> None:
        why = "could not be fetched" if self._fetch else "not installed, and --fetch was not given"
        print(f"{name} is left out: {why} ({where})", flush=True)


def _quietly(command: list[str], folder: Path) -> bool:
    try:
        return (
            subprocess.run(command, cwd=folder, capture_output=True, timeout=_DOWNLOAD_S, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False

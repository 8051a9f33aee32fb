"""A runner of a command cell in a forked child, as a warm server forks it, without the server.

cell = CommandCell(tmp_path, [sys.executable, "-c", "print(1)"])
assert cell.ended().outcome == "completed"
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overnight import procfs
from overnight.cells import command, idle_loop
from overnight.cells.command_ending import Ending
from overnight.cells.command_tree import descendants, in_cgroup
from overnight.warm import child

DEADLINE_S = 30.0
PYTHON = (sys.executable, "-S", "-E", "-c")


Run = Callable[..., "CommandCell"]


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs a Python program, whose braces are no placeholders."""
    return [*PYTHON, program.replace("{", "{{").replace("}", "}}"), *arguments]


@contextmanager
def runs(home: Path) -> Iterator[Run]:
    """`run(command, ...)` makes attempts at a cell in `home`; nobody of them is left afterwards."""
    cells: list[CommandCell] = []

    def run(command: list[str] | str, **how: Any) -> CommandCell:
        cells.append(CommandCell(home, command, **how))
        return cells[-1]

    try:
        yield run
    finally:
        for cell in cells:
            cell.end()


def specification(command: list[str] | str, **fields: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "kind": "command",
        "command": command,
        "shell": isinstance(command, str),
        "env": {},
        "cwd": "scratch",
        "keep": [],
        "threads": 1,
        "key": "a1",
        "coords": {"a": 1},
        "seed": 7,
    } | fields


class CommandCell:
    """One attempt. `folder` is the cell's; several attempts may be made in it, one after the other."""

    def __init__(
        self,
        home: Path,
        command: list[str] | str,
        *,
        policy: dict[str, Any] | None = None,
        token: str = "0123abcd:1",
        number: int = 1,
        cap_bytes: int | None = None,
        cgroup: str | None = None,
        dispatcher_pid: int | None = None,
        **spec: Any,
    ) -> None:
        self.folder = home / "results" / "g" / "a1"
        self.spec = specification(command, **spec)
        self.cgroup = cgroup
        self._reader, writer = os.pipe()
        arguments = {
            "policy": {"grace_s": 10.0, "cap": "auto"} | (policy or {}),
            "token": token,
            "number": number,
            "cap_bytes": cap_bytes,
            "cgroup": cgroup,
            "dispatcher_pid": os.getpid() if dispatcher_pid is None else dispatcher_pid,
            "secrets_file": home / "etc" / "secrets.env",
        }
        parent = os.getpid()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_runner(parent, writer, arguments)
        os.close(writer)
        self._ending: Ending | None = None
        self._reaped = False

    def _be_the_runner(self, parent: int, writer: int, arguments: dict[str, Any]) -> None:
        try:
            os.close(self._reader)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            procfs.die_with_parent(parent)
            os.setpgid(0, 0)
            Path("/proc/self/oom_score_adj").write_text(str(child.OOM_SCORE_ADJ))
            if self.cgroup is not None:
                (Path(self.cgroup) / "cgroup.procs").write_text(str(os.getpid()))
            try:
                ending = command.run(self.spec, self.folder, report=lambda *_a, **_k: None, **arguments)
            except Exception as error:  # noqa: BLE001 - as the warm server's child does
                traceback.print_exc()
                ending = Ending(*idle_loop.explain(error))
            os.write(writer, json.dumps(asdict(ending)).encode())
        finally:
            os._exit(0)

    def ended(self, deadline_s: float = DEADLINE_S) -> Ending:
        """How it ended. Fails when it does not in time."""
        if self._ending is None:
            data = b""
            until_s = time.monotonic() + deadline_s
            while select.select([self._reader], [], [], max(0.0, until_s - time.monotonic()))[0]:
                piece = os.read(self._reader, 2**16)
                if not piece:
                    break
                data += piece
            else:
                raise AssertionError(f"the runner did not end within {deadline_s:g} s: {self.tree()}")
            assert data, "the runner left without a word"
            self._ending = Ending(**json.loads(data))
            self.reap()
        return self._ending

    def tree(self) -> list[int]:
        """Everybody below the runner, and in its cgroup."""
        below = {member.pid for member in descendants(self.pid)}
        if self.cgroup is not None:
            below |= {member.pid for member in in_cgroup(self.cgroup)} - {self.pid}
        return sorted(below)

    def said(self) -> str:
        try:
            return (self.folder / "stdout.log").read_text(errors="replace")
        except OSError:
            return ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def result(self) -> Any:
        return json.loads((self.folder / "result.json").read_text())

    def reap(self) -> None:
        if not self._reaped:
            os.waitpid(self.pid, 0)
            os.close(self._reader)
            self._reaped = True

    def end(self) -> None:
        """Nobody is left after a test, however it went."""
        left = self.tree()
        for pid in (*left, *(() if self._reaped else (self.pid,))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.reap()

"""`FaultFs`: mounts one, tells it which calls to fail, asks it what the disk would hold. The server is its child."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.fault_fs import mounting
from helpers.fault_fs.rules import CHANGES, UNSEEN, Call

_ANSWER_S = 60.0
_END_S = 10.0


class FaultFs:
    """One mounted file system. `point` is where, `backing` the folder that holds what is in it."""

    def __init__(self, backing: Path, point: Path, server: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.backing, self.point = backing, point
        self._server, self._control = server, control
        self._answers = control.makefile("rb")
        self._one = threading.Lock()

    @classmethod
    @contextmanager
    def mounted(cls, backing: Path, point: Path, *, strict: bool = False) -> Iterator[FaultFs]:
        """Mount `backing` at `point`; both are made where they are missing. Nothing of it is left afterwards.

        strict: names are durable by an fsync of their folder alone (see durability.py)."""
        mounting.unmount(point)  # of a run that was ended together with its server
        for folder in (backing, point):
            folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        ours.settimeout(_ANSWER_S)
        arguments = [str(backing), str(point), str(theirs.fileno()), *(("strict",) if strict else ())]
        server = subprocess.Popen(
            [sys.executable, "-m", "helpers.fault_fs", *arguments],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # what kills the tests and all their group must leave it to unmount
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        try:
            fs = cls(backing, point, server, ours)
            fs._answer()  # it is mounted
            yield fs
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            ours.close()
            try:
                server.wait(_END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            mounting.unmount(point)

    # -- faults -----------------------------------------------------------------------------------------------

    def fail(self, nth: int, code: int, kinds: Sequence[str] = CHANGES, glob: str = "*", **more: Any) -> None:
        """From now on, the nth call of these kinds fails with an errno; `more` are further fields of `Rule`."""
        self._ask("rule", does="errno", nth=nth, errno=code, kinds=kinds, glob=glob, **more)

    def shorten(self, nth: int, glob: str = "*", **more: Any) -> None:
        """The nth write writes only half."""
        self._ask("rule", does="short", nth=nth, glob=glob, **more)

    def kill(self, nth: int, when: str, kinds: Sequence[str] = CHANGES, glob: str = "*", **more: Any) -> None:
        """The process that makes the nth call is killed `before` or `after` the call is applied."""
        self._ask("rule", does=f"kill_{when}", nth=nth, kinds=kinds, glob=glob, **more)

    def lift(self) -> int:
        """End all rules; returns how often they were applied."""
        return int(self._ask("lift"))

    def fired(self) -> int:
        return int(self._ask("fired"))

    def calls(self, *, forget: bool = False, unseen: Sequence[str] = UNSEEN) -> list[Call]:
        """Every call that would change the disk, oldest first, but for those that rules pass over."""
        found = [Call(**fields) for fields in self._ask("calls", forget=forget)]
        return [call for call in found if not any(Path(call.path).match(pattern) for pattern in unseen)]

    # -- power ------------------------------------------------------------------------------------------------

    def sure_bytes(self, path: str) -> bytes | None:
        """What the disk is certain to hold of a file, None when that may be nothing at all."""
        found = self._ask("sure", path=path)
        return None if found is None else str(found).encode("latin-1")

    def power_cut(
        self, target: Path, keep: str = "some", *, seed: int = 0, within: str = "", without: Sequence[str] = ()
    ) -> int:
        """Write into the new folder `target` what the disk might hold if the power were cut now; returns the number of
        files. keep: `none` of what is not certain, `all` of it, `some` by the seed. within: only this folder of the
        root. without: globs to leave out."""
        return int(self._ask("image", target=str(target), keep=keep, seed=seed, within=within, without=without))

    def _ask(self, what: str, **fields: Any) -> Any:
        with self._one:
            self._control.sendall(json.dumps({"what": what, **fields}).encode() + b"\n")
            return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self.point}: the server of the file system is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.point}: {answer['error']}")
        return answer["ok"]

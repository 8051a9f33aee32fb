"""The loop of the file system: a request or a command, one after the other."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import select
import signal
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.fault_fs import wire
from helpers.fault_fs.durability import Durability
from helpers.fault_fs.requests import Requests
from helpers.fault_fs.rules import Call, Killed, Rule
from helpers.fault_fs.tree import Tree
from helpers.fault_fs.wire import Op

_SILENT = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.DESTROY)


class Server:
    """Serves `device` until its control connection ends or says so."""

    def __init__(self, device: int, control: socket.socket, backing: Path, *, strict: bool) -> None:
        self._device, self._control = device, control
        self.tree = Tree(backing)
        self.durability = Durability(self.tree, strict=strict)
        self.calls: list[Call] = []
        self.rules: list[Rule] = []
        self._requests = Requests(self.tree, self.durability, self.begin)
        self._buffer = bytearray(wire.BUFFER_BYTES)
        self._said = b""

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._device in ready and not self._serve():
                return
            if self._control.fileno() in ready and not self._obey():
                return

    def _serve(self) -> bool:
        try:
            size = os.readv(self._device, [self._buffer])
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN)  # ENODEV: it was unmounted
        _, code, unique, node, uid, gid, pid, _, _ = wire.IN_HEADER.unpack_from(self._buffer)
        body = bytes(memoryview(self._buffer)[wire.IN_HEADER.size : size])
        self._requests.caller = (pid, uid, gid)
        failed, answer = 0, b""
        try:
            answer = self._requests.answer(code, node, body)
        except OSError as error:
            failed = error.errno or errno.EIO
        if code not in _SILENT:
            head = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(answer), -failed, unique)
            try:
                os.writev(self._device, [head, answer])
            except OSError as error:
                if error.errno != errno.ENOENT:  # the caller was interrupted and does not wait any more
                    raise
        return True

    def begin(self, call: Call) -> Rule | None:
        """Note a call that would change the disk. Raises OSError when it has to fail; returns what else to do."""
        self.calls.append(call)
        for rule in self.rules:
            if not rule.hits(call):
                continue
            if rule.does == "errno":
                call.failed = rule.errno
                raise OSError(rule.errno, os.strerror(rule.errno))
            if rule.does == "kill_before":
                call.failed = errno.EIO
                _kill(call.pid)
                raise Killed(errno.EIO, "killed")
            return rule
        return None

    # -- commands ---------------------------------------------------------------------------------------------

    def _obey(self) -> bool:
        piece = self._control.recv(2**20)
        if not piece:
            return False
        self._said += piece
        while b"\n" in self._said:
            line, self._said = self._said.split(b"\n", 1)
            asked = json.loads(line)
            try:
                answer: dict[str, Any] = {"ok": self._do(**asked)}
            except Exception as error:  # noqa: BLE001 - whoever asked has to know
                answer = {"error": f"{type(error).__name__}: {error}"}
            self._control.sendall(json.dumps(answer).encode() + b"\n")
        return True

    def _do(self, what: str, **fields: Any) -> Any:
        if what == "rule":
            self.rules.append(Rule.of(fields))
        elif what == "lift":
            fired, self.rules = sum(rule.fired for rule in self.rules), []
            return fired
        elif what == "fired":
            return sum(rule.fired for rule in self.rules)
        elif what == "calls":
            found = [asdict(call) for call in self.calls]
            if fields["forget"]:
                self.calls.clear()
            return found
        elif what == "sure":
            found_bytes = self.durability.sure_bytes(fields["path"])
            return None if found_bytes is None else found_bytes.decode("latin-1")
        elif what == "image":
            without, within = fields["without"], fields["within"]
            return self.durability.image(
                Path(fields["target"]),
                fields["keep"],
                fields["seed"],
                lambda path: (
                    (within and path.split("/")[0] != within)
                    or any(fnmatch.fnmatchcase(path, pattern) for pattern in without)
                ),
            )
        else:
            raise ValueError(f"unknown command {what!r}")
        return None


def _kill(pid: int) -> None:
    if pid > 1:
        os.kill(pid, signal.SIGKILL)

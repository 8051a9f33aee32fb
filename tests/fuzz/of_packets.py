"""Packets between dispatcher, warm server and cell, and what a cell says through `send`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz.target import Case, Target, Wrong, expect
from helpers.specs import scripted_spec, warm_of
from overnight.warm import protocol


class Packets(Target):
    """A packet is a message, or it closes the channel."""

    name = "warm packet"
    clear = (protocol.Closed,)
    tokens = (b'"kind":"ended"', b'"kind":"fork"', b'"attempt":', b'"outcome":"completed"', b'"kind":')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._channels = protocol.pair()

    def documents(self) -> Sequence[Any]:
        spec = scripted_spec()
        return [
            {"kind": "load", "warm": warm_of(spec), "store": "/x"},
            {"kind": "fork", "attempt": 3, "spec": spec, "folder": "/x/y", "policy": {"tries": 3}, "cap_bytes": None},
            {
                "kind": "loaded",
                "load_s": 0.2,
                "promise": "exact",
                "shrinks": True,
                "freezes": True,
                "threads": [],
                "bytes": 1,
            },
            {"kind": "memory", "attempt": 3, "bytes": 2**20, "peak_bytes": 2**21, "refault_bytes_per_s": 0},
            {"kind": "ended", "attempt": 3, "outcome": "completed", "turns": 3, "transcript_sha256": "0" * 64},
        ]

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each, ensure_ascii=False).encode() for each in self.documents()]

    def read(self, case: Case) -> str:
        left, right = self._channels
        if not case.data or len(case.data) > 100_000:  # an empty one is the end; a longer one does not fit at once
            return "not sent"
        left._socket.send(case.data)
        message = right.receive(wait=False)
        if message is None:
            raise Wrong("nothing came")
        expect(isinstance(message, dict), "no message")
        expect(isinstance(message["kind"], str), "a message of no kind")
        fields = {str(name): value for name, value in message.items() if name not in ("kind", "self")}
        if left.offer(message["kind"], **fields):
            again = right.receive(wait=False)
            expect(json.dumps(again, sort_keys=True) == json.dumps(message, sort_keys=True), "not what was sent")
        return "a message"

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

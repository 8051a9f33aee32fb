"""Messages between the dispatcher, its warm servers and their children: one JSON object a packet.

The socket is SOCK_SEQPACKET, so a packet is whole or not at all, and a child that inherits the server's end may send
without ever mixing its bytes with the server's.

dispatcher -> server   load {warm, store}                 once, first
                       fork {attempt, spec, folder, accept_conditions, policy, number, token, cgroup, cap_bytes,
                             dispatcher_pid, secrets_file}
                                                          cgroup: the folder of its own memory cgroup, or null;
                                                          secrets_file: where values are, which are never sent
                       go {attempt}                       the registration is on disk: the child may allocate
                       stop {}
server -> dispatcher   loaded {load_s, promise, shrinks, freezes, threads, bytes}
                       refused {error}                    it cannot load; the server leaves
                       forked {attempt, pid, start_ticks, cgroup_error} or fork_failed {attempt, error}
                       memory {attempt, bytes, peak_bytes, refault_bytes_per_s}
                                                          what the cell holds, and what it has to read again (its cap
                                                          thrashes), when that has changed
                       exited {attempt, status, max_rss_bytes, peak_bytes}
                       trimmed {before_bytes, after_bytes}    it was asked to shrink
child -> dispatcher    begun | resumed | replaying | first_prefill | turn | finishing | tail_cut | shrunk {attempt, ...}
                       ended {attempt, outcome, ...}      how the attempt ended, before its process leaves
"""

from __future__ import annotations

import json
import socket
from typing import Any

from overnight import checked

MAX_PACKET_BYTES = 1 << 20
Message = dict[str, Any]


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """One end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, MAX_PACKET_BYTES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message, waiting while the other side is slow. Raises `Closed`."""
        data = _packed(kind, fields)
        try:
            self._socket.send(data)
        except OSError as error:
            raise Closed(str(error)) from None

    def offer(self, kind: str, **fields: Any) -> bool:
        """Send one message if that can be done at once: a figure for a screen is not worth waiting for."""
        data = _packed(kind, fields)
        try:
            self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def receive(self, *, wait: bool = True) -> Message | None:
        """The next message; None when there is none now and `wait` is off. Raises `Closed` at the end."""
        try:
            data = self._socket.recv(MAX_PACKET_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Closed(str(error)) from None
        if not data:
            raise Closed("end of stream")
        try:
            message = checked.json_object(data)
            checked.text(message.get("kind"))
        except ValueError as error:  # cut off: it was larger than a packet may be
            raise Closed(f"a packet that is not whole: {error}") from None
        return message

    def close(self) -> None:
        self._socket.close()


def _packed(kind: str, fields: Message) -> bytes:
    """A file's name that is no UTF-8 is told too: JSON has an escape for that."""
    return json.dumps({"kind": kind, **fields}, ensure_ascii=False).encode(errors="backslashreplace")


def pair() -> tuple[Channel, Channel]:
    """Two connected ends; neither is inherited across an exec unless it is passed on purpose."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(left), Channel(right)

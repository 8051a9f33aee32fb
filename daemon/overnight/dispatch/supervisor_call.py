"""One request to supervisord over its unix socket: a preformatted POST with a deadline.

`xmlrpc.client` would bring http, ssl and email into the dispatcher, and its transport has no deadline for the whole.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

_BODY = (
    "<?xml version='1.0'?><methodCall><methodName>supervisor.signalProcess</methodName><params>"
    "<param><value><string>{name}</string></value></param><param><value><string>{number}</string></value></param>"
    "</params></methodCall>"
)
_ANSWER_BYTES = 1 << 16


def signal_process(path: Path, name: str, number: str, *, timeout_s: float) -> bool:
    """Have supervisord send a program of its own a signal, by name (`TERM`). True when it says that it did.

    Never takes longer than `timeout_s`, and never raises: whoever asks has another way if this one fails."""
    deadline = time.monotonic() + timeout_s
    body = _BODY.format(name=name, number=number)
    request = f"POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
            _left(line, deadline)
            line.connect(str(path))
            line.sendall(request)
            while len(answer) < _ANSWER_BYTES and b"</methodResponse>" not in answer:
                _left(line, deadline)
                if not (piece := line.recv(4096)):
                    break
                answer += piece
    except OSError:
        return False
    return b"<boolean>1</boolean>" in answer and b"<fault>" not in answer


def _left(line: socket.socket, deadline: float) -> None:
    """Let the next call take what is left of the time. Raises TimeoutError when nothing is."""
    if (left_s := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    line.settimeout(left_s)

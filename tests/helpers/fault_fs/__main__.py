"""`python -m helpers.fault_fs BACKING POINT CONTROL_FD [strict]`: serve until the other end of CONTROL_FD is closed."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from helpers.fault_fs import mounting
from helpers.fault_fs.server import Server


def main() -> int:
    backing, point = Path(sys.argv[1]), Path(sys.argv[2])
    control = socket.socket(fileno=int(sys.argv[3]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whatever ends the tests closes the connection; then we unmount
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)
    try:
        device = mounting.mount(point)
    except OSError as error:
        control.sendall(json.dumps({"error": f"cannot be mounted: {error.strerror}"}).encode() + b"\n")
        return 1
    try:
        server = Server(device, control, backing, strict="strict" in sys.argv[4:])
        control.sendall(b'{"ok": true}\n')
        server.run()
    finally:
        os.close(device)  # whoever waits for us gets ECONNABORTED now, and not never
        mounting.unmount(point)
    return 0


if __name__ == "__main__":
    sys.exit(main())

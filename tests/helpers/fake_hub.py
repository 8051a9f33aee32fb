"""A hub of models on the loopback: the few requests that huggingface_hub makes for one public repository."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serving(folder: Path, repo: str) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of `folder` as the repository `repo`. Yields (endpoint, names of the files fetched)."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/{REVISION}"):
                self._send(json.dumps(_info(folder, repo)).encode(), {"Content-Type": "application/json"}, body=body)
            elif path == f"/api/models/{repo}/tree/{REVISION}":
                self._send(json.dumps(_tree(folder)).encode(), {"Content-Type": "application/json"}, body=body)
            elif path.startswith(f"/{repo}/resolve/{REVISION}/"):
                file = folder / path.rpartition("/")[2]
                if body:
                    fetched.append(file.name)
                data = file.read_bytes()
                tag = hashlib.sha256(data).hexdigest()
                self._send(data, {"ETag": f'"{tag}"', "X-Repo-Commit": REVISION}, body=body)
            else:
                self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, body=body, status=404)

        def _send(self, data: bytes, headers: dict[str, str], *, body: bool, status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _tree(folder: Path) -> list[dict[str, Any]]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [{"type": "file", "oid": "0" * 40, "size": file.stat().st_size, "path": file.name} for file in files]


def _info(folder: Path, repo: str) -> dict[str, Any]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    with (folder / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            total += count
    return {
        "_id": "1",
        "id": repo,
        "modelId": repo,
        "sha": REVISION,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 1,
        "likes": 0,
        "siblings": [{"rfilename": file.name, "size": file.stat().st_size} for file in files],
        "safetensors": {"parameters": {"F32": total}, "total": total},
    }

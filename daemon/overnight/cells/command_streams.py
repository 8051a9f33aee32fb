"""A command's stdout and stderr: read as fast as they come, into files of bounded size, in bounded memory.

The command is never held up by a disk: what cannot be written is dropped and counted.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from overnight.masking import NOTHING, MaskedStream, Masks

LOG_BYTES = 16 * 2**20
LOGS_KEPT = 2
"""A log that would pass LOG_BYTES becomes NAME.1, the one before it NAME.2."""

LAST_LINE_BYTES = 2**20
STDERR_BYTES = 2048
_READ_BYTES = 2**16
"""A pipe holds no more than that at once."""

_DRAIN_S = 2.0
"""Somebody outside the tree may have got hold of the pipe, and write for ever."""


class Log:
    """A file that is appended to, over all attempts. Never raises."""

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int = LOG_BYTES,
        kept: int = LOGS_KEPT,
        write: Callable[[int, memoryview], int] = os.write,
    ) -> None:
        """write: os.write, or what a test puts in its place."""
        self._path, self._limit, self._kept, self._write = path, limit_bytes, kept, write
        self._fd, self._size = -1, 0
        self.lost_bytes = 0
        try:
            self._open()
        except OSError:
            pass  # tried again with the first bytes

    def append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            if self._size and self._size + len(data) > self._limit:
                self._rotate()
            if self._fd < 0:
                self._open()
            while rest:
                written = self._write(self._fd, rest)
                self._size += written
                rest = rest[written:]
        except OSError:
            self.lost_bytes += len(rest)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n + 1}") for n in range(self._kept))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        self._size = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Tail:
    """The last bytes of a stream: between `limit_bytes` and twice that."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._data = bytearray()
        self._cut = False

    def feed(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]
            self._cut = True

    def last_line(self) -> bytes | None:
        """The last line that is not blank, b"" when there is none, None when it is longer than `limit_bytes`."""
        text = self._data.rstrip()
        start = text.rfind(b"\n") + 1
        line = bytes(text[start:]).lstrip()
        return None if len(line) > self._limit or (self._cut and not start) else line

    def text(self) -> str:
        """At most `limit_bytes` of it."""
        return self._data[-self._limit :].decode(errors="replace").strip()


class Stream:
    """One pipe of the command's, its log and its end. `fd` is -1 once it is closed."""

    def __init__(self, fd: int, log: Log, tail: Tail, masks: Masks = NOTHING) -> None:
        """masks: the secrets whose values neither the log nor the tail shall hold."""
        os.set_blocking(fd, False)
        self.fd, self.log, self.tail = fd, log, tail
        self._masked = MaskedStream(masks) if masks else None

    def take(self) -> bool:
        """Read once; True when there may be more at once. Closes itself at the end of the stream."""
        if self.fd < 0:
            return False
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._put(data if self._masked is None else self._masked.feed(data))
        return True

    def _put(self, data: bytes) -> None:
        if data:
            self.log.append(data)
            self.tail.feed(data)

    def close(self) -> None:
        if self.fd >= 0:
            if self._masked is not None:
                self._put(self._masked.finish())
            os.close(self.fd)
            self.fd = -1


class Streams:
    """Both, and `other`: a descriptor that ends a wait too."""

    def __init__(self, out: Stream, err: Stream, other: int) -> None:
        self.out, self.err = out, err
        self._poll = select.poll()
        self._open = {stream.fd: stream for stream in (out, err)}
        for fd in (other, *self._open):
            self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float | None) -> None:
        """Wait until something can be read, from them or from `other`, and take what is theirs."""
        ready = self._poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000) + 1))
        for fd, _ in ready:
            stream = self._open.get(fd)
            if stream is None:
                continue
            stream.take()
            if stream.fd < 0:
                self._poll.unregister(fd)
                del self._open[fd]

    def finish(self) -> None:
        """Take what is still in the pipes, and close them. Nobody of the tree is left, so nothing is waited for."""
        until_s = time.monotonic() + _DRAIN_S
        for stream in (self.out, self.err):
            while stream.take() and time.monotonic() < until_s:
                pass
            stream.close()
            stream.log.close()

    @property
    def lost_bytes(self) -> int:
        return self.out.log.lost_bytes + self.err.log.lost_bytes

"""The byte-level engine: what disks, editors and attackers do to bytes, from a seeded generator."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

MOST_BYTES = 1 << 20
_TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\x1b[31m",
        b"\r",
        b"\n",
        b"\t",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
    ),
    *(
        b"]",
        b":",
        b",",
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"-0.0",
        b"1e999",
        b"1e-9",
        b"\\ud800",
        b"\\u0000",
        b"../",
    ),
)
_NUMBERS = (
    *(b"0", b"-1", b"1", b"-0.0", b"1e308", b"1e309", b"0.1", b"NaN", b"4294967296", b"9223372036854775807"),
    *(b"18446744073709551615", b"18446744073709551616", b"9" * 40, b"9" * 400, b"9" * 5000, b"null", b'"7"', b"true"),
)
_BYTES = (0x00, 0x01, 0x09, 0x0A, 0x0D, 0x20, 0x22, 0x2F, 0x5C, 0x7F, 0x80, 0xC0, 0xE2, 0xF4, 0xFE, 0xFF)
_DEEP = (b"[", b"{", b'{"a":', b"[[", b"- ", b"(", b"a: {b: ")
_DIGITS = re.compile(rb"-?\d+(?:\.\d+)?")


class Mutator:
    """The same generator state gives the same bytes."""

    def __init__(self, rng: random.Random, tokens: Sequence[bytes] = ()) -> None:
        self._rng, self._tokens = rng, (*_TOKENS, *tokens)

    def mutate(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """One to a few changes; `others`: what it may be spliced with."""
        for _ in range(min(8, 1 + int(self._rng.expovariate(0.8)))):
            data = self._once(data, others)[:MOST_BYTES]
        return data

    def _once(self, data: bytes, others: Sequence[bytes]) -> bytes:
        rng = self._rng
        start, end = self._span(data)
        match rng.randrange(16):
            case 0 | 1:
                return self._flip(data)
            case 2:
                return data[:start] + bytes([rng.choice(_BYTES)]) + data[start + 1 :]
            case 3:
                return data[:start] + data[end:]
            case 4:
                return data[:start] + data[start:end] * rng.choice((2, 2, 3, 5, 17)) + data[end:]
            case 5 | 6:
                return data[:start] + rng.choice(self._tokens) + data[start:]
            case 7:
                token = rng.choice(self._tokens)
                return data[:start] + token + data[start + len(token) :]
            case 8:
                return data[:start]
            case 9:
                other = rng.choice(others)
                return data[:start] + other[rng.randrange(len(other) + 1) :]
            case 10 | 11:
                return self._number(data)
            case 12:
                return self._swap(data)
            case 13:
                # A page that a power cut left: zeros, or what stood there before.
                at, size = start // 512 * 512, rng.choice((16, 64, 512, 4096))
                page = bytes(size) if rng.random() < 0.5 else rng.choice(others)[:size]
                return data[:at] + page + data[at + size :]
            case 14:
                return self._line(data)
            case _:
                if rng.random() < 0.9:
                    return data[:start] + rng.randbytes(rng.randrange(1, 9)) + data[start:]
                return data[:start] + rng.choice(_DEEP) * rng.choice((40, 900, 1200, 30_000)) + data[start:]

    def _span(self, data: bytes) -> tuple[int, int]:
        """A place, and one a little behind it (seldom far behind)."""
        start = self._rng.randrange(len(data) + 1)
        return start, min(len(data), start + int(self._rng.paretovariate(0.8)))

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return b"\0"
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]

    def _number(self, data: bytes) -> bytes:
        """Another number in the place of one that is written in digits."""
        found = list(_DIGITS.finditer(data))
        if not found:
            return data + self._rng.choice(_NUMBERS)
        chosen = self._rng.choice(found)
        return data[: chosen.start()] + self._rng.choice(_NUMBERS) + data[chosen.end() :]

    def _swap(self, data: bytes) -> bytes:
        a, b, c, d = sorted(self._rng.randrange(len(data) + 1) for _ in range(4))
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]

    def _line(self, data: bytes) -> bytes:
        """A line twice, gone, or elsewhere."""
        lines = data.splitlines(keepends=True)
        if len(lines) < 2:
            return data + data
        at = self._rng.randrange(len(lines))
        line = lines.pop(at)
        how = self._rng.randrange(3)
        if how:
            lines[at:at] = [line, line] if how == 1 else []
            if how == 2:
                lines.insert(self._rng.randrange(len(lines) + 1), line)
        return b"".join(lines)

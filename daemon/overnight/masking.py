"""The values of secrets, taken out of what somebody else says: `[secret NAME]` stands in their place.

What is looked for is a value's own bytes and, where they differ, how JSON writes them. Whoever encodes a secret
otherwise (base64, backwards, letter by letter) gets it through: this guards against mishaps, not against a program that
was given the secret and wants to tell it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any


class Masks:
    """The values of one cell's secrets. Without any, everything goes through as it is."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        """secrets: name -> value. Of two names with one value, the first is said."""
        self._labels: dict[bytes, bytes] = {}
        for name, value in secrets.items():
            for written in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
                self._labels.setdefault(os.fsencode(written), f"[secret {name}]".encode())
        # The longest first: one may begin with another.
        self.needles = tuple(sorted(self._labels, key=len, reverse=True))
        self._pattern = re.compile(b"|".join(map(re.escape, self.needles)))

    def __bool__(self) -> bool:
        return bool(self.needles)

    def found(self, data: bytes) -> bool:
        return any(needle in data for needle in self.needles)

    def all(self, data: bytes) -> bytes:
        """Of a whole text."""
        return self._pattern.sub(self._label, data) if self.found(data) else data

    def text(self, text: str) -> str:
        """The same for text, whatever it holds: lone surrogates stay as they are."""
        data = text.encode(errors="surrogatepass")
        return self.all(data).decode(errors="surrogatepass") if self.found(data) else text

    def value(self, value: Any) -> Any:
        """The same for a JSON value: its texts, keys and numbers, however deep (as far as json.loads goes)."""
        if not self.needles:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = json.dumps(value)
            masked = self.text(written)
            return value if masked == written else masked
        return value

    def _label(self, match: re.Match[bytes]) -> bytes:
        return self._labels[match.group()]

    def next(self, data: bytes, start: int) -> tuple[int, bytes, int] | None:
        """The first value in data[start:], the longest where several begin: (where, its label, its end)."""
        match = self._pattern.search(data, start)
        return None if match is None else (match.start(), self._label(match), match.end())

    def begun(self, data: bytes, start: int) -> int:
        """Where in data[start:] a value may have begun whose rest is yet to come; len(data) when nowhere."""
        end, at = len(data), len(data)
        for needle in self.needles:
            look = max(start, end - len(needle) + 1)
            while (look := data.find(needle[:1], look, at)) >= 0:
                if needle.startswith(data[look:]):
                    at = look
                    break
                look += 1
        return at


NOTHING = Masks({})


class MaskedStream:
    """One stream, in pieces of any size, however values are cut by them. Holds back at most one byte less than the
    longest value, and nothing unless what it ends with may be the beginning of one: no line ever waits."""

    def __init__(self, masks: Masks) -> None:
        self._masks, self._held = masks, b""
        self.masked = 0

    def feed(self, data: bytes) -> bytes:
        """What can be said by now."""
        masks = self._masks
        if self._held:
            data = self._held + data
        parts: list[bytes] = []
        start = 0
        # One pass in C tells for nearly every piece that there is nothing in it.
        looks = masks.found(data)
        begun = masks.begun(data, 0)
        while looks and (found := masks.next(data, start)) is not None and found[0] < begun:
            at, label, end = found
            parts += (data[start:at], label)
            start = end
            self.masked += 1
            if start > begun:
                begun = masks.begun(data, start)
        self._held = data[begun:]
        if not parts:
            return data[:begun] if begun < len(data) else data
        parts.append(data[start:begun])
        return b"".join(parts)

    def finish(self) -> bytes:
        """The rest."""
        rest, self._held = self._held, b""
        if found := self._masks.found(rest):
            self.masked += 1
        return self._masks.all(rest) if found else rest

"""What a terminal is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.cli import status, text


@given(st.text())
def test_nothing_that_a_terminal_obeys_gets_through(words: str) -> None:
    shown = text.harmless(words)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert "\x1b" not in shown
    assert "\x7f" not in shown
    assert not any(0x80 <= ord(c) < 0xA0 for c in shown)


def test_escapes_are_shown_not_obeyed() -> None:
    assert text.harmless("\x1b[2Jhé\u202e") == "\\x1b[2Jhé\\u202e"
    assert text.harmless("a\nb", newlines=False) == "a\\x0ab"


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "-"), (0.04, "0.0 s"), (59, "59 s"), (61, "1 m 01 s"), (26400, "7 h 20 m")]
)
def test_duration(seconds: float | None, words: str) -> None:
    assert text.duration(seconds) == words


def test_table_aligns_numbers_to_the_right() -> None:
    assert text.table(("cell", "turns"), [("a", 5), ("bb", 10)]) == "cell  turns\na         5\nbb       10"


@pytest.mark.parametrize(
    ("frozen", "slope", "exhaustion", "words"),
    [
        (0, None, None, ""),
        (0, 5000, None, ""),  # an idle machine's noise
        (0, -(5 << 20), None, ""),
        (0, 5 << 20, None, "falling by 5.0 MiB/s"),
        (1, 5 << 20, 12.34, "1 process frozen, falling by 5.0 MiB/s, full in 12 s"),
        (1024, 1023 << 30, 86400 * 40.0, "1024 processes frozen, falling by 1023.0 GiB/s, full in 960 h 00 m"),
    ],
)
def test_what_status_says_of_the_trend(frozen: int, slope: int | None, exhaustion: float | None, words: str) -> None:
    said = status._trend({"frozen": frozen, "slope_bytes_per_s": slope, "exhaustion_s": exhaustion})
    assert said == words
    assert len(said) <= 70

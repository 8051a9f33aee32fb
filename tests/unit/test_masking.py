"""Values of secrets in what others say: masked however they are cut, within bounds, and nothing else touched."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.masking import NOTHING, MaskedStream, Masks

KEY = "sk-proj-0123456789"
MASKS = Masks({"KEY": KEY})

# Of few letters, so that values repeat, overlap themselves and each other, and begin with one another.
letters = st.text("ab", min_size=8, max_size=14)
said = st.lists(st.one_of(letters, st.text("abc\n", max_size=6)), max_size=12).map("".join)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(letters, min_size=1, max_size=4), said, st.lists(st.integers(0, 200), max_size=40))
def test_pieces_give_what_the_whole_gives(values: list[str], text: str, cuts: list[int]) -> None:
    secrets = {f"S{n}": value for n, value in enumerate(values)}
    masks = Masks(secrets)
    # Half the texts hold one for sure.
    data = (text + values[0] + text if len(text) % 2 else text).encode()
    stream, shown, fed = MaskedStream(masks), b"", b""
    for piece in cut(data, cuts):
        shown += stream.feed(piece)
        fed += piece
        held = len(stream._held)
        assert held < max(map(len, values)), "no more than the longest value, less one byte"
        assert held == 0 or not fed.endswith(b"\n"), "no line ever waits"
        assert not masks.found(shown)
    shown += stream.finish()
    assert shown == masks.all(data)
    assert not any(value.encode() in shown for value in values)
    assert (stream.masked > 0) == masks.found(data)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_all_else_goes_through_byte_for_byte(data: bytes, cuts: list[int]) -> None:
    for masks in (MASKS, NOTHING):
        stream = MaskedStream(masks)
        assert b"".join([*map(stream.feed, cut(data, cuts)), stream.finish()]) == data


def test_the_longest_of_several_is_named() -> None:
    masks = Masks({"SHORT": "abcdefgh", "LONG": "abcdefghij"})
    assert masks.all(b"abcdefghij abcdefgh") == b"[secret LONG] [secret SHORT]"


@pytest.mark.parametrize("value", ['with "quotes" and \\ in it', "ünïcödé-0123", "tab\tinside-0123"])
def test_as_json_writes_it_too(value: str) -> None:
    masks = Masks({"S": value})
    for ascii_only in (True, False):
        written = json.dumps({"said": value}, ensure_ascii=ascii_only).encode()
        assert json.loads(masks.all(written)) == {"said": "[secret S]"}


def test_values_of_json_however_deep() -> None:
    masks = Masks({"KEY": KEY, "PIN": "12345678"})
    value = {"a": [1, {KEY: f"so {KEY}!"}], "pin": 12345678, "pins": 1234567890.5, "yes": True, "no": None, "f": 0.5}
    assert masks.value(value) == {
        "a": [1, {"[secret KEY]": "so [secret KEY]!"}],
        "pin": "[secret PIN]",
        "pins": "[secret PIN]90.5",
        "yes": True,
        "no": None,
        "f": 0.5,
    }
    assert NOTHING.value(value) is value


def test_text_that_is_none_stays_as_it_is() -> None:
    assert MASKS.text("\ud800 lone") == "\ud800 lone"
    assert MASKS.text(f"\ud800 {KEY}") == "\ud800 [secret KEY]"
    assert Masks({"B": "bytes-\udcff-0123"}).all(b"bytes-\xff-0123") == b"[secret B]"


def test_what_may_be_a_beginning_is_held_back_and_comes_at_the_end() -> None:
    stream = MaskedStream(MASKS)
    assert stream.feed(b"password: sk-pro") == b"password: "
    assert stream.feed(b"be\n") == b"sk-probe\n"
    assert stream.feed(b"sk-proj-") == b""
    assert stream.finish() == b"sk-proj-"
    assert (stream.finish(), stream.masked) == (b"", 0)

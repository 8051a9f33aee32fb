"""How specifications are stored, named and compared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.queue_cells import template
from overnight.durable import canonical
from overnight.queue import specs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1, allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_stored_names_the_warm_server_by_what_it_loads_only() -> None:
    one = specs.stored(template())
    other = specs.stored(template(system="Another prompt.", threads=2))
    assert one.warm_key == other.warm_key
    assert one.hash != other.hash
    assert (one.threads, other.threads) == (1, 2)
    assert one.warm_key != specs.stored(template("360m")).warm_key
    assert len(one.warm_key) == 16


def test_warm_specification() -> None:
    assert specs.warm_specification(template()) == {
        "engine": "scripted",
        "source": "135m",
        "dtype": "float32",
        "device": "cpu",
        "options": {},
    }


def test_a_cell_without_a_model_needs_no_warm_server() -> None:
    without = specs.stored({"kind": "command", "command": ["true"]})
    assert (without.warm_key, without.warm_json, without.threads) == ("", "{}", 1)


def test_the_order_of_keys_does_not_matter() -> None:
    assert specs.stored(template()) == specs.stored(dict(reversed(template().items())))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a 1 -> 2"),
        ({"s": {"t": 0.8}}, {"s": {"t": 0.5}}, "s.t 0.8 -> 0.5"),
        ({"a": 1}, {}, "a 1 -> (absent)"),
        ({}, {"a": None}, "a (absent) -> null"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a[1] 2 -> 3"),
        ({"a": [1, 2]}, {"a": [1]}, "a [1,2] -> [1]"),
        ({"a": 1}, {"a": True}, "a 1 -> true"),
        ({"a": 1}, {"a": 1.0}, "a 1 -> 1.0"),
        ({"a": {"b": 1}}, {"a": "x"}, 'a {"b":1} -> "x"'),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, "a 1 -> 2"),
    ],
)
def test_first_difference(old: Any, new: Any, said: str) -> None:
    assert specs.first_difference(old, new) == said


def test_a_long_value_is_shown_around_the_difference() -> None:
    text = "word " * 200
    said = specs.first_difference({"system": text + "old"}, {"system": text + "new"})
    assert "old" in said
    assert "new" in said
    assert len(said) < 200


@given(JSON, JSON)
def test_there_is_a_difference_exactly_when_the_canonical_bytes_differ(old: Any, new: Any) -> None:
    """Wrapped: a difference at the top has the path ''."""
    said = specs.first_difference({"x": old}, {"x": new})
    assert (said == "") == (canonical(old) == canonical(new))
    assert said == "" or said.startswith("x")

"""Claims: where they come from, in which order, and what they learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.dispatch.claims import MOST_SAMPLES, Claim, cap, claim, family, grown, kind

MIB = 2**20
NOTHING: dict[str, Any] = {"raised": None, "hint": None, "predicted": None, "prior": 512 * MIB, "most": 4000 * MIB}


@dataclass(frozen=True)
class Peak:
    peak_bytes: int
    whole: bool = True


def peaks(*mib: int) -> list[Peak]:
    """Newest first; a negative figure is the peak of an attempt that was cut off."""
    return [Peak(abs(each) * MIB, each > 0) for each in mib]


@pytest.mark.parametrize(
    ("own", "like_it", "known", "mib", "source"),
    [
        ([], [], {}, 512, "prior"),
        ([], [], {"predicted": 300}, 300, "predicted"),
        ([], [200, 100], {"predicted": 300}, 220, "family"),
        ([], [200, 100], {"predicted": 300, "hint": 400}, 400, "hint"),
        ([100], [200], {"hint": 400}, 108, "learned"),
        ([400], [], {}, 420, "learned"),
        ([100], [], {"raised": 150}, 150, "raised"),
        ([200], [], {"raised": 150}, 210, "learned"),
        ([], [], {"raised": 700}, 700, "raised"),
        ([], [], {"raised": 300, "hint": 400}, 400, "hint"),
        # Fewer than twenty: the largest. From twenty on an outlier is one.
        ([100] * 18 + [400], [], {}, 420, "learned"),
        ([100] * 19 + [400], [], {}, 108, "learned"),
        ([100] * 18 + [400, 400], [], {}, 420, "learned"),
        ([100] * MOST_SAMPLES + [400] * 9, [], {}, 108, "learned"),
        # Attempts that were cut off tell the least that is needed.
        ([-300], [], {"hint": 200}, 315, "learned"),
        ([-300], [], {"hint": 400}, 400, "hint"),
        ([-300], [], {}, 512, "prior"),
        ([-300, 200], [], {}, 315, "learned"),
        ([-100, 200], [], {}, 210, "learned"),
        ([200, 200, -300], [], {}, 315, "learned"),
        ([200, 200, 200, -300], [], {}, 210, "learned"),  # it was that one cell's own
        ([], [200, -300], {}, 512, "family"),
        ([], [600, -300], {}, 660, "family"),
        ([], [-300], {}, 512, "prior"),
        # Nothing is larger than all that there is.
        ([], [], {"hint": 5000}, 4000, "hint"),
        ([100], [], {"raised": 5000}, 4000, "raised"),
        ([], [], {"most": 100}, 100, "prior"),
        ([], [], {"most": -100}, 0, "prior"),
    ],
)
def test_where_a_claim_comes_from(
    own: list[int], like_it: list[int], known: dict[str, int], mib: int, source: str
) -> None:
    given_bytes = {name: value * MIB for name, value in known.items()}
    found = claim(peaks(*own), peaks(*like_it), **{**NOTHING, **given_bytes})
    assert (found.bytes // MIB, found.source) == (mib, source)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            claim(peaks(400, 300), **NOTHING),
            "420.0 MiB (learned from 2 attempts of its kind, which took up to 400.0 MiB)",
        ),
        (
            claim([], peaks(600), **NOTHING),
            "660.0 MiB (learned from 1 attempt like it, which took up to 600.0 MiB)",
        ),
        (
            claim([], peaks(400), **NOTHING),
            "512.0 MiB (learned from 1 attempt like it, which took up to 400.0 MiB, "
            "but no less than the configured prior)",
        ),
        (
            claim([], **{**NOTHING, "raised": 700 * MIB}),
            "700.0 MiB (raised, since the last attempt ran out of memory)",
        ),
        (
            claim([], **{**NOTHING, "hint": 2**33}),
            "3.9 GiB (the grid says memory: 8.0 GiB; cut down to all that one cell can have)",
        ),
        (
            claim([], **{**NOTHING, "predicted": 20 * MIB}),
            "20.0 MiB (predicted from the model's config: 20.0 MiB)",
        ),
        (claim([], **NOTHING), "512.0 MiB (nothing is known yet: the configured prior)"),
    ],
)
def test_a_claim_explains_itself(found: Claim, words: str) -> None:
    assert found.sentence() == words


@pytest.mark.parametrize(
    ("claimed", "peak", "mib"),
    [(100, 100, 150), (100, 40, 150), (10, 10, 26), (100, 200, 220), (0, 0, 16), (3000, 3000, 4000), (5000, 1, 4000)],
)
def test_growing(claimed: int, peak: int, mib: int) -> None:
    assert grown(claimed * MIB, peak * MIB, 4000 * MIB) == mib * MIB


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2**40))
def test_a_grown_claim_is_larger_until_it_is_the_largest(claimed: int, peak: int, most: int) -> None:
    found = grown(claimed, peak, most)
    assert found == most or found > claimed
    assert found <= most


@settings(deadline=None)
@given(st.lists(st.integers(-4000, 4000).filter(bool), max_size=40), st.integers(1, 4000))
def test_what_most_of_its_kind_took_is_enough(mib: list[int], raised: int) -> None:
    found = claim(peaks(*mib), **{**NOTHING, "raised": raised * MIB, "most": 2**60})
    whole = sorted(each * MIB for each in mib[:MOST_SAMPLES] if each > 0)
    assert found.bytes >= raised * MIB
    assert sum(peak > found.bytes for peak in whole) <= len(whole) // 20


IDLE: dict[str, Any] = {
    "kind": "idle_loop",
    "engine": "transformers",
    "model": {"name": "m", "source": "m", "dtype": "float32", "device": "cpu", "thinking": None, "options": {}},
    "sampling": {"temperature": 1.0},
    "scaffold": {"id": 1, "name": "baseline"},
    "system": "You are alone.",
    "limits": {"max_iterations": 8, "token_limit": 64},
    "threads": 1,
    "template_date": "2025-01-01",
    "key": "baseline_m_run1",
    "coords": {"scaffold": "baseline", "model": "m", "run": 1},
    "seed": 1,
}
COMMAND: dict[str, Any] = {
    "kind": "command",
    "command": ["train", "--lr", "{lr}"],
    "shell": False,
    "env": {},
    "cwd": "/here",
    "keep": [],
    "threads": 1,
    "key": "lr0.1_seed1",
    "coords": {"lr": 0.1, "seed": 1, "run": 1},
    "seed": 1,
}


@pytest.mark.parametrize(
    ("spec", "changes", "same_kind", "same_family"),
    [
        (IDLE, {"seed": 2, "key": "baseline_m_run2", "coords": {"run": 2}}, True, True),
        (IDLE, {"template_date": "2026-01-01", "sampling": {"temperature": 0.5}}, True, True),
        (IDLE, {"model": {**IDLE["model"], "name": "other"}}, True, True),
        (IDLE, {"scaffold": {"id": 2, "name": "values_only"}}, False, True),
        (IDLE, {"model": {**IDLE["model"], "dtype": "bfloat16"}}, False, False),
        (IDLE, {"limits": {"max_iterations": 9, "token_limit": 64}}, False, False),
        (IDLE, {"threads": 2}, False, False),
        (IDLE, {"engine": "scripted"}, False, False),
        (COMMAND, {"seed": 2, "key": "k", "coords": {"lr": 0.1, "seed": 2, "run": 3}}, True, True),
        (COMMAND, {"keep": ["*.pt"]}, True, True),
        (COMMAND, {"coords": {"lr": 0.2, "seed": 1, "run": 1}}, False, True),
        (COMMAND, {"command": ["train"]}, False, False),
        (COMMAND, {"env": {"A": "1"}}, False, False),
        (COMMAND, {"cwd": "/there"}, False, False),
    ],
)
def test_kinds_and_families(spec: dict[str, Any], changes: dict[str, Any], same_kind: bool, same_family: bool) -> None:
    other = {**spec, **changes}
    assert (kind(other) == kind(spec), family(other) == family(spec)) == (same_kind, same_family)
    for name in (kind(spec), family(spec)):
        assert len(name) == 16
        int(name, 16)


@pytest.mark.parametrize(
    ("claimed", "most", "expected"),
    [(100, 4000, 164), (400, 4000, 600), (400, 500, 500), (400, 400, 400), (400, 100, 400), (0, 4000, 64)],
)
def test_a_cap_leaves_time_to_extend_the_claim(claimed: int, most: int, expected: int) -> None:
    assert cap(claimed * MIB, most * MIB) == expected * MIB

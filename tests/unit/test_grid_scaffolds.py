"""The built-in scaffolds: their numbers, how they are built, and that nobody changes a letter by accident."""

from __future__ import annotations

import hashlib

import pytest

from overnight.grid.scaffolds import BUILT_IN, BY_ID, duration, system_prompt

NAMES = {
    1: "baseline",
    2: "values_only",
    3: "values_boundaries",
    4: "values_relationships",
    5: "full_identity",
    6: "minimal_identity",
    7: "anti_identity",
    8: "technical_role",
    9: "creative_role",
}

PROMPTS = "39c2944625e91535344207f4c54a27f57a87be6462752526271d98430776c581"


def test_numbers_and_names() -> None:
    assert {scaffold.id: scaffold.name for scaffold in BUILT_IN} == NAMES
    assert list(BY_ID) == list(range(1, 10))


def test_no_letter_changes_by_accident() -> None:
    """A change here is a changed specification of every cell under way: change it on purpose or not at all."""
    prompts = "\0".join(system_prompt(scaffold.text, 10) for scaffold in BUILT_IN)
    assert hashlib.sha256(prompts.encode()).hexdigest() == PROMPTS


def test_scaffolds_differ_by_whole_blocks() -> None:
    values = BY_ID[2].text
    boundaries = BY_ID[3].text.removeprefix(f"{values}\n\n")
    relationships = BY_ID[4].text.removeprefix(f"{values}\n\n")
    assert len({values, boundaries, relationships}) == 3
    assert all(block in BY_ID[5].text for block in (values, boundaries, relationships))
    assert BY_ID[5].text.startswith("Your name is ")


def test_texts_are_printable_lines_without_loose_ends() -> None:
    for scaffold in BUILT_IN:
        assert scaffold.text == scaffold.text.strip()
        assert all(
            line.isprintable() and line == line.rstrip() and "  " not in line for line in scaffold.text.split("\n")
        )
    assert len({scaffold.text for scaffold in BUILT_IN}) == len(BUILT_IN)


def test_the_baseline_is_the_frame_alone_and_every_other_ends_with_it() -> None:
    frame = system_prompt("", 10)
    assert frame.startswith("You have nothing to do for the next 10 hours. ")
    for promised in ("nobody reads", "how much time is left", "all that you will hear back", "however you like"):
        assert promised in frame
    for scaffold in BUILT_IN[1:]:
        assert system_prompt(scaffold.text, 10) == f"{scaffold.text}\n\n{frame}"


def test_braces_in_a_text_are_left_alone() -> None:
    assert system_prompt("{duration} {0} %s\n", 1).startswith("{duration} {0} %s\n\nYou have nothing")


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (10, "10 hours"),
        (1, "1 hour"),
        (2.5, "2 hours and 30 minutes"),
        (1.0167, "1 hour and 1 minute"),
        (0.5, "30 minutes"),
        (0.999, "1 hour"),
        (0.1, "6 minutes"),
        (10_000, "10000 hours"),
    ],
)
def test_durations(hours: float, said: str) -> None:
    assert duration(hours) == said
